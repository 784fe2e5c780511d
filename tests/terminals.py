"""A pseudo-terminal that a test holds the other end of. There are none on Windows."""

from __future__ import annotations

import io
import os
import re
import threading
import time
from collections.abc import Callable

PATIENCE_SECONDS = 10


class Terminal:
    """What has been written to a pseudo-terminal, and what of it can be seen."""

    def __init__(self) -> None:
        self._mine, theirs = os.openpty()
        self.stream = io.TextIOWrapper(os.fdopen(theirs, "wb", 0), encoding="utf-8", write_through=True)
        self._written = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

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
        """By the few sequences that are used: anything else is seen as it is."""
        lines, column = [""], 0
        for part in re.findall(r"\x1b\[[\d;]*[A-Za-z]|\x1b|[^\x1b]", self.written):
            if part.startswith("\x1b[") and part.endswith("m"):
                continue
            if part == "\r":
                column = 0
            elif part == "\n":
                lines.append("")
            elif part == "\x1b[0K":
                lines[-1] = lines[-1][:column]
            elif part == "\x1b[2K":
                lines[-1] = ""
            else:
                lines[-1] = lines[-1][:column].ljust(column) + part + lines[-1][column + 1 :]
                column += 1
        return "\n".join(lines)

    def wait_for(self, text: str) -> None:
        self._wait(lambda: text in self.screen)

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
