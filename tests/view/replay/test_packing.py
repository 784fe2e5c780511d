"""Snapshots packed: what goes in comes out."""

from __future__ import annotations

import tracemalloc

from llm_diffusiongemma.view.records import Likely, Snapshot
from llm_diffusiongemma.view.replay import packing
from llm_diffusiongemma.view.replay.packing import Snapshots

from .snapshots import snapshot


def test_what_goes_in_comes_out() -> None:
    # Under a constraint a position may have fewer candidates than others, or none.
    likely = Likely((0.5, 0.0, 2.25), ((("a", 0.75), ("b", 0.125)), (), (("", 1.0),)))
    given = [snapshot("ab\n", step=1), snapshot("", step=2, end=1, likely=likely), snapshot("<b>", likely=likely)]
    packed = Snapshots()
    for each in given:
        packed.append(each)
    assert list(packed) == given
    assert len(packed) == 3
    assert packed[-1] == given[-1]
    assert packed[1:] == given[1:]


def test_a_long_reply_takes_little_memory() -> None:
    def step() -> Snapshot:
        likely = Likely(
            tuple(0.5 + i for i in range(256)),
            tuple(tuple((f"piece {i}", 0.25 + i + j) for j in range(4)) for i in range(256)),
        )
        return snapshot("x" * 256, likely=likely)

    snapshots = Snapshots()
    snapshots.append(step())
    tracemalloc.start()
    try:
        for _ in range(10):
            snapshots.append(step())
        kept = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, packing.__file__)])
    finally:
        tracemalloc.stop()
    # As tuples each takes more than 100,000.
    assert sum(each.size for each in kept.statistics("filename")) / 10 < 15_000
