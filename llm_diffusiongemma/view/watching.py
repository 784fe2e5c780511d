"""Who watches a reply of llm's: the terminal, and the replay that was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import llm
from llm.parts import StreamEvent

from ..options import Options
from .records import Reading, Snapshot, Watch

if TYPE_CHECKING:
    from llm.models import _BaseConversation

    from .replay.recorder import Recorder


class Watching:
    """One reply being watched. Enter it around all of the reply; leaving it leaves nothing on the terminal."""

    def __init__(
        self, prompt: llm.Prompt, options: Options, is_command: bool, conversation: _BaseConversation | None
    ) -> None:
        """`is_command` says that the reply is for a command of llm's own, and not for a program."""
        self.watch: Watch | None = None
        """For the reply's turn."""
        self.recorder: Recorder | None = None
        """If a replay is asked for."""
        self._prompt, self._options, self._conversation = prompt, options, conversation
        self._is_command = is_command

    def __enter__(self) -> Watching:
        """Raises `ReplayError` before anything is done for a reply whose replay could not be written."""
        if self._options.replay is not None:
            from .replay.recorder import Page, Recorder

            page = Page.shared(self._options.replay, self._conversation, self._is_command)
            self.recorder = Recorder(self._prompt.model.model_id, page)
            self.watch = Watch(self.see, "candidates")
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        # A reply that is interrupted has a report all the same, and ends with that.
        if self.recorder is not None and error is not None and not isinstance(error, KeyboardInterrupt):
            self.recorder.break_off(error)

    def see(self, seen: Reading | Snapshot) -> None:
        """What is new of the reply."""
        if self.recorder is not None:
            self.recorder.see(seen)

    @contextmanager
    def printing(self, events: Sequence[StreamEvent]) -> Iterator[None]:
        """While who asked for the reply has the word, and may print these: nothing else is on the terminal."""
        if self.recorder is not None:
            self.recorder.say(events)
        yield
