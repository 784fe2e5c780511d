"""The process-wide cache of loaded models."""

from __future__ import annotations

import gc
import weakref

import llm
import pytest

from llm_diffusiongemma.backends import engine

from ..conftest import TINY


def test_what_is_unloaded_is_gone_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the garbage collector, which is kept from what a command of llm's own has loaded."""
    monkeypatch.setattr(engine, "_engines", {})
    model = llm.get_model(TINY)
    loaded = engine.get_engine(model.entry).engine
    _, embedding = next(loaded.loaded.network.tensors())
    held = [weakref.ref(each) for each in (loaded, loaded.loaded.network, embedding)]
    gc.disable()
    try:
        model.prompt("What is a canvas?", seed=1, max_denoising_steps=1).text()
        model.prompt("Ada", schema={"type": "object"}, seed=1, max_denoising_steps=1).text()
        del loaded, embedding
        assert held[0]() is not None
        engine.unload()
        assert [each() for each in held] == [None] * len(held)
    finally:
        gc.enable()
    assert engine.get_engine(model.entry).load_seconds > 0
