"""From the tokens of finished blocks to llm's stream events.

Control tokens are recognised by their ids, so a marker is never cut by a block's edge, and text that
merely spells one stays text. What an edge can cut is a UTF-8 character or the label of a channel: those
are held back until the rest is there. So is a tool call, for half a call must never run, and a text that
may turn out to be a thought.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from llm import ToolCall
from llm.parts import StreamEvent
from llm.utils import monotonic_ulid

from .parameters import Schema
from .tool_calls import CALL_CLOSES, CALL_OPENS, QUOTE, MalformedCallError, parse_call

REPLACEMENT_CHARACTER = "\ufffd"
THOUGHT_OPENS, THOUGHT_CLOSES = "<|channel>", "<channel|>"
# The name of the channel, on a line of its own; not part of the thought.
THOUGHT_LABEL = "thought\n"

_THOUGHT = THOUGHT_LABEL.strip()
# The name of another channel. A thought without a label would have to begin with a line like this.
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")

Channel = Literal["text", "reasoning"]


class ReplyReader:
    """Turns one reply's tokens into events: `consume` each block, then `finalize` once.

    `decode` turns token ids into text and loses nothing; `control_tokens` maps the ids of control tokens
    to their names; `in_thought` says that the prompt has already opened a thought; `tools` are the declared
    tools' names and the schemas of their arguments. Without any a call is text, since nobody could run it.
    So is one that is cut off, malformed or in doubt. `verbatim` is for a reply held to a form: its text keeps
    the blanks at its edges, and only `<channel|>` ends the thought before it.

    A channel may begin with its name, one word on a line of its own, which is dropped. `thought`, or no name,
    makes it reasoning, any other (`final`, `analysis`) text: the format has no other name for thoughts, and
    an answer that is lost is worse than a thought that is seen. Where a reply, or what follows a channel or
    a call, begins with the line `thought` though no channel is open, the word is a name if `<channel|>` comes
    before any other channel or call, else text; until that is known all of it is held back.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        control_tokens: dict[int, str],
        in_thought: bool = False,
        tools: Mapping[str, Schema] | None = None,
        verbatim: bool = False,
    ) -> None:
        self.tool_calls: list[ToolCall] = []
        """The calls so far, each with the id that its events have."""
        self._tools = tools or {}
        # The tokens of a call that is not closed yet, from the one that opens it on.
        self._call: list[int] = []
        self._in_string = False
        self._decode = decode
        self._control_tokens = control_tokens
        self._verbatim = verbatim
        # The plain tokens since the last control token, and how much of their text has been read.
        self._run: list[int] = []
        self._read = 0
        self._channel: Channel = "reasoning" if in_thought else "text"
        self._is_open = in_thought
        """Whether a channel is open. A text may have one, too, of another name."""
        self._may_be_named = False
        # What stands at the beginning, while it may still be a label or a thought; None once that is decided.
        # At the very start, too: some replies repeat the label after a prompt that has opened the thought.
        self._undecided: str | None = "" if in_thought or not verbatim else None
        # Blank lines around a thought belong to neither it nor the answer: those at the start are dropped,
        # those that may be the last are held until more comes.
        self._at_start = in_thought
        self._blanks: dict[Channel, str] = {"text": "", "reasoning": ""}
        self._thought = ""
        """What has been said of the thought that is open."""
        self._has_text = False

    def consume(self, token_ids: Sequence[int]) -> list[StreamEvent]:
        """The events of one more block: at most one of a kind between two changes of kind."""
        events: list[StreamEvent] = []
        for token_id in token_ids:
            name = self._control_tokens.get(token_id)
            if self._call and not self._cuts_call(name):
                self._call.append(token_id)
                if name == QUOTE:
                    self._in_string = not self._in_string
                elif name == CALL_CLOSES and not self._in_string:
                    events += self._end_call()
            elif name is None:
                self._run.append(token_id)
            else:
                events += self._end_run() + self._cut_call() + self._control(name, token_id)
        return _merge(events + self._say(self._new_text(final=False)))

    def finalize(self, *, is_whole: bool = False) -> list[StreamEvent]:
        """What was held back: an incomplete character comes out as U+FFFD, an incomplete call as text.

        `is_whole` says that the model ended the reply itself. Has it then written nothing but a thought that
        it never closed, its answer is in there: the thought comes out once more as text.
        """
        events = self._end_run() + self._cut_call() + self._decide_at(None)
        is_thought = self._channel == "reasoning" and not self._verbatim
        if is_whole and is_thought and self._thought and not self._has_text and not self.tool_calls:
            events.append(StreamEvent("text", self._thought))
        return _merge(events)

    def _cuts_call(self, name: str | None) -> bool:
        """Whether an open call ends here unfinished. What opens a call or a channel always opens one: in a
        string, too, which the model may have forgotten to close."""
        return name in (CALL_OPENS, THOUGHT_OPENS) or (name == THOUGHT_CLOSES and not self._in_string)

    def _control(self, name: str, token_id: int) -> list[StreamEvent]:
        """What a control token outside of calls does. Those that say nothing of channels and calls do nothing."""
        if name == CALL_OPENS and not (self._verbatim and self._channel == "reasoning"):
            # It also ends a thought.
            events = self._decide_at(name)
            self._switch("text")
            self._undecided = None
            self._call = [token_id]
            return events
        if name == THOUGHT_OPENS:
            events = self._decide_at(name)
            self._switch("reasoning")
            self._may_be_named = not self._verbatim
            return events
        # With nothing to close it is a stray one.
        if name == THOUGHT_CLOSES and (self._is_open or (self._undecided or "").strip()):
            events = self._decide_at(name)
            if self._is_open:
                self._switch("text")
            return events
        return []

    def _end_run(self) -> list[StreamEvent]:
        events = self._say(self._new_text(final=True))
        self._run, self._read = [], 0
        return events

    def _new_text(self, final: bool) -> str:
        text = self._decode(self._run) if self._run else ""
        if not final:
            # The first bytes of a character decode to replacement characters until the rest is there.
            text = text.rstrip(REPLACEMENT_CHARACTER)
        new = text[self._read :]
        self._read = max(self._read, len(text))
        return new

    def _end_call(self) -> list[StreamEvent]:
        """The events of a call that has just been closed."""
        try:
            if not self._tools:
                raise MalformedCallError("no tool was declared")
            units = self._units(self._call[1:-1])
            if REPLACEMENT_CHARACTER in units:
                raise MalformedCallError("half of a character")
            name, arguments = parse_call(units, self._tools)
        except MalformedCallError:
            return self._cut_call()
        self._call = []
        self._undecided = ""
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
        return self._emit(text)

    def _units(self, token_ids: list[int]) -> list[str]:
        """The characters of the text, and the names of the control tokens in it."""
        units: list[str] = []
        for are_control, group in itertools.groupby(token_ids, lambda token_id: token_id in self._control_tokens):
            run = list(group)
            units += [self._control_tokens[token_id] for token_id in run] if are_control else self._decode(run)
        return units

    def _switch(self, channel: Channel) -> None:
        """To a channel that opens here, or back to the plain text."""
        self._channel = channel
        self._is_open = channel == "reasoning"
        self._may_be_named = False
        self._at_start = self._is_open or not self._verbatim
        self._undecided = "" if self._at_start else None
        self._blanks["reasoning"] = ""
        if channel == "text":
            self._thought = ""

    def _say(self, text: str) -> list[StreamEvent]:
        if self._undecided is None:
            return self._emit(text)
        self._undecided += text
        line, newline, rest = self._undecided.lstrip().partition("\n")
        word = line.rstrip()
        if self._channel == "text":
            may_be_thought = word.lower() == _THOUGHT if newline else _THOUGHT.startswith(word.lower())
            return [] if may_be_thought else self._emit_undecided()
        if not newline and (not word or _NAME.fullmatch(word.lower())):
            return []
        is_thought = word.lower() == _THOUGHT
        if not is_thought and not (self._may_be_named and _NAME.fullmatch(word.lower())):
            return self._emit_undecided()
        if not is_thought:
            self._channel = "text"
        self._undecided = None
        return self._emit(rest)

    def _decide_at(self, control: str | None) -> list[StreamEvent]:
        """What was undecided, at the control token that decides it, or at the reply's end."""
        line, _, rest = (self._undecided or "").lstrip().partition("\n")
        if line.rstrip().lower() != _THOUGHT or (self._channel == "text" and control != THOUGHT_CLOSES):
            return self._emit_undecided()
        if self._channel == "text":
            self._switch("reasoning")
        self._undecided = None
        return self._emit(rest)

    def _emit_undecided(self) -> list[StreamEvent]:
        text, self._undecided = self._undecided or "", None
        return self._emit(text)

    def _emit(self, text: str) -> list[StreamEvent]:
        if self._at_start:
            text = text.lstrip()
        if not text:
            return []
        self._at_start = False
        text = self._blanks[self._channel] + text
        said = text.rstrip() if self._is_open else text
        self._blanks[self._channel] = text[len(said) :]
        if not said:
            return []
        if self._channel == "reasoning":
            self._thought += said
        elif said.strip():
            self._has_text = True
        return [StreamEvent(type=self._channel, chunk=said)]


def _merge(events: list[StreamEvent]) -> list[StreamEvent]:
    """Neighbours of the same kind as one event."""
    merged: list[StreamEvent] = []
    for event in events:
        if merged and merged[-1].type == event.type and event.type in ("text", "reasoning"):
            merged[-1] = StreamEvent(type=event.type, chunk=merged[-1].chunk + event.chunk)
        else:
            merged.append(event)
    return merged
