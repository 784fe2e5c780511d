"""Which weights a model takes, and what is said when they are not there or not right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT

from .conftest import TINY, Llm

FULL = "diffusiongemma"


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the embedded checkpoint in the place of the full model."""
    folder = tmp_path / "own"
    shutil.copytree(EMBEDDED_CHECKPOINT, folder)
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_MODEL", str(folder))
    return folder


def test_a_folder_of_ones_own(llm_command: Llm, own_folder: Path) -> None:
    own = llm_command.ok("-m", FULL, "What is a canvas?", "-o", "seed", "1")
    assert own == llm_command.ok("-m", TINY, "What is a canvas?", "-o", "seed", "1")
    assert llm_command.logs()[0]["resolved_model"].startswith("diffusiongemma@")


def test_full_model_not_in_the_cache(llm_command: Llm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    message = llm_command.fails("-m", FULL, "Hello")
    assert "hf download google/diffusiongemma-26B-A4B-it" in message
    assert "diffusiongemma-tiny" in message


def test_full_model_from_the_cache(llm_command: Llm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache's own layout, with the embedded checkpoint under the full one's name."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "models--google--diffusiongemma-26B-A4B-it"
    shutil.copytree(EMBEDDED_CHECKPOINT, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    llm_command.ok("-m", FULL, "What is a canvas?")
    assert llm_command.logs()[0]["resolved_model"] == f"google/diffusiongemma-26B-A4B-it@{commit}"


def test_no_such_folder(llm_command: Llm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_MODEL", str(tmp_path / "nowhere"))
    message = llm_command.fails("-m", FULL, "Hello")
    assert "nowhere" in message
    assert "LLM_DIFFUSIONGEMMA_MODEL" in message


def test_a_home_that_is_nobodys(llm_command: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    """It raised while llm looked for its models, all of them."""
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_MODEL", "~nobody-of-that-name/model")
    assert TINY in llm_command.ok("models")
    assert "no folder" in llm_command.fails("-m", FULL, "Hello")


def test_folder_is_no_checkpoint(llm_command: Llm, own_folder: Path) -> None:
    (own_folder / "config.json").unlink()
    message = llm_command.fails("-m", FULL, "Hello")
    assert "config.json" in message
    assert "LLM_DIFFUSIONGEMMA_MODEL" in message


def test_another_models_checkpoint(llm_command: Llm, own_folder: Path) -> None:
    config = json.loads((own_folder / "config.json").read_text())
    (own_folder / "config.json").write_text(json.dumps({**config, "model_type": "gemma3"}))
    assert "gemma3" in llm_command.fails("-m", FULL, "Hello")


def test_missing_weights_are_refused_and_never_random(llm_command: Llm, own_folder: Path) -> None:
    weights = load_file(own_folder / "model.safetensors")
    dropped = next(name for name in weights if "layers.1" in name and "proj" in name)
    del weights[dropped]
    save_file(weights, own_folder / "model.safetensors", metadata={"format": "pt"})
    assert dropped.removeprefix("model.") in llm_command.fails("-m", FULL, "Hello")


def test_broken_chat_template(llm_command: Llm, own_folder: Path) -> None:
    (own_folder / "chat_template.jinja").write_text("{% for message in messages %}")
    assert "chat template can't render" in llm_command.fails("-m", FULL, "Hello")


def test_two_names_for_one_folder(llm_command: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    """They share an engine, but each is logged under its own name."""
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_MODEL", str(EMBEDDED_CHECKPOINT))
    for model in (TINY, FULL):
        llm_command.ok("-m", model, "Hello")
    assert [turn["resolved_model"].split("@")[0] for turn in llm_command.logs()] == [TINY, FULL]


@pytest.mark.parametrize("file", ["tokenizer.json", "chat_template.jinja"])
def test_text_side_missing(llm_command: Llm, own_folder: Path, file: str) -> None:
    (own_folder / file).unlink()
    message = llm_command.fails("-m", FULL, "Hello")
    assert file in message


def test_unknown_device(llm_command: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_DEVICE", "toaster")
    assert "toaster" in llm_command.fails("-m", TINY, "Hello")
