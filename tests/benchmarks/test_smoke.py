"""Each measurement runs, at the smallest sizes: what it measures moves, and it is run by hand only."""

from __future__ import annotations

import gc
import subprocess

import pytest
import torch

from llm_diffusiongemma.tiny import data

from . import constrained, drafts, networks, server, warm
from .__main__ import BENCHMARKS
from .measure import Sizes

SMALLEST = Sizes(
    vocabulary=1024,
    steps=2,
    canvases=1,
    prompt_tokens=8,
    turns=2,
    question_tokens=4,
    hidden=32,
    real_hidden=32,
    long_context=600,
    questions=1,
)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_it_runs(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # Commands of seconds each; that they work is tested elsewhere.
    if name == "startup":
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: None)
    if name == "warm":
        monkeypatch.setattr(warm, "costs", lambda _: dict.fromkeys(warm.COMMANDS, warm.Cost(1.0, 0.5)))
    if name == "watch":  # of a network twice; the small one is as good
        monkeypatch.setattr(networks, "embedded_checkpoint", lambda device: networks.small_body(device, SMALLEST))
    # A reply of the embedded checkpoint each, of which one is like the other here.
    monkeypatch.setattr(server, "WATCHED", dict(list(server.WATCHED.items())[:2]))
    monkeypatch.setattr(data, "SKILLS", {"name": data.SKILLS["name"]})
    monkeypatch.setattr(constrained, "LANGUAGES", {"a date": constrained.LANGUAGES["a date"]})
    monkeypatch.setattr(constrained, "ROOMS", (1,))
    monkeypatch.setattr(drafts, "SKILLS", ("name",))
    # Before each measurement; a run of tests holds so many objects that it would be most of the time.
    monkeypatch.setattr(gc, "collect", lambda: 0)
    BENCHMARKS[name](torch.device("cpu"), 1, SMALLEST)
    assert "| --- |" in capsys.readouterr().out
