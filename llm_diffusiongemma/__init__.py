"""A local DiffusionGemma for the llm command. Only llm's hooks are here."""

from __future__ import annotations

import llm

from .catalog import built_in
from .commands import diffusiongemma
from .models import AsyncDiffusionGemma, DiffusionGemma
from .tools import decide_tool


# Last, to know which names other plugins' models have.
@llm.hookimpl(trylast=True)
def register_models(register, model_aliases):  # type: ignore[no-untyped-def]
    from . import registry

    taken = {alias for known in model_aliases for alias in known.aliases}
    taken |= {(known.model or known.async_model).model_id for known in model_aliases}
    for entry in (*built_in(), *(entry for entry in registry.read().entries if entry.model_id not in taken)):
        register(DiffusionGemma(entry), AsyncDiffusionGemma(entry))


@llm.hookimpl
def register_commands(cli):  # type: ignore[no-untyped-def]
    cli.add_command(diffusiongemma)


@llm.hookimpl
def register_tools(register):  # type: ignore[no-untyped-def]
    register(decide_tool())
