"""Records a reply, and writes the page that shows it with the others of its conversation."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from ...backends.protocol import VIEW_OPTIONS
from ...backends.turn import Outcome, Report, Turn
from ...errors import ReplayError
from ...wording import quoted, tell
from ..progress import indicate
from ..records import Reading, Snapshot, Wants
from ..screen import on_terminal
from .packing import Snapshots
from .place import check, place_of, write
from .prompts import prompt_of
from .recording import RecordedReply

if TYPE_CHECKING:
    from llm.models import _BaseConversation
    from llm.parts import StreamEvent

# What a report doesn't say in `as_json`, because llm has fields for it.
COUNTED = ("resolved_model", "input_tokens", "output_tokens", "cached_tokens")

_KEPT = "_diffusiongemma_replays"
# A program may have several replies made of one conversation at a time.
_sharing = threading.Lock()


class Page:
    """A file, and the replies that it shows."""

    def __init__(self, named: str) -> None:
        """Raises `ReplayError`."""
        self._named = named
        self.place = place_of(named)
        self._packed: list[str] = []
        self._lock = threading.Lock()
        self._is_written = False

    @classmethod
    def shared(cls, named: str, conversation: _BaseConversation | None, is_command: bool) -> Page:
        """The page of all replies in a conversation that are told the same file, as long as llm has that as the
        same object: calls of tools and what follows them, a chat. At the end of a command its terminal is told.

        Raises `ReplayError`.
        """
        if conversation is None:
            return cls(named)
        # Kept in it: it can't be a key of a table.
        pages: dict[str, Page] = conversation.__dict__.setdefault(_KEPT, {})
        with _sharing:
            if named not in pages:
                page = pages[named] = cls(named)
                if is_command and on_terminal():
                    click.get_current_context().call_on_close(page._tell)
            return pages[named]

    def show(self, reply: RecordedReply) -> None:
        """One more, in the file, too. Raises `ReplayError`."""
        from .page import packed, page

        with indicate("Writing the replay"):
            one_more = packed(reply)
            with self._lock:
                self._packed.append(one_more)
                write(self.place, page(self._packed))
                self._is_written = True

    def _tell(self) -> None:
        if self._is_written:
            click.echo(f"Replay: {quoted(self._named)}", err=True)


class Recorder:
    """One reply being recorded: what is seen of it and what it says, until it ends or breaks off."""

    wants: Wants = "candidates"

    def __init__(self, model: str, page: Page) -> None:
        """Raises `ReplayError` if the page could not be written, before anything is done for the reply."""
        check(page.place)
        self._model = model
        self._page = page
        self._snapshots = Snapshots()
        self._text = ""
        self._asked: tuple[Turn, Outcome] | None = None

    def follow(self, turn: Turn, reply: Outcome) -> None:
        """What is answered, and what will be known of how it went."""
        self._asked = turn, reply

    def see(self, seen: Reading | Snapshot) -> None:
        if isinstance(seen, Reading):
            return
        if self._snapshots and _step_of(seen) <= _step_of(self._snapshots[-1]):
            # The server has gone, and somebody else begins anew.
            self._snapshots = Snapshots()
        self._snapshots.append(seen)

    def say(self, events: Iterable[StreamEvent]) -> None:
        """What is printed of it."""
        self._text += "".join(event.chunk for event in events if event.type == "text")

    def end(self) -> None:
        """Writes the page. Raises `ReplayError`: the reply itself is whole.

        Of one that was interrupted before its first step there is nothing to show.
        """
        if self._asked is None:
            return
        turn, reply = self._asked
        if self._snapshots:
            self._write(turn, reply.report)
        elif reply.report.finish_reason != "interrupted":
            raise ReplayError("There is no replay: nobody has told how the reply's canvases went.")

    def close(self, error: BaseException | None) -> None:
        """The same for a reply that ends here because of an error, or because nobody wants it any more. One that
        was interrupted by Ctrl-C in this thread will still `end`."""
        if error is None or isinstance(error, KeyboardInterrupt) or self._asked is None or not self._snapshots:
            return
        turn, reply = self._asked
        failure = {"finish_reason": "error", "error": str(error)} if isinstance(error, Exception) else None
        try:
            self._write(turn, reply.report if reply.has_begun else None, failure)
        except ReplayError as why:
            tell(str(why))  # the error itself is on its way

    def _write(self, turn: Turn, report: Report | None, failure: dict[str, Any] | None = None) -> None:
        reply = RecordedReply(
            model=self._model,
            prompt=prompt_of(turn.messages),
            settings=_settings(turn, report),
            figures=_figures(report) | (failure or {}),
            snapshots=self._snapshots,
            text=self._text,
        )
        self._page.show(reply)


def _step_of(snapshot: Snapshot) -> tuple[int, int, int, int]:
    return snapshot.attempt, snapshot.block, snapshot.redrawn, snapshot.step


def _figures(report: Report | None) -> dict[str, Any]:
    if report is None:
        return {"finish_reason": "interrupted"}
    counted = {name: getattr(report, name) for name in COUNTED}
    return report.as_json() | {name: value for name, value in counted.items() if value is not None}


def _settings(turn: Turn, report: Report | None) -> dict[str, Any]:
    settings = turn.options.model_dump(exclude_none=True, exclude=set(VIEW_OPTIONS))
    if report is not None and report.seed is not None:
        settings["seed"] = report.seed
    if turn.schema is not None:
        settings["schema"] = turn.schema
    if turn.tools:
        settings["tools"] = [tool.name for tool in turn.tools]
    return settings
