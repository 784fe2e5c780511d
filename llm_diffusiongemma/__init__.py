"""A local DiffusionGemma for the llm command. Only llm's hooks are here."""

from __future__ import annotations

import llm

from .catalog import built_in
from .models import AsyncDiffusionGemma, DiffusionGemma


@llm.hookimpl
def register_models(register):  # type: ignore[no-untyped-def]
    for entry in built_in():
        register(DiffusionGemma(entry), AsyncDiffusionGemma(entry))
