"""Each measurement runs, at the smallest sizes: what it measures moves, and it is run by hand only."""

from __future__ import annotations

import subprocess

import pytest
import torch

from llm_diffusiongemma.tiny import data

from .__main__ import BENCHMARKS
from .measure import Sizes

SMALLEST = Sizes(
    vocabulary=1024,
    steps=2,
    prompt_tokens=8,
    turns=2,
    question_tokens=4,
    hidden=32,
    long_context=600,
    questions=1,
)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_it_runs(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "startup":  # twenty commands of seconds each; that they work is tested elsewhere
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: None)
    monkeypatch.setattr(data, "SKILLS", {"name": data.SKILLS["name"]})
    BENCHMARKS[name](torch.device("cpu"), 1, SMALLEST)
    assert "| --- |" in capsys.readouterr().out
