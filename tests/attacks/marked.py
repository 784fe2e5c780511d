"""An `llm` command that says how far it has come.

    python -m tests.attacks.marked FD [llm's arguments]

A byte into the file descriptor when all of llm is imported, this plugin too, and one when the plugin has been
asked for a reply. Nothing of the command is changed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

ASKED_FOR_A_REPLY = "llm_diffusiongemma.backends.local"


class Marking(MetaPathFinder):
    """Finds nothing; says when that module is asked for."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if name == ASKED_FOR_A_REPLY:
            os.write(self._descriptor, b".")


if __name__ == "__main__":
    _, descriptor, *arguments = sys.argv
    sys.meta_path.insert(0, Marking(int(descriptor)))
    sys.argv = ["llm", *arguments]
    from llm.cli import cli

    os.write(int(descriptor), b".")
    cli()
