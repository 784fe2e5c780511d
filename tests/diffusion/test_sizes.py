"""What a network is counted to take, against the real one's known sizes and the measured peak of a reply."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pytest
import torch

from llm_diffusiongemma.diffusion.config import DIFFUSIONGEMMA_26B_A4B, AttentionConfig
from llm_diffusiongemma.diffusion.experts import Experts
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.packed import PLAIN, Formats, Fp8, Matrices, ModelOptNvfp4, Plain
from llm_diffusiongemma.diffusion.pipeline import MAX_PREFILL_TOKENS, BlockDiffusionPipeline
from llm_diffusiongemma.diffusion.request import Prompt, Request
from llm_diffusiongemma.diffusion.sampler import GeneratorRandomness, SamplerSettings
from llm_diffusiongemma.diffusion.sizes import Sizes, sizes_of

from ..benchmarks.measure import peak_bytes
from ..gpu.networks import network_config

CPU = torch.device("cpu")
REAL = DIFFUSIONGEMMA_26B_A4B
SLIDING = AttentionConfig(64, 4, 1e4, 1.0, 1024)
FULL = AttentionConfig(128, 2, 1e6, 0.25, None)
SMALL = replace(
    REAL,
    vocab_size=4096,
    hidden_size=1024,
    intermediate_size=256,
    num_attention_heads=8,
    num_experts=16,
    moe_intermediate_size=128,
    layers=(SLIDING, FULL),
)


def cache_bytes(sizes: Sizes, context: int) -> int:
    layers = range(sizes.num_layers)
    return sum(sizes.layer_bytes(i, context) - sizes.dense_bytes[sizes.config.layers[i]] for i in layers)


def test_the_real_network_is_the_one_that_is_measured_on_cards() -> None:
    config = network_config(is_tiny=False).network()
    assert config == REAL


@pytest.mark.parametrize(
    ("formats", "gigabytes"),
    # Sizes of the repositories, less a vision tower of 1.146 GB.
    [(PLAIN, 50.502), (Formats(Fp8, Fp8, Fp8), 26.05), (Formats(ModelOptNvfp4), 17.672)],
)
def test_weights_of_the_real_network(formats: Formats, gigabytes: float) -> None:
    assert sizes_of(REAL, formats, torch.bfloat16, 0).weight_bytes / 1e9 == pytest.approx(gigabytes, rel=2e-3)


@pytest.mark.parametrize("formats", [PLAIN, Formats(Fp8, Fp8, Fp8), Formats(ModelOptNvfp4)])
def test_what_a_small_network_holds(formats: Formats) -> None:
    """Counted of one layer of each kind; here of each tensor."""
    config = replace(SMALL, layers=(SLIDING, SLIDING, FULL))
    sizes = sizes_of(config, formats, torch.float32, 0)
    network = Network(config, torch.float32, CPU, formats)
    assert sizes.weight_bytes == sum(tensor.nbytes for _, tensor in network.tensors())


@pytest.mark.parametrize("kind", [Plain, Fp8, ModelOptNvfp4])
def test_pinned_memory_is_rounded_up(kind: type[Matrices]) -> None:
    experts = Experts(128, 2816, 704, torch.bfloat16, torch.device("meta"), kind)
    pinned = sizes_of(REAL, Formats(kind), torch.bfloat16, 0).pinned_experts_bytes
    parts = [tensor.nbytes for tensor in experts.held()]
    assert sum(parts) <= pinned < 2 * sum(parts)
    assert pinned.bit_count() <= len(parts)


def test_the_cache_of_the_real_network() -> None:
    """20 KiB a token in the full layers; the sliding ones' need has an end."""
    sizes = sizes_of(REAL, PLAIN, torch.bfloat16, 0)
    longer = cache_bytes(sizes, 3 << 16) - cache_bytes(sizes, 1 << 16)
    assert longer == 20 * 1024 * (2 << 16)
    assert cache_bytes(sizes, 1 << 17) / 1e9 == pytest.approx(2.7 + 0.63, abs=0.05)


@pytest.fixture(scope="module")
def fresh() -> Iterator[Executor]:
    """A process of its own: what other tests have left in the heap is used again, more or less of it."""
    with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (1,)) as executor:
        yield executor


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak that Linux accounts for")
@pytest.mark.parametrize("formats", [PLAIN, Formats(ModelOptNvfp4, Plain, ModelOptNvfp4)])
def test_what_a_reply_takes(formats: Formats, fresh: Executor) -> None:
    """Beside the weights: prefill, cache, mark and a denoising step."""
    length = 2 * MAX_PREFILL_TOKENS + 10  # whole chunks, behind which the cache grows
    measured = fresh.submit(peak_of_a_reply, formats, length).result()
    sizes, context = sizes_of(SMALL, formats, torch.float32, 0), length + SMALL.canvas_length
    counted = cache_bytes(sizes, context) + sizes.working_bytes("cpu", context) + sizes.sampler_bytes("cpu")
    assert 0.75 * counted < measured < 1.05 * counted


def peak_of_a_reply(formats: Formats, length: int) -> int:
    """Bytes beside the weights, with a prompt of so many tokens."""
    network = Network(SMALL, torch.float32, CPU, formats)
    generator = torch.Generator().manual_seed(0)
    for _, tensor in network.tensors():
        if tensor.is_floating_point() and tensor.itemsize > 1:
            tensor.normal_(0, 0.03, generator=generator)
        else:
            tensor.view(torch.uint8).random_(0, 100, generator=generator)
    pipeline = BlockDiffusionPipeline(network, eos_token_ids=[], pad_token_id=None)

    def reply(length: int) -> None:
        prompt = Prompt([i % 4096 for i in range(length)], stable_length=length - 10)
        request = Request(prompt, SamplerSettings(1, 0.1, 0.4, 0.8, 0.005, 1), 256)
        list(pipeline.generate(request, randomness=GeneratorRandomness(torch.Generator().manual_seed(0))))
        pipeline.prefix_cache.clear()

    reply(20)  # tables and scratch
    return peak_bytes(lambda: reply(length), CPU)
