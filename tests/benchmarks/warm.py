"""What a prompt costs as a whole command: through a server that runs, by its own process, and against an echo.

    python -m tests.benchmarks.warm [llm's arguments]

is `llm` with one more model, `echo`, which costs nothing: what `llm` itself takes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llm

TINY = "diffusiongemma-tiny"
ROOT = Path(__file__).parents[2]
PROMPT = "What is a canvas?"

ECHO = "`llm` with an echo model"
SERVED = "a prompt through the server"
HERE = "a prompt without"
OURS = {"LLM_LOAD_PLUGINS": "llm-diffusiongemma"}
COMMANDS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    ECHO: (("tests.benchmarks.warm", "-m", "echo", PROMPT), {"LLM_LOAD_PLUGINS": ""}),
    SERVED: (("llm", "-m", TINY, "-o", "seed", "1", PROMPT), OURS),
    HERE: (("llm", "-m", TINY, "-o", "seed", "1", PROMPT), {**OURS, "LLM_DIFFUSIONGEMMA_SERVER": "off"}),
}


@dataclass(frozen=True)
class Cost:
    """Medians, in seconds, of commands and of the replies in them."""

    seconds: float
    reply_seconds: float


def costs(repeats: int) -> dict[str, Cost]:
    """Of each command, in turns, one process each."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    replies: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        _run("llm", "diffusiongemma", "serve", TINY, "--detach", "--port", "0", folder=folder, **OURS)
        try:
            for _ in range(repeats + 1):
                for name, (command, environment) in COMMANDS.items():
                    started = time.perf_counter()
                    _run(*command, folder=folder, **environment)
                    times[name].append(time.perf_counter() - started)
                    replies[name].append(_reply_seconds(folder, name))
        finally:
            _run("llm", "diffusiongemma", "stop", folder=folder, **OURS)
    # The first of each warms up.
    return {
        name: Cost(statistics.median(times[name][1:]), statistics.median(replies[name][1:])) for name in COMMANDS
    }


def _run(*command: str, folder: str, **environment: str) -> str:
    # Compiled once, as what is installed is.
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(Path(folder) / "compiled")}
    ours = {"PYTHONPATH": str(ROOT), "LLM_USER_PATH": folder, **compiled}
    environment = {**os.environ, **ours, **environment}
    line = [sys.executable, "-m", *command]
    done = subprocess.run(line, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    return done.stdout


def _reply_seconds(folder: str, name: str) -> float:
    """Of the last reply, as its report has it."""
    (turn,) = json.loads(_run("llm", "logs", "-n", "1", "--json", folder=folder, LLM_LOAD_PLUGINS=""))
    report = json.loads(turn["response_json"]) if isinstance(turn["response_json"], str) else turn["response_json"]
    # That they took the way that they are named for.
    assert ("server" in (report or {})) == (name == SERVED)
    return float((report or {}).get("generate_seconds", 0.0))


class Echo(llm.Model):
    model_id = "echo"

    def execute(self, prompt: llm.Prompt, **_: Any) -> Iterator[str]:
        yield prompt.prompt


class _Plugin:
    @llm.hookimpl
    def register_models(self, register):  # type: ignore[no-untyped-def]
        register(Echo())


if __name__ == "__main__":
    from llm.cli import cli
    from llm.plugins import pm

    pm.register(_Plugin())
    cli()
