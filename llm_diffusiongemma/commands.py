"""`llm diffusiongemma …`: which models there are, their weights, and what a prompt would do.

Thin: each command imports what it needs when it runs, so that `llm` starts no later for them.
"""

from __future__ import annotations

from pathlib import Path

import click

from .errors import RegistryError
from .interrupts import current_command
from .wording import printable, quoted


@click.group()
def diffusiongemma() -> None:
    """DiffusionGemma's models: what is on this machine of their weights, and what a prompt would do."""
    current_command()  # so that a Ctrl-C ends these as it ends a prompt


@diffusiongemma.command()
@click.argument("model_id", metavar="ID")
@click.argument("source")
@click.option("--revision", help="A branch, tag or commit of a repository. Default: its main branch")
@click.option("--device", help="Where it runs, such as cuda:1. Default: the best there is")
def add(model_id: str, source: str, revision: str | None, device: str | None) -> None:
    """Make a model of your own known to llm, as `llm -m ID`.

    SOURCE is a folder with a DiffusionGemma checkpoint, such as a fine-tune, or a repository (owner/name) of the
    Hugging Face Hub. A repository's weights come with the first prompt, or with `llm diffusiongemma download ID`.
    """
    from . import registry
    from .view.progress import indicate

    entry = registry.new_entry(model_id, source, revision, device)
    if entry.model_id in _names():
        raise RegistryError(f"There is a model {model_id!r} already: `llm models` has it. Choose another name.")
    folder = entry.sources[0].where
    with indicate("Looking at it"):
        if device is not None:
            from .diffusion.devices import resolve_device

            resolve_device(device)
        if isinstance(folder, Path):
            from .diffusion.loading import describe

            describe(folder)
    registry.add(entry)
    click.echo(printable(f"Added: `llm -m {model_id}` runs {quoted(entry.sources[0])}."))


def _names() -> set[str]:
    """All that `llm -m` understands."""
    import llm

    known = llm.get_models_with_aliases()
    ids = {each.model_id for known_one in known for each in (known_one.model, known_one.async_model) if each}
    return ids | {alias for known_one in known for alias in known_one.aliases}
