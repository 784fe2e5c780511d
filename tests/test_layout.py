"""A checkpoint's folder is a stranger's: what its files name, what they are, and who may read them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from llm_diffusiongemma import layout
from llm_diffusiongemma.errors import CheckpointError, FileAccessError
from llm_diffusiongemma.layout import (
    INDEX_FILE,
    MAX_SMALL_BYTES,
    is_here,
    missing_files,
    missing_weights,
    read_json,
    weight_names,
    weights_here,
)


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "/etc/x.safetensors",
        "../x.safetensors",
        "..",
        ".safetensors",
        ".hidden.safetensors",
        "a/../../x.safetensors",
        "sub/x.safetensors",
        "..\\x.safetensors",
        "C:\\x.safetensors",
        "C:x.safetensors",
        "\\\\host\\share\\x.safetensors",
        "x.safetensors:stream",
        "nul.safetensors",
        "COM1.safetensors",
        "aux.x.safetensors",
        "~/x.safetensors",
        "x.safetensors\n",
        "x\x00.safetensors",
        "\x1b[2J.safetensors",
        "a\u202eb.safetensors",
        "x.bin",
        "pytorch_model.bin",
        "model.gguf",
        "",
        " ",
        "x" * 5000 + ".safetensors",
        3,
        None,
        1e400,
        True,
        ["x.safetensors"],
        {"x": "x.safetensors"},
    ],
)
def test_an_index_that_names_anything_else_than_files_of_the_folder(name: Any, tmp_path: Path) -> None:
    write_index(tmp_path, {"a": "model-1.safetensors", "b\x1b[31m": name})
    with pytest.raises(
        CheckpointError, match=r"index\.json can't be right: weight_map\.b\\x1b\[31m is "
    ) as raised:
        weight_names(tmp_path)
    assert "elete" not in str(raised.value)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 600
    # Who only looks leaves it to loading to say so.
    assert (weights_here(tmp_path), missing_weights(tmp_path)) == ([], [])


@pytest.mark.parametrize(
    "name", ["model-00001-of-00002.safetensors", "a+b_c-1.2.safetensors", "console.safetensors"]
)
def test_an_index_that_names_files_of_the_folder(name: str, tmp_path: Path) -> None:
    write_index(tmp_path, {"a": name})
    assert weight_names(tmp_path) == [name]
    assert missing_weights(tmp_path) == [name]


@pytest.mark.parametrize("weight_map", [None, [], 3, "x", {}])
def test_an_index_without_a_map(weight_map: Any, tmp_path: Path) -> None:
    write_index(tmp_path, weight_map)
    with pytest.raises(CheckpointError, match=r"index\.json can't be right: weight_map"):
        weight_names(tmp_path)


def test_the_number_in_a_shards_name_is_not_believed(tmp_path: Path) -> None:
    """It made as many names, or raised for want of memory or digits."""
    for total in ("99999999999", "9" * 200):
        (tmp_path / f"model-1-of-{total}.safetensors").write_text("x")
        assert missing_weights(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "can't be read as JSON: it is no JSON from line 1, column 1 on"),
        (b"\x00", "can't be read as JSON"),
        (b"[1]", "can't be read as JSON: it is no JSON object"),
        (b'{"a": ' * 20_000, "nested too deeply"),
        (b'{"a": "\xff"}', "no UTF-8 from byte"),
        (b" " * (MAX_SMALL_BYTES + 1), "more than 16,777,216 bytes"),
    ],
)
def test_no_json_object(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"config.json .*{words}"):
        read_json(tmp_path / "config.json")


def test_special_files_are_no_files(tmp_path: Path) -> None:
    """Who opens a pipe waits for whoever writes into it."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name, words in {
        "pipe": "no regular file",
        "device": "no regular file",
        "folder": "a folder",
        "dangling": "not there",
        "loop": "not there",
        "x" * 300: "not there",
    }.items():
        assert not is_here(tmp_path / name)
        with pytest.raises(CheckpointError, match=words):
            read_json(tmp_path / name)
    assert not is_here(tmp_path / "a\0b")


@pytest.fixture
def locked() -> Iterator[Path]:
    """A folder with a file that may not be read, and one that may not be looked into, whoever runs the tests."""
    folder = Path(tempfile.mkdtemp())  # pytest's own is root's
    folder.chmod(0o755)
    (folder / "config.json").write_text("{}")
    (folder / "config.json").chmod(0)
    (folder / "closed").mkdir()
    (folder / "closed" / "config.json").write_text("{}")
    (folder / "closed").chmod(0o600)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if is_root:
            os.seteuid(0)
        (folder / "closed").chmod(0o700)
        shutil.rmtree(folder)


def test_what_may_not_be_read_is_neither_damaged_nor_missing(locked: Path) -> None:
    with pytest.raises(FileAccessError, match=r"no right to read .*config\.json"):
        read_json(locked / "config.json")
    for look in (is_here, read_json):
        with pytest.raises(FileAccessError, match=r"no right to read .*closed/config\.json"):
            look(locked / "closed" / "config.json")
    for look in (missing_files, missing_weights, weight_names):
        with pytest.raises(FileAccessError, match="no right to read"):
            look(locked / "closed")


def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(FileAccessError, match=r"can't read .*config\.json: Input/output error.*check the disk"):
        layout.read_bytes(tmp_path / "config.json")
