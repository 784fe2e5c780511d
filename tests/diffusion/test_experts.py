"""A layer's experts against two loops, one by one and grouped, plain and packed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F

from llm_diffusiongemma.diffusion import packed
from llm_diffusiongemma.diffusion.experts import Experts
from llm_diffusiongemma.diffusion.packed import CompressedTensorsNvfp4, Fp8, ModelOptNvfp4

from ..layouts import writer

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_diffusiongemma.diffusion.packed import Matrices

NUM_EXPERTS, HIDDEN, WIDTH = 6, 32, 16
# The two experts of each of n tokens.
ROUTINGS = {
    "any": lambda n: torch.stack([torch.randperm(NUM_EXPERTS)[:2] for _ in range(n)]),
    "all to two": lambda n: torch.tensor([[4, 1]]).repeat(n, 1),
    "the first and the last": lambda n: torch.tensor([[5, 0], [0, 5]]).repeat(n, 1)[:n],
}


@pytest.fixture(params=["one by one", "grouped"])
def is_grouped(request: pytest.FixtureRequest) -> bool:
    """torch has the grouped product on the CPU, too; there it is slower than the loop."""
    return bool(request.param == "grouped")


def experts_of(dtype: torch.dtype, is_grouped: bool) -> Experts:
    torch.manual_seed(0)
    experts = Experts(NUM_EXPERTS, HIDDEN, WIDTH, dtype, torch.device("cpu"))
    for _, tensor in experts.tensors():
        tensor.copy_(torch.randn(tensor.shape) * tensor.shape[-1] ** -0.5)
    experts._is_grouped = is_grouped
    return experts


def assert_two_loops_give(
    experts: Experts, n: int, chosen: torch.Tensor, dtype: torch.dtype, error: float
) -> None:
    gate_up, down = (
        matrices.dequantise(
            slice(None),
            slice(None),
            torch.empty(NUM_EXPERTS, matrices.outputs, matrices.inputs, dtype=torch.float64),
        )
        for matrices in (experts.gate_up, experts.down)
    )
    x, weights = torch.randn(n, HIDDEN).to(dtype), torch.rand(n, 2)
    expected = torch.zeros(n, HIDDEN, dtype=torch.float64)
    for token in range(n):
        for slot in range(2):
            expert = int(chosen[token, slot])
            gate, up = (gate_up[expert] @ x[token].double()).chunk(2)
            result = down[expert] @ (F.gelu(gate, approximate="tanh") * up)
            expected[token] += weights[token, slot] * result
    parts = experts(x, chosen, weights)
    assert parts.dtype == torch.float32
    result = parts.sum(1).to(dtype)
    assert float((result - expected).norm() / expected.norm()) < error


@pytest.mark.parametrize("n", [1, 2, 7, 64])
@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)], ids=str)
def test_what_two_loops_give(n: int, routing: str, dtype: torch.dtype, error: float, is_grouped: bool) -> None:
    experts = experts_of(dtype, is_grouped)
    assert_two_loops_give(experts, n, ROUTINGS[routing](n), dtype, error)


def test_experts_are_named_by_integers_of_any_size(is_grouped: bool) -> None:
    """A kernel that routes gives short ones."""
    experts = experts_of(torch.float32, is_grouped)
    x, chosen, weights = torch.randn(7, HIDDEN), ROUTINGS["any"](7), torch.rand(7, 2)
    assert torch.equal(experts(x, chosen.int(), weights), experts(x, chosen, weights))


def test_two_runs_are_equal_bit_for_bit(is_grouped: bool) -> None:
    experts = experts_of(torch.bfloat16, is_grouped)
    x, chosen, weights = torch.randn(64, HIDDEN).bfloat16(), ROUTINGS["any"](64), torch.rand(64, 2)
    assert torch.equal(experts(x, chosen, weights), experts(x, chosen, weights))


def test_a_processor_loops() -> None:
    assert not Experts(NUM_EXPERTS, HIDDEN, WIDTH, torch.bfloat16, torch.device("cpu"))._is_grouped


PACK: dict[type[Matrices], Callable[[torch.Tensor], dict[str, torch.Tensor]]] = {
    Fp8: writer.fp8,
    ModelOptNvfp4: writer.modelopt_nvfp4,
    CompressedTensorsNvfp4: writer.redhat_nvfp4,
}
# How many matrices become numbers at a time: all, 4 and then 2, one, 5 rows of one.
PIECES = {"all": 1 << 20, "several": 4, "one": 1, "rows": 5 / 32}


def packed_experts(format_: type[Matrices], pieces: str, dtype: torch.dtype = torch.float32) -> Experts:
    torch.manual_seed(0)
    experts = Experts(NUM_EXPERTS, HIDDEN, WIDTH, dtype, torch.device("cpu"), format_)
    places = dict(experts.tensors())
    for expert in range(NUM_EXPERTS):
        for name, rows, inputs in (("gate", WIDTH, HIDDEN), ("up", WIDTH, HIDDEN), ("down", HIDDEN, WIDTH)):
            for end, value in PACK[format_](torch.randn(rows, inputs) * inputs**-0.5).items():
                if not end.startswith("input_"):  # for activations
                    place = places.pop(f"{expert}.{name}_proj.{end}")
                    place.copy_(value.view(place.shape))
    assert not places
    experts._scratch.piece_bytes = int(PIECES[pieces] * 2 * WIDTH * HIDDEN * torch.float32.itemsize)
    return experts


@pytest.mark.parametrize("routing", ["any", "all to two"])
@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("format_", PACK)
def test_packed_ones_are_their_numbers(
    format_: type[Matrices], pieces: str, routing: str, is_grouped: bool
) -> None:
    experts = packed_experts(format_, pieces)
    experts._is_grouped = is_grouped
    assert_two_loops_give(experts, 7, ROUTINGS[routing](7), torch.float32, 1e-6)


@pytest.mark.parametrize("is_fast", [False, True])
def test_packed_ones_of_a_network_in_bf16(is_fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor multiplies them in fp32, unless it has instructions for bf16."""
    monkeypatch.setattr(packed, "is_multiplied_fast", lambda dtype: is_fast or dtype == torch.float32)
    experts = packed_experts(Fp8, "several", torch.bfloat16)
    assert_two_loops_give(experts, 64, ROUTINGS["any"](64), torch.bfloat16, 8e-3 if is_fast else 5e-3)
    x, chosen, weights = torch.randn(64, HIDDEN).bfloat16(), ROUTINGS["any"](64), torch.rand(64, 2)
    assert torch.equal(experts(x, chosen, weights), experts(x, chosen, weights))


def test_experts_that_no_token_chose_stay_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    experts = packed_experts(Fp8, "one")
    unpacked = []
    dequantise = Fp8.dequantise

    def note(matrices: Fp8, which: slice, rows: slice, out: torch.Tensor) -> torch.Tensor:
        unpacked.append((matrices is experts.gate_up, which.start))
        return dequantise(matrices, which, rows, out)

    monkeypatch.setattr(Fp8, "dequantise", note)
    experts(torch.randn(3, HIDDEN), ROUTINGS["all to two"](3), torch.rand(3, 2))
    # Matrices of `down` are half as large as those of `gate_up`: two at a time.
    assert unpacked == [(True, 1), (True, 4), (False, 0), (False, 4)]
