"""The files of a checkpoint's folder: which there must be, which of them hold the weights, and how they are read.

A folder is somebody else's work: what is in its files is held against a schema of what is used, and no name in
them leads out of the folder.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from .documents import (
    MAX_DOCUMENT_BYTES,
    AnyDocument,
    Document,
    DocumentError,
    conform,
    parse_object,
    refuse_unless,
)
from .errors import CheckpointError, FileAccessError
from .wording import quoted

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

#: All that is read of a checkpoint besides its weights; any of them may lack.
READ_FILES = frozenset({*REQUIRED_FILES, TEMPLATE_FILE, *IMAGE_FILES, INDEX_FILE})

SHARD = re.compile(r"model-\d+-of-(\d+)\.safetensors")
# The real model has 11 shards. A number of ten thousand digits in a name must not make as many names.
MAX_SHARDS = 10_000

# Of every small file but the tokenizer's: a config has some thousand bytes, an index some ten thousand.
MAX_SMALL_BYTES = 1 << 24

# Of a file that is not there, whatever the name says.
NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL})

# A plain name on every system: no folder, no drive, no device.
WEIGHT_NAME = re.compile(r"(?!(?i:con|prn|aux|nul|com\d|lpt\d)\.)[\w-][\w+.-]{0,200}\.safetensors", re.ASCII)


def _weight_name(name: str) -> str:
    refuse_unless(bool(WEIGHT_NAME.fullmatch(name)), "it must be the name of a safetensors file in the folder")
    return name


# Of any vocabulary; whether this one has it is checked where that is known.
TokenId = Annotated[int, Field(ge=0, lt=1 << 22)]


class _Index(Document):
    """What is used of an index of shards. Which tensor is where, the shards themselves say."""

    weight_map: dict[str, Annotated[str, AfterValidator(_weight_name)]] = Field(min_length=1)


def is_here(file: Path) -> bool:
    """Whether there is such a file with anything in it. A link to a deleted one is none, nor a folder or a pipe.

    Raises `FileAccessError` where that can't be told: what may not be looked at is not missing.
    """
    status = _status(file)
    return status is not None and stat.S_ISREG(status.st_mode) and status.st_size > 0


def is_file(file: Path) -> bool:
    """The same, also of one with nothing in it, which is damaged and not missing. Raises `FileAccessError`."""
    status = _status(file)
    return status is not None and stat.S_ISREG(status.st_mode)


def is_folder(folder: Path) -> bool:
    """Raises `FileAccessError` where that can't be told."""
    status = _status(folder)
    return status is not None and stat.S_ISDIR(status.st_mode)


def _status(place: Path) -> os.stat_result | None:
    """None if there is nothing. Raises `FileAccessError`."""
    try:
        return place.stat()
    except OSError as error:
        if error.errno in NOT_THERE:
            return None
        raise unreadable(place, error) from error
    except ValueError:  # a NUL in the name
        return None


def weights_among(names: Iterable[str]) -> set[str]:
    """Of a repository's files, those that the weights are loaded from, as transformers does it.

    A copy in another layout (consolidated.safetensors beside shards, or shards beside a whole file) is left out.
    """
    weights = {name for name in names if name.endswith(WEIGHTS_SUFFIX)}
    if WEIGHTS_FILE in weights:
        return {WEIGHTS_FILE}
    return {name for name in weights if SHARD.fullmatch(name)} or weights


def weight_names(folder: Path) -> list[str]:
    """The weight files that are loaded from a folder, there or not; none if it has neither kind.

    Raises `CheckpointError` for an index that can't be read or names anything but files of the folder, and
    `FileAccessError`.
    """
    if is_file(folder / WEIGHTS_FILE):
        return [WEIGHTS_FILE]
    file = folder / INDEX_FILE
    if not is_file(file):
        return []
    return sorted(set(read_document(file, _Index).weight_map.values()))


def weights_here(folder: Path) -> list[Path]:
    """The weight files that will be loaded, as far as they are here. None for a broken index: loading says so."""
    try:
        names = weight_names(folder)
    except CheckpointError:
        return []
    return [folder / name for name in names if is_here(folder / name)]


def read_files(folder: Path) -> list[Path]:
    """All that is read of a folder, as far as it is here."""
    return [folder / name for name in sorted(READ_FILES) if is_here(folder / name)] + weights_here(folder)


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
    total = shards[0][1] if shards else ""
    if not shards or len(total) > len(str(MAX_SHARDS)) or int(total) > MAX_SHARDS:
        return [WEIGHTS_FILE]
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


def read_document(file: Path, schema: type[AnyDocument]) -> AnyDocument:
    """What is used of a JSON file.

    Raises `CheckpointError` that names what is wrong in it, and `FileAccessError`.
    """
    return check_document(file, schema, read_json(file))


def check_document(file: Path, schema: type[AnyDocument], content: dict[str, Any]) -> AnyDocument:
    """The same of a content that was read, or of a part of it."""
    try:
        return conform(schema, content)
    except DocumentError as error:
        raise CheckpointError(
            f"{quoted(file)} can't be right: {error}. Take the file from where the model comes from."
        ) from error


def read_json(file: Path) -> dict[str, Any]:
    """Raises `CheckpointError` if it is no JSON object, and `FileAccessError` if it can't be read."""
    try:
        return parse_object(read_bytes(file))
    except DocumentError as error:
        raise CheckpointError(
            f"{quoted(file)} can't be read as JSON: {error}. Replace it by a whole copy."
        ) from error


def read_bytes(file: Path) -> bytes:
    """The content of a small file. Nothing waits for who writes into a pipe.

    Raises `CheckpointError` if there is no such file, or another kind of thing, and `FileAccessError`.
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise CheckpointError(f"{quoted(file)} is {kind}: replace it by a whole copy of the file.")
        limit = MAX_DOCUMENT_BYTES if file.name == TOKENIZER_FILE else MAX_SMALL_BYTES
        with file.open("rb") as stream:
            content = stream.read(limit + 1)
    except OSError as error:
        if error.errno in NOT_THERE:
            raise CheckpointError(
                f"{quoted(file)} is not there: take the file from where the model comes from."
            ) from error
        raise unreadable(file, error) from error
    if len(content) > limit:
        raise CheckpointError(
            f"{quoted(file)} has more than {limit:,} bytes, as no such file has: replace it by a whole copy."
        )
    return content


def read_start(file: Path, size: int) -> bytes:
    """The first bytes of a large file that is there. Raises `FileAccessError`."""
    try:
        with file.open("rb") as stream:
            return stream.read(size)
    except OSError as error:
        raise unreadable(file, error) from error


def unreadable(file: Path, error: OSError) -> FileAccessError:
    """Says that it is not the file's content that is wrong, so that nobody deletes it for that."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return FileAccessError(
            f"This user has no right to read {quoted(file)}, so what is in it is not known. Have its owner give "
            "that right for it and for the folders that it is in (such as with `chmod -R a+rX`), or use a copy of "
            "your own."
        )
    return FileAccessError(
        f"The system can't read {quoted(file)}: {quoted(error.strerror or error)}. Its content need not be "
        "damaged: check the disk that it is on, and try again."
    )
