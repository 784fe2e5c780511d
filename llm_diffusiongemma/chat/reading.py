"""What bounds the cost of an attachment, whatever it is: its sides, and a reader that ends when time is over."""

from __future__ import annotations

import bisect
import io
import math
import time
from collections.abc import Iterable

from ..errors import ImageError

# Of this thread's CPU time. Most files take a hundredth of it.
MAX_SECONDS = 8.0
# Decoders written in Python read a byte or a chunk of some bytes at a time, and keep what they read: a file of
# nothing but those would cost a multiple of its length.
MAX_READS = 1_000_000
# To ask for the time takes longer than to read a byte.
READS_BETWEEN_CHECKS = 64


MIN_SIDE_PIXELS = 2
# No model has more patches than this in a row.
MAX_ASPECT = 1120
MAX_SIDE_PIXELS = 65_535


def check_size(width: int, height: int, most_pixels: int, name: str) -> None:
    """Raises `ImageError` for a picture of so many pixels that can't be shown, or would take too much."""
    size = f"{name} is {width:,} × {height:,} pixels"
    if min(width, height) < MIN_SIDE_PIXELS:
        raise ImageError(f"{size}, too small to show anything.")
    if max(width, height) > min(MAX_SIDE_PIXELS, MAX_ASPECT * min(width, height)):
        raise ImageError(
            f"{size}, too long and narrow: at most {MAX_ASPECT:,} times as long as wide, and no side longer than "
            f"{MAX_SIDE_PIXELS:,}. Crop it, or cut it in pieces."
        )
    if width * height > most_pixels:
        raise ImageError(f"{size}, too large: at most {most_pixels:,} in all. Scale it down first.")


class Reader(io.BytesIO):
    """An attachment's bytes. Reading raises `ImageError` when that attachment has taken too long."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self._attachment = name
        self._deadline = time.thread_time() + MAX_SECONDS
        self._reads = 0

    def check(self) -> None:
        """Raises `ImageError` when the time is over."""
        if time.thread_time() > self._deadline:
            raise ImageError(
                f"{self._attachment} takes more than {MAX_SECONDS:.0f} seconds to read. Make it smaller or "
                "shorter first."
            )

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > MAX_READS:
            raise ImageError(
                f"{self._attachment} is made of more than {MAX_READS:,} parts, which takes too long to read. "
                "Save it anew with another program first."
            )
        if self._reads % READS_BETWEEN_CHECKS == 0:
            self.check()
        return super().read(size)


class VideoReader(Reader):
    """For PyAV, which prints the traceback of what `read` raises: it ends as if the file did, and `check` raises.

    Bytes at `hidden` offsets, the four letters of a name in a container, are read as `skip`: a box of that name is
    passed over.
    """

    def __init__(self, content: bytes, name: str, hidden: Iterable[int] = ()) -> None:
        super().__init__(content, name)
        self._hidden = sorted(hidden)
        self._refusal: ImageError | None = None
        self.bytes_left: float = math.inf
        """How much more may be read; for whoever knows that little is needed."""

    def check(self) -> None:
        if self._refusal is not None:
            raise self._refusal
        super().check()

    def read(self, size: int | None = -1, /) -> bytes:
        if self._refusal is not None:
            return b""
        start = self.tell()
        try:
            data = super().read(size)
            self.bytes_left -= len(data)
            if self.bytes_left < 0:
                raise ImageError(f"{self._attachment} has too large a header. Convert it first.")
        except ImageError as error:
            self._refusal = error
            return b""
        first = bisect.bisect_right(self._hidden, start - 4)
        last = bisect.bisect_left(self._hidden, start + len(data))
        if first == last:
            return data
        # With room at both ends for a name that is only partly in what is read.
        padded = bytearray(4) + data + bytearray(4)
        for at in self._hidden[first:last]:
            padded[at - start + 4 : at - start + 8] = b"skip"
        return bytes(padded[4:-4])
