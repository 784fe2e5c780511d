"""What a reply says that it waits for: whatever may take long has a line of its own on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from llm_diffusiongemma.backends import engine
from llm_diffusiongemma.diffusion import proving
from llm_diffusiongemma.diffusion.operations import PLAIN_TORCH
from llm_diffusiongemma.diffusion.proving import Verdict
from llm_diffusiongemma.view import progress
from llm_diffusiongemma.view.progress import Progress

from ..conftest import TINY, Llm


class Recorder:
    def __init__(self) -> None:
        self.waits: list[str] = []

    @contextmanager
    def shown(self, progress: Progress) -> Iterator[None]:
        self.waits.append(progress.now()[0])
        yield


def test_kernels_are_tried_within_a_wait_of_their_own(llm_command: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are compiled for a minute, the first time ever, for a card: this one is pretended."""
    recorder = Recorder()
    imported: list[None] = []
    monkeypatch.setattr(progress, "_reporter", recorder)
    monkeypatch.setattr(engine, "_engines", {})
    monkeypatch.setattr(proving, "is_to_be_tried", lambda device, weight_bytes=None: True)
    monkeypatch.setattr(proving, "import_kernels", lambda: imported.append(None))
    monkeypatch.setattr(proving, "prove", lambda *of: recorder.waits.append("...") or Verdict(PLAIN_TORCH))
    llm_command.ok("-m", TINY, "Hello", "-o", "max_tokens", "1")
    loading = recorder.waits.index(f"Loading {TINY}")
    assert recorder.waits[loading : loading + 4] == [
        f"Loading {TINY}",
        "Importing Triton",
        engine.TRYING_KERNELS,
        "...",
    ]
    assert imported


def test_each_wait_has_a_line(llm_command: Llm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recorder = Recorder()
    monkeypatch.setattr(progress, "_reporter", recorder)
    monkeypatch.setattr(engine, "_engines", {})
    Image.new("RGB", (60, 60), "red").save(tmp_path / "red.png")
    llm_command.ok("-m", TINY, "Which colour?", "-a", str(tmp_path / "red.png"), "--schema", "colour str")
    assert recorder.waits == [
        "Reading the form",
        "Reading the attachments",
        "Importing PyTorch",
        f"Looking for the weights of {TINY}",
        f"Loading {TINY}",
        "Importing transformers",
        "Cutting the images",
        "Spelling the form in tokens",
    ]
