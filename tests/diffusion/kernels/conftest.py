"""Kernels run in Triton's interpreter, on the CPU; on a card they run compiled, by the same tests (mark `gpu`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import torch.utils.deterministic

if TYPE_CHECKING:
    from collections.abc import Iterator

ON_CARD = torch.cuda.is_available()  # where there is none, tests/conftest.py has chosen the interpreter


@pytest.fixture(params=["interpreted", pytest.param("compiled", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the kernels run."""
    if request.param == "compiled" and not ON_CARD:
        pytest.skip("needs a CUDA device")
    if request.param == "interpreted" and ON_CARD:
        pytest.skip("on a card kernels run compiled")
    return torch.device("cuda", 0) if ON_CARD else torch.device("cpu")


@pytest.fixture
def poisoned() -> Iterator[None]:
    """What nobody has written is NaN, or the largest integer."""
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory
    # What its public function does but for importing torch's compiler, which takes a second and a half.
    torch._C._set_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch._C._set_deterministic_algorithms(is_deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = fills
