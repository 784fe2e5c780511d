"""From the tokens of finished blocks to llm's stream events.

Control tokens are recognised by their ids, so a marker is never cut by a block's edge, and text that
merely spells one stays text. What an edge can cut is a UTF-8 character or the label of a thought: those
are held back until the rest is there. So is a tool call, for half a call must never run.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Literal

from llm import ToolCall
from llm.parts import StreamEvent
from llm.utils import monotonic_ulid

from .tool_calls import CALL_CLOSES, CALL_OPENS, QUOTE, MalformedCallError, parse_call

REPLACEMENT_CHARACTER = "\ufffd"
THOUGHT_OPENS, THOUGHT_CLOSES = "<|channel>", "<channel|>"
# The name of the channel, on a line of its own; not part of the thought.
THOUGHT_LABEL = "thought\n"

Channel = Literal["text", "reasoning"]


class ReplyReader:
    """Turns one reply's tokens into events: `consume` each block, then `finalize` once.

    `decode` turns token ids into text and loses nothing; `control_tokens` maps the ids of control tokens
    to their names; `in_thought` says that the prompt has already opened a thought; without `has_tools` a
    call is text, since nobody could run it. So is one that is cut off or malformed. `verbatim` is for a reply
    held to a form: its text keeps the blanks at its edges, and no call ends the thought before it.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        control_tokens: dict[int, str],
        in_thought: bool = False,
        has_tools: bool = False,
        verbatim: bool = False,
    ) -> None:
        self.tool_calls: list[ToolCall] = []
        """The calls so far, each with the id that its events have."""
        self._has_tools = has_tools
        # The tokens of a call that is not closed yet, from the one that opens it on.
        self._call: list[int] = []
        self._in_string = False
        self._decode = decode
        self._control_tokens = control_tokens
        self._channel: Channel = "reasoning" if in_thought else "text"
        # The plain tokens since the last control token, and how much of their text is out.
        self._run: list[int] = []
        self._emitted = 0
        # Also at the very start: some replies leave out the token that opens the thought, some repeat the
        # label after a prompt that has opened it.
        self._label_pending = in_thought or not verbatim
        self._verbatim = verbatim
        # Blank lines around a thought belong to neither it nor the answer.
        self._at_start = in_thought
        self._blank = ""

    def consume(self, token_ids: Sequence[int]) -> list[StreamEvent]:
        """The events of one more block: at most one of a kind between two changes of kind."""
        events: list[StreamEvent] = []
        for token_id in token_ids:
            name = self._control_tokens.get(token_id)
            if self._call and not (name == CALL_OPENS and not self._in_string):
                self._call.append(token_id)
                if name == QUOTE:
                    self._in_string = not self._in_string
                elif name == CALL_CLOSES and not self._in_string:
                    events += self._end_call()
                continue
            if name is None:
                self._run.append(token_id)
                continue
            events += self._end_run()
            if name == THOUGHT_OPENS:
                self._switch("reasoning")
                self._label_pending = True
            elif name == THOUGHT_CLOSES:
                self._switch("text")
            elif name == CALL_OPENS and not (self._verbatim and self._channel == "reasoning"):
                # It also ends a thought, and a call before it that was never closed.
                events += self._cut_call()
                self._switch("text")
                self._call = [token_id]
        return _merge(events + self._flush(final=False))

    def finalize(self) -> list[StreamEvent]:
        """What was held back: an incomplete character comes out as U+FFFD, an incomplete call as text."""
        return _merge(self._end_run() + self._cut_call())

    def _end_run(self) -> list[StreamEvent]:
        events = self._flush(final=True)
        self._run, self._emitted = [], 0
        return events

    def _end_call(self) -> list[StreamEvent]:
        """The events of a call that has just been closed."""
        try:
            if not self._has_tools:
                raise MalformedCallError("no tool was declared")
            name, arguments = parse_call(self._units(self._call[1:-1]))
        except MalformedCallError:
            return self._cut_call()
        self._call = []
        call = ToolCall(name, arguments, f"tc_{str(monotonic_ulid()).lower()}")
        self.tool_calls.append(call)
        return [
            StreamEvent("tool_call_name", call.name, tool_call_id=call.tool_call_id),
            StreamEvent("tool_call_args", json.dumps(call.arguments), tool_call_id=call.tool_call_id),
        ]

    def _cut_call(self) -> list[StreamEvent]:
        """A call that is none, as it was written."""
        text = self._decode(self._call) if self._call else ""
        self._call, self._in_string = [], False
        return [StreamEvent("text", text)] if text else []

    def _units(self, token_ids: list[int]) -> list[str]:
        """The characters of the text, and the names of the control tokens in it."""
        units: list[str] = []
        for are_control, group in itertools.groupby(token_ids, lambda token_id: token_id in self._control_tokens):
            run = list(group)
            units += [self._control_tokens[token_id] for token_id in run] if are_control else self._decode(run)
        return units

    def _switch(self, channel: Channel) -> None:
        self._channel = channel
        self._at_start = channel == "reasoning" or not self._verbatim
        self._label_pending = False
        self._blank = ""

    def _flush(self, final: bool) -> list[StreamEvent]:
        text = self._decode(self._run) if self._run else ""
        if not final:
            # The first bytes of a character decode to replacement characters until the rest is there.
            text = text.rstrip(REPLACEMENT_CHARACTER)
        if self._label_pending:
            if not text or (not final and THOUGHT_LABEL.startswith(text)):
                return []
            self._label_pending = False
            whole = f"{text}\n" if self._channel == "reasoning" else text
            if whole.startswith(THOUGHT_LABEL):
                self._emitted = len(THOUGHT_LABEL)
        fresh = text[self._emitted :]
        self._emitted = max(self._emitted, len(text))
        if self._at_start:
            fresh = fresh.lstrip()
        if self._channel == "reasoning":
            # Held until the thought goes on: at its end it is dropped.
            fresh = self._blank + fresh
            kept = fresh.rstrip()
            self._blank = fresh[len(kept) :]
            fresh = kept
        if not fresh:
            return []
        self._at_start = False
        return [StreamEvent(type=self._channel, chunk=fresh)]


def _merge(events: list[StreamEvent]) -> list[StreamEvent]:
    """Neighbours of the same kind as one event."""
    merged: list[StreamEvent] = []
    for event in events:
        if merged and merged[-1].type == event.type and event.type in ("text", "reasoning"):
            merged[-1] = StreamEvent(type=event.type, chunk=merged[-1].chunk + event.chunk)
        else:
            merged.append(event)
    return merged
