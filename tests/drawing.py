"""A program that prints, and draws below what it has printed, as it is told.

python -m tests.drawing ORDERS ANSWERS      two named pipes; a line is JSON: what to do, and arguments
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import llm.cli
from rich.console import Console
from rich.segment import Segment
from rich.style import Style

from llm_diffusiongemma.view import screen

cli = llm.cli.cli
"""As the `llm` command has it."""


class Shown:
    """So many lines: every other one fills its row."""

    def __init__(self) -> None:
        self.num_lines = 5

    def lines(self, console: Console) -> Sequence[Sequence[Segment]]:
        return [
            [Segment("#" * (console.width if index % 2 else index + 1), Style(bold=True))]
            for index in range(min(self.num_lines, console.height))
        ]


class Program:
    def __init__(self) -> None:
        self._shown = Shown()
        self._num_shows = 0
        show = screen._screen._show

        def counted(console: Console) -> None:
            show(console)
            self._num_shows += 1

        screen._screen._show = counted  # type: ignore[method-assign]

    def clear(self) -> None:
        """An empty screen, nothing scrolled out of it, and the cursor in its first corner."""
        with screen.aside():
            sys.stdout.write("\x1b[H\x1b[2J\x1b[3J")
            sys.stdout.flush()
            screen.begin_line()

    def print(self, text: str) -> None:
        """As a reply is printed, below which something is shown."""
        with screen.aside():
            screen.printed(text)
            sys.stdout.write(text)
            sys.stdout.flush()

    def print_alone(self, text: str) -> None:
        with screen.aside():
            sys.stdout.write(text)
            sys.stdout.flush()
            screen._screen.cursor.lose()

    def draw(self, num_lines: int) -> bool:
        """Whether there is something below the cursor now."""
        self._shown.num_lines = num_lines
        screen.refresh()
        before = self._num_shows
        while self._num_shows < before + 2:
            time.sleep(0.001)
        return bool(screen._screen._frame)

    def pid(self) -> int:
        return os.getpid()

    def run(self, orders: str, answers: str) -> None:
        with open(orders) as read, open(answers, "w") as write, screen.shown(self._shown):
            for line in read:
                what, *arguments = json.loads(line)
                result: Any = getattr(self, what)(*arguments)
                write.write(json.dumps(result) + "\n")
                write.flush()


if __name__ == "__main__":
    screen.FRAME_SECONDS = 0.002
    Program().run(*sys.argv[1:])
