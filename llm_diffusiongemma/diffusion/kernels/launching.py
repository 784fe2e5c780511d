"""The one way in which a kernel is launched, so that launches can be counted and compiled without a card."""

from __future__ import annotations

from typing import Any

import torch


def launch(kernel: Any, grid: tuple[int, ...], /, *arguments: Any, **constants: Any) -> None:
    """`kernel` is what `triton.jit` makes. `constants` are its `tl.constexpr` ones, `num_warps` and `num_stages`.

    It runs where its first tensor lies: Triton itself would take the current device of the process, which is
    another one where a network is on the second card, or on several.

    Callers name it by its module (`launching.launch`), in whose place tests put another.
    """
    first = next(each for each in arguments if isinstance(each, torch.Tensor))
    with torch.cuda.device_of(first):  # type: ignore[no-untyped-call]
        # Said, since another Triton takes another default, and one of them warns until somebody says so.
        kernel[grid](*arguments, enable_fp_fusion=True, **constants)
