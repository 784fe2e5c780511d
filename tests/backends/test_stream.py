"""Chunks of any shape: a reply's events, or a sentence."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_diffusiongemma.backends.address import Address
from llm_diffusiongemma.backends.dialects import Served
from llm_diffusiongemma.backends.protocol import EXTENSION, report_from_wire, report_to_wire
from llm_diffusiongemma.backends.stream import ReplyStream
from llm_diffusiongemma.backends.turn import Report, WeightsReport
from llm_diffusiongemma.errors import ServerError

from .scripted_server import call, delta

ADDRESS = Address("http://host/v1", None, None, "tiny", True, "box")
ODD = st.sampled_from(
    [None, True, 0, -1, 2**70, 1.5, float("nan"), "", "a", "\ud800\x1b[2J", [], [None], {}, {"a": {}}]
)


def like(value: Any) -> st.SearchStrategy[Any]:
    """Values of that shape, of which any part may be missing or something else."""
    if isinstance(value, dict):
        shape: st.SearchStrategy[Any] = st.fixed_dictionaries({}, optional={k: like(v) for k, v in value.items()})
    elif isinstance(value, list):
        shape = st.lists(st.one_of(ODD, *map(like, value)), max_size=3)
    else:
        shape = st.just(value)
    return st.integers(0, 4).flatmap(lambda number: ODD if number == 0 else shape)


CHUNK = {
    **delta("stop", content="a", reasoning="b", reasoning_content="c", tool_calls=[call(0, "f", '{"a": 1}')]),
    "model": "a",
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}},
    "warnings": [],
    EXTENSION: {"state": "queued", "report": {"finish_reason": "stop"}},
}


@settings(max_examples=30, deadline=None)
@given(st.lists(like(CHUNK), max_size=3), st.sampled_from(["ours", "vllm"]))
def test_nothing_but_a_sentence(chunks: list[Any], kind: Any) -> None:
    reply = ReplyStream(Served(ADDRESS, kind), has_tools=True)
    events = []
    with suppress(ServerError):
        for chunk in chunks:
            events += reply.consume(chunk)
        events += reply.finalize()
    # What llm keeps, and what it shows.
    "".join(event.chunk for event in events).encode()
    reply.report.resolved_model.encode()
    json.dumps(reply.report.as_json())
    counts = (reply.report.input_tokens, reply.report.output_tokens, reply.report.cached_tokens)
    assert all(count is None or (type(count) is int and 0 <= count < 2**63) for count in counts)
    assert all(isinstance(call.arguments, dict) for call in reply.tool_calls)


@pytest.mark.parametrize(
    "odd",
    [
        {"input_tokens": 2**63},
        {"seed": -(2**64)},
        {"generate_seconds": float("nan")},
        {"load_seconds": float("inf")},
        {"resolved_model": "\ud800"},
    ],
)
def test_a_report_that_no_log_can_hold(odd: dict[str, Any]) -> None:
    report = Report("stop", "tiny", 9, 7, 0, 1, 0.0, 0.5)
    reply = ReplyStream(Served(ADDRESS, "ours"), has_tools=False)
    reply.consume({EXTENSION: {"report": report_to_wire(report)}})
    with pytest.raises(ServerError, match="can't be kept in a log"):
        reply.consume({EXTENSION: {"report": report_to_wire(replace(report, **odd))}})
    assert reply.report == replace(report, server="box")


def test_a_report_of_another_version() -> None:
    """A server of before kernels tells nothing of them; a later one tells what nobody here knows of."""
    weights = WeightsReport(
        "bf16", "tiny", None, {}, None, "cuda:0", "bfloat16", {"in_use": [], "switched_off": {}}, "used", {"a": 1}
    )
    report = Report("stop", "tiny", 9, 7, 0, 1, 0.0, 0.5, weights=weights)
    wire = json.loads(json.dumps(report_to_wire(report)))
    assert report_from_wire(wire) == report
    assert report_from_wire({**wire, "weights": {**wire["weights"], "later": 1}}) == report
    for name in ("kernels", "graph", "streaming"):
        del wire["weights"][name]
    assert report_from_wire(wire).weights == replace(weights, kernels=None, graph=None, streaming=None)
