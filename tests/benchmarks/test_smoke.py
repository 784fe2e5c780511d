"""Each measurement runs, at the smallest sizes: what it measures moves, and it is run by hand only."""

from __future__ import annotations

import functools
import gc
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from llm_diffusiongemma.tiny import data
from llm_diffusiongemma.tiny.network import build_config

from . import constrained, drafts, ends, networks, quality, server, short, warm
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
CANVAS_LENGTH = 64


def small_config() -> Any:
    config = build_config()
    config.canvas_length = CANVAS_LENGTH
    return config


@pytest.fixture(scope="module", autouse=True)
def _networks_of_all() -> Iterator[None]:
    """Made once, with a short canvas but for the trained one's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "build_config", small_config)
        for name in ("random_twins", "embedded_checkpoint"):
            patch.setattr(networks, name, functools.cache(getattr(networks, name)))
        yield


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
    monkeypatch.setattr(server, "TOKENS", 257)
    monkeypatch.setattr(ends, "THRESHOLDS", ends.THRESHOLDS[::3])
    monkeypatch.setattr(quality, "LAYOUTS", (quality.REFERENCE, quality.LAYOUTS[-1]))
    monkeypatch.setattr(short, "LENGTHS", (CANVAS_LENGTH, 32))
    monkeypatch.setattr(data, "SKILLS", {"name": data.SKILLS["name"]})
    monkeypatch.setattr(constrained, "LANGUAGES", {"a date": constrained.LANGUAGES["a date"]})
    monkeypatch.setattr(constrained, "ROOMS", (1,))
    monkeypatch.setattr(constrained, "TAGGED", {"type": "boolean"})
    monkeypatch.setattr(constrained, "FEW", ("a date",))
    monkeypatch.setattr(drafts, "SKILLS", ("name",))
    monkeypatch.setattr(drafts, "DAMAGED", drafts.DAMAGED[:2])
    monkeypatch.setattr(drafts, "NOISE", drafts.NOISE[:2])
    # Before each measurement; a run of tests holds so many objects that it would be most of the time.
    monkeypatch.setattr(gc, "collect", lambda: 0)
    BENCHMARKS[name](torch.device("cpu"), 1, SMALLEST)
    assert "| --- |" in capsys.readouterr().out
