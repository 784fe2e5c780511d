"""One file as it comes, over several connections at once, each going on where it was cut.

Each connection has a thread. The caller's thread hashes what has come in order, keeps account of it on disk, and
ends it all when nobody wants it any more.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable
from io import FileIO

from ..errors import DownloadError
from . import settings
from .exchange import (
    RETRY_SECONDS,
    TICK_SECONDS,
    TROUBLES,
    Answer,
    CheckWanted,
    NoAnswerError,
    RefusedError,
    UnusableAnswerError,
    exchange,
    pause,
    recover,
)
from .failures import size
from .listing import Listing, RemoteFile, file_url
from .partial import Partial, Span

CONNECTIONS = 8
# How long the end of a connection's thread is waited for: it may be writing.
LAST_SECONDS = 2.0

SOON_HERE_AGAIN_BYTES = 10**8
# A file that comes more slowly than so many bytes in such a time will never be here.
TRICKLE_SECONDS = 60.0
TRICKLE_BYTES = 60_000
# A connection that brings so much less than the others do is given up for another one.
SLOW_SECONDS = 15.0
SLOW_FACTOR = 8

CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)")


class TooLongError(DownloadError):
    """More comes than was announced."""


class Connections:
    """How many there may be at once, over all files. A server may take fewer."""

    def __init__(self) -> None:
        self._free = threading.Semaphore(CONNECTIONS)
        self._lock = threading.Lock()
        self._count = CONNECTIONS
        self.patience = threading.Lock()
        """Whoever has it waits for all, as long as the Hub wants."""
        self.waited_at = 0.0

    def acquire(self, check_wanted: CheckWanted) -> None:
        while not self._free.acquire(timeout=TICK_SECONDS):
            check_wanted()

    def release(self) -> None:
        self._free.release()

    def give_up(self) -> bool:
        """Have one less, in place of releasing it. False if it is the only one."""
        with self._lock:
            if self._count == 1:
                return False
            self._count -= 1
            return True

    def try_again(self) -> None:
        """Have one more after something has come, if some were given up: the trouble may be over."""
        with self._lock:
            if self._count < CONNECTIONS:
                self._count += 1
                self._free.release()


class _NoPartsError(Exception):
    """It has to come from its beginning, over one connection: the server hands out no parts, or other ones."""


class _OverError(Exception):
    """Nobody wants it any more."""


class Transfer:
    """What is still missing of a file comes by `run`."""

    def __init__(
        self,
        listing: Listing,
        file: RemoteFile,
        partial: Partial,
        connections: Connections,
        check_wanted: CheckWanted,
        advance: Callable[[int], None],
    ) -> None:
        """`advance` is told of so many bytes more, or fewer if they have to come again."""
        self._connections = connections
        self._repo = listing.repo
        self._name = file.name
        self._url = file_url(listing, file.name)
        self._partial = partial
        self._check_wanted = check_wanted
        self._advance = advance
        self._takes_parts = True
        self._has_parts = False
        self._lock = threading.Lock()

    def run(self) -> None:
        """Bring the rest, to the disk, and hash all of it.

        Raises `ExchangeError`s, `OSError`s of the disk, and `DownloadError`.
        """
        for restarts in range(len(RETRY_SECONDS) + 1):
            try:
                self._run()
                return
            except _NoPartsError as error:
                if restarts == len(RETRY_SECONDS):
                    raise NoAnswerError("the connection is lost again and again") from error
                self._takes_parts = False
                self._advance(-self._partial.received)
                self._partial.restart()

    def _run(self) -> None:
        count = self._partial.divide(CONNECTIONS if self._takes_parts else 1)
        self._is_over = threading.Event()
        self._wake = threading.Event()
        self._errors: list[BaseException] = []
        self._count, self._busy = count, 0
        self._began_at, self._began_with = time.monotonic(), self._partial.received
        self._watched_from = self._began_at, self._began_with
        threads = [threading.Thread(target=self._work, daemon=True, name="connection") for _ in range(count)]
        try:
            for thread in threads:
                thread.start()
            while not self._partial.is_done:
                self._check()
                self._partial.note_if_due()
                if not self._partial.hash_more():
                    self._wake.wait(TICK_SECONDS)
                    self._wake.clear()
        except BaseException:
            self._end(threads)
            with contextlib.suppress(OSError):  # what has been raised says more
                self._partial.keep()
            raise
        self._end(threads)
        self._partial.keep()

    def _end(self, threads: list[threading.Thread]) -> None:
        self._is_over.set()
        until = time.monotonic() + LAST_SECONDS
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(until - time.monotonic(), 0))

    def _check(self) -> None:
        """Raises what ends it all."""
        self._check_wanted()
        if self._errors:
            raise self._errors[0]
        received, (began_at, began_with) = self._partial.received, self._watched_from
        # Connections may be with other files, or waiting for the Hub.
        if not self._busy or self._connections.patience.locked() or received == self._partial.size:
            self._watched_from = time.monotonic(), received
        elif time.monotonic() >= began_at + TRICKLE_SECONDS:
            if received < began_with + TRICKLE_BYTES:
                raise DownloadError(
                    f"{self._name} of {self._repo} comes too slowly to ever be here: {received - began_with:,} "
                    f"bytes in {TRICKLE_SECONDS:.0f} s. Check the network, and run the command again to go on "
                    "from there."
                )
            self._watched_from = time.monotonic(), received

    # --- a connection -----------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while (span := self._take()) is not None:
                is_given_up = False
                try:
                    with self._partial.path.open("r+b", buffering=0) as stream:
                        stream.seek(span.position)
                        self._bring(span, stream)
                except (NoAnswerError, RefusedError) as error:
                    if isinstance(error, RefusedError) and error.status not in TROUBLES:
                        raise
                    # A server that has had enough of this connection may still serve others, which go on with it.
                    self._partial.give_back(span)
                    is_given_up = self._connections.give_up()
                    if not is_given_up:
                        raise
                else:
                    self._connections.try_again()
                finally:
                    self._count_busy(-1)
                    if not is_given_up:
                        self._connections.release()
                self._wake.set()
        except _OverError:
            pass
        except BaseException as error:  # whoever waits for it decides what it means
            self._errors.append(error)
        finally:
            self._wake.set()

    def _take(self) -> Span | None:
        """What to bring next, with a connection for it."""
        self._connections.acquire(self._is_wanted)
        span = self._partial.take()
        if span is None:
            self._connections.release()
        else:
            self._count_busy(1)
        return span

    def _count_busy(self, change: int) -> None:
        with self._lock:
            self._busy += change

    def _is_wanted(self) -> None:
        if self._is_over.is_set():
            raise _OverError

    def _bring(self, span: Span, stream: FileIO) -> None:
        """Ask until all of a span is here. What may pass of failures is waited for."""
        failures = 0
        while span.left:
            before = span.position
            try:
                answer, asked_at = self._ask(span, stream)
                if answer is None:
                    failures = 0
                    continue
                self._pause(answer, failures, asked_at)
            except NoAnswerError:
                if not span.left:
                    return
                if span.position > before:
                    failures = 0
                if not recover(failures, self._is_wanted):
                    raise
            failures += 1

    def _pause(self, answer: Answer, failures: int, asked_at: float) -> None:
        """Wait as long as a Hub in trouble wants, one connection for all."""
        connections = self._connections
        while not connections.patience.acquire(timeout=TICK_SECONDS):
            self._is_wanted()
        try:
            if asked_at > connections.waited_at:
                pause(answer, failures, self._repo, self._is_wanted)
                connections.waited_at = time.monotonic()
        finally:
            connections.patience.release()

    def _ask(self, span: Span, stream: FileIO) -> tuple[Answer | None, float]:
        """One request for the rest of a span. Returns the answer of a server that is in trouble."""
        headers, at, whole = settings.headers(), span.position, self._partial.size
        if self._takes_parts and (at or span.end < whole):
            headers["Range"] = f"bytes={at}-" + (str(span.end - 1) if span.end < whole else "")
        asked_at = time.monotonic()
        silence_seconds = settings.download_silence_seconds()
        with exchange("GET", self._url, headers, silence_seconds, self._is_wanted) as answer:
            if answer.status in (200, 206):
                self._check_start(answer, at, "Range" in headers)
                self._write(answer, span, stream)
                return None, asked_at
            if answer.status == 416 and "Range" in headers:
                raise self._no_parts()
            if answer.status not in TROUBLES:
                raise RefusedError(answer)
            return answer, asked_at

    def _no_parts(self) -> Exception:
        """A server that has handed out parts is asked for this one again: the others are not dropped for it."""
        return (
            NoAnswerError("it hands out other parts than were asked for") if self._has_parts else _NoPartsError()
        )

    def _check_start(self, answer: Answer, at: int, is_part: bool) -> None:
        """Raises unless what comes belongs where it is to go."""
        if answer.status == 206:
            match = CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
            if match is None or int(match[1]) != at or answer.is_encoded:
                if not is_part:
                    raise UnusableAnswerError(f"it hands out other parts of {self._name} than were asked for")
                raise self._no_parts()
            self._has_parts |= at > 0
        elif at or is_part:
            # What is here is dropped for an answer that is all of the file, as far as it says. A login page isn't.
            received = self._partial.received
            is_all = answer.length == self._partial.size or (
                answer.length is None and received < SOON_HERE_AGAIN_BYTES
            )
            raise self._no_parts() if is_all else self._not_whole(received)
        if answer.length is not None and at + answer.length > self._partial.size:
            raise self._too_long()

    def _write(self, answer: Answer, span: Span, stream: FileIO) -> None:
        first = began_with = span.position
        began_at = time.monotonic()
        for chunk in answer.chunks:
            room = span.left
            if len(chunk) > room and span.end == self._partial.size:
                raise self._too_long()
            if not room:
                return  # what comes now is another connection's
            rest = memoryview(chunk)[:room]
            while rest:
                rest = rest[stream.write(rest) :]
            span.position += min(len(chunk), room)
            self._advance(min(len(chunk), room))
            if self._partial.is_due(len(chunk)):
                self._wake.set()
            now = time.monotonic()
            if now > began_at + SLOW_SECONDS:
                if span.position - began_with < self._usual_bytes(now - began_at) / SLOW_FACTOR:
                    return  # it is asked for again
                began_at, began_with = now, span.position
        # A storage may hand out less at once than it is asked for.
        if span.left and (span.position == first or not self._is_of_all(answer)):
            raise self._not_whole(self._partial.received)

    def _is_of_all(self, answer: Answer) -> bool:
        """Whether it is a part of a file as long as this one."""
        match = CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
        return answer.status == 206 and match is not None and match[2] in ("*", str(self._partial.size))

    def _usual_bytes(self, seconds: float) -> float:
        """What a connection has brought in such a time, on average."""
        came = self._partial.received - self._began_with
        return came / (time.monotonic() - self._began_at) / self._count * seconds

    def _not_whole(self, count: int) -> DownloadError:
        return DownloadError(
            f"{self._name} of {self._repo} did not come whole ({count:,} of {self._partial.size:,} bytes). Run "
            "the command again to go on from there."
        )

    def _too_long(self) -> DownloadError:
        return TooLongError(
            f"{self._name} of {self._repo} is longer than the {size(self._partial.size)} that the Hub at "
            f"{settings.shown_endpoint()} announced. What came of it has been deleted. Run the command again; if "
            "it stays so, check HF_ENDPOINT and proxy settings."
        )
