"""From the chunks of a server's stream to llm's stream events and a report. What is sync and async needs it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from llm import ToolCall
from llm.parts import StreamEvent
from llm.utils import monotonic_ulid

from ..chat.texts import whole_text
from ..errors import ServerError
from ..view.records import Reading, Snapshot
from ..wording import quoted, tell
from .dialects import Served
from .protocol import EXTENSION, report_from_wire
from .turn import FinishReason, Report
from .watched import seen_from_wire

# Of finish reasons by their names; the others are failures.
FINISH_REASONS: Mapping[str, FinishReason] = {
    "stop": "stop",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "length": "length",
}
# Under which names thoughts come.
REASONING = ("reasoning", "reasoning_content")


@dataclass
class _Call:
    """A call of a tool, as far as it has come."""

    id: str | None = None
    name: str = ""
    arguments: str = ""

    def read(self) -> dict[str, Any] | None:
        """Its arguments; None if they are no JSON object."""
        try:
            arguments = json.loads(self.arguments or "{}", parse_constant=_no_number)
        except (ValueError, RecursionError):
            return None
        if not (self.name and isinstance(arguments, dict)):
            return None
        text = whole_text(json.dumps(arguments, ensure_ascii=False))  # JSON in JSON can spell it, too
        return dict(json.loads(text))


class ReplyStream:
    """One reply as it comes: `consume` each chunk, then `finalize` once.

    A call of a tool is an event when all of it is there: of a server of ours with its chunk, for that holds it
    whole; of others at the end, when it is known that it was not cut.
    """

    has_begun = True

    def __init__(
        self,
        served: Served,
        has_tools: bool,
        say_state: Callable[[str], None] = lambda state: None,
        see: Callable[[Reading | Snapshot], object] | None = None,
    ) -> None:
        """`say_state` is told what a reply waits for, in the words of `protocol.State`; `see` what there is to be
        seen of it, where somebody watches it."""
        self.tool_calls: list[ToolCall] = []
        """With the ids that their events have."""
        self.has_text = False
        self._served = served
        self._has_tools = has_tools
        self._say_state, self._see = say_state, see
        self._started = time.perf_counter()
        self._seconds = 0.0
        self._calls: list[_Call] = []
        self._open: dict[int, _Call] = {}
        """The last of the calls of each index."""
        self._thought = ""
        self._finish_reason: str | None = None
        self._is_over = False
        self._model: str | None = None
        self._usage: Mapping[str, Any] = {}
        self._reported: Report | None = None

    def consume(self, chunk: object) -> list[StreamEvent]:
        """The events of one more chunk. Raises `ServerError` if it is none."""
        if not isinstance(chunk, Mapping):
            raise self._not_understood(chunk)
        self._seconds = time.perf_counter() - self._started
        if self._served.kind == "ours":
            self._read_extension(chunk)
        if isinstance(chunk.get("usage"), Mapping):
            self._usage = chunk["usage"]
        if isinstance(chunk.get("model"), str):
            self._model = quoted(chunk["model"])
        choices = chunk.get("choices") or []
        if not isinstance(choices, list) or not all(isinstance(choice, Mapping) for choice in choices):
            raise self._not_understood(chunk)
        events: list[StreamEvent] = []
        for choice in choices[:1]:
            delta = choice.get("delta") or {}
            if not isinstance(delta, Mapping):
                raise self._not_understood(chunk)
            events += self._read(delta)
            if choice.get("finish_reason") is not None:
                self._finish_reason = str(choice["finish_reason"])
        return events

    def finalize(self) -> list[StreamEvent]:
        """The events of what was held back. Raises `ServerError` if the reply is not whole."""
        if self._finish_reason is None:
            raise ServerError(
                f"{self._name} broke off in the middle of the reply"
                + (": what is above is not all of it." if self.has_text else ", before there was an answer.")
            )
        if self._finish_reason not in FINISH_REASONS:
            raise ServerError(f"{self._name} ended the reply with {quoted(repr(self._finish_reason), 60)}.")
        is_cut = FINISH_REASONS[self._finish_reason] == "length"
        events = self._end_calls(is_cut)
        self._is_over = True
        if self._served.kind == "ours" or self.has_text or self.tool_calls or is_cut:
            return events
        if not self._thought:
            raise ServerError(
                f"{self._name} ended the reply before it had begun: there is nothing in it. Ask again, or for a "
                "whole sentence."
            )
        # It was never closed, and the answer is in there: as in a reply of this process.
        return [*events, self._said(self._thought)]

    def cut_short(self) -> list[StreamEvent]:
        """What was held back of a reply that ends here. Calls are not run then, and half of one is nothing."""
        if self._reported is not None and self._reported.finish_reason == "tool_calls":
            self._reported = replace(self._reported, finish_reason="interrupted")
        self._is_over = False
        return []

    @property
    def report(self) -> Report:
        """What has happened so far."""
        if self._reported is not None:
            return replace(self._reported, server=self._served.address.name)
        details = self._usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
        return Report(
            finish_reason=self._own_finish_reason(),
            resolved_model=self._model or self._served.model,
            input_tokens=_count(self._usage.get("prompt_tokens")),
            output_tokens=_count(self._usage.get("completion_tokens")),
            cached_tokens=_count(cached) or 0,
            seed=None,
            load_seconds=None,
            generate_seconds=self._seconds,
            server=self._served.address.name,
        )

    def _own_finish_reason(self) -> FinishReason:
        if not self._is_over or self._finish_reason is None:
            return "interrupted"
        reason = FINISH_REASONS[self._finish_reason]
        if reason == "length":
            return reason
        # Some say "stop" of calls, too.
        return "tool_calls" if self.tool_calls else "stop"

    def _read_extension(self, chunk: Mapping[str, Any]) -> None:
        warnings = chunk.get("warnings")
        for warning in warnings if isinstance(warnings, list) else ():
            if isinstance(warning, str):
                tell(warning)
        extension = chunk.get(EXTENSION)
        if isinstance(extension, Mapping):
            if isinstance(extension.get("state"), str):
                self._say_state(extension["state"])
            if self._see is not None and (seen := seen_from_wire(extension)) is not None:
                self._see(seen)
            if "report" in extension:
                self._reported = report_from_wire(extension["report"])

    def _read(self, delta: Mapping[str, Any]) -> list[StreamEvent]:
        """In this order: a canvas may hold a thought's end, an answer and calls."""
        events = []
        thought = next((text for name in REASONING if (text := self._text(delta, name))), "")
        if thought:
            self._thought += thought
            events.append(StreamEvent("reasoning", thought))
        if text := self._text(delta, "content"):
            events.append(self._said(text))
        calls = delta.get("tool_calls") or []
        if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
            raise self._not_understood(calls)
        for call in calls:
            self._gather(call)
        if calls and self._served.kind == "ours":
            events += self._end_calls(is_cut=False)
        return events

    def _text(self, values: Mapping[str, Any], name: str) -> str:
        text = values.get(name)
        if text is None:
            return ""
        if not isinstance(text, str):
            raise self._not_understood(text)
        return whole_text(text)  # JSON can spell half of a surrogate pair

    def _gather(self, piece: Mapping[str, Any]) -> None:
        """One entry of a delta's calls, of which several may belong to one call."""
        function = piece.get("function") or {}
        if not isinstance(function, Mapping):
            raise self._not_understood(function)
        call_id, name = self._text(piece, "id") or None, self._text(function, "name")
        index = piece.get("index")
        if not isinstance(index, int):  # some leave it out where each entry is a whole call
            index = len(self._calls)
        call = self._open.get(index)
        # Others give all of them the same.
        is_another = call is not None and bool(name and call_id and call.id) and call_id != call.id
        if call is None or is_another:
            call = self._open[index] = _Call(call_id)
            self._calls.append(call)
        call.id = call.id or call_id
        call.name += name
        call.arguments += self._text(function, "arguments")

    def _end_calls(self, is_cut: bool) -> list[StreamEvent]:
        """The events of the calls that have come. One that was cut, or that nobody could run, is text."""
        events: list[StreamEvent] = []
        for call in self._calls:
            arguments = call.read()
            if arguments is None or is_cut or not self._has_tools:
                events.append(self._said(f"call:{call.name}{call.arguments}"))
                continue
            its_id = call.id if self._served.kind == "ours" else None
            call_id = its_id or f"tc_{str(monotonic_ulid()).lower()}"
            self.tool_calls.append(ToolCall(call.name, arguments, call_id))
            events += [
                StreamEvent("tool_call_name", call.name, tool_call_id=call_id),
                StreamEvent("tool_call_args", json.dumps(arguments), tool_call_id=call_id),
            ]
        self._calls, self._open = [], {}
        return events

    def _said(self, text: str) -> StreamEvent:
        self.has_text = self.has_text or bool(text.strip())
        return StreamEvent("text", text)

    @property
    def _name(self) -> str:
        return self._served.address.subject

    def _not_understood(self, what: object) -> ServerError:
        return ServerError(f"{self._name} sent what is no part of a reply: {quoted(what, 100)}")


def _no_number(name: str) -> Any:
    raise ValueError(name)  # NaN and the infinities are no JSON


def _count(value: object) -> int | None:
    """A number that llm's log can hold."""
    return value if type(value) is int and 0 <= value < 2**63 else None
