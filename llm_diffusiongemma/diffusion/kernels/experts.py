"""A layer's experts in three launches: slots sorted by expert, gate and up, down. And packed dense matrices.

One program takes a slice of output channels of an expert, with all rows of that expert in turn, so each weight is
read from memory once whatever the routing. Nothing else depends on the routing either: grids and buffers have a
fixed size, the host reads no number, and each result is added up in a fixed order.

Sizes in comments: n positions, k experts of each, E experts, H hidden, I the width of an expert. A slot is one of
the n k choices, `position × k + choice`; a row is its place among all slots sorted by expert.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from ..packed import CompressedTensorsNvfp4, Fp8, Matrices, Nvfp4, Plain
from . import launching
from .cards import Card
from .decoding import PACKED_NVFP4, decode_e4m3, decode_nvfp4
from .layer import gelu
from .tiles import Product, tiling_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..config import NetworkConfig
    from ..experts import Experts
    from ..packed import Formats, Scratch

OPERANDS = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}

# Slots that a program of `_sort` looks at together: those of a canvas, 256 × 8.
SORTED_TOGETHER = 2048


@triton.jit(do_not_specialize=["slots"])
def _sort(
    chosen: tl.tensor, order: tl.tensor, starts: tl.tensor, slots: tl.tensor, TOGETHER: tl.constexpr
) -> None:
    """Slots by expert, those of one in their order: `order [n k]`, in which expert e's begin at `starts [E + 1]`.

    Program e finds where its own go, and writes them.
    """
    e = tl.program_id(0)
    experts = tl.num_programs(0)
    i = tl.arange(0, TOGETHER)
    begin = 0
    row = 0
    while begin < slots:
        expert = tl.load(chosen + begin + i, mask=begin + i < slots, other=experts)
        row += tl.sum((expert < e).to(tl.int32), 0)
        begin += TOGETHER
    tl.store(starts + e, row)
    begin = 0
    while begin < slots:
        expert = tl.load(chosen + begin + i, mask=begin + i < slots, other=experts)
        mine = (expert == e).to(tl.int32)
        tl.store(order + row + tl.cumsum(mine, 0) - 1, begin + i, mask=mine == 1)
        row += tl.sum(mine, 0)
        begin += TOGETHER
    if e == experts - 1:
        tl.store(starts + experts, slots)


@triton.jit
def _accumulate(
    acc: tl.tensor, x: tl.tensor, x_odd: tl.tensor, weight: tl.tensor, scale: tl.tensor,
    left: tl.tensor, blocks_left: tl.tensor,
    FORMAT: tl.constexpr, WORD: tl.constexpr, PACKED: tl.constexpr, OPERAND: tl.constexpr,
    MASKED: tl.constexpr, SWAP: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """acc and the products of `x [BM, c]` with what lies at `weight [BN, c]`: `[BM, BN]`, or with SWAP `[BN, BM]`.

    `x_odd` is of nvfp4, whose `x` are the even channels.
    """
    w = _load(weight, left, MASKED)
    if FORMAT == "nvfp4":
        even, odd = decode_nvfp4(w, _load(scale, blocks_left, MASKED), WORD, PACKED, OPERAND)
        acc = _dot(acc, x, even, SWAP)
        acc = _dot(acc, x_odd, odd, SWAP)
    elif FORMAT == "fp8":
        acc = _dot(acc, x, decode_e4m3(w, PACKED, OPERAND), SWAP)
    else:
        acc = _dot(acc, x, w.to(OPERAND), SWAP)
    return acc


@triton.jit
def _dot(acc: tl.tensor, x: tl.tensor, w: tl.tensor, SWAP: tl.constexpr) -> tl.tensor:
    if SWAP:
        left, right = w, tl.trans(x)
    else:
        left, right = x, tl.trans(w)
    return tl.dot(left, right, acc, input_precision="ieee")  # else fp32 would be TF32: 10 bits of mantissa


@triton.jit
def _load(pointer: tl.tensor, mask: tl.tensor, MASKED: tl.constexpr) -> tl.tensor:
    return tl.load(pointer, mask=mask, other=0) if MASKED else tl.load(pointer)


@triton.jit(do_not_specialize=["rows"])
def _products(
    x: tl.tensor, weight: tl.tensor, scale: tl.tensor, global_scale: tl.tensor, part_of_row: tl.tensor,
    order: tl.tensor, starts: tl.tensor, routing: tl.tensor, out: tl.tensor, rows: tl.tensor,
    K: tl.constexpr, N: tl.constexpr, TOP_K: tl.constexpr, PARTS: tl.constexpr,
    PRODUCT: tl.constexpr, FORMAT: tl.constexpr, DIVIDES: tl.constexpr, HALVED_OUT: tl.constexpr,
    WORD: tl.constexpr, PACKED: tl.constexpr, OPERAND: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SWAP: tl.constexpr,
) -> None:  # fmt: skip
    """The rows of each expert times its matrix `[outputs, K]`, in whatever format it is.

    PRODUCT "up": `x [n, K]` by position, gates and ups of width N, to gelu(gate) × up by row, `out [n k, N]`.
    "down": `x [n k, K]` by row, to the product times the weight in `routing [n k]`, by slot, `out [n k, N]`.
    "dense": the only matrix, `x [rows, K]` to `out [rows, N]`.

    nvfp4 wants the even channels of x before the odd ones: a byte has one of each. HALVED_OUT writes `out` so.
    """
    e = tl.program_id(2).to(tl.int64)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    if PRODUCT == "dense":
        first = 0
        last = rows
    else:
        first = tl.load(starts + e)
        last = tl.load(starts + e + 1)
    GATED: tl.constexpr = PRODUCT == "up"
    OUTPUTS: tl.constexpr = 2 * N if GATED else N
    PACK: tl.constexpr = 2 if FORMAT == "nvfp4" else 1  # channels in an element of `weight`
    STEP: tl.constexpr = BK // PACK
    LENGTH: tl.constexpr = K // PACK
    MASKED: tl.constexpr = LENGTH % STEP != 0
    channel = tl.arange(0, STEP)
    # Channels that are none read the first one's weights, and aren't stored.
    output = n if N % BN == 0 else tl.where(n < N, n, 0)
    p_weight = weight + e * OUTPUTS * LENGTH + output[:, None] * LENGTH + channel[None, :]
    # Of nvfp4 the elements of `scale` in a row, WORD bytes each; others have no such.
    SCALES: tl.constexpr = K // 16 // WORD if FORMAT == "nvfp4" else 0
    SCALES_STEP: tl.constexpr = BK // 16 // WORD if FORMAT == "nvfp4" else 1
    block = tl.arange(0, SCALES_STEP)
    p_scale = (
        scale + e * OUTPUTS * SCALES + output[:, None] * SCALES + block[None, :] if FORMAT == "nvfp4" else p_weight
    )
    m0 = first + tl.program_id(0) * BM
    while m0 < last:  # a range of loaded numbers is more than Triton's interpreter can make
        m = m0 + tl.arange(0, BM)
        row = tl.minimum(m, last - 1)  # behind the last one that one again, not to be stored
        slot = row if PRODUCT == "dense" else tl.load(order + row)
        source = slot // TOP_K if GATED else row
        p_x = x + source.to(tl.int64)[:, None] * K + channel[None, :]
        acc = tl.zeros((BN, BM) if SWAP else (BM, BN), tl.float32)
        acc_up = acc
        for step in range((LENGTH + STEP - 1) // STEP):
            left = channel[None, :] < LENGTH - step * STEP
            a = _load(p_x + step * STEP, left, MASKED).to(OPERAND)
            b = _load(p_x + LENGTH + step * STEP, left, MASKED).to(OPERAND) if FORMAT == "nvfp4" else a
            blocks_left = block[None, :] < SCALES - step * SCALES_STEP
            p_w, p_s = p_weight + step * STEP, p_scale + step * SCALES_STEP
            acc = _accumulate(acc, a, b, p_w, p_s, left, blocks_left, FORMAT, WORD, PACKED, OPERAND, MASKED, SWAP)
            if GATED:
                p_w, p_s = p_w + N * LENGTH, p_s + N * SCALES
                acc_up = _accumulate(
                    acc_up, a, b, p_w, p_s, left, blocks_left, FORMAT, WORD, PACKED, OPERAND, MASKED, SWAP
                )
        if SWAP:
            acc = tl.trans(acc)
            acc_up = tl.trans(acc_up)
        acc = _scaled(acc, scale, global_scale, part_of_row, e, output, OUTPUTS, PARTS, FORMAT, DIVIDES, PACKED)
        if GATED:
            acc_up = _scaled(
                acc_up, scale, global_scale, part_of_row, e, output + N, OUTPUTS, PARTS, FORMAT, DIVIDES, PACKED
            )
            acc = gelu(acc) * acc_up
        if PRODUCT == "down":
            acc *= tl.load(routing + slot)[:, None]
        target = m if GATED else slot
        column = (n % 2) * (N // 2) + n // 2 if HALVED_OUT else n
        is_mine = (m < last)[:, None] & (n < N)[None, :]
        place = target.to(tl.int64)[:, None] * N + column[None, :]
        tl.store(out + place, acc.to(out.dtype.element_ty), mask=is_mine)
        m0 += tl.num_programs(0) * BM


@triton.jit
def _scaled(
    acc: tl.tensor, scale: tl.tensor, global_scale: tl.tensor, part_of_row: tl.tensor,
    e: tl.tensor, output: tl.tensor,
    OUTPUTS: tl.constexpr, PARTS: tl.constexpr, FORMAT: tl.constexpr, DIVIDES: tl.constexpr, PACKED: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """`acc [BM, BN]`, made of the numbers that were decoded, to what it is with the scale of each row."""
    if FORMAT == "fp8":
        acc *= tl.load(scale + e * OUTPUTS + output)[None, :]
    elif FORMAT == "nvfp4":
        factor = tl.load(global_scale + e * PARTS + tl.load(part_of_row + output))[None, :]
        if PACKED:
            acc *= PACKED_NVFP4
        if DIVIDES:
            acc /= factor
        else:
            acc *= factor
    return acc


def sort(chosen: torch.Tensor, experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The slots of `chosen` `[n, k]` by expert, int32 `[n k]`, and where those of each begin, int32 `[E + 1]`."""
    order = torch.empty(chosen.numel(), dtype=torch.int32, device=chosen.device)
    starts = torch.empty(experts + 1, dtype=torch.int32, device=chosen.device)
    launching.launch(
        _sort,
        (experts,),
        chosen.contiguous(),
        order,
        starts,
        chosen.numel(),
        TOGETHER=SORTED_TOGETHER,
        num_warps=8,
    )
    return order, starts


@dataclass(frozen=True)
class _Served:
    """What stands in place of `operations`."""

    card: Card
    """What it is for where nothing lies on a card: the interpreter, or one that isn't here. A network may lie on
    cards of several kinds, each of which has its own tiles."""

    def through_experts(
        self, x: torch.Tensor, experts: Experts, chosen: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """`[n, k, H]` in x's dtype."""
        gate_up, down = experts.gate_up, experts.down
        order, starts = sort(chosen, gate_up.stack)
        gated = x.new_empty(chosen.numel(), down.inputs)
        results = x.new_empty(*chosen.shape, down.outputs)
        routing = (order, starts, weights.contiguous())
        x, top_k = _in_order(x, gate_up), chosen.shape[1]
        self._multiply("up", x, gate_up, routing, gated, top_k, halves=isinstance(down, Nvfp4))
        self._multiply("down", gated, down, routing, results)
        return results

    def linear(self, x: torch.Tensor, matrices: Matrices, scratch: Scratch) -> torch.Tensor:
        """What isn't packed is torch's to multiply."""
        if isinstance(matrices, Plain):
            return matrices.times(x, scratch)
        result = x.new_empty(len(x), matrices.outputs)
        self._multiply("dense", _in_order(x, matrices), matrices, None, result)
        return result

    def _multiply(
        self,
        product: Product,
        x: torch.Tensor,
        matrices: Matrices,
        routing: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
        out: torch.Tensor,
        top_k: int = 1,
        halves: bool = False,
    ) -> None:
        """`_products` into `out`; `routing` is what `sort` gave, and the weights of the slots."""
        assert isinstance(matrices, Plain | Fp8 | Nvfp4)
        order, starts, weights = (None, None, None) if routing is None else routing
        scale = global_scale = part_of_row = None
        word = 1
        if isinstance(matrices, Nvfp4):
            scale, global_scale, part_of_row = matrices.scale, matrices.global_scale, matrices.part_of_row
            if scale.shape[-1] % 4 == 0:
                scale, word = scale.view(torch.int32), 4  # nothing narrower is copied asynchronously
        elif isinstance(matrices, Fp8):
            scale = matrices.scale
        columns = out.shape[-1]
        rows = out.numel() // columns
        mean_rows = rows / matrices.stack
        card = Card.of(x.device) if x.device.type == "cuda" else self.card
        tiling = tiling_of(card, matrices.name, product, x.dtype, mean_rows)
        grid = (math.ceil(mean_rows / tiling.rows), math.ceil(columns / tiling.columns), matrices.stack)
        launching.launch(
            _products,
            grid,
            x,
            matrices.weight,
            scale,
            global_scale,
            part_of_row,
            order,
            starts,
            weights,
            out,
            rows,
            K=matrices.inputs,
            N=columns,
            TOP_K=top_k,
            PARTS=len(matrices.parts),
            PRODUCT=product,
            FORMAT=matrices.name,
            DIVIDES=isinstance(matrices, CompressedTensorsNvfp4),
            HALVED_OUT=halves,
            WORD=word,
            PACKED=card.capability is not None and x.dtype == torch.bfloat16,
            # The interpreter would multiply the bits of bf16.
            OPERAND=tl.float32 if card.is_interpreter and x.dtype == torch.bfloat16 else OPERANDS[x.dtype],
            BM=tiling.rows,
            BN=tiling.columns,
            BK=tiling.channels,
            SWAP=tiling.swap,
            num_warps=tiling.warps,
            num_stages=tiling.stages,
        )


def _in_order(x: torch.Tensor, matrices: Matrices) -> torch.Tensor:
    """`x` `[n, in]` as `_products` reads it: for nvfp4 the even channels before the odd ones."""
    return x.view(len(x), -1, 2).mT.contiguous() if isinstance(matrices, Nvfp4) else x.contiguous()


def usable(
    config: NetworkConfig,
    formats: Formats,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[dict[str, Callable[..., Any]], dict[str, str]]:
    """By its name in `Operations` what serves such a network on the device; and of what can't, why."""
    names = ["through_experts"]
    if formats.attention is not Plain or formats.mlp is not Plain:
        names.append("linear")
    served = _Served(Card.of(device))
    return {name: getattr(served, name) for name in names}, {}
