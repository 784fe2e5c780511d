"""The server as a process: real ones where it is about how they end, else in a thread of this one."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import llm
import pytest

from llm_diffusiongemma.backends import launch, running
from llm_diffusiongemma.backends.running import Running
from llm_diffusiongemma.backends.settings import Settings
from llm_diffusiongemma.catalog import SERVER_VARIABLE
from llm_diffusiongemma.errors import DeviceMemoryError, ServerAccessError, ServerError
from llm_diffusiongemma.server import process
from llm_diffusiongemma.server.desk import Desk
from llm_diffusiongemma.status import lines

from ..conftest import TINY, Llm

PATIENCE_SECONDS = 60.0
# Of many steps, whatever the network would rather say.
LONG = {
    "model": TINY,
    "messages": [{"role": "user", "content": "What is a canvas?"}],
    "diffusiongemma": {"regex": "[a-z ]{400}", "progress": True},
    "stream": True,
}


@pytest.fixture
def llm_command(llm_command: Llm) -> Iterator[Llm]:
    yield llm_command
    if (found := running.recorded()) is not None and running.answers(found):  # of a test that failed
        os.kill(found.pid, signal.SIGKILL)


def files() -> set[str]:
    return {file.name for file in running.folder().iterdir()}


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


@contextmanager
def long_reply(found: Running) -> Iterator[Iterator[str]]:
    """The lines of a reply that has begun."""
    with (
        launch._client(found) as client,
        client.stream("POST", "/v1/chat/completions", json=LONG, timeout=PATIENCE_SECONDS) as answer,
    ):
        assert answer.status_code == 200
        lines = (line for line in answer.iter_lines() if line.startswith("data: "))
        for line in lines:
            if json.loads(line.removeprefix("data: ")).get("diffusiongemma") == {"state": "reading"}:
                break
        yield lines


def test_from_the_first_to_the_next(llm_command: Llm) -> None:
    """One of `llm`'s own commands, killed in the middle of a reply; and who comes behind it."""
    command = llm_command.process("diffusiongemma", "serve", TINY, "--port", "0")
    assert command.stdout is not None
    said = [command.stdout.readline()]
    while "Ctrl-C" not in said[-1]:
        said.append(command.stdout.readline())
    found = running.recorded()
    assert found is not None
    token = (running.folder() / running.TOKEN_FILE).read_text().strip()
    assert said[0].startswith(f"curl {found.url}/chat/completions -H ")

    # Nobody else can look at what is there, and ask.
    assert mode(running.folder()) == 0o700
    assert files() == {"lock", "server.json", "socket", "token"}
    assert {mode(file) for file in running.folder().iterdir()} == {0o600}
    url = str(found.url)
    assert [
        httpx2.get(f"{url}/models", headers=headers, trust_env=False).status_code
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {token}"})
    ] == [401, 401, 200]
    other = replace(found, socket=None)  # as where there are no sockets: the port is asked who it is
    assert running.answers(other)
    assert not running.answers(replace(other, instance="of another one"))

    # There is one at a time.
    for detach in ([], ["--detach"]):
        message = llm_command.fails("diffusiongemma", "serve", TINY, "--port", "0", *detach)
        assert message.startswith(f"A server for {TINY} (process {command.pid}) is running already")
    status = json.loads(llm_command.ok("diffusiongemma", "status", "--json"))
    server = status["server"]["running"]
    assert (server["process"], server["url"], server["difference"]) == (command.pid, url, None)
    assert server["state"]["loaded"]["device"] == "cpu"
    text = " ".join(" ".join(lines(status)).split())
    assert f"{TINY} (process {command.pid}) at {url} since " in text
    assert f"{TINY}: the local server answers." in text
    assert f"Programs show it the token in {running.folder() / running.TOKEN_FILE}." in text
    assert "are loaded on cpu. Replies so far: 0. It has had nothing to do for " in text

    with pytest.raises(httpx2.RemoteProtocolError), long_reply(found) as reply:  # noqa: PT012
        command.kill()
        for _ in reply:
            pass
    command.wait()

    # The record says what isn't so any more.
    assert "socket" in files()
    assert not running.answers(found)
    assert not running.answers(other)
    problem = json.loads(llm_command.ok("diffusiongemma", "status", "--json"))["server"]["problem"]
    assert f"(process {command.pid}) has left a record" in problem
    assert llm_command.ok("diffusiongemma", "stop") == "No server is running."

    next_one = launch.start(found_entry(), Settings(ends_when_idle=True))
    assert next_one.instance != found.instance
    assert next_one.url is None
    assert (running.folder() / running.TOKEN_FILE).read_text().strip() == token
    assert running.answers(next_one)
    os.kill(next_one.pid, signal.SIGTERM)
    assert launch._started[-1].wait(PATIENCE_SECONDS) == 0
    assert files() == {"lock", "token", "server.log"}
    assert not running.is_locked()


def found_entry() -> Any:
    return llm.get_model(TINY).entry


# --- in a thread of this process -----------------------------------------------------------------------------


class Served:
    """A server in a thread, from when it can be asked."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.status: int | None = None
        self.failure: Exception | None = None
        self.record: Running | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        while self.is_alive and self.record is None:
            time.sleep(0.01)
            self.record = running.recorded()

    def _run(self) -> None:
        try:
            self.status = process.serve(found_entry(), self.settings)
        except Exception as error:
            self.failure = error

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def wait(self) -> int | None:
        self._thread.join(PATIENCE_SECONDS)
        assert not self.is_alive
        return self.status


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Served]]:
    monkeypatch.setenv(SERVER_VARIABLE, "off")  # as it will be
    monkeypatch.setattr(process.Server, "_end_at_last", lambda self: None)
    monkeypatch.setattr(process, "REPLY_SECONDS", 0.1)
    started = []

    def start(**settings: Any) -> Served:
        started.append(Served(Settings(port=0, **settings)))
        return started[-1]

    yield start
    for served in started:
        if served.is_alive and served.record is not None:  # of a test that failed
            launch.ask(served.record, "POST", "/diffusiongemma/stop")


def test_stopped_with_a_reply_at_work(serve: Callable[..., Served]) -> None:
    served = serve()
    assert served.record is not None
    with long_reply(served.record) as reply:
        launch.ask(served.record, "POST", "/diffusiongemma/stop")
        *_, last = reply
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "ServerStoppedError"
    assert served.wait() == 0
    assert files() == {"lock", "token"}


def test_a_model_that_cannot_be_loaded(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    async def load(self: Desk) -> None:
        raise DeviceMemoryError("It is too large.")

    monkeypatch.setattr(Desk, "load", load)
    served = serve()
    served.wait()
    assert isinstance(served.failure, DeviceMemoryError)
    assert files() == {"lock", "token"}


def test_one_that_a_prompt_has_started_goes_by_itself(serve: Callable[..., Served]) -> None:
    assert serve(ends_when_idle=True, keep_alive_seconds=0.01).wait() == 0
    assert files() == {"lock", "token"}


def test_one_that_a_prompt_has_started_gives_way(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_is_gone_within", lambda found, seconds: True)  # the lock is this process's
    served = serve(ends_when_idle=True)
    assert served.record is not None
    assert not launch.give_way(served.record)  # who has started it is about to ask
    with launch._client(served.record) as client:
        body = {**LONG, "stream": False, "diffusiongemma": {}, "max_tokens": 1}
        assert client.post("/v1/chat/completions", json=body, timeout=PATIENCE_SECONDS).status_code == 200
    assert launch.give_way(served.record)
    assert served.wait() == 0
    assert not launch.give_way(served.record)


def test_who_does_not_read_keeps_nobody_from_ending(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "CLOSING_SECONDS", 0.1)
    served = serve(ends_when_idle=True)
    assert served.record is not None
    request = f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {running.token()}\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(served.record.socket))
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):  # it takes no more requests before its answers are read
            connection.sendall(100_000 * request.encode())
        launch.ask(served.record, "POST", "/diffusiongemma/stop")
        assert served.wait() == 0


def test_other_machines_need_a_key() -> None:
    entry = found_entry()
    with pytest.raises(ServerAccessError, match=r"^At 0\.0\.0\.0 other machines can ask .* `llm keys set "):
        process.serve(entry, Settings(host="0.0.0.0"))
    with pytest.raises(ServerAccessError, match="no key 'mine' in `llm keys`: set one with `llm keys set mine`"):
        process.serve(entry, Settings(host="0.0.0.0", key_name="mine"))
    (Path(os.environ["LLM_USER_PATH"]) / "keys.json").write_text('{"mine": "open sesame"}')
    with pytest.raises(ServerError, match=r"^A server at 0\.0\.0\.0 has no name of its own, .* add --allow-host"):
        process.serve(entry, Settings(host="0.0.0.0", key_name="mine"))
    assert not running.folder().exists()


def test_a_key_of_ones_own(serve: Callable[..., Served]) -> None:
    (Path(os.environ["LLM_USER_PATH"]) / "keys.json").write_text(json.dumps({"mine": "open sesame"}))
    served = serve(key_name="mine", allowed_hosts=("box.example",))
    assert served.record is not None
    assert (served.record.url_of_others, served.record.key_name) == (None, "mine")
    url = f"{served.record.url}/models"
    for key, host, expected in [
        ("open sesame", "box.example", 200),
        (running.token(), "127.0.0.1", 200),
        ("open", "box.example", 401),
        ("open sesame", "other.example", 421),
    ]:
        headers = {"Authorization": f"Bearer {key}", "Host": host}
        assert httpx2.get(url, headers=headers, trust_env=False).status_code == expected
    launch.ask(served.record, "POST", "/diffusiongemma/stop")
    assert served.wait() == 0


def test_how_other_machines_ask() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for host, names, expected in [
            ("0.0.0.0", ("box", "other"), f"http://box:{port}/v1"),
            ("192.0.2.1", (), f"http://192.0.2.1:{port}/v1"),
            ("2001:db8::1", (), f"http://[2001:db8::1]:{port}/v1"),
            ("127.0.0.1", ("box",), None),
        ]:
            assert process._url_of_others(Settings(host, allowed_hosts=names), listener) == expected


def test_a_token_that_others_could_read_is_none() -> None:
    running.make_folder()
    first = process._token()
    assert process._token() == first
    (running.folder() / running.TOKEN_FILE).chmod(0o644)
    second = process._token()
    assert second != first
    assert mode(running.folder() / running.TOKEN_FILE) == 0o600
