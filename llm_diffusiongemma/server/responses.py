"""From a reply's events and its report to OpenAI's chunks and completions. Nothing is computed or sent here."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from llm.parts import StreamEvent

from ..backends.protocol import EXTENSION, State, report_to_wire
from ..backends.turn import Report
from ..backends.watched import seen_to_wire
from ..view.records import Reading, Snapshot

# A client takes what a chunk has in this order.
ORDER = {"reasoning": 0, "text": 1, "tool_call_name": 2, "tool_call_args": 2}


class Response:
    """One reply on its way: what all its parts have in common, and how many tools it has called."""

    def __init__(self, model: str) -> None:
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model = model
        self._num_calls = 0

    def beginning(self) -> dict[str, Any]:
        """The first chunk, before there is anything to be read."""
        return self._chunk({"role": "assistant", "content": ""})

    def waiting(self, state: State) -> dict[str, Any]:
        """What the reply waits for, as a chunk."""
        return self._beside({"state": state})

    def seen(self, seen: Reading | Snapshot) -> dict[str, Any]:
        """What there is to be seen of the reply, as a chunk."""
        return self._beside(seen_to_wire(seen))

    def block(self, events: Sequence[StreamEvent], report: Report | None = None) -> Iterator[dict[str, Any]]:
        """The chunks of a block: one, if its events have the order that those of a chunk have. `report` goes
        with each, and then there is one at least."""
        extension = {} if report is None else {EXTENSION: {"report": report_to_wire(report)}}
        deltas = list(self._deltas(events))
        if not deltas and report is not None:
            deltas.append({})
        for delta in deltas:
            yield {**self._chunk(delta), **extension}

    def end(self, report: Report, warnings: Sequence[str], with_usage: bool) -> Iterator[dict[str, Any]]:
        """The last chunks, of a reply that was not interrupted."""
        last = self._chunk({}, _finish_reason(report))
        yield {**last, **_warned(warnings), EXTENSION: {"report": report_to_wire(report)}}
        if with_usage:
            yield {**self._head("chat.completion.chunk"), "choices": [], "usage": _usage(report)}

    def whole(self, events: Iterable[StreamEvent], report: Report, warnings: Sequence[str]) -> dict[str, Any]:
        """All of a reply at once."""
        message: dict[str, Any] = {"role": "assistant", "content": None}
        for delta in self._deltas(list(events)):
            for name, value in delta.items():
                message[name] = value if message.get(name) is None else message[name] + value
        for call in message.get("tool_calls", ()):
            del call["index"]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish_reason(report)}
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": _usage(report),
            **_warned(warnings),
            EXTENSION: {"report": report_to_wire(report)},
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _beside(self, extension: dict[str, Any]) -> dict[str, Any]:
        return {**self._head("chat.completion.chunk"), "choices": [], EXTENSION: extension}

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _deltas(self, events: Sequence[StreamEvent]) -> Iterator[dict[str, Any]]:
        delta: dict[str, Any] = {}
        before = -1
        for event in events:
            order = ORDER[event.type]
            if order < before or order == before < ORDER["tool_call_name"]:
                yield delta
                delta = {}
            before = order
            if event.type == "reasoning":
                delta["reasoning"] = event.chunk
            elif event.type == "text":
                delta["content"] = event.chunk
            elif event.type == "tool_call_name":
                delta.setdefault("tool_calls", []).append(self._call(event))
            else:
                # Its name came just before it: a call is whole, or it is text.
                delta["tool_calls"][-1]["function"]["arguments"] += event.chunk
        if delta:
            yield delta

    def _call(self, event: StreamEvent) -> dict[str, Any]:
        self._num_calls += 1
        return {
            "index": self._num_calls - 1,
            "id": event.tool_call_id,
            "type": "function",
            "function": {"name": event.chunk, "arguments": ""},
        }


def _finish_reason(report: Report) -> str:
    """**Invariant**: a reply that was interrupted is never sent as a finished one."""
    if report.finish_reason == "interrupted":
        raise ValueError("an interrupted reply has no end")
    return report.finish_reason


def _warned(warnings: Sequence[str]) -> dict[str, Any]:
    return {"warnings": list(warnings)} if warnings else {}


def _usage(report: Report) -> dict[str, Any]:
    prompt_tokens, completion_tokens = report.input_tokens or 0, report.output_tokens or 0
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": report.cached_tokens},
    }
