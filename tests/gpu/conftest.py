from __future__ import annotations

from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What asks for a card is marked, and skipped where there is none."""
    for item in items:
        if Path(__file__).parent in item.path.parents and "card" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))


@pytest.fixture
def card() -> torch.device:
    return torch.device("cuda", 0)
