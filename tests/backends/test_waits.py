"""What a reply says that it waits for: whatever may take long has a line of its own on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from llm_diffusiongemma.backends import engine
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
