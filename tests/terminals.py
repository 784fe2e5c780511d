"""A pseudo-terminal that a test holds the other end of. There are none on Windows."""

from __future__ import annotations

import io
import os
import re
import threading
import time
from collections.abc import Callable

PATIENCE_SECONDS = 10
COLUMNS, ROWS = 80, 24


class Terminal:
    """What has been written to a pseudo-terminal, and what of it can be seen."""

    def __init__(self) -> None:
        self._mine, theirs = os.openpty()
        self.resize(COLUMNS)
        self.stream = io.TextIOWrapper(os.fdopen(theirs, "wb", 0), encoding="utf-8", write_through=True)
        self._written = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def resize(self, columns: int, rows: int = ROWS) -> None:
        import termios

        self._columns = columns
        termios.tcsetwinsize(self._mine, (rows, columns))

    def _read(self) -> None:
        while True:
            try:
                content = os.read(self._mine, 4096)
            except OSError:
                break
            if not content:
                break
            self._written += content

    @property
    def written(self) -> str:
        return self._written.decode(errors="replace")

    @property
    def screen(self) -> str:
        """By the few sequences that are used, on a screen without end: anything else is seen as it is."""
        rows, row, column, saved, wraps = [""], 0, 0, (0, 0), True
        for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|\x1b[D78]|[^\x1b]|\x1b", self.written):
            rows += [""] * (row + 1 - len(rows))
            line = rows[row]
            if part.startswith("\x1b[") and part.endswith("m"):
                continue
            if part == "\r":
                column = 0
            elif part in ("\n", "\x1bD"):
                row, column = row + 1, column if part == "\x1bD" else 0
            elif match := re.fullmatch(r"\x1b\[(\d*)([AB])", part):
                row += int(match[1] or 1) * (-1 if match[2] == "A" else 1)
            elif part == "\x1b7":
                saved = (row, column)
            elif part == "\x1b8":
                row, column = saved
            elif part in ("\x1b[?7l", "\x1b[?7h"):
                wraps = part.endswith("h")
            elif part in ("\x1b[K", "\x1b[J"):
                rows[row] = line[:column]
                if part == "\x1b[J":
                    del rows[row + 1 :]
            else:
                rows[row] = line[:column].ljust(column) + part + line[column + 1 :]
                column = column + 1 if wraps else min(column + 1, self._columns - 1)
        rows += [""] * (row + 1 - len(rows))
        while len(rows) > row + 1 and not rows[-1]:
            del rows[-1]
        return "\n".join(rows)

    def wait_for(self, text: str) -> None:
        self._wait(lambda: text in self.screen)

    def wait_for_screen(self, text: str) -> None:
        """Until this is all."""
        self._wait(lambda: self.screen == text)

    def settle(self) -> str:
        """The screen once all that has been written until now has come."""
        self.stream.write("<end>")
        self._wait(lambda: self.written.endswith("<end>"))
        self._written = self._written.removesuffix(b"<end>")
        return self.screen

    def _wait(self, has_come: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not has_come():
            assert time.monotonic() < deadline, self.written
            time.sleep(0.005)

    def close(self) -> None:
        self.stream.close()
        self._reader.join()
        os.close(self._mine)
