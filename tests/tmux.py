"""A real terminal, tmux's, whose panes a test can read and resize, and a program in it that prints and draws."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 30
REASON = "needs tmux, which shows what a terminal makes of it"
ROOT = Path(__file__).parents[1]


def is_there() -> bool:
    return shutil.which("tmux") is not None


class Tmux:
    """A server of its own with one pane, where one command is run at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._environment = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
        self._environment.pop("TMUX", None)
        self("new-session", "-d", "-x", "80", "-y", "24", "sleep 1000000")
        self("set-option", "-g", "remain-on-exit", "on")
        self("set-option", "-g", "history-limit", "10000")
        self("set-option", "-g", "window-size", "manual")

    def __call__(self, *arguments: str) -> str:
        socket = str(self._folder / "tmux")
        result = subprocess.run(
            ["tmux", "-S", socket, "-f", os.devnull, *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    def run(self, *command: str, pipe: str = "", **environment: str) -> None:
        """In place of what ran before, on an empty screen. `pipe` is a shell's words behind the command, such as
        "| less". Its status is shown when it has ended."""
        variables = {"PYTHONPATH": str(ROOT), **environment}
        settings = [part for name, value in variables.items() for part in ("-e", f"{name}={value}")]
        # tmux hides the cursor of a pane whose program has ended; and the shell is not to be interrupted.
        and_wait = f'trap : INT; "$@" {pipe}; echo "<ended $?>"; exec sleep 1000000'
        self("respawn-pane", "-k", *settings, "sh", "-c", and_wait, "sh", *command)

    def press(self, *keys: str) -> None:
        """As tmux calls them: `C-c`, `Enter`; anything else is typed."""
        self("send-keys", *keys)

    def resize(self, columns: int, rows: int) -> None:
        self("resize-window", "-x", str(columns), "-y", str(rows))

    def flag(self, name: str) -> str:
        """`cursor_flag` (visible), `wrap_flag`, `cursor_x`, `pane_dead`, …"""
        return self("display-message", "-p", f"#{{{name}}}").strip()

    def text(self, *options: str) -> str:
        """What is in the pane, with what has scrolled out of it; `-J` joins lines that were wrapped."""
        return self("capture-pane", "-p", "-S", "-", *options).rstrip("\n")

    def wait_for(self, text: str, *options: str) -> str:
        """The pane's text once this is in it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while text not in (seen := self.text(*options)):
            assert time.monotonic() < deadline, seen
            time.sleep(0.01)
        return seen

    def close(self) -> None:
        self("kill-server")


class Drawing:
    """`tests.drawing` in a pane: it does one thing after another, and says when it is done."""

    def __init__(self, tmux: Tmux, folder: Path, pipe: str = "") -> None:
        self.tmux = tmux
        self._count = 0
        self._paths = folder / "orders", folder / "answers"
        for path in self._paths:
            path.unlink(missing_ok=True)
            os.mkfifo(path)
        tmux.run(sys.executable, "-m", "tests.drawing", *map(str, self._paths), pipe=pipe)
        self._orders = self._paths[0].open("w")
        self._answers = self._paths[1].open()

    def do(self, what: str, *arguments: Any) -> Any:
        self._orders.write(json.dumps([what, *arguments]) + "\n")
        self._orders.flush()
        return json.loads(self._answers.readline())

    def printed(self) -> str:
        """The pane once it has got all that was written. Before the mark that shows it."""
        self._count += 1
        mark = f"<end {self._count}>"
        self.do("print", f"\n{mark}")
        return self.tmux.wait_for(mark).partition(f"\n{mark}")[0]

    def close(self) -> None:
        self._orders.close()
        self._answers.close()
