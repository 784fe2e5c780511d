"""What is seen of a reply, as JSON and back: the same record, or nothing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_diffusiongemma.backends.watched import seen_from_wire, seen_to_wire
from llm_diffusiongemma.chat.texts import is_text
from llm_diffusiongemma.view.records import Likely, Reading, Snapshot

READING = Reading(tokens=1024, of=5000)
DRAFT = Snapshot(
    attempt=0,
    block=2,
    step=3,
    max_steps=48,
    pieces=("Hi", "", "é\x1b[2J", "<turn|>"),
    kinds="trcx",
    states="nasn",
    end=3,
    mean_entropy=0.1 + 0.2,
    tokens_before=300,
    seconds=1 / 3,
)
LIKELY = Likely(
    (0.1, 0.0, -0.0, 7.3), ((("Hi", 0.9), ("</script>", 1e-9)), (), (("é", 1.0),), (("\ud83d\ude00", 1.0),))
)
WATCHED = replace(DRAFT, end=None, likely=replace(LIKELY, candidates=(*LIKELY.candidates[:3], ())))


def sent(seen: Reading | Snapshot) -> dict[str, Any]:
    return json.loads(json.dumps(seen_to_wire(seen)))


@pytest.mark.parametrize("seen", [READING, DRAFT, WATCHED])
def test_it_arrives_as_it_was_sent(seen: Reading | Snapshot) -> None:
    assert seen_from_wire(sent(seen)) == seen
    # Of a newer version.
    ((kind, record),) = sent(seen).items()
    assert seen_from_wire({kind: {**record, "colour": "red"}, "state": "reading"}) == seen


ODD: list[tuple[Reading | Snapshot, dict[str, Any]]] = [
    (READING, {"tokens": -1}),
    (READING, {"tokens": 5001}),
    (READING, {"of": 2**31}),
    (READING, {"of": None}),
    (DRAFT, {"pieces": ["Hi", "", ""]}),
    (DRAFT, {"pieces": ["Hi", "", "", None]}),
    (DRAFT, {"pieces": ["Hi", "", "", "\ud83d"]}),
    (DRAFT, {"pieces": ["Hi", "", "", "a" * 100_000]}),
    (DRAFT, {"pieces": ["Hi", "", "", "a" * 1001]}),
    (DRAFT, {"pieces": [""] * 5000, "kinds": "t" * 5000, "states": "n" * 5000}),
    (DRAFT, {"pieces": [], "kinds": "", "states": "", "end": None}),
    (DRAFT, {"kinds": "trc"}),
    (DRAFT, {"kinds": "trc?"}),
    (DRAFT, {"states": "nasnn"}),
    (DRAFT, {"states": "NASN"}),
    (DRAFT, {"end": 4}),
    (DRAFT, {"end": -1}),
    (DRAFT, {"step": 0}),
    (DRAFT, {"step": 49}),
    (DRAFT, {"max_steps": 2**31}),
    (DRAFT, {"block": -1}),
    (DRAFT, {"redrawn": -1}),
    (DRAFT, {"tokens_before": 1e300}),
    (DRAFT, {"mean_entropy": math.nan}),
    (DRAFT, {"mean_entropy": "nan"}),
    (DRAFT, {"mean_entropy": 1e300}),
    (DRAFT, {"seconds": math.inf}),
    (DRAFT, {"seconds": -1.0}),
    (WATCHED, {"likely": {"entropies": [0.0] * 4}}),
    (WATCHED, {"likely": {"entropies": [0.0] * 3, "candidates": [[]] * 4}}),
    (WATCHED, {"likely": {"entropies": [0.0] * 4, "candidates": [[]] * 5}}),
    (WATCHED, {"likely": {"entropies": [0.0] * 4, "candidates": [[["a", math.inf]], [], [], []]}}),
    (WATCHED, {"likely": {"entropies": [0.0] * 4, "candidates": [[["\ud83d", 1.0]], [], [], []]}}),
    (WATCHED, {"likely": {"entropies": [0.0] * 4, "candidates": [[["a", 1.0, 2.0]], [], [], []]}}),
    (WATCHED, {"likely": {"entropies": [0.0] * 4, "candidates": [[["a", 1e-9]] * 101, [], [], []]}}),
    (WATCHED, {"likely": {"entropies": [0.0, 0.0, 0.0, 1e300], "candidates": [[]] * 4}}),
    # A million errors in one record.
    (WATCHED, {"likely": {"entropies": [0.0] * 4, "candidates": [[None] * 1_000_000]}}),
]


@pytest.mark.parametrize(("seen", "odd"), ODD)
def test_what_cannot_be_is_left_out(seen: Reading | Snapshot, odd: dict[str, Any]) -> None:
    ((kind, record),) = sent(seen).items()
    assert seen_from_wire({kind: {**record, **odd}}) is None


def places(value: Any) -> list[tuple[Any, Any]]:
    """Everything within a value, as what holds it and where."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in items for place in [(value, key), *places(item)]]


STRANGE = st.sampled_from(
    [None, True, -1, 3, 2**70, 1.5, math.nan, "", "n", "\ud800\x1b[2J", [], [[]], [0.5] * 4, {}]
)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([READING, DRAFT, WATCHED]), st.data())
def test_nothing_but_a_record_or_nothing(seen: Reading | Snapshot | None, data: st.DataObject) -> None:
    """A whole one with something else in one or two of its places."""
    assert seen is not None
    extension = sent(seen)
    for _ in range(data.draw(st.integers(1, 2))):
        holder, key = data.draw(st.sampled_from(places(extension)))
        holder[key] = data.draw(STRANGE)
    if (seen := seen_from_wire(extension)) is None:
        return
    # What a terminal and a page are made of.
    (record,) = sent(seen).values()
    json.dumps(record, allow_nan=False)
    assert is_text(record)
    if isinstance(seen, Reading):
        assert 0 <= seen.tokens <= seen.of
        return
    assert len(seen.pieces) == len(seen.kinds) == len(seen.states) > 0
    assert set(seen.states) <= set("nas")
    assert set(seen.kinds) <= set("trcx")
    assert seen.end is None or 0 <= seen.end < len(seen.pieces)
    if seen.likely is not None:
        assert len(seen.likely.entropies) == len(seen.likely.candidates) == len(seen.pieces)
