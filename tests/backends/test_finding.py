"""Which server is found by itself, and what is said of one that is there and isn't asked."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import llm
import pytest

from llm_diffusiongemma import wording
from llm_diffusiongemma.backends import finding, launch, running
from llm_diffusiongemma.backends.address import LOCAL_SERVER, Address
from llm_diffusiongemma.backends.finding import find, has_gone
from llm_diffusiongemma.backends.running import Running, identity_of
from llm_diffusiongemma.backends.settings import Settings
from llm_diffusiongemma.catalog import SERVER_VARIABLE, ModelEntry
from llm_diffusiongemma.errors import RegistryError, ServerError, ServerStoppedError

from ..conftest import TINY

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")


@pytest.fixture(autouse=True)
def _nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wording, "_told", set())


@pytest.fixture
def entry() -> ModelEntry:
    return llm.get_model(TINY).entry


def write_down(server: Running) -> None:
    folder = running.make_folder()
    (folder / running.RECORD_FILE).write_text(json.dumps(asdict(server)))
    (folder / running.TOKEN_FILE).write_text("the token\n")


@pytest.fixture
def server(entry: ModelEntry, tmp_path: Path) -> Iterator[Running]:
    """One that takes connections, and is written down."""
    path = str(tmp_path / "socket")
    record = Running(identity_of(entry), os.getpid(), 0.0, "instance", path, None, 600.0, ends_when_idle=False)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        write_down(record)
        yield record


class Told:
    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._patch = monkeypatch

    @property
    def lines(self) -> list[str]:
        return self._capsys.readouterr().err.splitlines()

    def to_a_terminal(self) -> None:
        self._patch.setattr("sys.stderr.isatty", lambda: True, raising=False)


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Told:
    return Told(capsys, monkeypatch)


def test_there_is_none(entry: ModelEntry, told: Told) -> None:
    assert find(entry, may_start=True) is None
    assert told.lines == []
    # A prompt leaves nothing behind.
    assert not running.folder().exists()


def test_the_one_that_runs(entry: ModelEntry, server: Running, told: Told) -> None:
    address = find(entry, may_start=False)
    assert address == Address(
        "http://localhost/v1", "the token", server.socket, TINY, is_ours=True, name=LOCAL_SERVER
    )
    assert not has_gone(address)
    assert told.lines == []


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("word", ["off", "OFF "])
def test_off(entry: ModelEntry, monkeypatch: pytest.MonkeyPatch, word: str, told: Told) -> None:
    monkeypatch.setenv(SERVER_VARIABLE, word)
    monkeypatch.setattr(launch, "is_warm", lambda: True)
    assert find(entry, may_start=True) is None
    assert told.lines == []


@pytest.mark.usefixtures("server")
def test_another_that_is_named(entry: ModelEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SERVER_VARIABLE, "http://box:8000/v1/")
    address = find(entry, may_start=True)
    assert address is not None
    assert (address.url, address.socket) == ("http://box:8000/v1", None)
    (running.folder() / running.RECORD_FILE).unlink()
    assert not has_gone(address)  # as far as anybody can tell
    monkeypatch.setenv(SERVER_VARIABLE, "on")
    with pytest.raises(RegistryError, match=SERVER_VARIABLE):
        find(entry, may_start=True)


def test_what_differs_is_said_once(entry: ModelEntry, server: Running, told: Told) -> None:
    write_down(replace(server, identity=replace(server.identity, version="0.0.1")))
    assert [find(entry, may_start=True) for _ in range(2)] == [None, None]
    (line,) = told.lines
    assert line.startswith("The local server is of version 0.0.1 of llm-diffusiongemma, and this is ")
    detach = "" if os.name == "nt" else " --detach"
    assert line.endswith(f": llm diffusiongemma stop, then llm diffusiongemma serve {TINY}{detach}")


def test_another_model_is_news_on_a_terminal_only(server: Running, told: Told) -> None:
    other = llm.get_model("diffusiongemma-bf16").entry
    assert find(other, may_start=False) is None
    assert told.lines == []
    told.to_a_terminal()
    assert find(other, may_start=False) is None
    launch.set_warm(True)  # then the next prompt starts one
    assert find(other, may_start=False) is None
    first, second = told.lines
    assert first.startswith(f"The local server has {TINY}, so this process answers.")
    assert second == f"{first.partition(' To have')[0]} To have one for this: llm diffusiongemma stop"


@pytest.mark.usefixtures("server")
def test_without_a_token(entry: ModelEntry, told: Told) -> None:
    (running.folder() / running.TOKEN_FILE).unlink()
    assert find(entry, may_start=False) is None
    assert "has lost its token" in told.lines[0]


def test_a_dead_one(entry: ModelEntry, server: Running, told: Told) -> None:
    """It is said, and then forgotten."""
    address = find(entry, may_start=False)
    dead = replace(server, socket=f"{server.socket}-gone", pid=4321)
    write_down(dead)
    assert address is not None
    assert has_gone(address)
    # One that starts, or ends as it should, holds its lock.
    lock = running.Lock()
    assert lock.take()
    assert find(entry, may_start=False) is None
    assert told.lines == []
    assert running.recorded() == dead
    lock.close()
    assert [find(entry, may_start=False) for _ in range(2)] == [None, None]
    (line,) = told.lines
    assert line.startswith("The local server (process 4321) has ended without a word, so this process answers.")
    assert not running.has_record()
    assert has_gone(address)


@pytest.mark.parametrize("record", ["", "{}", '{"pid": 1}', "\0"])
def test_a_record_that_is_none(entry: ModelEntry, told: Told, record: str) -> None:
    """Of another version's server, or of whom ever."""
    (running.make_folder() / running.RECORD_FILE).write_text(record)
    lock = running.Lock()
    assert lock.take()
    assert find(entry, may_start=False) is None
    assert told.lines[0].startswith("The local server is of another version")
    lock.close()
    assert [find(entry, may_start=False) for _ in range(2)] == [None, None]
    (line,) = told.lines
    assert line.startswith("The local server has ended without a word")


def test_warm(entry: ModelEntry, server: Running, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where the user has it so, for a command of llm's own, and where there is none."""
    started: list[Any] = []

    def start(*asked: object) -> Running:
        started.append(asked)
        return server

    monkeypatch.setattr(launch, "start", start)
    launch.set_warm(True)
    found = find(entry, may_start=True)
    assert found is not None
    assert not started
    (running.folder() / running.RECORD_FILE).unlink()
    assert find(entry, may_start=False) is None
    assert not started
    assert find(entry, may_start=True) == found
    assert started == [(entry, Settings(ends_when_idle=True))]
    launch.set_warm(False)
    assert find(entry, may_start=True) is None
    assert len(started) == 1
    assert told.lines == []


def test_one_for_another_model_gives_way(
    entry: ModelEntry, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a prompt has started it, and it has nothing to do."""
    other = llm.get_model("diffusiongemma-bf16").entry
    of_a_prompt = replace(server, ends_when_idle=True)
    asked: list[Running] = []
    gives_way = False

    def give_way(found: Running) -> bool:
        asked.append(found)
        return gives_way

    def start(wanted: ModelEntry, settings: Settings) -> Running:
        return replace(server, identity=identity_of(wanted))

    monkeypatch.setattr(launch, "give_way", give_way)
    monkeypatch.setattr(launch, "start", start)
    monkeypatch.setattr(finding, "_cannot_start", False)
    write_down(of_a_prompt)
    assert find(other, may_start=True) is None
    launch.set_warm(True)
    assert find(other, may_start=False) is None
    assert find(entry, may_start=True) is not None
    assert not asked
    assert find(other, may_start=True) is None
    gives_way = True
    found = find(other, may_start=True)
    assert found is not None
    assert found.model == "diffusiongemma-bf16"
    assert asked == [of_a_prompt] * 2
    write_down(server)  # which somebody has started for it to stay
    assert find(other, may_start=True) is None
    assert len(asked) == 2


def test_warm_where_none_can_be_started(entry: ModelEntry, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried once, and said: a chat goes on with what it has loaded."""

    def start(*_: object) -> Running:
        raise ServerError("There are no sockets left.")

    monkeypatch.setattr(launch, "start", start)
    monkeypatch.setattr(finding, "_cannot_start", False)
    launch.set_warm(True)
    assert [find(entry, may_start=True) for _ in range(2)] == [None, None]
    assert told.lines == ["No server could be started, so this process answers. There are no sockets left."]


def test_warm_where_somebody_stops_it(entry: ModelEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> Running:
        raise ServerStoppedError("It was stopped.")

    monkeypatch.setattr(launch, "start", start)
    monkeypatch.setattr(finding, "_cannot_start", False)
    launch.set_warm(True)
    with pytest.raises(ServerStoppedError):
        find(entry, may_start=True)
