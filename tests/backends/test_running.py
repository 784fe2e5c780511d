"""What a server answers for."""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import llm
import pytest

from llm_diffusiongemma.backends import running
from llm_diffusiongemma.backends.running import Running, answers, identity_of, read
from llm_diffusiongemma.catalog import ModelEntry, Source

from ..conftest import TINY


def test_what_differs_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A server is asked for what this process would do just the same, and for nothing else."""
    entry = ModelEntry("mine", (Source("somebody/tuned", revision="v2"),), "cpu")
    here = identity_of(entry)
    assert here.difference(identity_of(entry)) is None
    assert "is of version 0.0.1 of" in str(replace(here, version="0.0.1").difference(here))
    for server, words in [
        (replace(entry, model_id="other"), "has other"),
        (replace(entry, sources=(Source("somebody/tuned"),)), "has other weights of that name"),
        (replace(entry, sources=(Source(tmp_path),)), "has other weights of that name"),
        (replace(entry, device="cuda:1"), "has its device from an earlier entry of that name (cuda:1)"),
    ]:
        assert identity_of(server).difference(here) == words
    ours = (f"LLM_DIFFUSIONGEMMA_{name}" for name in ("DEVICE", "MEMORY", "KERNELS", "GRAPH"))
    for name in (*ours, "HF_HUB_CACHE", "CUDA_VISIBLE_DEVICES"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "/1")
            said = f"was started with {name}=/1, and here is no {name}"
            assert identity_of(entry).difference(here) == said
            there = identity_of(entry)
            patch.setenv(name, "/2")
            assert there.difference(identity_of(entry)) == f"was started with {name}=/1, and here is {name}=/2"


def test_the_hub_matters_to_what_is_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny = llm.get_model(TINY).entry
    before = identity_of(tiny)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert identity_of(tiny) == before


def test_a_folder_is_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same words meant another folder in another place."""
    entry = ModelEntry("mine", (Source(Path("checkpoint")),))
    before = identity_of(entry)
    monkeypatch.chdir(tmp_path)
    assert identity_of(entry).difference(before) == "has other weights of that name"


@pytest.mark.skipif(sys.platform == "win32", reason="locks can't be shared there")
def test_who_looks_for_a_server_is_none() -> None:
    """Prompts that are started at once all look whether there is one."""
    looking, other = running.Lock(), running.Lock()
    assert looking.take(shared=True)
    assert not running.is_locked()
    looking.close()
    assert other.take()
    assert running.is_locked()
    other.close()


@pytest.mark.skipif(sys.platform == "win32", reason="no rights of that kind there")
def test_nobody_else_can_put_another_folder_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_USER_PATH", "below")
    before = os.umask(0)
    try:
        made = running.make_folder()
    finally:
        os.umask(before)
    assert made == tmp_path / "below/diffusiongemma/server"  # also for who is in another one
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (made, made.parent)} == {0o700}


@pytest.mark.skipif(sys.platform == "win32", reason="no sockets of that kind there")
def test_a_socket_in_somebody_elses_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where this user's was, before it was cleared away: who has it would be shown the token."""
    entry = llm.get_model(TINY).entry
    with tempfile.TemporaryDirectory(prefix=running.SOCKET_FOLDER_PREFIX) as folder:
        path = f"{folder}/socket"
        server = Running(identity_of(entry), 1, 0.0, "", path, None, None, False)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            assert running.answers(server)
            monkeypatch.setattr(os, "getuid", lambda: Path(folder).stat().st_uid + 1)
            assert not running.answers(server)


def test_a_record_that_cannot_be() -> None:
    """Whatever has written it: nothing answers there."""
    record = Running(identity_of(ModelEntry("mine", ())), 1, 0.0, "x", None, "http://[::1", None, False)
    assert read(json.dumps(asdict(record)).encode()) == record
    assert not answers(record)
    assert read(json.dumps(asdict(replace(record, socket="/a\0b"))).encode()) is None
