"""The door of the server, before anything that is asked is looked at."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import uvicorn

from llm_diffusiongemma.backends import running
from llm_diffusiongemma.backends.running import Running, identity_of
from llm_diffusiongemma.catalog import built_in
from llm_diffusiongemma.errors import ServerError
from llm_diffusiongemma.server import listening
from llm_diffusiongemma.server.listening import Connection, listen_on_tcp, listen_on_unix

PATIENCE_SECONDS = 60.0
HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: "


async def app(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """Reads its request, if it is not asked at once, and answers with a word."""
    while (
        scope["path"] != "/at-once"
        and (message := await receive())["type"] != "http.disconnect"
        and message["more_body"]
    ):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"read"})


def config() -> uvicorn.Config:
    return uvicorn.Config(
        app, http=Connection, ws="none", lifespan="off", log_config=None, access_log=False, interface="asgi3"
    )


@pytest.fixture
def port() -> Iterator[int]:
    listener = listen_on_tcp("127.0.0.1", 0)
    server = uvicorn.Server(config())
    thread = threading.Thread(target=server.run, args=([listener],))
    port = listener.getsockname()[1]
    thread.start()
    yield port
    server.should_exit = True
    thread.join()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)


def until(connection: socket.socket, end: bytes = b"") -> bytes:
    """What comes until that does, or the other side closes."""
    received = b""
    with suppress(ConnectionError):  # it is closed on what we have sent since
        while not (end and received.endswith(end)) and (part := connection.recv(1 << 16)):
            received += part
    return received


def test_only_what_does_not_end_is_cut(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "REQUEST_SECONDS", 0.1)
    for begun in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nX: 1\r\n", HEAD + b"1000\r\n\r\nabc"):
        with connect(port) as connection:
            with suppress(ConnectionError):  # it may be cut before
                connection.sendall(begun)
            assert until(connection) == b""
    monkeypatch.setattr(listening, "REQUEST_SECONDS", PATIENCE_SECONDS)
    with connect(port) as connection:
        for _ in range(2):
            connection.sendall(HEAD + b"2\r\n\r\nab")
            assert until(connection, b"read").startswith(b"HTTP/1.1 200 ")


def test_connections_are_bounded(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "REQUEST_SECONDS", 2 * PATIENCE_SECONDS)
    monkeypatch.setattr(listening, "MAX_CONNECTIONS", 2)
    with connect(port) as first, connect(port) as second:
        for each in (first, second):
            each.sendall(HEAD + b"2\r\n\r\nab")
            assert until(each, b"read")
        with connect(port) as third:
            assert until(third) == b""


class Watched:
    """A connection whose time passes by hand."""

    def __init__(self, state: uvicorn.server.ServerState | None = None, by: str | None = None) -> None:
        self.transport = MagicMock(spec=asyncio.Transport)
        self.transport.is_closing.return_value = False
        self.transport.get_extra_info.side_effect = {"sockname": by}.get
        self.connection = Connection(config(), state or uvicorn.server.ServerState(), {})
        self.connection.connection_made(self.transport)

    def stalls(self, left: int) -> None:
        """What is sent isn't taken; so much of it, when the time for that has passed."""
        if self.connection._stall is None:
            self.connection.pause_writing()
        assert self.connection._stall is not None
        self.connection._stall.cancel()
        self.transport.get_write_buffer_size.return_value = left
        self.connection._look_what_is_taken()

    def is_cut_after(self, *received: bytes) -> bool:
        """When the time for a request has passed once more."""
        for data in received:
            self.connection.data_received(data)
        if (handle := self.connection._watch) is not None:
            handle.cancel()
            self.connection._look()
        return bool(self.transport.abort.called)


@pytest.fixture
async def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    monkeypatch.setattr(listening, "REQUEST_BYTES", 10)
    return Watched()


async def test_what_comes_slowly_but_comes_is_waited_for(watched: Watched) -> None:
    assert not watched.is_cut_after(HEAD + b"1000\r\n\r\n")
    assert not watched.is_cut_after(b"x" * 5, b"x" * 5)
    watched.transport.is_reading.return_value = False  # the application has yet to take what came
    assert not watched.is_cut_after()
    watched.transport.is_reading.return_value = True
    assert watched.is_cut_after(b"x" * 9)


async def test_a_reply_may_take_its_time(watched: Watched) -> None:
    assert not watched.is_cut_after(HEAD + b"4\r\n\r\n", b"read")
    assert not watched.is_cut_after()


async def test_a_second_request_has_to_end_too(watched: Watched) -> None:
    assert not watched.is_cut_after(HEAD + b"2\r\n\r\nab")
    while not watched.connection.cycle.response_complete:
        await asyncio.sleep(0)
    assert not watched.is_cut_after()  # uvicorn closes what is idle
    assert watched.is_cut_after(b"GET / HT")


async def test_who_takes_nothing_is_gone(watched: Watched) -> None:
    watched.transport.get_write_buffer_size.return_value = 30
    watched.stalls(left=20)
    watched.connection.resume_writing()
    assert watched.connection._stall is None
    watched.stalls(left=10)
    assert not watched.transport.abort.called
    watched.stalls(left=10)
    assert watched.transport.abort.called


async def test_strangers_keep_the_user_out_of_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody on the machine may connect to a port, and stay for a while."""
    monkeypatch.setattr(listening, "MAX_CONNECTIONS", 1)
    state = uvicorn.server.ServerState()
    places = [None, None, "/a/socket", "/a/socket"]
    connections = [Watched(state, by) for by in places]
    assert [each.transport.abort.called for each in connections] == [False, True, False, True]


async def test_nonsense_behind_an_answer_ends_the_connection(watched: Watched) -> None:
    head = b"POST /at-once HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert not watched.is_cut_after(head)
    while not watched.connection.cycle.response_complete:
        await asyncio.sleep(0)
    watched.connection.data_received(b"no chunk\r\n")
    assert watched.transport.close.called


async def test_small_pieces_go_out_at_once() -> None:
    """Held back until what went before is acknowledged, they make each reply 40 ms longer. asyncio sees to it only
    for a listener that was made with its protocol's number."""
    accepted: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    listener = listen_on_tcp("127.0.0.1", 0)
    async with await asyncio.start_server(lambda reader, writer: accepted.put_nowait(writer), sock=listener):
        _, client = await asyncio.open_connection(*listener.getsockname())
        server = await accepted.get()
        connection = server.get_extra_info("socket")
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        server.close()
        client.close()


def test_a_port_in_use() -> None:
    with listen_on_tcp("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"Port {port} of 127.0.0.1 is used by another program: .* --port"):
            listen_on_tcp("127.0.0.1", port)


def test_an_address_of_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(ServerError, match=r"0 of 192\.0\.2\.1: that is no address of this machine\. --host is"):
        listen_on_tcp("192.0.2.1", 0)
    with pytest.raises(ServerError, match="can't be the name of a machine"):
        listen_on_tcp("x" * 64, 0)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ServerError, match=r"0 of nowhere: there is no machine of that name\. --host is"):
        listen_on_tcp("nowhere", 0)


@pytest.mark.skipif(os.name == "nt", reason="Windows has none that Python knows")
@pytest.mark.parametrize("depth", [1, 120])
def test_a_unix_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: int) -> None:
    """In a folder with too long a path it is in one for temporary files."""
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / ("x" * depth)))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / ("nowhere" * 20)))
    folder = running.make_folder()
    for _ in range(2):  # behind a killed server, too, whose socket stays
        listener = listen_on_unix(folder)
        assert listener is not None
        path = Path(listener.getsockname())
        record = Running(identity_of(built_in()[0]), 1, 0.0, "", str(path), None, None, False)
        with listener:
            assert (path.parent == folder) is (depth == 1)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            assert running.answers(record)
        assert not running.answers(record)
        if depth > 1:
            running.take_away(record)
            assert not path.parent.exists()
    running.take_away(record)
    running.take_away(record)
    assert not path.exists()
    assert folder.exists()
