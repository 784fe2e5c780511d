"""Kernels run in Triton's interpreter, on the CPU; on a card they run compiled, by the same tests (mark `gpu`)."""

from __future__ import annotations

import os

import pytest
import torch

ON_CARD = torch.cuda.is_available()
if not ON_CARD:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined, so before any is imported


@pytest.fixture(params=["interpreted", pytest.param("compiled", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the kernels run."""
    if request.param == "compiled" and not ON_CARD:
        pytest.skip("needs a CUDA device")
    if request.param == "interpreted" and ON_CARD:
        pytest.skip("on a card kernels run compiled")
    return torch.device("cuda", 0) if ON_CARD else torch.device("cpu")
