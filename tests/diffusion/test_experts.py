"""A layer's experts against two loops, one by one and grouped."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llm_diffusiongemma.diffusion.experts import Experts

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


@pytest.mark.parametrize("n", [1, 2, 7, 64])
@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)], ids=str)
def test_what_two_loops_give(n: int, routing: str, dtype: torch.dtype, error: float, is_grouped: bool) -> None:
    experts = experts_of(dtype, is_grouped)
    gate_up, down = (tensor.double() for _, tensor in experts.tensors())
    x, chosen, weights = torch.randn(n, HIDDEN).to(dtype), ROUTINGS[routing](n), torch.rand(n, 2)
    expected = torch.zeros(n, HIDDEN, dtype=torch.float64)
    for token in range(n):
        for slot in range(2):
            expert = int(chosen[token, slot])
            gate, up = (gate_up[expert] @ x[token].double()).chunk(2)
            result = down[expert] @ (F.gelu(gate, approximate="tanh") * up)
            expected[token] += weights[token, slot] * result
    result = experts(x, chosen, weights)
    assert result.dtype == dtype
    assert result.shape == x.shape
    assert float((result - expected).norm() / expected.norm()) < error


def test_two_runs_are_equal_bit_for_bit(is_grouped: bool) -> None:
    experts = experts_of(torch.bfloat16, is_grouped)
    x, chosen, weights = torch.randn(64, HIDDEN).bfloat16(), ROUTINGS["any"](64), torch.rand(64, 2)
    assert torch.equal(experts(x, chosen, weights), experts(x, chosen, weights))


def test_a_processor_loops() -> None:
    assert not Experts(NUM_EXPERTS, HIDDEN, WIDTH, torch.bfloat16, torch.device("cpu"))._is_grouped
