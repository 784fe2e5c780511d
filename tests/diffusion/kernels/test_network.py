"""A whole network with every kernel in its place: what it gives, and what a step launches."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.diffusion import packed
from llm_diffusiongemma.diffusion.kernels import experts, launching, layer, vocabulary
from llm_diffusiongemma.diffusion.kv_cache import KVCache
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.operations import PLAIN_TORCH
from llm_diffusiongemma.diffusion.packed import Formats
from llm_diffusiongemma.diffusion.pipeline import BlockDiffusionPipeline
from llm_diffusiongemma.diffusion.request import Prompt, Request
from llm_diffusiongemma.diffusion.sampler import GeneratorRandomness, SamplerSettings

from ...whole import load_whole
from .. import small_network
from ..operators import Operators
from ..taped import WAITING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_diffusiongemma.diffusion.config import AttentionConfig
    from llm_diffusiongemma.diffusion.pipeline import Block, Draft

MODULES = (experts, layer, vocabulary)
# The real network's asymmetry: on full layers heads of twice the size, one key head for all queries.
SLIDING, FULL = small_network.SLIDING, replace(small_network.FULL, head_dim=16, num_key_value_heads=1)


def give_kernels(network: Network) -> None:
    """Every one that there is."""
    kernels: dict[str, Any] = {}
    for module in MODULES:
        found, refused = module.usable(network.config, network.formats, network.dtype, network.device)
        assert not refused
        kernels |= found
    network.operations = replace(PLAIN_TORCH, **kernels)


def moved(network: Network, device: torch.device) -> Network:
    """The same weights on a device."""
    result = Network(network.config, network.dtype, device, network.formats)
    for (_, target), (_, source) in zip(result.tensors(), network.tensors(), strict=True):
        target.copy_(source)
    return result


def use_layers(layers: Sequence[AttentionConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(small_network.CONFIG, layers=tuple(layers), num_attention_heads=4)
    monkeypatch.setattr(small_network, "CONFIG", config)


# --- what it gives -----------------------------------------------------------------------------------------


@torch.no_grad()
def read_and_denoised(network: Network) -> torch.Tensor:
    """What a step with self-conditioning makes of a canvas behind a prompt, on the CPU."""
    cache = KVCache(network.config, network.dtype, network.device)
    generator = torch.Generator().manual_seed(1)
    prompt, canvas = (
        torch.randint(network.size, (n,), generator=generator).to(network.device)
        for n in (13, network.config.canvas_length)
    )
    soft = torch.randn(len(canvas), network.hidden_size, generator=generator).to(network.device)
    network.encode(network.embed(prompt), cache)
    return network.denoise(canvas, soft, cache).cpu()


@pytest.mark.filterwarnings("ignore:overflow")  # of an exponential, says the interpreter's numpy
@pytest.mark.parametrize("formats", small_network.FORMATS)
def test_it_reads_and_denoises_as_in_plain_torch(
    formats: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_layers((SLIDING, FULL), monkeypatch)
    network = small_network.resident_network(small_network.FORMATS[formats])
    expected = read_and_denoised(network)
    network = moved(network, device)
    give_kernels(network)
    assert (read_and_denoised(network) - expected).norm() <= 1e-4 * expected.norm()


# "What is a canvas?", as the embedded checkpoint's tokenizer and template have it.
QUESTION = [2, 105, 636, 217, 407, 389, 288, 547, 34, 106, 217, 105, 1208, 217]


def reply(network: Network) -> tuple[list[Draft], Block]:
    """A canvas, step by step, and what it became."""
    pipeline = BlockDiffusionPipeline(network, eos_token_ids=[], pad_token_id=None)
    settings = SamplerSettings(2, 0.1, 0.4, 0.8, 0.005, 1)
    request = Request(Prompt(QUESTION), settings, network.config.canvas_length)
    randomness = GeneratorRandomness(torch.Generator().manual_seed(3))
    records: list[Any] = list(pipeline.generate(request, randomness=randomness, drafts=True))
    return records[:-1], records[-1]


def test_a_reply_of_the_embedded_checkpoint_is_the_same_token_for_token(device: torch.device) -> None:
    """Of a short canvas, as it would take the interpreter long to denoise a whole one."""
    network = load_whole(EMBEDDED_CHECKPOINT, device).network
    network.config = replace(network.config, canvas_length=4)
    plain_drafts, plain_block = reply(network)
    give_kernels(network)
    drafts, block = reply(network)
    assert block.tokens == plain_block.tokens
    assert len(drafts) > 1
    for ours, theirs in zip(drafts, plain_drafts, strict=True):
        assert ours.tokens == theirs.tokens
        assert ours.entropies == pytest.approx(theirs.entropies, rel=1e-3, abs=1e-5)


# --- what a step launches ----------------------------------------------------------------------------------


@torch.no_grad()
def launches_of_a_step(
    layers: Sequence[AttentionConfig], formats: Formats, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """The names of kernels and of torch's operators, in bf16 and with self-conditioning, as on a card. No kernel
    runs: where something is read of what they compute, it is read in vain."""
    monkeypatch.setattr(packed, "is_multiplied_fast", lambda dtype: True)
    use_layers(layers, monkeypatch)
    network = small_network.resident_network(formats, torch.bfloat16)
    give_kernels(network)
    cache = KVCache(network.config, network.dtype, network.device)
    canvas = torch.zeros(network.config.canvas_length, dtype=torch.int64)
    soft = torch.zeros(len(canvas), network.hidden_size)
    cache.reserve(len(canvas))
    with Operators() as operators, monkeypatch.context() as patch:
        for name in ("rms_norm", "scaled_dot_product_attention"):  # one kernel each on CUDA
            patch.setattr(F, name, operators.counted_as_one(getattr(F, name)))
        patch.setattr(launching, "launch", lambda kernel, *_, **__: operators.names.append(kernel.__name__))
        network.denoise(canvas, soft, cache)
    return operators.names


# As repositories are packed: in nvfp4 only the experts.
PACKED = {"bf16": packed.PLAIN, "fp8": small_network.FORMATS["fp8"], "nvfp4": Formats(packed.ModelOptNvfp4)}


@pytest.mark.parametrize("formats", PACKED)
@pytest.mark.parametrize("kind", [SLIDING, FULL], ids=["sliding", "full"])
def test_a_step_launches_at_most_16_times_a_layer(
    kind: AttentionConfig, formats: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts included. Each launch takes a card some 2 to 3 µs whatever it does, 30 times a step."""
    few, more = (launches_of_a_step([kind] * n, PACKED[formats], monkeypatch) for n in (1, 2))
    kernels = {"_heads", "_after_attention", "_gelu_gate", "_route", "_sort", "_products", "_finish"}
    assert kernels <= {*few}
    assert len(kernels) <= len(more) - len(few) <= 16


@pytest.mark.parametrize("formats", PACKED)
def test_a_step_waits_for_nothing(formats: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In no format, and no shape depends on data: a step can be captured."""
    names = launches_of_a_step([SLIDING, FULL], PACKED[formats], monkeypatch)
    assert not [name for name in names if name.startswith(WAITING)]
