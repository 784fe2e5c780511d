"""One request to the Hub, and what comes back: with an end to every silence, and Ctrl-C at any time.

The request is made in a thread of its own. Looking up a name, or waiting for a header that comes byte by byte,
can't be cut otherwise: whoever asked goes on at once, and the thread ends by itself or with the process.
"""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urljoin, urlsplit

from ..wording import quoted, tell
from . import settings

CheckWanted = Callable[[], None]
"""Raises if nobody wants the download any more. Asked several times a second."""

TICK_SECONDS = 0.1
# What is in a queue comes again after a crash, and connections are several.
QUEUED_CHUNKS = 4
MAX_REDIRECTS = 10
REDIRECTS = frozenset({301, 302, 303, 307, 308})

# A server's passing troubles, and what it then gets to recover. One that asks for more is given it, up to a limit.
TROUBLES = frozenset({408, 429, 500, 502, 503, 504})
RETRY_SECONDS = (0.5, 1.0, 2.0)
LONGEST_WAIT_SECONDS = 300.0
WORTH_A_WORD_SECONDS = 5.0
LIMIT_REACHED = re.compile(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d{1,9})")


class ExchangeError(Exception):
    """Base of what can go wrong between a request and the end of its answer. Never shown to anybody as it is."""


class NoAnswerError(ExchangeError):
    """The connection could not be made, or was lost, or nothing came."""


class UnusableAnswerError(ExchangeError):
    """What came is not what a Hub says."""


class RefusedError(ExchangeError):
    """The answer's status is none of success."""

    def __init__(self, answer: Answer, wait_seconds: float | None = None) -> None:
        super().__init__(f"status {answer.status}")
        self.status = answer.status
        self.code = answer.headers.get("x-error-code", "")
        self.words = quoted(answer.headers.get("x-error-message", ""), 200)
        self.was_logged_in = answer.was_logged_in
        self.wait_seconds = wait_seconds
        """for how long it wants to be left alone, if that is too long to wait for"""


@dataclass
class Answer:
    """`headers` have names in small letters. `chunks` is the body, decoded if it was compressed."""

    status: int
    headers: Mapping[str, str]
    chunks: Iterator[bytes]
    was_logged_in: bool
    hops: tuple[Mapping[str, str], ...] = ()
    """the headers of the answers that led here"""

    @property
    def is_encoded(self) -> bool:
        """Whether it came compressed, though nobody had asked for that."""
        return self.headers.get("content-encoding", "").strip().lower() not in ("", "identity")

    @property
    def length(self) -> int | None:
        """Of the body, as far as it is announced."""
        return None if self.is_encoded else whole_number(self.headers.get("content-length"))


@contextmanager
def exchange(
    method: str,
    url: str,
    headers: Mapping[str, str],
    silence_seconds: float,
    check_wanted: CheckWanted,
    deadline: float | None = None,
) -> Iterator[Answer]:
    """Ask, and follow where the answer leads. `deadline` is on the clock of `time.monotonic`.

    **Invariant**: the token goes to the host that was asked, and to no other that an answer names.

    Raises `NoAnswerError`, `UnusableAnswerError`, and `HubConnectionError` if nothing can be sent at all.
    """
    origin = _origin(url)
    hops: list[Mapping[str, str]] = []
    for _ in range(MAX_REDIRECTS):
        sent = {"Accept-Encoding": "identity", **headers}
        if not _is_same_host(origin, _origin(url)):
            sent = {name: value for name, value in sent.items() if name.lower() != "authorization"}
        request = _Request(method, url, sent, silence_seconds, check_wanted, deadline, is_first=not hops)
        try:
            status, received = request.head()
            location = received.get("location")
            if status in REDIRECTS and location:
                hops.append(received)
                url = _target(url, location)
                continue
            was_logged_in = any(name.lower() == "authorization" for name in sent)
            yield Answer(status, received, request.chunks(), was_logged_in, tuple(hops))
            return
        finally:
            request.abandon()
    raise UnusableAnswerError("it sends from one address to the next without end")


def pause(answer: Answer, tries: int, what: str, check_wanted: CheckWanted) -> None:
    """Wait before the next request, as long as a Hub in trouble wants. Raises `RefusedError` if it is too long."""
    asked = _retry_after(answer.headers)
    if tries >= len(RETRY_SECONDS) or (asked or 0) > LONGEST_WAIT_SECONDS:
        raise RefusedError(answer, asked if (asked or 0) > LONGEST_WAIT_SECONDS else None)
    seconds = max(asked or 0, RETRY_SECONDS[tries])
    if seconds >= WORTH_A_WORD_SECONDS:
        tell(
            f"The weights of {what} have to wait: the Hub (status {answer.status}) asks for {seconds:.0f} s. "
            "Ctrl-C stops it; what is here is kept."
        )
    wait(seconds, check_wanted)


def recover(tries: int, check_wanted: CheckWanted) -> bool:
    """Wait a little after a lost connection. False if there were enough of them."""
    if tries >= len(RETRY_SECONDS):
        return False
    wait(RETRY_SECONDS[tries], check_wanted)
    return True


def wait(seconds: float, check_wanted: CheckWanted) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        check_wanted()
        time.sleep(min(left, TICK_SECONDS))


def whole_number(text: str | None) -> int | None:
    """A header's number. None for none, and for what is none."""
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 19 else None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from seconds or from a date, or from what is left of the Hub's own limit."""
    text = headers.get("retry-after", "").strip()
    if not text:
        match = LIMIT_REACHED.search(headers.get("ratelimit", ""))
        return float(match[1]) if match else None
    if text.isascii() and text.isdigit():
        return float(int(text)) if len(text) < 19 else float("1e18")
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError, TypeError, OSError):
        return None


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, (parts.hostname or "").lower(), port


def _is_same_host(asked: tuple[str, str, int | None], other: tuple[str, str, int | None]) -> bool:
    """The same, or the same by an encrypted connection in place of an open one."""
    return other == asked or (asked[0], asked[2], other) == ("http", 80, ("https", asked[1], 443))


def _target(url: str, location: str) -> str:
    try:
        target = urljoin(url, location)
        scheme, host, _ = _origin(target)
    except ValueError as error:
        raise UnusableAnswerError(f"it sends to {quoted(location, 100)}, which is no address") from error
    if scheme not in ("http", "https") or not host:
        raise UnusableAnswerError(f"it sends to {quoted(location, 100)}, which is no address of the web")
    return target


class _Request:
    """One request in its thread, which hands over the head and the body in pieces."""

    def __init__(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        silence_seconds: float,
        check_wanted: CheckWanted,
        deadline: float | None,
        *,
        is_first: bool,
    ) -> None:
        self._silence_seconds = silence_seconds
        self._check_wanted = check_wanted
        self._deadline = deadline
        self._came: queue.Queue[Any] = queue.Queue(QUEUED_CHUNKS)
        self._is_abandoned = threading.Event()
        session = settings.session()
        try:
            request = session.build_request(method, url, headers=dict(headers), timeout=silence_seconds)
        except Exception as error:
            if is_first:
                raise settings.blame_for_endpoint() from error
            raise UnusableAnswerError(f"it sends to {quoted(url, 100)}, which is no address") from error
        threading.Thread(target=self._work, args=(session, request), daemon=True, name="download").start()

    def head(self) -> tuple[int, Mapping[str, str]]:
        status, headers = self._next()
        return status, headers

    def chunks(self) -> Iterator[bytes]:
        while (chunk := self._next()) is not None:
            yield chunk

    def abandon(self) -> None:
        self._is_abandoned.set()

    def _next(self) -> Any:
        """What comes next: the head, pieces of the body, None."""
        silent_at = time.monotonic() + self._silence_seconds
        while True:
            self._check_wanted()
            if self._deadline is not None and time.monotonic() > self._deadline:
                raise NoAnswerError("it was not done in time")
            try:
                item = self._came.get(timeout=TICK_SECONDS)
            except queue.Empty:
                if time.monotonic() > silent_at:
                    raise NoAnswerError(f"nothing came for {self._silence_seconds:.0f} s") from None
                continue
            if isinstance(item, BaseException):
                raise NoAnswerError(quoted(item) or type(item).__name__) from item
            return item

    def _work(self, session: Any, request: Any) -> None:
        try:
            response = session.send(request, stream=True, follow_redirects=False)
            try:
                self._hand_over((response.status_code, {k.lower(): v for k, v in response.headers.items()}))
                for chunk in response.iter_bytes():
                    if chunk and not self._hand_over(chunk):
                        return
                self._hand_over(None)
            finally:
                response.close()
        except BaseException as error:  # whoever waits for it decides what it means
            self._hand_over(error)

    def _hand_over(self, item: Any) -> bool:
        """False if nobody wants it."""
        while not self._is_abandoned.is_set():
            try:
                self._came.put(item, timeout=TICK_SECONDS)
            except queue.Full:
                continue
            return True
        return False
