"""The sampler's pass over the vocabulary: of each block a launch behind the head's product, and one behind that
with the embeddings; then one when all blocks are in.

Twins and sizes in comments: `softmax`. One program has a row, so no sum depends on what else runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from .. import softmax as twins
from ..softmax import PART, Conclusion, Softmax
from . import launching

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..config import NetworkConfig
    from ..packed import Formats

FLOOR = tl.constexpr(twins.FLOOR)
LOG2_E = tl.constexpr(twins.LOG2_E)
LOWEST = tl.constexpr(twins.LOWEST)

# A program works on so many parts at once, of which each of its warps has one.
PARTS_AT_ONCE = 16
# Columns of the hidden size that a program adds up.
HIDDEN_AT_ONCE = 1024


@triton.jit
def _z(
    raw: tl.tensor,
    z: tl.tensor,
    columns: tl.tensor,
    softcap: tl.tensor,
    temperature: tl.tensor,
    TEMPERS: tl.constexpr,
    CAPPED: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> tl.tensor:
    """z of some columns of a row, made of the raw logits or read. `LOWEST` behind the last token."""
    if TEMPERS:
        x = tl.load(raw + columns, mask=columns < TOKENS, other=0.0).to(tl.float32)
        if CAPPED:
            x = 2 * softcap * (0.5 - 1 / (1 + tl.exp2(x * (2 * LOG2_E / softcap))))
        x = tl.where(columns < TOKENS, tl.div_rn(x, temperature), LOWEST)
    else:
        x = tl.load(z + columns, mask=columns < WIDTH, other=LOWEST)
    return x


# `temperature` may be one of a table, at any address.
@triton.jit(do_not_specialize=["temperature", "block"], do_not_specialize_on_alignment=["temperature"])
def _take_in(
    raw: tl.tensor,
    z: tl.tensor,
    temperature: tl.tensor,
    weights: tl.tensor,
    part_max: tl.tensor,
    part_sum: tl.tensor,
    deviation: tl.tensor,
    maximum: tl.tensor,
    block: tl.tensor,
    softcap: tl.tensor,
    scale: tl.tensor,
    TOKENS: tl.constexpr,
    RAW_ROW: tl.constexpr,
    BLOCKS: tl.constexpr,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
    TILE: tl.constexpr,
    TEMPERS: tl.constexpr,
    MEASURES: tl.constexpr,
    CAPPED: tl.constexpr,
) -> None:
    """A row of a block: z from its raw logits (TEMPERS), and what is to be known of it (MEASURES).

    Everything is exponentiated against the maximum behind the block, so its logits are gone over twice, and made
    twice rather than read back.
    """
    row = tl.program_id(0).to(tl.int64)
    WIDTH: tl.constexpr = PARTS * PART
    which = row * BLOCKS + block
    raw += row * RAW_ROW
    z += which * WIDTH
    parts = tl.arange(0, TILE)
    columns = parts[:, None] * PART + tl.arange(0, PART)[None, :]
    t = tl.load(temperature)
    if MEASURES:
        highest = tl.full((TILE,), LOWEST, tl.float32)
        for start in range(0, PARTS, TILE):
            x = _z(raw, z, start * PART + columns, softcap, t, TEMPERS, CAPPED, TOKENS, WIDTH)
            each = tl.max(x, 1)
            tl.store(part_max + which * PARTS + start + parts, each, mask=start + parts < PARTS)
            highest = tl.maximum(highest, each)
        behind = maximum + row * (BLOCKS + 1) + block
        m = tl.maximum(tl.load(behind), tl.max(highest, 0))
        tl.store(behind + 1, m)
    below_all = tl.zeros((TILE,), tl.float32)
    for start in range(0, PARTS, TILE):
        here = start * PART + columns
        x = _z(raw, z, here, softcap, t, TEMPERS, CAPPED, TOKENS, WIDTH)
        if TEMPERS:
            tl.store(z + here, x, mask=here < TOKENS)
        if MEASURES:
            # Not by `maximum`, which leaves no NaN: one must come out as the entropy's.
            below = x - m
            below = tl.where(below < FLOOR, FLOOR, below)
            e = tl.exp2(below * LOG2_E)
            tl.store(part_sum + which * PARTS + start + parts, tl.sum(e, 1), mask=start + parts < PARTS)
            below_all += tl.sum(below * e, 1)  # of parts that aren't there next to nothing
            tl.store(weights + row * WIDTH + here, (e * scale).to(weights.dtype.element_ty), mask=here < WIDTH)
    if MEASURES:
        tl.store(deviation + which, -tl.sum(below_all, 0))


@triton.jit(do_not_specialize=["block"])
def _add_up(
    total: tl.tensor,
    added: tl.tensor,
    maximum: tl.tensor,
    block: tl.tensor,
    HIDDEN: tl.constexpr,
    BLOCKS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    there = columns < HIDDEN
    behind = maximum + row * (BLOCKS + 1) + block
    moved = tl.exp(tl.load(behind) - tl.load(behind + 1))
    # What stood there is nothing to the first block.
    before = tl.load(total + row * HIDDEN + columns, mask=columns < tl.where(block > 0, HIDDEN, 0), other=0.0)
    x = tl.load(added + row * HIDDEN + columns, mask=there, other=0.0).to(tl.float32)
    tl.store(total + row * HIDDEN + columns, before * moved + x, mask=there)


@triton.jit
def _first_above(shares: tl.tensor, index: tl.tensor, cdf: tl.tensor, target: tl.tensor) -> tl.tensor:
    """The first whose cumulative sum is above `target`, and never one without a share: sums that are made as a
    tree may grow by a rounding where nothing is added. Where there is none, the last with a share."""
    last = tl.max(tl.where(shares > 0, index, 0), 0)
    return tl.min(tl.where((cdf > target) & (shares > 0), index, last), 0)


# `uniforms` may be one of a table, too.
@triton.jit(do_not_specialize=["uniforms"], do_not_specialize_on_alignment=["uniforms"])
def _conclude(
    z: tl.tensor,
    part_max: tl.tensor,
    part_sum: tl.tensor,
    deviation: tl.tensor,
    maximum: tl.tensor,
    uniforms: tl.tensor,
    argmax: tl.tensor,
    entropy: tl.tensor,
    total: tl.tensor,
    drawn: tl.tensor,
    SIZE: tl.constexpr,
    BLOCKS: tl.constexpr,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
    REAL: tl.constexpr,
    ALL: tl.constexpr,
    ALL_BLOCKS: tl.constexpr,
) -> None:
    """A row, in fp64: its REAL parts, those with any token, in ALL lanes, and its blocks in ALL_BLOCKS."""
    row = tl.program_id(0).to(tl.int64)
    z += row * BLOCKS * PARTS * PART
    maximum += row * (BLOCKS + 1) + 1
    columns = tl.arange(0, PART)
    index = tl.arange(0, ALL)
    part = row * BLOCKS * PARTS + index
    real = index < REAL
    best = tl.argmax(tl.load(part_max + part, mask=real, other=-float("inf")), 0)
    best = tl.minimum(best, REAL - 1)
    best = best * PART + tl.argmax(tl.load(z + best * PART + columns), 0)
    tl.store(argmax + row, tl.minimum(best, SIZE - 1))

    m = tl.load(maximum + BLOCKS - 1)
    gap = (m - tl.load(maximum + index // PARTS, mask=real, other=m)).to(tl.float64)
    shares = tl.load(part_sum + part, mask=real, other=0.0).to(tl.float64) * tl.exp(-gap)
    sum_all = tl.sum(shares, 0)
    block = tl.arange(0, ALL_BLOCKS)
    block_gap = (m - tl.load(maximum + block, mask=block < BLOCKS, other=m)).to(tl.float64)
    below = tl.load(deviation + row * BLOCKS + block, mask=block < BLOCKS, other=0.0).to(tl.float64)
    below_all = tl.sum(below * tl.exp(-block_gap), 0) + tl.sum(gap * shares, 0)
    tl.store(total + row, sum_all.to(tl.float32))
    tl.store(entropy + row, (tl.log(sum_all) + below_all / sum_all).to(tl.float32))

    cdf = tl.cumsum(shares, 0)
    u = tl.load(uniforms + row)
    target = tl.where(u < 2.0**-54, 2.0**-54, u) * tl.max(cdf, 0)
    chosen = _first_above(shares, index, cdf, target)
    before = tl.sum(tl.where(index == chosen - 1, cdf, 0.0), 0)
    inside = (target - before) / (tl.sum(tl.where(index == chosen, cdf, 0.0), 0) - before)
    inside = tl.where(inside > 0, tl.where(inside < 1, inside, 1.0), 0.0)
    shares = tl.exp(tl.load(z + chosen * PART + columns).to(tl.float64) - m.to(tl.float64))
    cdf = tl.cumsum(shares, 0)
    token = _first_above(shares, columns, cdf, inside * tl.max(cdf, 0))
    tl.store(drawn + row, tl.minimum(chosen * PART + token, SIZE - 1))


def temper(
    raw: torch.Tensor, softcap: float | None, temperature: torch.Tensor, softmax: Softmax, block: int
) -> None:
    _launch(raw, softcap, temperature, softmax, block, softmax.z, 1.0, tempers=True, measures=False)


def measure(softmax: Softmax, block: int, weights: torch.Tensor, scale: float) -> None:
    z = softmax.z
    _launch(z, None, softmax.maximum, softmax, block, weights, scale, tempers=False, measures=True)


def temper_and_measure(
    raw: torch.Tensor,
    softcap: float | None,
    temperature: torch.Tensor,
    softmax: Softmax,
    block: int,
    weights: torch.Tensor,
    scale: float,
) -> None:
    _launch(raw, softcap, temperature, softmax, block, weights, scale, tempers=True, measures=True)


def _launch(
    raw: torch.Tensor,
    softcap: float | None,
    temperature: torch.Tensor,
    softmax: Softmax,
    block: int,
    weights: torch.Tensor,
    scale: float,
    *,
    tempers: bool,
    measures: bool,
) -> None:
    """What a kernel has no use for may be any tensor."""
    positions, num_blocks, parts, _ = softmax.z.shape
    tile = min(PARTS_AT_ONCE, triton.next_power_of_2(parts))
    launching.launch(
        _take_in,
        (positions,),
        raw,
        softmax.z,
        temperature,
        weights,
        softmax.part_max,
        softmax.part_sum,
        softmax.deviation,
        softmax.maximum,
        block,
        float(softcap or 1),
        float(scale),
        TOKENS=raw.shape[1] if tempers else 0,
        RAW_ROW=raw.stride(0) if tempers else 0,
        BLOCKS=num_blocks,
        PARTS=parts,
        PART=PART,
        TILE=tile,
        TEMPERS=tempers,
        MEASURES=measures,
        CAPPED=softcap is not None,
        num_warps=max(4, tile),
    )


def add_up(total: torch.Tensor, added: torch.Tensor, softmax: Softmax, block: int) -> None:
    positions, hidden = total.shape
    launching.launch(
        _add_up,
        (positions, triton.cdiv(hidden, HIDDEN_AT_ONCE)),
        total,
        added,
        softmax.maximum,
        block,
        HIDDEN=hidden,
        BLOCKS=softmax.z.shape[1],
        TILE=HIDDEN_AT_ONCE,
        num_warps=4,
    )


def conclude(softmax: Softmax, uniforms: torch.Tensor) -> Conclusion:
    positions, num_blocks, parts, _ = softmax.z.shape
    real = triton.cdiv(softmax.size, PART)

    def new(dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(positions, dtype=dtype, device=softmax.z.device)

    found = Conclusion(new(torch.int64), new(torch.float32), new(torch.int64))
    launching.launch(
        _conclude,
        (positions,),
        softmax.z,
        softmax.part_max,
        softmax.part_sum,
        softmax.deviation,
        softmax.maximum,
        uniforms,
        found.argmax,
        found.entropy,
        softmax.total,
        found.drawn,
        SIZE=softmax.size,
        BLOCKS=num_blocks,
        PARTS=parts,
        PART=PART,
        REAL=real,
        ALL=triton.next_power_of_2(real),
        ALL_BLOCKS=triton.next_power_of_2(num_blocks),
        num_warps=4,
    )
    return found


def usable(
    config: NetworkConfig, formats: Formats, dtype: torch.dtype, device: torch.device
) -> tuple[dict[str, Callable[..., Any]], dict[str, str]]:
    """For any vocabulary, in any dtype: what a network multiplies in is what these read and write."""
    names = (temper, measure, temper_and_measure, add_up, conclude)
    return {function.__name__: function for function in names}, {}
