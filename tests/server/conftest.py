from __future__ import annotations

import pytest

from llm_diffusiongemma.server import desk

from .scripted import Scripted


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    scripted = Scripted()
    monkeypatch.setattr(desk, "AsyncLocalReply", scripted.reply())
    return scripted
