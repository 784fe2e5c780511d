"""The one way in which a kernel is launched, so that launches can be counted and compiled without a card."""

from __future__ import annotations

from typing import Any


def launch(kernel: Any, grid: tuple[int, ...], /, *arguments: Any, **constants: Any) -> None:
    """`kernel` is what `triton.jit` makes. `constants` are its `tl.constexpr` ones, `num_warps` and `num_stages`.

    Callers name it by its module (`launching.launch`), in whose place tests put another.
    """
    kernel[grid](*arguments, **constants)
