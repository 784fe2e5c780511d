"""Which weights a model takes, and what is said when they are not there or not right."""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import llm
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from llm_diffusiongemma import hub
from llm_diffusiongemma.backends import engine
from llm_diffusiongemma.catalog import (
    EMBEDDED_CHECKPOINT,
    HUB_SOURCES,
    ModelEntry,
    Source,
    built_in,
)
from llm_diffusiongemma.chat import template
from llm_diffusiongemma.diffusion import devices
from llm_diffusiongemma.errors import CheckpointNotFoundError, DiffusionGemmaError, FileAccessError
from llm_diffusiongemma.layout import REQUIRED_FILES, TEMPLATE_FILE
from llm_diffusiongemma.models import DiffusionGemma
from llm_diffusiongemma.wording import printable

from .attacks import checkpoints
from .conftest import TINY, Llm
from .layouts.writer import QUANTIZATION, REPOSITORIES, Layout, write

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
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_DEVICE", "cpu")
    monkeypatch.setattr(devices, "total_memory", lambda device: 2**40)
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


def test_a_file_missing(llm_command: Llm, own_folder: Path) -> None:
    """Without tokenizer_config.json transformers took another kind of tokenizer: `Ġ` for blanks, status 0."""
    for file in (*REQUIRED_FILES, TEMPLATE_FILE):
        content = (own_folder / file).read_bytes()
        (own_folder / file).unlink()
        missing = llm_command.fails("-m", FULL, "Hello")
        (own_folder / file).touch()
        empty = llm_command.fails("-m", FULL, "Hello")
        for message in (missing, empty):
            assert file in message
            assert str(own_folder) in message
        (own_folder / file).write_bytes(content)
    llm_command.ok("-m", FULL, "Hello")


def test_unknown_device(llm_command: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_DEVICE", "toaster")
    assert "toaster" in llm_command.fails("-m", TINY, "Hello")


def test_a_devices_name_in_capitals(llm_command: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Cpu", "CPU", " cpu ", "CPU:0"):
        monkeypatch.setenv("LLM_DIFFUSIONGEMMA_DEVICE", name)
        llm_command.ok("-m", TINY, "Hello")
    assert {turn["response_json"]["device"] for turn in llm_command.logs()} == {"cpu"}


def test_an_unknown_device_comes_before_a_folder_that_is_not_there(
    llm_command: Llm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_MODEL", str(tmp_path / "nowhere"))
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_DEVICE", "toaster")
    assert "no device called 'toaster'" in llm_command.fails("-m", FULL, "Hello")


UNSET = "unset the variable, and `llm -m diffusiongemma-bf16` runs it"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("google/diffusiongemma-26B-A4B-it", UNSET),
        ("Google/DiffusionGemma-26B-A4B-it", UNSET),
        ("google/diffusiongemma-26B-A4B-it/", UNSET),
        ("google/diffusiongemma-26B-A4B-it@main", UNSET),
        ("diffusiongemma-26B-A4B-it", UNSET),
        ("https://huggingface.co/google/diffusiongemma-26B-A4B-it", UNSET),
        ("https://huggingface.co/google/diffusiongemma-26B-A4B-it/tree/main", UNSET),
        ("huggingface.co/google/diffusiongemma-26B-A4B-it", UNSET),
        ("hf://google/diffusiongemma-26B-A4B-it", UNSET),
        ("nvidia/diffusiongemma-26B-A4B-it-NVFP4", "`llm -m diffusiongemma-nvfp4` runs it"),
        ("somebody/tuned.1", "`llm diffusiongemma add NAME somebody/tuned.1`"),
        ("https://hf.co/somebody/tuned?library=x", "`llm diffusiongemma add NAME somebody/tuned`"),
        ("a/b/c", "Set LLM_DIFFUSIONGEMMA_MODEL to a folder"),
        ("/a/b", "Set LLM_DIFFUSIONGEMMA_MODEL to a folder"),
        ("./a/b", "add NAME a/b`"),  # a Path forgets the dot
        ("~/a", "Set LLM_DIFFUSIONGEMMA_MODEL to a folder"),
    ],
)
def test_a_name_of_the_hub_in_place_of_a_folder(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_MODEL", name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match=f"^There is no folder .*{re.escape(words)}") as raised:
        hub.locate(built_in()[0].sources[0], FULL, lambda weight_bytes: None)
    assert "LLM_DIFFUSIONGEMMA_MODEL" in str(raised.value)


def test_a_folder_called_like_a_repository_is_a_folder(
    llm_command: Llm, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own_folder.parent.parent)
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_MODEL", f"{own_folder.parent.name}/own")
    llm_command.ok("-m", FULL, "Hello")


@pytest.mark.parametrize("nothing", ["", " "])
def test_a_variable_without_anything_in_it_is_unset(nothing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_MODEL", nothing)
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_DEVICE", nothing)
    assert built_in()[0] == ModelEntry("diffusiongemma", HUB_SOURCES)


def test_a_file_in_place_of_a_folder(llm_command: Llm, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_MODEL", str(own_folder / "model.safetensors"))
    assert "model.safetensors is a file. Set LLM_" in llm_command.fails("-m", FULL, "Hello")


def test_a_repositorys_folder_in_the_cache(
    llm_command: Llm, own_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = tmp_path / "models--google--diffusiongemma-26B-A4B-it"
    shutil.copytree(own_folder, repo / "snapshots" / "0123")
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_MODEL", str(repo))
    assert f"the checkpoint is the folder {repo / 'snapshots' / '0123'}" in llm_command.fails("-m", FULL, "Hello")


@pytest.mark.parametrize(
    "others",
    [["consolidated.safetensors"], ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]],
)
def test_a_copy_of_the_weights_in_another_layout(others: list[str], own_folder: Path) -> None:
    """It is not loaded: no memory is asked for it, and the name that is logged is the same without it."""
    before = hub.locate(built_in()[0].sources[0], FULL, lambda weight_bytes: None)
    size = (own_folder / "model.safetensors").stat().st_size
    assert before.weight_bytes == size
    for name in others:
        shutil.copy(own_folder / "model.safetensors", own_folder / name)
    (own_folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": others[0]}}))
    after = hub.locate(built_in()[0].sources[0], FULL, lambda weight_bytes: None)
    assert (after, after.weight_bytes) == (before, size)


def test_a_consolidated_copy_beside_shards(own_folder: Path) -> None:
    weights = load_file(own_folder / "model.safetensors")
    (own_folder / "model.safetensors").rename(own_folder / "consolidated.safetensors")
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, part in shards.items():
        save_file({name: weights[name] for name in part}, own_folder / shard)
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    (own_folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = hub.locate(built_in()[0].sources[0], FULL, lambda weight_bytes: None)
    assert checkpoint.weight_bytes == sum((own_folder / shard).stat().st_size for shard in shards)
    (own_folder / "consolidated.safetensors").unlink()
    assert hub.locate(built_in()[0].sources[0], FULL, lambda weight_bytes: None) == checkpoint


# --- packed weights ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[Layout, Path]:
    """The embedded checkpoint as each of the Hub's repositories stores the real one."""
    place: Path = tmp_path_factory.mktemp("layouts")
    return {layout: write(EMBEDDED_CHECKPOINT, place / layout, layout) for layout in REPOSITORIES}


def test_packed_weights_answer_as_plain_ones(
    llm_command: Llm, layouts: dict[Layout, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = llm_command.ok("-m", TINY, "What is a canvas?", "-o", "seed", "1")
    assert plain.startswith("A canvas is")
    for folder in layouts.values():
        monkeypatch.setenv("LLM_DIFFUSIONGEMMA_MODEL", str(folder))
        assert llm_command.ok("-m", FULL, "What is a canvas?", "-o", "seed", "1") == plain


EXPERT = "model.decoder.layers.3.experts.1.gate_proj"


def in_shards(folder: Path) -> None:
    """With an index that names one which isn't there."""
    names = [*load_file(folder / "model.safetensors")]
    shards = ["model-1-of-2.safetensors", "model-2-of-2.safetensors"]
    (folder / "model.safetensors").rename(folder / shards[0])
    weight_map = dict.fromkeys(names, shards[0]) | {names[0]: shards[1]}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def with_tensors(**changes: torch.Tensor | str | None) -> Callable[[Path], None]:
    """One expert's tensors changed: None takes one out, and a name renames it."""

    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        for end, change in changes.items():
            tensor = tensors.pop(f"{EXPERT}.{end}")
            if isinstance(change, str):
                tensors[f"{EXPERT}.{change}"] = tensor
            elif change is not None:
                tensors[f"{EXPERT}.{end}"] = change
        save_file(tensors, folder / "model.safetensors")

    return spoil


def with_config(**changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return spoil


def cut(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size // 2)


@pytest.mark.parametrize(
    ("layout", "spoil", "words"),
    [
        ("nvidia nvfp4", cut, "model.safetensors is damaged or was not downloaded whole"),
        ("nvidia nvfp4", in_shards, "is incomplete: 1 of 2 weight files are missing (model-2-of-2.safetensors)"),
        ("nvidia nvfp4", with_tensors(weight_scale_2=None), f"missing weights ({EXPERT}.weight_scale_2)"),
        (
            "redhat nvfp4",
            with_tensors(weight_packed="weight", weight_global_scale="weight_scale_2"),
            "mixes two conventions of NVFP4",
        ),
        ("redhat fp8", with_tensors(weight_scale=torch.ones(64)), "weights of another size"),
        ("redhat fp8", with_tensors(weight_scale=torch.full((64, 1), -1.0)), "holds -1.0, which is no scale"),
        ("redhat fp8", with_config(model_type="gemma4"), "this plugin runs 'diffusion_gemma' only"),
        ("redhat fp8", with_config(quantization_config={"quant_method": "awq"}), "AWQ, which is for vLLM"),
        (
            "google bf16",
            with_config(quantization_config=QUANTIZATION["redhat fp8"]),
            "in its weight files is plain",
        ),
    ],
)
def test_packed_weights_that_are_not_right(
    layout: Layout,
    spoil: Callable[[Path], None],
    words: str,
    llm_command: Llm,
    layouts: dict[Layout, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sentence with the way out, and no model that is half loaded."""
    folder = shutil.copytree(layouts[layout], tmp_path / "own")
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_MODEL", str(folder))
    spoil(folder)
    before = dict(engine._engines)
    message = llm_command.fails("-m", FULL, "Hello")
    assert words in message
    assert str(folder) in message
    assert "LLM_DIFFUSIONGEMMA_MODEL names the folder" in message
    assert engine._engines == before


# --- what a stranger's folder may hold --------------------------------------------------------------------


def answer(folder: Path, image: Path | None = None) -> str:
    """A short reply from a folder, without the command around it."""
    attachments = [llm.Attachment(path=str(image), type="image/png")] if image else []
    model = DiffusionGemma(ModelEntry(FULL, (Source(folder),), "cpu"))
    return model.prompt("Hello", attachments=attachments, stream=False, max_tokens=8, max_denoising_steps=1).text()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "picture.png"
    Image.new("RGB", (64, 48), (220, 25, 25)).save(file)
    return file


@pytest.fixture
def stranger(own_folder: Path, tmp_path: Path) -> Path:
    """A folder that brings code along, and names it wherever transformers would ask whether it may run."""
    code = f"open({str(tmp_path / 'it ran')!r}, 'w')\nclass Evil: pass\n"
    (own_folder / "evil.py").write_text(code)
    (own_folder / "custom_generate").mkdir()
    (own_folder / "custom_generate" / "generate.py").write_text(code)
    names = ("Config", "Model", "Tokenizer", "ImageProcessor", "Processor", "ModelForCausalLM")
    auto_map = {f"Auto{name}": ["evil.Evil"] * 2 if name == "Tokenizer" else "evil.Evil" for name in names}
    for file in ("config.json", "generation_config.json", "tokenizer_config.json", "preprocessor_config.json"):
        content = json.loads((own_folder / file).read_text())
        for part in (content, content.get("text_config"), content.get("vision_config")):
            if part is not None:
                part.update(auto_map=auto_map, trust_remote_code=True, custom_generate="evil")
        (own_folder / file).write_text(json.dumps(content))
    return own_folder


def test_code_that_a_folder_brings_along_is_never_asked_about(
    stranger: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An `auto_map` of an unknown class asked `Do you wish to run the custom code? [y/N]` in a prompt."""

    def asked(*_: object) -> NoReturn:
        raise AssertionError("it asked")

    monkeypatch.setattr("builtins.input", asked)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 100))
    answer(stranger, picture)
    for file, key, value in (
        ("preprocessor_config.json", "image_processor_type", "EvilProcessor"),
        ("tokenizer_config.json", "tokenizer_class", "EvilTokenizer\x1b[2J"),
    ):
        content = json.loads((stranger / file).read_text())
        (stranger / file).write_text(json.dumps({**content, key: value}))
        engine._engines.clear()
        with pytest.raises(DiffusionGemmaError, match=f"{file}.*Evil") as raised:
            answer(stranger, picture)
        assert printable(str(raised.value)) == str(raised.value)
        (stranger / file).write_text(json.dumps(content))
    assert not (tmp_path / "it ran").exists()


def test_files_that_are_none_of_a_checkpoints(own_folder: Path) -> None:
    """What transformers would read besides, and a pipe that it would wait for."""
    (own_folder / "tokenizer.model").write_bytes(b"\x80\x02evil")
    (own_folder / "pytorch_model.bin").write_bytes(b"\x80\x02evil")
    (own_folder / "added_tokens.json").write_text("[")
    os.mkfifo(own_folder / "special_tokens_map.json")
    os.mkfifo(own_folder / "processor_config.json")
    (own_folder / "chat_template.json").symlink_to("/dev/zero")
    answer(own_folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"])
def test_a_file_that_may_not_be_read(file: str, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was called broken JSON, and the way out threw the weights away."""
    whole = Path.open

    def open_(path: Path, *arguments: Any, **how: Any) -> Any:
        if path.name == file:
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path, *arguments, **how)

    monkeypatch.setattr(Path, "open", open_)
    with pytest.raises(FileAccessError, match=f"This user has no right to read .*{file}") as raised:
        answer(own_folder)
    assert "\n" not in str(raised.value)
    assert not re.search("replace|delete|download|damaged", str(raised.value), re.IGNORECASE)


def test_an_image_for_a_damaged_tower_is_a_sentence_and_text_works(
    llm_command: Llm, own_folder: Path, picture: Path
) -> None:
    weights = load_file(own_folder / "model.safetensors")
    dropped = next(name for name in weights if "vision_tower" in name and "proj" in name)
    del weights[dropped]
    save_file(weights, own_folder / "model.safetensors")
    asked = ("-m", FULL, "What colour is this image?", "-a", str(picture))
    message = llm_command.fails(*asked)
    assert f"missing weights ({dropped})" in message
    assert str(own_folder) in message
    assert "LLM_DIFFUSIONGEMMA_MODEL names the folder" in message
    assert llm_command.ok("-m", FULL, "What is a canvas?", "-o", "seed", "1").startswith("A canvas is")
    assert llm_command.fails(*asked) == message


def test_an_image_that_a_tower_makes_no_numbers_of_spoils_no_other_reply(
    llm_command: Llm, own_folder: Path, picture: Path
) -> None:
    weights = load_file(own_folder / "model.safetensors")
    weights["model.encoder.embed_vision.embedding_projection.weight"] *= float("nan")
    save_file(weights, own_folder / "model.safetensors")
    message = llm_command.fails("-m", FULL, "What colour is this image?", "-a", str(picture))
    assert "What the vision tower makes of an image is not a number" in message
    assert f"The weights are in {own_folder}.\nLLM_DIFFUSIONGEMMA_MODEL names the folder." in message
    assert llm_command.ok("-m", FULL, "What is a canvas?", "-o", "seed", "1").startswith("A canvas is")


def test_a_short_run_of_the_attack_on_checkpoints(
    picture: Path, layouts: dict[Layout, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m tests.attacks checkpoints` runs a long one, within bounds of time and memory."""
    monkeypatch.setattr(template, "MAX_SECONDS", 0.5)
    for case in range(16):
        random_ = random.Random(f"suite-{case}")
        source = random_.choice([*layouts.values()])
        folder = checkpoints.make_folder(tmp_path / str(case), source)
        kind, done = checkpoints.mutate(folder, random_)
        image = picture if kind.startswith(("preprocessor", checkpoints.TOWER_WEIGHTS)) else None
        result, held = checkpoints.reply_from(folder, image)
        held = held and checkpoints.is_right(kind, result, with_image=image is not None)
        assert held, f"{kind}, case {case}: {done}: {result}"
