"""The file of the user's own models: what holds of it, whatever is in it, and who may change it when."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path

import llm
import pytest
from huggingface_hub.utils import WeakFileLock
from llm.plugins import pm

from llm_diffusiongemma import registry
from llm_diffusiongemma.catalog import HUB_SOURCES, ModelEntry, Server, Source, built_in
from llm_diffusiongemma.errors import RegistryError
from llm_diffusiongemma.models import DiffusionGemma

from .conftest import Llm

HUB_MODEL = ModelEntry("tuned", (Source("somebody/tuned", revision="v2"),), "cuda:1")


@pytest.fixture
def file() -> Path:
    file = registry.path()
    file.parent.mkdir()
    return file


def own_ids() -> set[str]:
    """Those that llm knows beyond the built-in ones."""
    ids = {model.model_id for model in llm.get_models() if isinstance(model, DiffusionGemma)}
    built_in_ids = {entry.model_id for entry in built_in()}
    assert built_in_ids <= ids
    return ids - built_in_ids


def test_what_is_added_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ModelEntry("mine", (Source(tmp_path),))
    registry.add(HUB_MODEL)
    registry.add(folder)
    assert registry.read() == registry.Registry((HUB_MODEL, folder), ())
    assert llm.get_model("tuned").entry == HUB_MODEL == llm.get_async_model("tuned").entry
    # What its sentences advise, where a device fails.
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_DEVICE", "cpu")
    assert llm.get_model("tuned").entry.device == "cpu"
    with pytest.raises(RegistryError, match="already"):
        registry.add(folder)
    registry.take_out("tuned")
    assert own_ids() == {"mine"}


def test_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_DEVICE", "cpu")
    entry = registry.new_entry("box", "HTTPS://Host:8000/v1/", served_model="tiny", key_name="mine")
    assert entry == ModelEntry("box", (), server=Server("https://host:8000/v1", "tiny", "mine"))
    registry.add(entry)
    registry.add(bare := registry.new_entry("bare", "http://[::1]:8000/v1", served_model="", key_name=""))
    assert registry.read() == registry.Registry((entry, bare), ())
    assert json.loads(registry.path().read_text())["models"]["bare"] == {"server": "http://[::1]:8000/v1"}
    # Again with another key it is another key; what another server or source has stays.
    assert registry.add(again := registry.new_entry("box", "https://host:8000/v1", key_name="other"))
    assert registry.read().entries == (again, bare)
    for other in ("http://host:8000/v1", "somebody/tuned"):
        with pytest.raises(RegistryError, match=r"already.*remove box"):
            registry.add(registry.new_entry("box", other))
    with pytest.raises(RegistryError, match="leave --revision and --device out"):
        registry.new_entry("box", "http://host/v1", device="cpu")
    with pytest.raises(RegistryError, match="are for a server"):
        registry.new_entry("box", "somebody/tuned", key_name="mine")


UNUSABLE = {
    "no JSON": (b'{"models": {', "can't be used"),
    "an empty file": (b"", "can't be used"),
    "no text": (b"\xff\xfe\x00", "can't be used"),
    "a list": (b"[]", "no JSON object"),
    "a list of models": (b'{"models": []}', "no JSON object"),
    "nested deeply": (b'{"models":' * 100_000, "nested too deeply"),
    "large": (b" " * (registry.MAX_BYTES + 1), "more than"),
}


@pytest.mark.parametrize("kind", [*UNUSABLE, "a folder", "a pipe", "no rights"])
def test_a_file_that_cannot_be_used(
    file: Path, kind: str, llm_command: Llm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other command notices, those that ask get a sentence, and it stays as it is."""
    content, words = UNUSABLE.get(kind, (None, "can't be used"))
    if content is not None:
        file.write_bytes(content)
    elif kind == "a folder":
        file.mkdir()
    elif kind == "a pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("no pipes with names")
        os.mkfifo(file)
    else:
        file.write_text("{}")

        def refuse(*arguments: object, **settings: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", str(file))

        monkeypatch.setattr(Path, "open", refuse)
    assert own_ids() == set()
    assert "diffusiongemma-tiny" in llm_command.ok("models", "list")
    (problem,) = registry.read().problems
    assert str(file) in problem
    assert words in problem
    assert llm_command.fails("diffusiongemma", "add", "mine", "somebody/mine") == problem
    assert problem in llm_command.fails("diffusiongemma", "download", "mine")
    assert content is None or file.read_bytes() == content


@pytest.mark.parametrize(
    ("model_id", "model", "words"),
    [
        ("mine", "somebody/mine", "no JSON object"),
        ("mine", {}, 'one of "repository", "folder" and "server"'),
        ("mine", {"repository": "a/b", "folder": "/a"}, 'one of "repository", "folder" and "server"'),
        ("mine", {"server": "http://a/v1", "folder": "/a"}, 'one of "repository", "folder" and "server"'),
        ("mine", {"server": "host:8000"}, "can't be the URL of a server"),
        ("mine", {"server": "http://me:secret@host/v1"}, "can't hold a name or a password"),
        ("mine", {"server": "http://a/v1", "device": "cpu"}, 'no "device" that could be chosen'),
        ("mine", {"repository": "a/b", "key": "box"}, 'those of a "server"'),
        ("mine", {"repository": "mine"}, "no repository"),
        ("mine", {"repository": ["a/b"]}, "repository is ['a/b']: it has to be a text"),
        ("mine", {"folder": "mine"}, "doesn't begin at the root"),
        ("mine", {"folder": str(Path.cwd()), "revision": "v1"}, "no revisions"),
        ("mine", {"repository": "a/b", "revison": "v1"}, "revison is 'v1': nothing of that name"),
        ("mine", {"repository": "a/b", "device": 1}, "device is 1: it has to be a text"),
        ("diffusiongemma-tiny", {"repository": "a/b"}, "built-in"),
        ("", {"repository": "a/b"}, "name of a model"),
        ("mi\x1b[2Jne", {"repository": "a/b"}, "name of a model"),
    ],
)
def test_one_that_is_wrong_hides_no_other(
    file: Path, model_id: str, model: object, words: str, llm_command: Llm
) -> None:
    other = {"repository": "somebody/tuned", "revision": "v2", "device": "cuda:1"}
    file.write_text(json.dumps({"models": {model_id: model, "tuned": other}}))
    entries, problems = registry.read().entries, registry.read().problems
    assert entries == (HUB_MODEL,)
    assert own_ids() == {"tuned"}
    (problem,) = problems
    assert words in problem
    assert problem.isprintable()
    assert ("diffusiongemma remove" in problem) == (words != "built-in")
    # What isn't understood is kept, and can be taken out.
    registry.add(ModelEntry("mine-2", (Source("a/b"),)))
    assert json.loads(file.read_text())["models"][model_id] == model
    if model_id == "mine":
        llm_command.ok("diffusiongemma", "remove", model_id, "-y")
        assert registry.read().problems == ()


def test_a_name_that_another_plugin_has_is_its(llm_command: Llm) -> None:
    registry.add(HUB_MODEL)

    theirs = llm.get_model("diffusiongemma-tiny")
    theirs.model_id = "tuned"

    class Plugin:
        @llm.hookimpl
        def register_models(self, register: object) -> None:
            register(theirs)  # type: ignore[operator]

    plugin = Plugin()
    pm.register(plugin, "theirs")
    # As if it had been there before this one: the last is called first.
    pm.register(pm.unregister(name="diffusiongemma"), "diffusiongemma")
    try:
        assert llm.get_model("tuned") is theirs
        message = llm_command.fails("diffusiongemma", "download", "tuned")
        assert "another plugin has a model of that name" in message
    finally:
        pm.unregister(plugin)
    assert llm.get_model("tuned").entry == HUB_MODEL


@pytest.mark.parametrize("model_id", ["", " ", "my model", "/mine", "-mine", "mine\n", "x" * 101, "ünsinn"])
def test_no_name_of_a_model(model_id: str) -> None:
    with pytest.raises(RegistryError, match="name of a model"):
        registry.new_entry(model_id, "somebody/mine", None, None)


def test_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "mine" / "tuned").mkdir(parents=True)
    for source in ("mine/tuned", "./mine/tuned", "~/mine/tuned", str(tmp_path / "mine" / "tuned")):
        assert registry.new_entry("m", source, None, None).sources == (Source(tmp_path / "mine" / "tuned"),)
    assert registry.new_entry("m", "other/tuned", "v1", None).sources == (Source("other/tuned", revision="v1"),)
    (known,) = registry.new_entry("m", HUB_SOURCES[2].where, "v1", None).sources
    assert known == replace(HUB_SOURCES[2], revision="v1")
    with pytest.raises(RegistryError, match="no revisions"):
        registry.new_entry("m", "mine/tuned", "v1", None)
    for source in ("", "tuned", "./other/tuned", "/other", "other/tuned@v1", "https://hf.co/other/tuned", "a/b/c"):
        with pytest.raises(RegistryError, match="owner/name"):
            registry.new_entry("m", source, None, None)


def test_two_at_a_time_lose_nothing() -> None:
    def add(numbers: range) -> None:
        for number in numbers:
            registry.add(ModelEntry(f"mine-{number}", (Source("a/b"),)))

    threads = [threading.Thread(target=add, args=(range(start, start + 5),)) for start in (0, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(registry.read().entries) == 10


def test_a_link_stays_one(file: Path, tmp_path: Path) -> None:
    """Some keep all such files in a folder of their own."""
    kept = tmp_path / "kept.json"
    file.symlink_to(kept)
    registry.add(HUB_MODEL)
    assert file.is_symlink()
    assert HUB_MODEL.model_id in kept.read_text()


def test_who_waits_too_long_is_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "LOCK_SECONDS", 0.01)
    with WeakFileLock(file.with_name(".models.json.lock")), pytest.raises(RegistryError, match="Another process"):
        registry.add(HUB_MODEL)
    assert not file.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no full disk to write to")
def test_a_full_disk_takes_nothing_away(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.add(HUB_MODEL)
    before = file.read_bytes()

    def fail(*arguments: object, **settings: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(RegistryError, match="No space left"):
        registry.add(ModelEntry("mine", (Source("a/b"),)))
    assert file.read_bytes() == before
    assert {each.name for each in file.parent.iterdir()} == {"models.json", ".models.json.lock"}
