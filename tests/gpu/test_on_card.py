"""The network on a card, against the CPU: skipped where there is none."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.diffusion.loading import LoadedModel

from ..whole import load_whole
from .bench import Bench
from .networks import converted
from .rightness import answer, logits, question, relative_error
from .speed import Denoiser, captured

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
    routing = bench.network._route(layer, x)
    grouped = layer.experts(x, *routing)
    with patch.object(layer.experts, "_is_grouped", False):
        loop = layer.experts(x, *routing)
    assert relative_error(grouped.double(), loop.double()) < 1e-2


def test_a_captured_step_gives_the_same_bits(bench: Bench) -> None:
    """And stays right for another canvas at the same address: nothing of the first one was taken in."""
    forward = Denoiser(bench, context=300)
    replay, result = captured(bench, forward)
    for _ in range(2):
        forward.canvas.copy_(bench.tokens(len(forward.canvas)))
        replay()
        assert torch.equal(result, forward())
