"""Each section runs without a card, on a very small network: what it measures moves, and is run by hand only."""

from __future__ import annotations

import pytest
import torch

from .bench import Bench
from .first_light import SECTIONS, Section

# Replies, commands and test runs, half a minute each. What they are made of is tested elsewhere.
SLOW = {
    "replies", "features", "command", "tests", "kernel_tests", "bench", "tune", "constrained", "load_packed",
    "limit", "streamed", "unload", "serve",
}  # fmt: skip


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(torch.device("cpu"), is_tiny=True)


@pytest.mark.parametrize("section", [s for s in SECTIONS if s.name not in SLOW], ids=lambda section: section.name)
def test_it_runs(section: Section, bench: Bench) -> None:
    assert section.run(bench).get("ok", True)
