"""Starting and ending a server from another process."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import llm
import pytest

from llm_diffusiongemma.backends import launch, running
from llm_diffusiongemma.backends.running import Running, identity_of
from llm_diffusiongemma.backends.settings import Settings
from llm_diffusiongemma.catalog import ModelEntry, Source
from llm_diffusiongemma.errors import DeviceError, ServerError, ServerStoppedError
from llm_diffusiongemma.view.progress import Progress

from ..conftest import TINY, Llm

BY_A_PROMPT = Settings(ends_when_idle=True)


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelEntry]:
    monkeypatch.setattr(launch, "_started", [])
    yield llm.get_model(TINY).entry
    for server in launch._started:
        server.kill()
        server.wait()


def test_two_started_at_once_are_one(entry: ModelEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda _: launch.start(entry, BY_A_PROMPT), range(2))
    assert first == second
    assert first.identity == identity_of(entry)
    others = [server for server in launch._started if server.pid != first.pid]
    assert [server.wait() for server in others] == [1] * len(others)
    assert launch.start(entry, BY_A_PROMPT) == first  # nor is there another one later
    for other, settings in ((replace(entry, device="cpu"), BY_A_PROMPT), (entry, Settings())):
        with pytest.raises(ServerError, match=f"A server for {TINY} .* is running already"):
            launch.start(other, settings)

    # It hangs: SIGTERM waits until it goes on.
    for name in ("ASK_SECONDS", "END_SECONDS"):
        monkeypatch.setattr(launch, name, 0.05)
    os.kill(first.pid, signal.SIGSTOP)
    assert running.answers(first)
    with pytest.raises(ServerError, match=f"process {first.pid}\\) doesn't answer: nothing came for 0"):
        launch.ask(first, "GET", "/health")
    assert launch.stop() == first
    assert not running.has_record()  # or the next prompt would take it for one that died
    assert launch.stop() is None


def test_what_keeps_it_from_running_is_said(
    entry: ModelEntry, llm_command: Llm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_DEVICE", "cuda:99")
    with pytest.raises(DeviceError, match=r"^'cuda:99' can't be used here\."):
        launch.start(entry, Settings(port=0))
    assert not (running.folder() / running.RECORD_FILE).exists()

    monkeypatch.delenv("LLM_DIFFUSIONGEMMA_DEVICE")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = llm_command.fails("diffusiongemma", "serve", TINY, "--detach", "--port", str(port))
    assert message.startswith(f"Port {port} of 127.0.0.1 is used by another program: ")

    monkeypatch.setattr(launch, "MODULE", "nowhere")
    with pytest.raises(ServerError, match=r"ended with status 1 before it was ready: .*No module named nowhere\."):
        launch.start(entry, BY_A_PROMPT)


def test_one_that_somebody_stops_as_it_starts(tmp_path: Path) -> None:
    stopped = subprocess.Popen([sys.executable, "-S", "-c", ""])
    assert isinstance(launch._ended(stopped, tmp_path / "log"), ServerStoppedError)


def test_what_takes_long_in_a_server_is_shown_here(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Progress] = []

    @contextmanager
    def indicate(what: str, total_bytes: int | None, num_bytes: int) -> Iterator[Progress]:
        shown.append(Progress(what, total_bytes, num_bytes))
        yield shown[-1]
        shown.append(Progress("over", None))

    monkeypatch.setattr(launch, "indicate", indicate)
    said = [["Importing", 0, None], ["Loading", 1, 9], ["Loading", 4, 9], ["Loading", 3, 9]]
    lines = [json.dumps({"is": "progress", "now": now}) for now in said]
    code = f"print({chr(10).join([*lines, 'not from us', json.dumps({'is': 'ready'})])!r})"
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert not launch._listen(server)
    server.wait()
    nothing, importing, loading = ("over", 0, None), ("Importing", 0, None), ("Loading", 3, 9)
    assert [progress.now() for progress in shown] == [importing, nothing, loading, nothing]


def test_what_it_needs_is_not_there(llm_command: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for arguments in (("serve", TINY), ("serve", TINY, "--detach"), ("warm", "on")):
        message = llm_command.fails("diffusiongemma", *arguments)
        assert message.startswith("A server needs two more libraries: ")
        assert "[serve]" in message
    assert not launch.is_warm()


def test_warm(llm_command: Llm) -> None:
    for state in ("off", "on", "on", "off", "off"):
        said = llm_command.ok("diffusiongemma", "warm", state)
        assert said.startswith(f"{state}: ")
        assert llm_command.ok("diffusiongemma", "warm") == said
        assert launch.is_warm() is (state == "on")


def test_warm_off_names_one_that_runs(
    entry: ModelEntry, llm_command: Llm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "recorded", lambda: a_record(entry, "a"))
    for is_there, said in (
        (False, ""),
        (True, f"\nOne for {TINY} is running: `llm diffusiongemma stop` ends it."),
    ):
        monkeypatch.setattr(running, "answers", lambda found, is_there=is_there: is_there)
        text = llm_command.ok("diffusiongemma", "warm", "off")
        assert text.partition(".")[2].rstrip() == said


def test_nothing_to_stop(llm_command: Llm) -> None:
    assert llm_command.ok("diffusiongemma", "stop") == "No server is running."
    assert not running.folder().exists()


def test_one_that_was_killed_is_forgotten(entry: ModelEntry, llm_command: Llm) -> None:
    running.Lock().close()
    record = running.folder() / running.RECORD_FILE
    record.write_text(running.to_json(a_record(entry, "a")))
    assert llm_command.ok("diffusiongemma", "stop") == "No server is running."
    assert not record.exists()


def a_record(entry: ModelEntry, instance: str) -> Running:
    return Running(identity_of(entry), 0, 0.0, instance, None, "http://127.0.0.1:1/v1", None, False)


def test_one_that_is_just_starting_is_stopped_too(entry: ModelEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "LOOK_UP_SECONDS", 0.0)
    record, lock = a_record(entry, "a"), running.Lock()
    assert lock.take()
    written = iter([None, None])
    monkeypatch.setattr(running, "recorded", lambda: next(written, record))
    monkeypatch.setattr(running, "answers", lambda server: True)
    monkeypatch.setattr(launch, "ask", lambda *asked: lock.close())
    assert launch.stop() == record


def test_one_that_comes_next_is_not_stopped_for_it(entry: ModelEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    record, lock = a_record(entry, "a"), running.Lock()
    assert lock.take()
    written = iter([record])
    monkeypatch.setattr(running, "recorded", lambda: next(written, a_record(entry, "b")))
    monkeypatch.setattr(running, "answers", lambda server: True)
    monkeypatch.setattr(launch, "ask", lambda *asked: None)
    monkeypatch.setattr(launch, "END_SECONDS", 2.0)
    assert launch.stop() == record
    lock.close()


def test_the_environment_means_the_same_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("LLM_USER_PATH", "HF_HOME", "LLM_DIFFUSIONGEMMA_MODEL"):
        monkeypatch.setenv(name, "below")
    monkeypatch.setenv("HF_HUB_CACHE", "~/cache")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", "lib", "/else"]))
    identity = identity_of(ModelEntry("a-model", (Source(Path("below")),)))
    found = launch._environment()
    below = str(tmp_path / "below")
    assert [found[name] for name in ("LLM_USER_PATH", "HF_HOME", "LLM_DIFFUSIONGEMMA_MODEL")] == [below] * 3
    assert found["HF_HUB_CACHE"] == str(Path.home() / "cache")
    assert found["PYTHONPATH"].split(os.pathsep) == [str(tmp_path), str(tmp_path / "lib"), "/else"]
    assert found["LLM_DIFFUSIONGEMMA_SERVER"] == "off"
    # What the server says of itself is what is asked for from here.
    monkeypatch.chdir("/")
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    assert identity_of(ModelEntry("a-model", (Source(Path(below)),))) == identity


def test_a_record_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert running.recorded() is None
    running.make_folder()
    for text in ("", "{", "[]", json.dumps({"pid": 1})):
        (running.folder() / running.RECORD_FILE).write_text(text)
        assert running.recorded() is None
    monkeypatch.setenv("LLM_USER_PATH", "/dev/null/nowhere")  # llm can't make its folder
    assert running.recorded() is None
    assert running.token() is None
    assert not launch.is_warm()
