"""An `llm` command that gets a SIGINT while a module is imported.

    python -m tests.interrupting HOW MODULE [llm's arguments]

HOW is "plainly", or "lost": in a destructor, where Python prints and drops the exception that it raises.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

from llm.cli import cli


class Interrupting(MetaPathFinder):
    """Finds nothing; sends one signal when it is asked for a module."""

    def __init__(self, how: str, module: str) -> None:
        self._how = how
        self._module = module

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if name == self._module:
            self._module = ""
            if self._how == "lost":
                Dying()
            else:
                os.kill(os.getpid(), signal.SIGINT)


class Dying:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    _, how, module, *arguments = sys.argv
    sys.meta_path.insert(0, Interrupting(how, module))
    sys.argv = ["llm", *arguments]
    cli()
