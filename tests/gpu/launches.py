"""What is launched, written down: every kernel goes through `launching.launch`, which others may stand in for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch

from llm_diffusiongemma.diffusion.kernels import launching


@dataclass(frozen=True)
class Launch:
    """One of a kernel."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]

    def again(self) -> None:
        """With the same arguments, wherever they are by now."""
        launching.launch(self.kernel, self.grid, *self.arguments, **self.constants)


@contextmanager
def written_down(*, launched: bool = False) -> Iterator[list[Launch]]:
    """All launches meanwhile. They take place only if that is asked for."""
    found: list[Launch] = []
    launch = launching.launch

    def instead(kernel: Any, grid: tuple[int, ...], /, *arguments: Any, **constants: Any) -> None:
        found.append(Launch(kernel, grid, arguments, constants))
        if launched:
            launch(kernel, grid, *arguments, **constants)

    with patch.object(launching, "launch", instead):
        yield found


@contextmanager
def pretended(target: str) -> Iterator[torch.device]:
    """A card of that kind, `sm_90` or `gfx942`, for who asks torch what there is."""
    is_amd = target.startswith("gfx")
    capability = (9, 4) if is_amd else divmod(int(target.removeprefix("sm_")), 10)
    with (
        patch.object(torch.version, "hip", "7.0" if is_amd else None),
        patch.object(torch.cuda, "get_device_capability", lambda *_: capability),
    ):
        yield torch.device("cuda", 0)
