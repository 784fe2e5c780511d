"""How the products of experts and of packed matrices are cut up, for each generation of cards.

Constants: nothing is tuned at a user's prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from .cards import Card

Product = Literal["up", "down", "dense"]
"""Gate and up of a layer's experts, their down, or the only matrix of a stack."""


@dataclass(frozen=True)
class Tiling:
    """What a program multiplies at a time, and how."""

    rows: int
    columns: int
    """output channels"""
    channels: int
    """input channels"""
    warps: int
    stages: int
    """How many tiles there is room for in shared memory: all but one are on their way."""
    swap: bool
    """Whether the weights are the left operand. On sm_90 they suit `wgmma` then, which wants 64 rows of it; the
    other way round it is `mma.sync`."""


Table = dict[tuple[str, Product], Tiling]

# Of an H200: the fastest of what a trial of such kernels tried there (torch 2.11, triton 3.6), with its
# milliseconds for a layer and the 256 positions of a canvas. 16 rows were slow everywhere, since an expert has 16
# on average and the weights of every other one were read twice; so were 8 warps.
_SM_90: Table = {
    ("bf16", "up"): Tiling(32, 64, 64, 4, 4, swap=True),  # 0.243
    ("bf16", "down"): Tiling(32, 64, 64, 4, 5, swap=True),  # 0.137
    ("fp8", "up"): Tiling(32, 64, 128, 4, 3, swap=False),  # 0.154, swapped 0.23
    # Not tried: like "up", since 128 bytes of a row at a time were faster than 64 (of which 32x128x64 took 0.16).
    ("fp8", "down"): Tiling(32, 64, 128, 4, 3, swap=False),
    # Not tried: like fp8, for what is decoded stays in registers so. With nibbles in another order, by way of
    # shared memory, the trial took 0.179 and 0.093.
    ("nvfp4", "up"): Tiling(32, 64, 128, 4, 3, swap=False),
    ("nvfp4", "down"): Tiling(32, 64, 128, 4, 3, swap=False),
    # Not tried. So many rows are a matter of arithmetic: `wgmma` with what is decoded in registers.
    ("fp8", "dense"): Tiling(128, 64, 64, 4, 4, swap=True),
    ("nvfp4", "dense"): Tiling(128, 64, 64, 4, 4, swap=True),
}

# No card of these has run them. They have `mma.sync`, for which the order is all the same, and from 99 KiB of
# shared memory on: three stages fit with twice the rows, too.
_OTHERS: Table = {
    ("bf16", "up"): Tiling(32, 64, 64, 4, 3, swap=False),
    ("bf16", "down"): Tiling(32, 64, 64, 4, 4, swap=False),
    ("fp8", "up"): Tiling(32, 64, 128, 4, 3, swap=False),
    ("fp8", "down"): Tiling(32, 64, 128, 4, 3, swap=False),
    ("nvfp4", "up"): Tiling(32, 64, 128, 4, 3, swap=False),
    ("nvfp4", "down"): Tiling(32, 64, 128, 4, 3, swap=False),
    ("fp8", "dense"): Tiling(64, 64, 128, 4, 3, swap=False),
    ("nvfp4", "dense"): Tiling(64, 64, 128, 4, 3, swap=False),
}

# No matrix unit multiplies fp32, and a compiler takes minutes for what a large tile unrolls into. Only networks
# that somebody trains or examines are so.
_FP32 = Tiling(16, 32, 64, 4, 2, swap=False)

# As many rows an expert as the 256 positions of a canvas have twice over; chunks of a prompt have more.
FEW_ROWS = 32


def tiling_of(
    card: Card,
    format: str,  # noqa: A002
    product: Product,
    dtype: torch.dtype,
    mean_rows: float,
) -> Tiling:
    """`format` is the name of one of `packed`, `mean_rows` how many a matrix of the stack has on average."""
    if dtype == torch.float32 and not card.is_interpreter:
        return _FP32
    is_sm_90 = card.capability is not None and card.capability[0] == 9
    tiling = (_SM_90 if is_sm_90 else _OTHERS)[format, product]
    if card.is_amd:
        tiling = replace(tiling, stages=2)  # 64 KiB of shared memory
    if card.is_amd or dtype == torch.float16:
        tiling = replace(tiling, channels=64)  # what is decoded by way of fp32 spills registers in larger ones
    if product != "dense" and mean_rows > FEW_ROWS:
        tiling = replace(tiling, rows=2 * tiling.rows)
    return tiling
