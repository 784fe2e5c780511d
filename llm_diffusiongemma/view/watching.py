"""Who watches a reply of llm's: the terminal, and the replay that was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import llm
from llm.parts import StreamEvent

from ..options import Options
from .records import Reading, Snapshot, Watch


class Watching:
    """One reply being watched. Enter it around all of the reply; leaving it leaves nothing on the terminal."""

    def __init__(self, prompt: llm.Prompt, options: Options, is_command: bool) -> None:
        """`is_command` says that the reply is for a command of llm's own, and not for a program."""
        self.watch: Watch | None = None
        """For the reply's turn."""

    def __enter__(self) -> Watching:
        return self

    def __exit__(self, *raised: object) -> None:
        pass

    def see(self, seen: Reading | Snapshot) -> None:
        """What is new of the reply."""

    @contextmanager
    def printing(self, events: Sequence[StreamEvent]) -> Iterator[None]:
        """While who asked for the reply has the word, and may print these: nothing else is on the terminal."""
        yield
