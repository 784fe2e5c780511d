"""A begun file on disk: which parts of it are there, whatever ended the process or the machine.

A file that one connection brings grows from its beginning, and its length says what is there. One that several
bring has holes, and a journal beside it. It names what has been written, which outlives the process, and what of
that the disk has surely taken, which outlives the machine's power.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..documents import Document, DocumentError, conform, parse_object
from .disk import file_size, write_whole

# Both end as the Hub's own unfinished files do, so that `hf cache prune` knows them for what they are.
PARTIAL_SUFFIX = ".resumable.incomplete"
JOURNAL_SUFFIX = ".ranges.incomplete"

HASH_CHUNK_BYTES = 1 << 22
# So much of what has come may come again after a crash, if a hundredth of the file isn't more.
NOTED_BYTES = 1 << 20
NOTED_SHARE = 400

# One connection's share of a file: large enough that asking for it costs little beside bringing it, small enough
# that what has come in order, and can be hashed, is never far behind.
MIN_SPAN_BYTES = 1 << 23
MAX_SPAN_BYTES = 1 << 27


BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class _Journal(Document):
    written: list[list[int]]
    kept: list[list[int]]
    """by the disk"""
    boot: str
    """of the machine, when it was written"""


def journal_of(partial: Path) -> Path:
    return partial.with_name(partial.name.removesuffix(PARTIAL_SUFFIX) + JOURNAL_SUFFIX)


def ranges_here(partial: Path) -> list[tuple[int, int]]:
    """The parts of a begun file that are there: first byte, and the one behind the last."""
    length, journal = file_size(partial), journal_of(partial)
    if not journal.is_file():
        return [(0, length)] if length else []
    result: list[tuple[int, int]] = []
    try:
        noted = conform(_Journal, parse_object(journal.read_bytes()))
        # Since then the power may have been off, if that can't be told.
        for start, end in noted.written if noted.boot and noted.boot == _boot() else noted.kept:
            if not (result[-1][1] if result else 0) <= start <= end:
                return []
            # What somebody has cut off since isn't there.
            result.append((min(start, length), min(end, length)))
    except (OSError, ValueError, DocumentError):
        return []  # so nobody knows what is there
    return result


def _boot() -> str:
    """What is another one after each start of the machine. Empty where there is no telling."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def bytes_here(partial: Path) -> int:
    return sum(end - start for start, end in ranges_here(partial))


def is_large(size: int) -> bool:
    """Whether a file of that size is worth several connections."""
    return size >= 2 * MIN_SPAN_BYTES


@dataclass
class Span:
    """A part of a file, which comes in order."""

    start: int
    end: int
    position: int
    """where the next byte goes"""
    is_taken: bool = False
    """whether a connection is at it, or has been"""

    @property
    def reached(self) -> int:
        """What is behind the end was brought just before another connection took over from there."""
        return min(self.position, self.end)

    @property
    def left(self) -> int:
        return self.end - self.reached


class Partial:
    """A begun file that is gone on with. Connections write into it each in its span; one thread does the rest."""

    def __init__(self, path: Path, size: int, digest: Callable[[], Any]) -> None:
        """`digest` makes the beginning of the hash that the file is checked by."""
        self.path = path
        self.size = size
        self._new_digest = digest
        self._lock = threading.Lock()
        self._keeper: threading.Thread | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._stream = path.open("r+b", buffering=0)
        here = ranges_here(path)
        if not here:
            self.restart()
            return
        os.fsync(self._stream.fileno())
        self._begin(here)

    def _begin(self, here: list[tuple[int, int]]) -> None:
        self._spans: list[Span] = []
        at = 0
        for start, end in [*here, (self.size, self.size)]:
            if at < start:
                self._spans.append(Span(at, start, at))
            if start < end:
                self._spans.append(Span(start, end, end))
            at = end
        self._has_journal = journal_of(self.path).is_file()
        self._kept = self._written()
        self._digest = self._new_digest()
        self._hashed = 0
        self._stream.seek(0)
        self._not_noted = 0

    def restart(self) -> None:
        """Forget all that is here."""
        journal_of(self.path).unlink(missing_ok=True)
        if self._stream.seekable() and file_size(self.path):
            self._stream.truncate(0)
        self._begin([])

    @property
    def received(self) -> int:
        return sum(span.reached - span.start for span in self._spans)

    @property
    def is_done(self) -> bool:
        """Whether all of it is here and hashed."""
        return self._hashed == self.size

    def divide(self, connections: int) -> int:
        """Cut what is missing into spans, for so many connections, and say how many can be made use of."""
        missing = self.size - self.received
        span_bytes = missing
        if connections > 1:
            span_bytes = min(max(-(-missing // connections), MIN_SPAN_BYTES), MAX_SPAN_BYTES)
        spans: list[Span] = []
        for span in self._spans:
            if not span.left:
                spans.append(span)
                continue
            if span.start < span.position:
                spans.append(Span(span.start, span.position, span.position))
            cuts = [*range(span.position, span.end, span_bytes), span.end]
            spans += [Span(start, end, start) for start, end in itertools.pairwise(cuts)]
        self._spans = spans
        count = min(sum(span.left > 0 for span in spans), connections)
        if count > 1 and not self._has_journal:
            # Before there is a hole: without it the length would be taken for what is there.
            self._has_journal = True
            self._write_journal()
        return count

    def take(self) -> Span | None:
        """The next span for a connection: the first that none has, or half of the one that would take longest."""
        with self._lock:
            for span in self._spans:
                if span.left and not span.is_taken:
                    span.is_taken = True
                    return span
            longest = max(self._spans, key=lambda span: span.left)
            if longest.left < 2 * MIN_SPAN_BYTES:
                return None
            middle = longest.end - longest.left // 2
            half = Span(middle, longest.end, middle, is_taken=True)
            longest.end = middle
            self._spans.insert(self._spans.index(longest) + 1, half)
            return half

    def give_back(self, span: Span) -> None:
        with self._lock:
            span.is_taken = False

    def hash_more(self) -> bool:
        """Hash a piece of what has come in order. False if there is nothing new."""
        count = min(self._in_order() - self._hashed, HASH_CHUNK_BYTES)
        if count <= 0:
            return False
        chunk = self._stream.read(count)
        if not chunk:
            raise OSError(errno.EIO, "something else has cut it short", str(self.path))
        self._digest.update(chunk)
        self._hashed += len(chunk)
        return True

    def _in_order(self) -> int:
        """Up to where all has come."""
        with self._lock:
            return next((span.reached for span in self._spans if span.left), self.size)

    def is_due(self, num_bytes: int) -> bool:
        """Whether, so many bytes more, enough has come for the journal to say so."""
        with self._lock:
            self._not_noted += num_bytes
            return self._has_journal and self._not_noted >= max(self.size // NOTED_SHARE, NOTED_BYTES)

    def note_if_due(self) -> None:
        """Note what has been written; and have the disk take it, which may take it a while."""
        if self.is_due(0):
            self._write_journal()
            if self._keeper is None or not self._keeper.is_alive():
                self._keeper = threading.Thread(target=self._keep, daemon=True, name="keeper")
                self._keeper.start()

    def _keep(self) -> None:
        written = self._written()
        with contextlib.suppress(OSError), self.path.open("r+b") as stream:  # what is wrong will show at the end
            os.fsync(stream.fileno())
            self._kept = written

    def keep(self) -> None:
        """Have the disk take what has come, and wait until it has."""
        written = self._written()
        os.fsync(self._stream.fileno())
        self._kept = written
        if self._has_journal:
            self._write_journal()

    def _write_journal(self) -> None:
        with self._lock:
            self._not_noted = 0
        noted = {"written": self._written(), "kept": self._kept, "boot": _boot()}
        write_whole(journal_of(self.path), json.dumps(noted))

    def _written(self) -> list[list[int]]:
        with self._lock:
            ranges = [[span.start, span.reached] for span in self._spans if span.start < span.reached]
        joined: list[list[int]] = []
        for start, end in ranges:
            if joined and joined[-1][1] == start:
                joined[-1][1] = end
            else:
                joined.append([start, end])
        return joined

    def close(self) -> None:
        self._stream.close()

    def hexdigest(self) -> str:
        return str(self._digest.hexdigest())

    def discard(self) -> None:
        self.close()
        discard(self.path)

    def move(self, place: Path) -> None:
        """Make it a whole file."""
        self.close()
        self.path.replace(place)
        journal_of(self.path).unlink(missing_ok=True)


def discard(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    journal_of(partial).unlink(missing_ok=True)
