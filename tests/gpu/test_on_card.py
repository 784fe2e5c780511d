"""The network on a card, against the CPU: skipped where there is none."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
import torch

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT, GRAPH_VARIABLE
from llm_diffusiongemma.diffusion.config import DIFFUSIONGEMMA_26B_A4B
from llm_diffusiongemma.diffusion.experts import Experts
from llm_diffusiongemma.diffusion.graphs import USED
from llm_diffusiongemma.diffusion.kv_cache import KVCache
from llm_diffusiongemma.diffusion.loading import LoadedModel
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.operations import Operations
from llm_diffusiongemma.diffusion.packed import (
    CompressedTensorsNvfp4,
    Formats,
    Fp8,
    Matrices,
    ModelOptNvfp4,
    Plain,
)
from llm_diffusiongemma.diffusion.pipeline import Block, BlockDiffusionPipeline
from llm_diffusiongemma.diffusion.placement import LayerHome
from llm_diffusiongemma.diffusion.proving import import_kernels, prove
from llm_diffusiongemma.diffusion.request import Prompt, Request
from llm_diffusiongemma.errors import DeviceMemoryError

from ..diffusion.small_network import network_at
from ..whole import load_whole
from .bench import Bench
from .loop import randomness, settings_of
from .networks import converted, proved, routing_of
from .rightness import answer, logits, question, relative_error
from .speed import Denoiser, captured

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def with_kernels(reference: LoadedModel, request: pytest.FixtureRequest) -> Network:
    """The embedded checkpoint on the card with every kernel that there is."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[request.param]
    network = converted(reference.network, dtype, CARD)
    verdict = proved(network)
    assert verdict.in_use
    assert not verdict.switched_off
    return network


def test_kernels_give_the_same_logits(reference: LoadedModel, with_kernels: Network) -> None:
    """In fp32 as near as PyTorch's operations: products by kernels are no TF32."""
    prompt = question("What is a canvas?")
    found = logits(with_kernels, prompt)
    most = 1e-5 if with_kernels.dtype == torch.float32 else 3e-2
    assert relative_error(found, logits(reference.network, prompt)) <= most
    assert torch.equal(found, logits(with_kernels, prompt))  # sums have a fixed order


@pytest.mark.parametrize("text", ["What is a canvas?", "Count from 1 to 300"])
def test_kernels_give_the_same_reply(reference: LoadedModel, with_kernels: Network, text: str) -> None:
    """Token for token. And prompts of other lengths, in one chunk or two, compile nothing that proving hasn't, nor
    do shorter canvases."""
    prompt = question(text)
    before = compiled_variants()
    assert answer(reference, with_kernels, prompt, seed=1) == answer(reference, reference.network, prompt, seed=1)
    for length in (2, 255, 1300):
        answer(reference, with_kernels, (prompt * length)[:length], seed=1)
    for length in (16, 48, 128):
        answer(reference, with_kernels, prompt, 1, length)
    assert compiled_variants() == before


def compiled_variants() -> dict[str, int]:
    """How many of each kernel are in this process."""
    from triton.runtime.jit import JITFunction

    kernels = {each for room in import_kernels() for each in vars(room).values() if isinstance(each, JITFunction)}
    return {each.__name__: sum(len(cache[0]) for cache in each.device_caches.values()) for each in kernels}


@pytest.mark.parametrize("format_", [Plain, Fp8, ModelOptNvfp4, CompressedTensorsNvfp4])
def test_kernels_are_right_at_the_real_widths(format_: type[Matrices]) -> None:
    """As loading finds out: every one of them, for every format that there is."""
    verdict = prove(DIFFUSIONGEMMA_26B_A4B, Formats(format_, format_, format_), torch.bfloat16, CARD)
    assert verdict.switched_off == {}
    assert {*verdict.in_use} | {"linear"} == {field.name for field in fields(Operations)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("format_", [Fp8, ModelOptNvfp4, CompressedTensorsNvfp4])
def test_packed_is_as_dequantised(format_: type[Matrices], dtype: torch.dtype) -> None:
    """A layer's experts by kernels from the bytes, and by PyTorch from their numbers in fp32."""
    from llm_diffusiongemma.diffusion.kernels import experts

    card, whole = packed_experts(format_, dtype, CARD), packed_experts(format_, torch.float32, torch.device("cpu"))
    x, chosen = torch.randn(64, 256).to(dtype), torch.stack([torch.randperm(8)[:2] for _ in range(64)])
    weights = torch.rand(64, 2)
    small = replace(DIFFUSIONGEMMA_26B_A4B, num_experts=8, hidden_size=256, moe_intermediate_size=96)
    kernels, refused = experts.usable(small, Formats(format_), dtype, CARD)
    assert not refused
    found = kernels["through_experts"](x.to(CARD), card, chosen.int().to(CARD), weights.to(CARD))
    expected = whole(x.float(), chosen, weights)
    assert relative_error(found.double().cpu(), expected.double()) < (2e-2 if dtype == torch.bfloat16 else 3e-3)


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


class Interrupts:
    """Raises a Ctrl-C out of a kernel's place, at the call of that number."""

    def __init__(self, at: int, operation: Callable[..., Any]) -> None:
        self._left, self._operation = at, operation

    def __call__(self, *arguments: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt
        return self._operation(*arguments)


def pipeline_of(network: Network) -> BlockDiffusionPipeline:
    return BlockDiffusionPipeline(network, eos_token_ids=(), pad_token_id=None)


def tokens_of(pipeline: BlockDiffusionPipeline, prompt: list[int], steps: int = 5) -> list[int]:
    """Of two canvases that nothing ends."""
    pipeline.prefix_cache.clear()
    asked = Request(Prompt(prompt), settings_of(steps), 2 * pipeline._network.config.canvas_length)
    records = pipeline.generate(asked, randomness=randomness())
    return [token for record in records if isinstance(record, Block) for token in record.tokens]


@pytest.mark.parametrize("length", [300, 1100])
def test_a_replayed_reply_is_the_same(bench: Bench, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = bench.tokens(length).tolist()
    monkeypatch.setenv(GRAPH_VARIABLE, "off")
    eager = tokens_of(pipeline_of(bench.network), prompt)
    monkeypatch.delenv(GRAPH_VARIABLE)
    pipeline = pipeline_of(bench.network)
    assert [tokens_of(pipeline, prompt) for _ in range(2)] == [eager, eager]
    assert pipeline.graph_state == USED


# Of six layers: in the prompt's, in the first step's, in the second step's, and in the capture's behind it.
@pytest.mark.parametrize("call", [3, 9, 15, 21], ids=["reading", "first step", "second step", "capture"])
def test_a_ctrl_c_leaves_all_as_it_was(bench: Bench, call: int) -> None:
    pipeline, prompt = pipeline_of(bench.network), bench.tokens(300).tolist()
    operations, before = bench.network.operations, torch.cuda.get_rng_state()
    expected = tokens_of(pipeline_of(bench.network), prompt)
    bench.network.operations = replace(operations, finish=Interrupts(call, operations.finish))
    try:
        with pytest.raises(KeyboardInterrupt):
            tokens_of(pipeline, prompt)
    finally:
        bench.network.operations = operations
    assert not torch.cuda.is_current_stream_capturing()
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert tokens_of(pipeline, prompt) == expected
    assert pipeline.graph_state == USED
    torch.randn(3, device=CARD)  # the program's own random numbers still come


def test_a_full_card_ends_a_reply_and_no_more(bench: Bench) -> None:
    """Filled by a tensor on purpose: a sentence, or a reply without a graph, and afterwards all is as before."""
    pipeline, prompt = pipeline_of(bench.network), bench.tokens(300).tolist()
    expected = tokens_of(pipeline, prompt)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(CARD)
    filling = torch.empty(free - (24 << 20), dtype=torch.uint8, device=CARD)
    try:
        with pytest.raises(DeviceMemoryError):
            tokens_of(pipeline, bench.tokens(60_000).tolist())
    finally:
        del filling
    assert tokens_of(pipeline, prompt) == expected


@pytest.mark.parametrize("homes", [("host",), ("files",), ("device", "host", "files")], ids=str)
def test_streamed_experts_give_the_same_bits(bench: Bench, homes: Sequence[ExpertsHome]) -> None:
    """Twice: the second time the buffers hold what the first one left in them."""
    each_layer = zip(bench.network.config.layers, itertools.cycle(homes), strict=False)
    network, _ = network_at([LayerHome(str(CARD), home) for _, home in each_layer], bench.network)
    network.operations = bench.network.operations
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
