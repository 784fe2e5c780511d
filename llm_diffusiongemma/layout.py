"""The files of a checkpoint's folder: which there must be, and which of them hold the weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import CheckpointError

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
WEIGHTS_SUFFIX = ".safetensors"

# Either describes how images are cut into patches: one alone, or as a part of the whole processor.
IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")

REQUIRED_FILES = (CONFIG_FILE, GENERATION_FILE, TOKENIZER_FILE, TOKENIZER_CONFIG_FILE)

SHARD = re.compile(r"model-\d+-of-(\d+)\.safetensors")


def is_here(file: Path) -> bool:
    """Whether there is such a file with anything in it. A link to a deleted one is none."""
    try:
        return file.is_file() and file.stat().st_size > 0
    except OSError:
        return False


def weights_among(names: Iterable[str]) -> set[str]:
    """Of a repository's files, those that transformers loads the weights from.

    A copy in another layout (consolidated.safetensors beside shards, or shards beside a whole file) is left out.
    """
    weights = {name for name in names if name.endswith(WEIGHTS_SUFFIX)}
    if WEIGHTS_FILE in weights:
        return {WEIGHTS_FILE}
    return {name for name in weights if SHARD.fullmatch(name)} or weights


def weight_names(folder: Path) -> list[str]:
    """The weight files that transformers loads from a folder, there or not; none if it has neither kind.

    Raises `CheckpointError` for an index that can't be read.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return [WEIGHTS_FILE]
    if not (folder / INDEX_FILE).is_file():
        return []
    weight_map = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX_FILE} has no weight_map: replace it by a whole copy.")
    return sorted({str(name) for name in weight_map.values()})


def weights_here(folder: Path) -> list[Path]:
    """The weight files that will be loaded, as far as they are here. None for a broken index: loading says so."""
    try:
        names = weight_names(folder)
    except CheckpointError:
        return []
    return [folder / name for name in names if is_here(folder / name)]


def missing_weights(folder: Path) -> list[str]:
    """The weight files and their index, as far as they should be in a folder and are not."""
    if is_here(folder / WEIGHTS_FILE):
        return []
    if is_here(folder / INDEX_FILE):
        try:
            return [name for name in weight_names(folder) if not is_here(folder / name)]
        except CheckpointError:
            return []  # It is here and damaged: loading says so.
    # Shards without their index: their names say how many there should be.
    shards = [match for file in folder.glob("*" + WEIGHTS_SUFFIX) if (match := SHARD.fullmatch(file.name))]
    if not shards:
        return [WEIGHTS_FILE]
    total = shards[0][1]
    names = [f"model-{number:0{len(total)}}-of-{total}.safetensors" for number in range(1, int(total) + 1)]
    return [INDEX_FILE, *(name for name in names if not is_here(folder / name))]


def missing_files(folder: Path) -> list[str]:
    """What a folder needs besides the weights, and lacks. Of alternatives the usual one is named."""
    missing = [name for name in REQUIRED_FILES if not is_here(folder / name)]
    if not is_here(folder / TEMPLATE_FILE) and not _has_template_inside(folder / TOKENIZER_CONFIG_FILE):
        missing.append(TEMPLATE_FILE)
    if not any(is_here(folder / name) for name in IMAGE_FILES):
        missing.append(IMAGE_FILES[0])
    return missing


def _has_template_inside(tokenizer_config: Path) -> bool:
    """Where templates were kept before they had a file of their own."""
    try:
        return bool(read_json(tokenizer_config).get("chat_template"))
    except CheckpointError:
        return False


def read_json(file: Path) -> dict[str, Any]:
    """Raises `CheckpointError` if it is no JSON object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} can't be read as JSON ({error}): replace it by a whole copy.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is no JSON object: replace it by a whole copy.")
    return content
