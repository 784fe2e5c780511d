"""A whole check, and its page."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import llm_diffusiongemma.backends.engine
from llm_diffusiongemma import check
from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT, HUB_SOURCES, ModelEntry, Source
from llm_diffusiongemma.check import prompts
from llm_diffusiongemma.check.report import CheckReport, Finding
from llm_diffusiongemma.diffusion.loading import describe
from llm_diffusiongemma.errors import CheckpointNotFoundError, DeviceMemoryError
from llm_diffusiongemma.hub.cache import Repository

from ..conftest import TINY, Llm
from ..layouts.writer import Layout
from ..loopback_hub import fill_cache
from .conftest import PACKED

FolderOf = Callable[[Layout], Path]


MODEL_ID = "my-own-name"


def entry(where: str | Path) -> ModelEntry:
    return ModelEntry(MODEL_ID, (Source(where),), "cpu")


def outcomes(report: CheckReport) -> dict[str, str]:
    return {finding.part: finding.outcome for finding in report.findings}


def test_the_embedded_checkpoint_passes_all_that_can_be_looked_at(llm_command: Llm) -> None:
    page = llm_command.ok("diffusiongemma", "check", TINY)
    assert "4 passed, 0 failed, 1 skipped" in page
    assert "12 of 12 replies" in page
    assert "ms a step" in page
    assert "\n- kernels: none in use\n" in page


@pytest.mark.parametrize("layout", PACKED)
def test_a_packed_copy_of_ones_own_passes_and_is_not_named(folder_of: FolderOf, layout: Layout) -> None:
    folder = folder_of(layout)
    report = check.run(entry(folder), is_quick=True)
    assert outcomes(report) == {
        "files": "passed",
        "logits": "passed",
        "values": "skipped",
        "layers": "skipped",
        "prompts": "passed",
    }
    page = report.markdown()
    for private in (folder, folder.parent, folder.name, Path.home()):
        assert str(private) not in page


def test_wrong_weights_fail_behind_their_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llm_command: Llm
) -> None:
    folder = shutil.copytree(EMBEDDED_CHECKPOINT, tmp_path / "wrong")
    weights = load_file(folder / "model.safetensors")
    names = [f"model.decoder.layers.{layer}.experts.down_proj" for layer in range(4)]
    for name, tensor in zip(names, [weights[name] for name in reversed(names)], strict=True):
        weights[name] = tensor
    save_file(weights, folder / "model.safetensors")
    # It writes no sentence, and as many steps as it may.
    question = replace(prompts.EMBEDDED[0], options={"max_denoising_steps": 2, "max_tokens": 256})
    monkeypatch.setattr(prompts, "EMBEDDED", (question,))
    report = check.run(entry(folder), is_quick=True)
    assert outcomes(report) == {
        "files": "passed",
        "logits": "failed",
        "values": "skipped",
        "layers": "skipped",
        "prompts": "failed",
    }
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_MODEL", str(folder))
    result = llm_command("diffusiongemma", "check", "--quick", "--out", str(tmp_path / "page"))
    assert (result.exit_code, result.output) == (1, "")
    assert "## Recorded logits: failed" in (tmp_path / "page").read_text()


def test_damaged_weights_are_a_report_and_its_folder_is_not_named(tmp_path: Path) -> None:
    folder = shutil.copytree(EMBEDDED_CHECKPOINT, tmp_path / "damaged")
    weights = load_file(folder / "model.safetensors")
    del weights["model.decoder.layers.2.router.scale"]
    save_file(weights, folder / "model.safetensors")
    report = check.run(entry(folder))
    assert outcomes(report) == {"files": "failed"}
    assert report.failed
    assert "layers.2.router.scale" in report.markdown()
    assert str(tmp_path) not in report.markdown()


@pytest.mark.usefixtures("in_process")
def test_the_name_of_a_repository_of_ones_own_is_not_on_the_page(
    cache: Path, checkpoint_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor in the paths that its damage is told with. And whoever is at home in / has no secret there."""
    fill_cache(cache, checkpoint_files, "alice/secret")
    blob = Repository.of("alice/secret").blob("0123")
    monkeypatch.setenv("HOME", "/")
    page = check._report(Source("alice/secret"), [Finding("files", "failed", f"Delete {blob}.")]).markdown()
    assert "Delete CACHE/REPOSITORY/blobs/0123." in page


def test_no_report_leaves_the_file_as_it_was(llm_command: Llm, tmp_path: Path) -> None:
    page = tmp_path / "page"
    for before in (None, "an older report"):
        if before is not None:
            page.write_text(before)
        llm_command.fails("diffusiongemma", "check", "diffusiongemma-fp8", "--out", str(page))
        assert (page.read_text() if page.exists() else None) == before
    result = llm_command("diffusiongemma", "check", TINY, "--out", str(tmp_path / "nowhere" / "page"))
    assert result.exit_code == 2
    assert "nowhere" in result.stderr


def test_what_can_not_be_held_is_checked_by_its_first_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    def get_engine(*_: object) -> None:
        raise DeviceMemoryError("The model does not fit.")

    monkeypatch.setattr(llm_diffusiongemma.backends.engine, "get_engine", get_engine)
    report = check.run(entry(EMBEDDED_CHECKPOINT))
    assert outcomes(report) == {
        "files": "passed",
        "logits": "passed",
        "values": "skipped",
        "layers": "skipped",
        "prompts": "skipped",
    }
    page = report.markdown()
    assert "the first 2 layers" in page
    assert "The model does not fit." in page


def test_what_is_not_here_is_not_downloaded() -> None:
    with pytest.raises(CheckpointNotFoundError, match="llm diffusiongemma download my-own-name"):
        check.run(entry(HUB_SOURCES[0].where))


def test_other_representations_of_the_original_weights_are_compared_if_they_are_here(
    folder_of: FolderOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here: dict[str | Path, Path] = {}
    monkeypatch.setattr(check, "_folder", lambda source: here.get(source.where))
    described = describe(EMBEDDED_CHECKPOINT)

    def found() -> list[str]:
        return [each.outcome for each in check._compare_representations(described, HUB_SOURCES[0])]

    assert found() == ["skipped"]
    here[HUB_SOURCES[1].where] = folder_of("redhat fp8")
    here[HUB_SOURCES[2].where] = tmp_path  # nothing that can be used
    assert found() == ["passed", "skipped"]
