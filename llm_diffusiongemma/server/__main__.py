"""`python -m llm_diffusiongemma.server MODEL …`: the server by itself, as `launch.start` runs it."""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Any

import click

from .. import registry
from ..backends import protocol
from ..backends.launch import Message
from ..backends.settings import Settings, settings_options
from ..catalog import ModelEntry, built_in
from ..errors import DiffusionGemmaError, RegistryError
from ..view import progress
from ..wording import quoted, told_to
from .process import AlreadyRunningError, serve


@click.command()
@click.argument("model_id", metavar="MODEL")
@settings_options
@click.option("--ends-when-idle", is_flag=True)
@click.option("--detached", "is_detached", is_flag=True)
def main(model_id: str, settings: Settings, ends_when_idle: bool, is_detached: bool) -> None:
    """Serve a model. `llm diffusiongemma serve` says how."""
    settings = replace(settings, ends_when_idle=ends_when_idle, is_detached=is_detached)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    say = _say if settings.is_detached else _say_nothing
    if settings.is_detached:
        progress.report_to(lambda *now: say("progress", now=now))
    try:
        with told_to(lambda text: say("told", text=text)) if settings.is_detached else nullcontext():
            status = serve(_entry(model_id), settings, when_ready=lambda server: say("ready"))
    except AlreadyRunningError:
        say("taken")
        raise
    except DiffusionGemmaError as error:
        say("failed", error=protocol.error_to_wire(error, 500))
        raise
    logging.shutdown()
    os._exit(status)  # all is said and taken away: PyTorch need not be taken apart, which takes its time


def _entry(model_id: str) -> ModelEntry:
    """Raises `RegistryError` if there is no such model."""
    for entry in (*built_in(), *registry.read().entries):
        if entry.model_id == model_id:
            return entry
    raise RegistryError(f"There is no DiffusionGemma {quoted(repr(model_id), 100)}.")


def _say(message: Message, **values: Any) -> None:
    """To who started it, who listens until it is ready."""
    with suppress(OSError):  # or has gone away before
        sys.stdout.write(json.dumps({"is": message, **values}) + "\n")
        sys.stdout.flush()
    if message == "ready":
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _say_nothing(message: Message, **values: Any) -> None: ...


if __name__ == "__main__":
    main()
