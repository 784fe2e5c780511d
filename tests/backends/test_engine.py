"""The cache of loaded models: what is found in it, and what leaves it."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from llm_diffusiongemma import wording
from llm_diffusiongemma.backends import engine as engines
from llm_diffusiongemma.backends.engine import get_engine, let_go, loaded_engines
from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT, ModelEntry, Source
from llm_diffusiongemma.diffusion import loading
from llm_diffusiongemma.diffusion.operations import PLAIN_TORCH
from llm_diffusiongemma.diffusion.proving import Verdict
from llm_diffusiongemma.models import DiffusionGemma


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelEntry:
    """A model of one's own, in a folder that may be written to."""
    monkeypatch.setattr(engines, "_engines", {})
    shutil.copytree(EMBEDDED_CHECKPOINT, tmp_path / "checkpoint")
    return ModelEntry("mine", (Source(tmp_path / "checkpoint"),))


def test_an_engine_is_loaded_once(entry: ModelEntry) -> None:
    first, again = get_engine(entry), get_engine(entry)
    assert first.engine is again.engine
    assert (first.load_seconds > 0, again.load_seconds) == (True, 0)
    assert loaded_engines() == [first.engine]


def test_kernels_that_are_switched_off_are_told_once(
    entry: ModelEntry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wording, "_told", set())
    verdict = Verdict(PLAIN_TORCH, ("heads",), {"route": "it fails", "linear": "why"}, ("route",))
    monkeypatch.setattr(loading, "prove_all", lambda *of: verdict)
    for _ in range(2):
        get_engine(entry)
        let_go()
    told = "kernels are switched off, and PyTorch computes in their place (route: it fails)."
    assert capsys.readouterr().err == f"mine: {told}\n"


def test_files_that_are_replaced_in_place_are_loaded_anew(entry: ModelEntry) -> None:
    folder = entry.sources[0].where
    assert isinstance(folder, Path)
    before = get_engine(entry).engine
    (folder / "README.md").write_text("Nobody reads this.")
    (folder / "notes.json").write_text("{}")
    assert get_engine(entry).engine is before
    for name in ("model.safetensors", "chat_template.jinja", "generation_config.json", "preprocessor_config.json"):
        file = folder / name
        status = file.stat()
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        after = get_engine(entry)
        assert (name, after.engine is before) == (name, False)
        assert after.load_seconds > 0
        assert loaded_engines() == [after.engine]
        before = after.engine


def test_a_file_that_comes_is_read(entry: ModelEntry) -> None:
    folder = entry.sources[0].where
    assert isinstance(folder, Path)
    (folder / "preprocessor_config.json").rename(folder / "elsewhere")
    before = get_engine(entry).engine
    (folder / "elsewhere").rename(folder / "preprocessor_config.json")
    assert get_engine(entry).engine is not before


def test_what_is_let_go_is_gone_at_once(entry: ModelEntry) -> None:
    """Without the garbage collector, which is kept from what a command of llm's own has loaded."""
    model = DiffusionGemma(entry)
    loaded = get_engine(entry).engine
    _, embedding = next(loaded.loaded.network.tensors())
    held = [weakref.ref(each) for each in (loaded, loaded.loaded.network, embedding)]
    gc.disable()
    try:
        model.prompt("What is a canvas?", seed=1, max_denoising_steps=1).text()
        model.prompt("Ada", schema={"type": "object"}, seed=1, max_denoising_steps=1).text()
        del loaded, embedding
        assert held[0]() is not None
        let_go()
        assert [each() for each in held] == [None] * len(held)
    finally:
        gc.enable()
    assert loaded_engines() == []
    let_go()


def test_a_command_ends_in_silence_with_triton() -> None:
    """Its bindings print a line for each of their classes that Python doesn't take apart at its end."""
    pytest.importorskip("triton")
    code = """
from llm_diffusiongemma.backends import engine
with engine._no_garbage_collection(owns_process=True):
    import triton
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
