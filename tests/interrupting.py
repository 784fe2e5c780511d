"""An `llm` command that gets a SIGINT in the middle.

    python -m tests.interrupting HOW WHERE [llm's arguments]

WHERE is a module, while it is imported: an exception ends the process then, as PyTorch's C++ may end it; or
"printing", before llm's first word; "a text", in code made from one, before anything is asked; or "the end", when
all is logged and Python takes itself apart. HOW is "plainly"; "twice"; or "stuck": the import never ends.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

import click
from llm.cli import cli

from llm_diffusiongemma import models


class Interrupting(MetaPathFinder):
    """Finds nothing; sends one signal when it is asked for a module."""

    def __init__(self, how: str, module: str) -> None:
        self._how = how
        self._module = module

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if name == self._module:
            self._module = ""
            try:
                interrupt()
                if self._how == "twice":
                    interrupt()
                if self._how == "stuck":
                    time.sleep(1000)
            except KeyboardInterrupt:
                os.abort()


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def interrupt_printing() -> None:
    echo = click.echo

    def interrupted_echo(*arguments: object, **settings: object) -> None:
        click.echo = echo
        interrupt()
        echo(*arguments, **settings)  # type: ignore[arg-type]

    click.echo = interrupted_echo  # type: ignore[assignment]


def interrupt_in_text() -> None:
    answer = models.answer

    def interrupted_answer(*arguments: Any) -> Any:
        models.answer = answer
        exec("interrupt()")
        return answer(*arguments)

    models.answer = interrupted_answer


if __name__ == "__main__":
    _, how, where, *arguments = sys.argv
    if where == "printing":
        interrupt_printing()
    elif where == "a text":
        interrupt_in_text()
    elif where == "the end":
        atexit.register(interrupt)
    else:
        sys.meta_path.insert(0, Interrupting(how, where))
    sys.argv = ["llm", *arguments]
    cli()
