"""Each kernel beside its twin in torch: no further than that from what fp64 gives."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

pytest.importorskip("triton")

from llm_diffusiongemma.diffusion import operations
from llm_diffusiongemma.diffusion.config import DIFFUSIONGEMMA_26B_A4B
from llm_diffusiongemma.diffusion.kernels import launching, layer
from llm_diffusiongemma.diffusion.operations import LayerNorms, Norm, Rotation
from llm_diffusiongemma.diffusion.packed import PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

DTYPES = [torch.float32, torch.bfloat16]
# Rows and their width: the real width; one row; odd sizes, and more rows than a program has.
ROWS = [(2, 2816), (1, 48), (3, 33), (67, 100)]


GUARD = 64


@pytest.fixture(autouse=True)
def _guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a kernel writes to is poisoned before, and lies between guards that nobody may touch."""
    guarded: list[tuple[torch.Tensor, float]] = []
    original = torch.Tensor.new_empty

    def new_empty(like: torch.Tensor, *shape: int, dtype: torch.dtype | None = None, **named: Any) -> torch.Tensor:
        if named:  # torch's own
            return original(like, *shape, dtype=dtype, **named)
        dtype = dtype or like.dtype
        poison = float("nan") if dtype.is_floating_point else -(2**30)
        memory = torch.full((math.prod(shape) + 2 * GUARD,), poison, dtype=dtype, device=like.device)
        guarded.append((memory, poison))
        return memory[GUARD:-GUARD].view(shape)

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    yield
    for memory, poison in guarded:
        for guard in (memory[:GUARD], memory[-GUARD:]):
            assert (guard.isnan() if math.isnan(poison) else guard == poison).all()


class Drawn:
    """Random tensors of a dtype on a device."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        numbers = torch.randn(shape, generator=self._generator)
        return numbers.to(self._device, dtype or self._dtype)

    def norm(self, width: int) -> Norm:
        return Norm(self(width), 1e-3)

    def norms(self, width: int) -> LayerNorms:
        return LayerNorms(*(self.norm(width) for _ in range(8)))


def exactly(argument: Any) -> Any:
    """The same in fp64, on the CPU."""
    if isinstance(argument, torch.Tensor):
        return argument.cpu().double()
    if isinstance(argument, Norm):
        return replace(argument, weight=exactly(argument.weight))
    if isinstance(argument, LayerNorms):
        return LayerNorms(*(exactly(each) for each in vars(argument).values()))
    if isinstance(argument, Rotation):
        return Rotation(*map(exactly, argument))
    return argument


def error(result: torch.Tensor, exact: torch.Tensor) -> float:
    assert result.shape == exact.shape
    return float((result.cpu().double() - exact).norm() / exact.norm())


def assert_as_good(
    kernel: Sequence[torch.Tensor], twin: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]
) -> None:
    for ours, theirs, right in zip(kernel, twin, exact, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.device == theirs.device
        # Triton's interpreter cuts off what a card rounds to bf16.
        is_cut = ours.dtype == torch.bfloat16 and ours.device.type == "cpu"
        least = torch.finfo(torch.bfloat16).eps if is_cut else 4 * torch.finfo(torch.float32).eps
        assert error(ours, right) <= max(1.5 * error(theirs, right), least)


def assert_kernel_as_good(name: str, *arguments: Any) -> None:
    """That of this name, on arguments that it does not write to."""
    outcomes = []
    for run, given in (
        (getattr(layer, name), arguments),
        (getattr(operations, name), arguments),
        (getattr(operations, name), [exactly(each) for each in arguments]),
    ):
        result = run(*given)
        outcomes.append([result] if isinstance(result, torch.Tensor) else [*result])
    assert_as_good(*outcomes)


# --- heads -------------------------------------------------------------------------------------------------

# Queries, keys, the width of a head, positions, and whether values are projected: those of the real network, one
# of each, odd numbers, and more than a program has.
HEADS = [
    (16, 8, 256, 3, True),
    (16, 2, 512, 2, False),
    (1, 1, 34, 1, True),
    (6, 3, 10, 5, False),
    (8, 1, 16, 70, True),
]
MARK = 7.0


def projected(
    drawn: Drawn, queries: int, keys: int, width: int, n: int, has_values: bool
) -> tuple[torch.Tensor, int, Norm, Norm, Rotation]:
    heads = queries + keys * (2 if has_values else 1)
    rotation = Rotation(drawn(n, 1, width), drawn(n, 1, width))
    return drawn(n, heads * width), queries, drawn.norm(width), drawn.norm(width), rotation


def written(
    run: Callable[..., torch.Tensor], keys: int, width: int, n: int, arguments: tuple[Any, ...]
) -> tuple[torch.Tensor, ...]:
    """The queries that it returns, and two caches in whose middle it wrote, one longer than the other."""
    caches = [torch.full((keys, n + more, width), MARK).to(arguments[0]) for more in (3, 5)]
    return run(*arguments, *(each[:, 2 : 2 + n] for each in caches)), *caches


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("queries", "keys", "width", "n", "has_values"), HEADS, ids=str)
def test_heads(
    queries: int, keys: int, width: int, n: int, has_values: bool, dtype: torch.dtype, device: torch.device
) -> None:
    """And of the cache only its slots are written."""
    arguments = projected(Drawn(dtype, device), queries, keys, width, n, has_values)
    sizes = (keys, width, n)
    kernel, twin = (written(run, *sizes, arguments) for run in (layer.heads, operations.heads))
    exact = written(operations.heads, *sizes, tuple(map(exactly, arguments)))
    assert_as_good(kernel, twin, exact)
    assert kernel[0].is_contiguous()
    for cache in kernel[1:]:
        assert torch.equal(cache[:, :2], torch.full_like(cache[:, :2], MARK))
        assert torch.equal(cache[:, 2 + n :], torch.full_like(cache[:, 2 + n :], MARK))


# --- rows of the hidden size -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "width"), ROWS, ids=str)
def test_after_attention(n: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
    drawn = Drawn(dtype, device)
    assert_kernel_as_good("after_attention", drawn(n, width), drawn(n, width), drawn.norms(width))


@pytest.mark.parametrize("parts_dtype", [None, torch.float32], ids=["parts alike", "parts in fp32"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "width"), ROWS, ids=str)
def test_finish(
    n: int, width: int, dtype: torch.dtype, parts_dtype: torch.dtype | None, device: torch.device
) -> None:
    drawn = Drawn(dtype, device)
    parts = drawn(n, 8, width, dtype=parts_dtype)
    assert_kernel_as_good(
        "finish", drawn(n, width), drawn(n, width), parts, drawn.norms(width), drawn(1), drawn.norm(width)
    )


def test_finish_without_a_norm_behind_it(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Drawn(torch.float32, device)
    arguments = (drawn(5, 48), drawn(5, 48), drawn(5, 1, 48), drawn.norms(48), drawn(1))
    result, normed = layer.finish(*arguments, None)
    assert normed is None
    exact = operations.finish(*map(exactly, arguments), None)[0]
    assert_as_good([result], [operations.finish(*arguments, None)[0]], [exact])
    # Where the next layer is on another card; and no other kernel than the one that was tried at load.
    constants: list[dict[str, Any]] = []
    monkeypatch.setattr(launching, "launch", lambda *of, **its: constants.append(its))
    for next_norm in (None, arguments[3].mlp):
        layer.finish(*arguments, next_norm)
    assert constants[0] == constants[1]


def test_the_parts_are_added_in_their_order(device: torch.device) -> None:
    """As of numbers whose sum depends on it."""
    drawn = Drawn(torch.float32, device)
    parts = (
        torch.tensor([1.0, 2.0**24, 1.0, -(2.0**24)], device=device)[None, :, None].expand(1, 4, 32).contiguous()
    )
    ones = Norm(torch.ones(32, device=device), 1.0)
    zeros = torch.zeros(1, 32, device=device)
    result, _ = layer.finish(zeros, zeros, parts, LayerNorms(*[ones] * 8), drawn(1).fill_(1.0), None)
    # ((1 + 2^24) + 1) - 2^24 is 0 in fp32.
    assert not result.any()


# --- the rest ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:overflow")  # of an exponential, says the interpreter's numpy
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "width"), [(2, 2112), (1, 33), (7, 333)], ids=str)
def test_gelu_gate(n: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
    assert_kernel_as_good("gelu_gate", Drawn(dtype, device)(n, 2 * width) * 3)


@pytest.mark.filterwarnings("ignore:overflow")
def test_gelu_of_large_numbers(device: torch.device) -> None:
    """Whose tanh, or its exponential, is at an end of fp32."""
    gates = torch.tensor([-1e4, -30.0, -5.0, 0.0, 5.0, 30.0, 1e4], device=device)
    gate_up = torch.cat((gates, torch.ones_like(gates)))[None]
    assert torch.allclose(layer.gelu_gate(gate_up), operations.gelu_gate(gate_up), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "experts", "top_k"), [(9, 128, 8), (1, 1, 1), (5, 5, 5), (300, 12, 3)], ids=str)
def test_route(n: int, experts: int, top_k: int, dtype: torch.dtype, device: torch.device) -> None:
    drawn = Drawn(dtype, device)
    # Different numbers, exact in each of the dtypes: nothing else says which of two experts is likelier.
    scores = torch.stack([torch.randperm(experts, generator=drawn._generator) for _ in range(n)]).to(device, dtype)
    scores = scores * 2**-5 - 1
    scale = drawn(experts)
    chosen, weights = layer.route(scores, scale, top_k)
    right, near = operations.route(scores, scale, top_k)
    assert chosen.dtype == torch.int32
    assert torch.equal(chosen.long(), right)
    best = exactly(scores).softmax(-1).gather(1, right.cpu())
    exact = best / best.sum(-1, keepdim=True) * exactly(scale)[right.cpu()]
    assert_as_good([weights], [near], [exact])


def test_of_equally_likely_experts_the_first_are_chosen(device: torch.device) -> None:
    scores = torch.tensor([[1.0, 2.0, 1.0, 2.0, 1.0], [0.0] * 5], device=device)
    chosen, weights = layer.route(scores, torch.ones(5, device=device), 4)
    assert chosen.tolist() == [[1, 3, 0, 2], [0, 1, 2, 3]]
    assert torch.allclose(weights.sum(1), torch.ones(2, device=device))


@pytest.mark.filterwarnings("ignore:invalid value")  # the interpreter's numpy says so
@pytest.mark.parametrize("number", [float("nan"), float("inf")], ids=str)
def test_of_numbers_that_are_none_experts_are_chosen_all_the_same(number: float, device: torch.device) -> None:
    """Whatever is chosen is looked up in memory. The weights say that something is wrong."""
    scores = torch.full((3, 5), number, device=device)
    chosen, weights = layer.route(scores, torch.ones(5, device=device), 3)
    assert ((chosen >= 0) & (chosen < 5)).all()
    assert weights.isnan().all()


# --- which there are ---------------------------------------------------------------------------------------

NAMES = {"heads", "after_attention", "gelu_gate", "route", "finish"}


def test_the_real_network_has_them_all() -> None:
    kernels, refused = layer.usable(DIFFUSIONGEMMA_26B_A4B, PLAIN, torch.bfloat16, torch.device("cpu"))
    assert (kernels.keys(), refused) == (NAMES, {})


@pytest.mark.parametrize(
    ("size", "without"), [("hidden_size", {"after_attention", "finish"}), ("num_experts", {"route"})]
)
def test_what_is_too_wide_for_a_program_is_left_to_torch(size: str, without: set[str]) -> None:
    config = replace(DIFFUSIONGEMMA_26B_A4B, **{size: layer.MAX_WIDTH + 1})
    kernels, refused = layer.usable(config, PLAIN, torch.bfloat16, torch.device("cpu"))
    assert (kernels.keys(), refused.keys()) == (NAMES - without, without)
    assert all("8193" in reason for reason in refused.values())
