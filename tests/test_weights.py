"""The Hub's four repositories, as small copies under their real names: what answers, and on what."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llm_diffusiongemma import wording
from llm_diffusiongemma.backends import choice, engine
from llm_diffusiongemma.backends.choice import described_sizes
from llm_diffusiongemma.catalog import DEVICE_VARIABLE, EMBEDDED_CHECKPOINT, MEMORY_VARIABLE, MODEL_VARIABLE
from llm_diffusiongemma.diffusion.loading import describe
from llm_diffusiongemma.diffusion.placement import DeviceMemory, Machine, place

from .conftest import Llm
from .layouts import synthetic
from .layouts.writer import COMMIT, REPOSITORIES, Layout, write_to_cache

QUESTION = ("What is a canvas?", "-o", "seed", "1")
QUICK = tuple("-o max_tokens 40 -o max_denoising_steps 2 -o canvas_length 64".split())
NAMED: dict[str, Layout] = {"bf16": "google bf16", "fp8": "redhat fp8", "nvfp4": "nvidia nvfp4"}


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing loaded, and nothing said yet."""
    monkeypatch.setenv(DEVICE_VARIABLE, "cpu")
    monkeypatch.setattr(engine, "_engines", {})
    monkeypatch.setattr(wording, "_told", set())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with copies of the embedded checkpoint."""
    cache = tmp_path_factory.mktemp("small")
    for layout in REPOSITORIES:
        write_to_cache(EMBEDDED_CHECKPOINT, cache, layout)
    return cache


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Layout, Path]]:
    """A cache with copies of a random network that is mostly experts, and its folders."""
    folder = tmp_path_factory.mktemp("experts")
    plain = synthetic.write(folder / "plain", "google bf16", num_experts=24, moe_intermediate_size=512)
    cache = folder / "hub"
    return cache, {layout: write_to_cache(plain, cache, layout) for layout in NAMED.values()}


def use(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))


@pytest.mark.parametrize("representation", NAMED)
def test_each_answers_and_says_on_what(
    representation: str, small: Path, llm_command: Llm, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(small, monkeypatch)
    model, repository = f"diffusiongemma-{representation}", REPOSITORIES[NAMED[representation]]
    first = llm_command("-m", model, *QUESTION)
    assert first.stdout.startswith("A canvas is")
    line = f"{model}: {representation} weights ({repository}) on cpu.\n"
    assert first.stderr == ("" if representation == "bf16" else line)
    engine._engines.clear()
    assert llm_command("-m", model, *QUESTION, *QUICK).stderr == ""  # said once, though it is loaded again
    (turn, _) = llm_command.logs()
    assert turn["resolved_model"] == f"{repository}@{COMMIT}"
    report = turn["response_json"]
    assert (report["representation"], report["repository"], report["revision"]) == (
        representation,
        repository,
        COMMIT,
    )
    assert report["placement"]["devices"]["cpu"]["layers"] == 4
    assert report["placement"]["step_bytes"] == 0
    assert report["peak_memory_bytes"] is None or report["peak_memory_bytes"] > 2**25


def test_a_folder_of_ones_own_in_a_packed_layout(
    small: Path, llm_command: Llm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red Hat's nvfp4, which no built-in model takes."""
    folder = next(small.glob("models--RedHatAI--*NVFP4/snapshots/*"))
    monkeypatch.setenv(MODEL_VARIABLE, str(folder))
    assert llm_command.ok("-m", "diffusiongemma", *QUESTION).startswith("A canvas is")
    report = llm_command.logs()[0]["response_json"]
    assert (report["representation"], report["repository"], report["revision"]) == ("nvfp4", COMMIT, None)


def test_what_is_here_is_used(
    small: Path, tmp_path: Path, llm_command: Llm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nobody asks for the network: it could not be had."""
    name = f"models--{REPOSITORIES['nvidia nvfp4'].replace('/', '--')}"
    (tmp_path / name).symlink_to(small / name)
    use(tmp_path, monkeypatch)
    llm_command.ok("-m", "diffusiongemma", *QUESTION)
    assert llm_command.logs()[0]["response_json"]["representation"] == "nvfp4"


def expected(folder: Path) -> int:
    """What a whole network takes."""
    everything = Machine((DeviceMemory("cpu", 1 << 40, shares_host=True),), 1 << 40)
    return place(described_sizes(describe(folder), "cpu"), everything).device_bytes[0][1]


def test_a_limit_changes_weights_and_places_but_not_the_answer(
    experts: tuple[Path, dict[Layout, Path]], llm_command: Llm, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, folders = experts
    use(cache, monkeypatch)
    bf16, fp8, nvfp4 = (expected(folders[layout]) for layout in NAMED.values())
    assert bf16 > fp8 > nvfp4
    answers: dict[str, set[str]] = {}
    for model, limit, representation, num_streamed in (
        ("diffusiongemma", bf16 + 1024, "bf16", 0),
        ("diffusiongemma-bf16", bf16 - 1024, "bf16", 3),
        ("diffusiongemma", bf16 - 1024, "fp8", 0),
        ("diffusiongemma", fp8 - 1024, "nvfp4", 0),
        ("diffusiongemma", nvfp4 - 1024, "nvfp4", 3),
    ):
        monkeypatch.setenv(MEMORY_VARIABLE, f"{limit // 1024}KiB")
        result = llm_command("-m", model, *QUESTION, *QUICK)
        turn = llm_command.logs()[-1]
        report = turn["response_json"]
        assert report["representation"] == representation
        assert report["placement"]["experts_streamed_from_files"] == num_streamed
        if num_streamed:
            assert f"the experts of {num_streamed} of 4 layers streamed from the weight files" in result.stderr
        loaded = list(engine._engines.values())[-1]
        assert loaded.pipeline._context_tokens == report["placement"]["context_tokens"] == 4096
        answers.setdefault(representation, set()).add(turn["response"])
    assert [len(each) for each in answers.values()] == [1, 1, 1]


def test_weight_files_that_were_changed_are_loaded_anew(
    experts: tuple[Path, dict[Layout, Path]], llm_command: Llm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model whose experts are read from them at every step: every later prompt of a chat failed."""
    cache, folders = experts
    use(cache, monkeypatch)
    folder = folders["nvidia nvfp4"]
    monkeypatch.setenv(MEMORY_VARIABLE, f"{expected(folder) // 1024 - 1}KiB")
    prompt = ("-m", "diffusiongemma-nvfp4", *QUESTION, "-o", "max_tokens", "8", "-o", "max_denoising_steps", "1")
    first = llm_command.ok(*prompt)
    os.utime(folder / "model.safetensors")
    assert llm_command.ok(*prompt) == first
    before, after = (turn["response_json"]["load_seconds"] for turn in llm_command.logs())
    assert before > 0 < after
    assert len(engine._engines) == 1


def test_a_large_model_makes_room_for_the_next(
    small: Path, llm_command: Llm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each was planned to have the device for itself."""
    use(small, monkeypatch)
    for limit, num_left in ((1 << 40, 2), (0, 1)):
        monkeypatch.setattr(choice, "SMALL_MODEL_BYTES", limit)
        engine._engines.clear()
        for representation in ("fp8", "nvfp4"):
            llm_command.ok("-m", f"diffusiongemma-{representation}", "Hello", "-o", "max_denoising_steps", "1")
        left = [each.loaded.placement.representation for each in engine._engines.values()]
        assert left == ["fp8", "nvfp4"][-num_left:]


def test_too_little_for_any(
    experts: tuple[Path, dict[Layout, Path]], llm_command: Llm, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(experts[0], monkeypatch)
    monkeypatch.setenv(MEMORY_VARIABLE, "20MiB")
    message = llm_command.fails("-m", "diffusiongemma", "Hello")
    assert "There may be taken 20.0 MiB of cpu." in message
    assert "set LLM_DIFFUSIONGEMMA_MEMORY to more" in message
