"""Where a kernel runs. No card is needed for that, nor Triton."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from llm_diffusiongemma.diffusion.kernels.launching import launch


def test_a_kernel_runs_where_its_tensors_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton would take the process's current card, which need not be the network's."""
    events: list[Any] = []

    @contextmanager
    def device_of(tensor: torch.Tensor) -> Iterator[None]:
        events.append(tensor)
        yield
        events.append("left")

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *arguments, **constants: events.append((grid, arguments, constants))

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    first, second = torch.ones(1), torch.ones(2)
    launch(Kernel(), (3,), 7, first, second, BLOCK=16)
    entered, (grid, arguments, constants), left = events
    assert entered is first
    assert (grid, arguments, left) == ((3,), (7, first, second), "left")
    assert constants.items() >= {"BLOCK": 16}.items()
