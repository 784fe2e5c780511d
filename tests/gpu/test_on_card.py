"""The network on a card, against the CPU: skipped where there is none."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
import torch

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.diffusion.experts import Experts
from llm_diffusiongemma.diffusion.kv_cache import KVCache
from llm_diffusiongemma.diffusion.loading import LoadedModel
from llm_diffusiongemma.diffusion.packed import CompressedTensorsNvfp4, Fp8, Matrices, ModelOptNvfp4
from llm_diffusiongemma.diffusion.placement import LayerHome

from ..diffusion.small_network import network_at
from ..whole import load_whole
from .bench import Bench
from .networks import converted, routing_of
from .rightness import answer, logits, question, relative_error
from .speed import Denoiser, captured

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_diffusiongemma.diffusion.placement import ExpertsHome

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CARD = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def reference() -> LoadedModel:
    return load_whole(EMBEDDED_CHECKPOINT)


@pytest.fixture
def bench() -> Bench:
    """With a random network, very small, in bf16. Its experts are products of torch's, not a loop."""
    bench = Bench(CARD, is_tiny=True)
    if not bench.network._layers[0].experts._is_grouped:
        pytest.skip("torch has grouped products for cards from Hopper on")
    return bench


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_the_same_logits(reference: LoadedModel, dtype: torch.dtype, most: float) -> None:
    prompt = question("What is a canvas?")
    found = logits(converted(reference.network, dtype, CARD), prompt)
    assert relative_error(found, logits(reference.network, prompt)) <= most


@pytest.mark.parametrize("text", ["What is a canvas?", "Count from 1 to 300"])
def test_the_same_reply(reference: LoadedModel, text: str) -> None:
    """Token for token, in as many denoising steps. Counting takes two canvases."""
    ours = answer(reference, converted(reference.network, torch.float32, CARD), question(text), seed=1)
    assert ours == answer(reference, reference.network, question(text), seed=1)


@pytest.mark.parametrize("rows", [1, 64, 1024])
def test_grouped_experts_are_those_of_the_loop(bench: Bench, rows: int) -> None:
    layer = bench.network._layers[0]
    x = torch.randn(rows, bench.network.hidden_size, device=CARD).bfloat16()
    routing = routing_of(bench.network, 0, x)
    grouped = layer.experts(x, *routing)
    with patch.object(layer.experts, "_is_grouped", False):
        loop = layer.experts(x, *routing)
    assert relative_error(grouped.double(), loop.double()) < 1e-2


def packed_experts(format_: type[Matrices], dtype: torch.dtype, device: torch.device) -> Experts:
    """8 of width 96 over 256, with any bytes but for NaN and scales near 1 / 16."""
    generator = torch.Generator().manual_seed(0)
    experts = Experts(8, 256, 96, dtype, device, format_)
    for matrices in (experts.gate_up, experts.down):
        codes, scale, *whole = matrices.held()
        largest = 256 if whole else 127
        codes.copy_(torch.randint(0, largest, codes.shape, generator=generator))
        scale.copy_(torch.full(scale.shape, 0x18 if whole else 2.0**-9))
        for each in whole:
            each.fill_(1.5 if format_ is CompressedTensorsNvfp4 else 0.7)
    return experts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("format_", [Fp8, ModelOptNvfp4, CompressedTensorsNvfp4])
def test_packed_numbers_are_those_of_the_cpu(format_: type[Matrices], dtype: torch.dtype) -> None:
    """Bit for bit."""
    numbers = []
    for device in (CARD, torch.device("cpu")):
        matrices = packed_experts(format_, dtype, device).gate_up
        out = torch.empty(3, 100, matrices.inputs, dtype=dtype, device=device)
        numbers.append(matrices.dequantise(slice(2, 5), slice(50, 150), out).cpu())
    assert torch.equal(*numbers)


@pytest.mark.parametrize("is_grouped", [False, True])
@pytest.mark.parametrize("format_", [Fp8, ModelOptNvfp4, CompressedTensorsNvfp4])
def test_packed_experts_are_those_of_the_cpu(format_: type[Matrices], is_grouped: bool) -> None:
    card = packed_experts(format_, torch.bfloat16, CARD)
    if is_grouped and not card._is_grouped:
        pytest.skip("torch has grouped products for cards from Hopper on")
    x, chosen = torch.randn(64, 256).bfloat16(), torch.stack([torch.randperm(8)[:2] for _ in range(64)])
    weights = torch.rand(64, 2)
    expected = packed_experts(format_, torch.float32, torch.device("cpu"))(x.float(), chosen, weights)
    with patch.object(card, "_is_grouped", is_grouped):
        found = card(x.to(CARD), chosen.to(CARD), weights.to(CARD))
    assert relative_error(found.double().cpu(), expected.double()) < 2e-2


def test_a_captured_step_gives_the_same_bits(bench: Bench) -> None:
    """And stays right for another canvas at the same address: nothing of the first one was taken in."""
    forward = Denoiser(bench, context=300)
    replay, result = captured(bench, forward)
    for _ in range(2):
        forward.canvas.copy_(bench.tokens(len(forward.canvas)))
        replay()
        assert torch.equal(result, forward())


@pytest.mark.parametrize("experts", [("host",), ("files",), ("device", "host", "files")], ids=str)
def test_streamed_experts_give_the_same_bits(bench: Bench, experts: Sequence[ExpertsHome]) -> None:
    """Twice: the second time the buffers hold what the first one left in them."""
    each_layer = zip(bench.network.config.layers, itertools.cycle(experts), strict=False)
    network, _ = network_at([LayerHome(str(CARD), home) for _, home in each_layer], bench.network)
    prompt = bench.tokens(300).tolist()
    expected = logits(bench.network, prompt)
    for _ in range(2):
        assert torch.equal(logits(network, prompt), expected)


def test_streamed_experts_are_pinned_and_the_host_waits_for_nothing(bench: Bench) -> None:
    layers = bench.network.config.layers
    network, _ = network_at([LayerHome(str(CARD), "host")] * len(layers), bench.network)
    assert all(tensor.is_pinned() for name, tensor in network.tensors() if ".experts." in name)
    cache = KVCache(network.config, network.dtype, network.layer_devices)
    network.encode(network.embed(bench.tokens(300)), cache)
    canvas = bench.tokens(network.config.canvas_length)
    torch.cuda.set_sync_debug_mode("error")
    try:
        network.denoise(canvas, None, cache)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_cards_give_the_same_logits(bench: Bench) -> None:
    layers = len(bench.network.config.layers)
    homes = [LayerHome(f"cuda:{int(i >= layers // 2)}", "device") for i in range(layers)]
    network, _ = network_at(homes, bench.network)
    prompt = bench.tokens(300).tolist()
    assert relative_error(logits(network, prompt), logits(bench.network, prompt)) <= 1e-2
