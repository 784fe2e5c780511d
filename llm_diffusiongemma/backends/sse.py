"""What a client that knows no more of server-sent events than their data is given of them.

The `openai` client takes a comment for an event where there was one with an id before, and a `retry` always; and
it collects the lines of an event without end.
"""

from __future__ import annotations

import re

LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")
BOM = b"\xef\xbb\xbf"


class DataOnly:
    """Feed it a stream in pieces, and pass on what it returns: lines of data, and the blank ones behind them."""

    def __init__(self) -> None:
        self._rest = bytearray()
        """of a line, as far as it has come"""
        self._is_first = True
        self._event_bytes = 0

    @property
    def num_bytes(self) -> int:
        """Of the event that has begun."""
        return self._event_bytes + len(self._rest)

    def feed(self, piece: bytes) -> bytes:
        self._rest += piece
        if b"\n" not in piece and b"\r" not in piece:
            return b""  # a long line is looked through once
        *lines, rest = LINE_END.split(bytes(self._rest))
        self._rest = bytearray(rest)
        return b"".join(map(self._kept, lines))

    def end(self) -> bytes:
        """What is left when the stream is over."""
        return self.feed(b"\n") if self._rest.endswith(b"\r") else b""

    def _kept(self, line: bytes) -> bytes:
        if self._is_first:
            self._is_first = False
            line = line.removeprefix(BOM)
        if line.startswith(b"data:"):
            self._event_bytes += len(line)
            return line + b"\n"
        if line or not self._event_bytes:
            return b""
        self._event_bytes = 0
        return b"\n"
