"""A layer's experts and packed matrices by kernels, against fp64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from llm_diffusiongemma.diffusion.config import DIFFUSIONGEMMA_26B_A4B
from llm_diffusiongemma.diffusion.experts import Experts
from llm_diffusiongemma.diffusion.kernels import cards, experts, launching, tiles
from llm_diffusiongemma.diffusion.packed import (
    PLAIN,
    CompressedTensorsNvfp4,
    Formats,
    Fp8,
    Matrices,
    ModelOptNvfp4,
    Nvfp4,
    Plain,
    Scratch,
)
from tests.diffusion.pretended import PretendedDevices

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("poisoned")

PACKED: list[type[Matrices]] = [Fp8, ModelOptNvfp4, CompressedTensorsNvfp4]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
E4M3_NAN = 0x7F


def fill(matrices: Matrices) -> None:
    """Numbers of about 1 over the root of their channels, of any bytes but those that are none."""
    size = matrices.inputs**-0.5
    if isinstance(matrices, Plain):
        matrices.weight.copy_(torch.randn(matrices.weight.shape) * size)
    elif isinstance(matrices, Fp8):
        codes = torch.randint(E4M3_NAN, matrices.weight.shape) | torch.randint(2, matrices.weight.shape) << 7
        matrices.weight.copy_(codes & 0b1011_1111)  # below 2
        matrices.scale.copy_((torch.rand(matrices.scale.shape) + 0.5) * size)
    elif isinstance(matrices, Nvfp4):
        matrices.weight.copy_(torch.randint(256, matrices.weight.shape))
        matrices.scale.copy_(torch.randint(0x28, 0x40, matrices.scale.shape))  # 0.25 to 1.875
        factor = (torch.rand(matrices.global_scale.shape) + 0.5) * size / 3
        matrices.global_scale.copy_(1 / factor if isinstance(matrices, CompressedTensorsNvfp4) else factor)


def drawn_experts(
    format_: type[Matrices], sizes: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> Experts:
    torch.manual_seed(0)
    made = Experts(*sizes, dtype, device, format_)
    fill(made.gate_up)
    fill(made.down)
    return made


def numbers(matrices: Matrices) -> torch.Tensor:
    """fp64 `[S, out, in]`, on the CPU."""
    shape = matrices.stack, matrices.outputs, matrices.inputs
    out = torch.empty(shape, dtype=torch.float64, device=matrices.held()[0].device)
    return matrices.dequantise(slice(None), slice(None), out).cpu()


def exactly(its: Experts, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """What each expert gives for each position, in fp64: `[n, k, H]`."""
    x, chosen, weights = x.cpu().double(), chosen.cpu(), weights.cpu().double()
    gate_up, down = numbers(its.gate_up), numbers(its.down)
    results = torch.empty(*chosen.shape, its.down.outputs, dtype=torch.float64)
    for expert in range(its.gate_up.stack):
        position, choice = (chosen == expert).nonzero(as_tuple=True)
        gate, up = (x[position] @ gate_up[expert].T).chunk(2, -1)
        gated = F.gelu(gate, approximate="tanh") * up
        results[position, choice] = gated @ down[expert].T * weights[position, choice, None]
    return results


def error(result: torch.Tensor, exact: torch.Tensor) -> float:
    assert result.shape == exact.shape
    return float((result.cpu().double() - exact).norm() / exact.norm())


def served(name: str, dtype: torch.dtype, device: torch.device) -> Callable[..., torch.Tensor]:
    kernels, refused = experts.usable(DIFFUSIONGEMMA_26B_A4B, Formats(Fp8, Fp8, Fp8), dtype, device)
    assert not refused
    return kernels[name]


def drawn(
    its: Experts, chosen: torch.Tensor, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, Experts, torch.Tensor, torch.Tensor]:
    """What is asked of experts."""
    x = torch.randn(len(chosen), its.gate_up.inputs).to(device, dtype)
    return x, its, chosen.to(device), torch.rand(chosen.shape).to(device)


def assert_as_good(its: Experts, chosen: torch.Tensor, dtype: torch.dtype, device: torch.device) -> None:
    """As near to fp64 as the twin."""
    x, _, chosen, weights = drawn(its, chosen, dtype, device)
    result = served("through_experts", dtype, device)(x, its, chosen, weights)
    assert result.dtype == dtype
    # Triton's interpreter cuts off what a card rounds to bf16.
    is_cut = dtype == torch.bfloat16 and device.type == "cpu"
    least = torch.finfo(torch.bfloat16).eps if is_cut else 1e-6
    exact = exactly(its, x, chosen, weights)
    assert error(result, exact) <= max(1.5 * error(its(x, chosen, weights), exact), least)


# E, H, I: no multiple of a tile, with the scales of a row no whole words; and whole tiles.
ODD, EVEN = (4, 144, 80), (4, 128, 64)
# Of n positions the two experts of each. Of 240 with the same two each has more rows than a program takes at a
# time, and than all programs do; and the second program ends behind the last, after another expert's first.
RAGGED = torch.stack([torch.randperm(3, generator=torch.Generator().manual_seed(i))[:2] for i in range(11)])
EMPTY = torch.tensor([[3, 1]]).repeat(3, 1)
ONE = torch.tensor([[0, 3]])
MANY = torch.tensor([[2, 0]]).repeat(240, 1)


@pytest.mark.parametrize(
    ("format_", "sizes", "chosen"),
    [
        *((format_, ODD, RAGGED) for format_ in (Plain, *PACKED)),
        *((format_, EVEN, RAGGED) for format_ in (Plain, ModelOptNvfp4)),
        (Plain, ODD, EMPTY),
        (ModelOptNvfp4, ODD, ONE),
        (Plain, ODD, MANY),
        (CompressedTensorsNvfp4, EVEN, MANY),
    ],
)
def test_what_fp64_gives(
    format_: type[Matrices], sizes: tuple[int, int, int], chosen: torch.Tensor, device: torch.device
) -> None:
    assert_as_good(drawn_experts(format_, sizes, torch.float32, device), chosen, torch.float32, device)


@pytest.mark.parametrize(
    ("format_", "dtype"),
    [
        (Plain, torch.bfloat16),
        (Fp8, torch.float16),
        (ModelOptNvfp4, torch.float16),
        (ModelOptNvfp4, torch.bfloat16),
    ],
)
def test_half_of_the_bits(format_: type[Matrices], dtype: torch.dtype, device: torch.device) -> None:
    assert_as_good(drawn_experts(format_, ODD, dtype, device), RAGGED, dtype, device)


def test_the_real_widths(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter by a few large tiles, which take it a fifth of the time."""
    if device.type == "cpu":
        monkeypatch.setattr(experts, "tiling_of", lambda *_: tiles.Tiling(16, 256, 512, 4, 3, swap=False))
    its = drawn_experts(ModelOptNvfp4, (2, 2816, 704), torch.float32, device)
    assert_as_good(its, torch.tensor([[1], [1], [1]]), torch.float32, device)


@pytest.mark.parametrize("format_", [Plain, Fp8])
def test_two_runs_are_equal_bit_for_bit(format_: type[Matrices], device: torch.device) -> None:
    asked = drawn(drawn_experts(format_, EVEN, torch.float16, device), RAGGED, torch.float16, device)
    run = served("through_experts", torch.float16, device)
    assert torch.equal(run(*asked), run(*asked))


# --- sorting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "top_k", "count", "dtype"),
    [
        (1, 8, 20, torch.int64),
        (7, 3, 5, torch.int32),
        (256, 8, 9, torch.int64),
        (1024, 8, 9, torch.int64),
        (1304, 8, 9, torch.int32),
    ],
)
def test_slots_are_sorted_by_expert(
    n: int, top_k: int, count: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Those of one in their order; the last expert has none."""
    chosen = torch.randint(count - 1, (n, top_k), generator=torch.Generator().manual_seed(0)).to(device, dtype)
    order, starts = (each.cpu() for each in experts.sort(chosen, count))
    assert order.dtype == starts.dtype == torch.int32
    by_expert, expected = chosen.cpu().flatten().sort(stable=True)
    assert order.tolist() == expected.tolist()
    assert starts.tolist() == torch.searchsorted(by_expert, torch.arange(count + 1, dtype=dtype)).tolist()


def test_all_slots_with_one_expert(device: torch.device) -> None:
    order, starts = experts.sort(torch.full((300, 8), 2, device=device), 4)
    assert order.tolist() == [*range(2400)]
    assert starts.tolist() == [0, 0, 0, 2400, 2400]


# --- packed dense matrices --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 70])
@pytest.mark.parametrize("format_", PACKED)
def test_a_linear_layer(format_: type[Matrices], n: int, device: torch.device) -> None:
    """Of three parts, each with a scale of its own; 70 rows are more than a program takes."""
    torch.manual_seed(0)
    matrices = format_(1, (40, 24, 16), 96, torch.float32, device)
    fill(matrices)
    x = torch.randn(n, 96, device=device)
    result = served("linear", torch.float32, device)(x, matrices, None)
    assert error(result, x.cpu().double() @ numbers(matrices)[0].T) < 1e-6


def test_a_plain_linear_layer_is_left_to_torch(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = Plain(1, (24,), 32, torch.float32, device)
    fill(matrices)
    x = torch.randn(5, 32, device=device)
    monkeypatch.delattr(launching, "launch")
    result = served("linear", torch.float32, device)(x, matrices, Scratch(torch.float32, device))
    torch.testing.assert_close(result, F.linear(x, matrices.weight[0]))


# --- bytes ------------------------------------------------------------------------------------------------------


def every_fp8_byte(dtype: torch.dtype, device: torch.device) -> Matrices:
    """In one row, but for those that are no number, of which each has a row of its own."""
    matrices = Fp8(1, (3,), 256, dtype, device)
    codes = torch.zeros(3, 256, dtype=torch.uint8)
    codes[0] = torch.arange(256)
    codes[0, [E4M3_NAN, E4M3_NAN | 0x80]] = 0
    codes[1, 17], codes[2, 200] = E4M3_NAN, E4M3_NAN | 0x80
    matrices.weight.copy_(codes)
    matrices.scale.copy_(torch.tensor([0.5, 1.0, 1.0]).view(1, 3, 1))
    return matrices


def every_nvfp4_byte(dtype: torch.dtype, device: torch.device) -> Matrices:
    """Sixteen of them in a row, and a row for each scale, of which two are no number."""
    matrices = ModelOptNvfp4(1, (256,), 32, dtype, device)
    matrices.weight.copy_(torch.arange(256).view(16, 16).repeat(16, 1))
    matrices.scale.copy_(torch.arange(256)[:, None])
    matrices.global_scale.fill_(1.0)
    return matrices


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("made", [every_fp8_byte, every_nvfp4_byte])
def test_every_byte(
    made: Callable[[torch.dtype, torch.device], Matrices], dtype: torch.dtype, device: torch.device
) -> None:
    """Exactly. NaN is whatever a row with one in it is multiplied by."""
    matrices = made(dtype, device)
    expected = numbers(matrices)[0]
    expected[expected.isnan().any(1)] = torch.nan
    assert expected.isnan().all(1).sum() == 2
    x = torch.eye(matrices.inputs, dtype=dtype, device=device)
    result = served("linear", dtype, device)(x, matrices, None)
    assert result.dtype == dtype
    torch.testing.assert_close(result.cpu().double().T, expected, rtol=0, atol=0, equal_nan=True)


# --- which networks and cards -----------------------------------------------------------------------------------


def test_experts_are_three_launches_of_which_the_host_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that has no numbers; grids and tiles are those of any routing."""
    launched = []
    monkeypatch.setattr(launching, "launch", lambda kernel, grid, *arguments, **constants: launched.append(grid))
    meta = torch.device("meta")
    its = Experts(128, 2816, 704, torch.bfloat16, meta, ModelOptNvfp4)
    x, chosen = torch.empty(256, 2816, dtype=torch.bfloat16, device=meta), torch.empty(256, 8, device=meta)
    result = served("through_experts", torch.bfloat16, meta)(x, its, chosen.long(), chosen)
    assert result.shape == (256, 8, 2816)
    assert launched == [(128,), (1, 11, 128), (1, 44, 128)]


def test_what_is_served() -> None:
    cpu = torch.device("cpu")
    for formats, names in ((PLAIN, {"through_experts"}), (Formats(mlp=Fp8), {"through_experts", "linear"})):
        kernels, refused = experts.usable(DIFFUSIONGEMMA_26B_A4B, formats, torch.float32, cpu)
        assert kernels.keys() == names
        assert refused == {}


def test_each_card_has_its_own_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever is served first: what is fastest on an H100 has no room in the shared memory of others."""
    tiles_of, capabilities = [], ((9, 0), (8, 6))
    monkeypatch.setattr(launching, "launch", lambda *of, **its: tiles_of.append(its.get("num_stages")))
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[device.index])
    with PretendedDevices():
        for number in (0, 1):
            its = Experts(4, 64, 32, torch.bfloat16, torch.device("cuda", number))
            x, chosen = (torch.empty(3, size, device=torch.device("cuda", number)) for size in (64, 2))
            served("through_experts", torch.bfloat16, torch.device("cuda", 0))(x.bfloat16(), its, chosen, chosen)
    assert tiles_of == [None, 4, 5, None, 3, 4]


@pytest.mark.parametrize(
    "card",
    [cards.Card((8, 6)), cards.Card((9, 0)), cards.Card((12, 0)), cards.Card(None, is_amd=True), cards.Card(None)],
)
def test_every_product_has_a_tiling(card: cards.Card) -> None:
    for format_ in (Plain, *PACKED):
        for product in ("up", "down", *(["dense"] if format_ is not Plain else [])):
            few, many = (tiles.tiling_of(card, format_.name, product, torch.bfloat16, rows) for rows in (16, 64))
            # Each thread's share is a whole number of what is copied, and 16 is the least that tl.dot takes.
            assert min(few.rows, few.columns, few.channels) >= 32
            assert many.rows >= 64
