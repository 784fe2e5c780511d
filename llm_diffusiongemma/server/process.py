"""The server as a process: one a user, what it listens on, what it writes down of itself, and how it ends."""

from __future__ import annotations

import _thread
import asyncio
import logging
import os
import secrets
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

import llm
import uvicorn

from ..backends import launch, running
from ..backends.running import Running, identity_of
from ..backends.settings import Settings
from ..catalog import SERVER_VARIABLE, ModelEntry
from ..errors import ServerAccessError, ServerError
from ..hub.disk import write_whole
from ..interrupts import INTERRUPTED_STATUS
from ..wording import quoted
from .app import make_app
from .desk import Desk
from .guard import only
from .listening import MAX_HEAD_BYTES, Connection, listen_on_tcp, listen_on_unix

if TYPE_CHECKING:
    import socket

TOKEN_BYTES = 32
# Somebody may look in this moment whether the lock is free.
LOCK_SECONDS = 1.0
LOOK_UP_SECONDS = 0.05
# Of `launch.END_SECONDS`: for the reply that is being written, and for its client to take what is left of it.
REPLY_SECONDS = 5
CLOSING_SECONDS = 3

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]


class AlreadyRunningError(ServerError):
    """There is a server already."""


def serve(
    entry: ModelEntry, settings: Settings, when_ready: Callable[[Running], object] = lambda running: None
) -> int:
    """Runs until it is ended; the exit status. The process has to end with it, which lets go of the lock.

    It can be asked before it is ready: then the weights are loaded, unless that waits for the first prompt.

    Raises what keeps it from listening or loading.
    """
    key = _key(settings)
    if settings.is_everywhere and not settings.allowed_hosts:
        raise ServerError(
            f"A server at {quoted(settings.host)} has no name of its own, and answers nobody who calls it by one "
            "that it doesn't know: add --allow-host with the name or address that it is asked by."
        )
    lock = running.Lock()
    _take(lock)
    # First of all, so that as long as the lock is held the record is of who holds it, or there is none.
    running.take_away(running.recorded())
    if settings.is_detached:
        _empty_log()
    os.environ[SERVER_VARIABLE] = "off"  # a server asks no server
    listener = None if settings.ends_when_idle else listen_on_tcp(settings.host, settings.port)
    unix_listener = listen_on_unix(running.folder())
    sockets = [each for each in (listener, unix_listener) if each is not None]
    if not sockets:
        raise ServerError("There can be no Unix socket here: run `llm diffusiongemma serve`, which needs none.")
    record = Running(
        identity=identity_of(entry),
        pid=os.getpid(),
        started=time.time(),
        instance=secrets.token_hex(16),
        socket=unix_listener.getsockname() if unix_listener is not None else None,
        url=_url(settings.host, listener) if listener is not None else None,
        keep_alive_seconds=settings.keep_alive_seconds,
        ends_when_idle=settings.ends_when_idle,
        url_of_others=_url_of_others(settings, listener) if listener is not None else None,
        key_name=settings.key_name,
    )
    try:
        return Server(entry, settings, record, only(_token(), key), when_ready).serve_on(sockets)
    finally:
        running.take_away(record)


class Server(uvicorn.Server):
    """uvicorn's, with an end of our own: in bounded time, whatever clients do."""

    def __init__(
        self,
        entry: ModelEntry,
        settings: Settings,
        record: Running,
        token_is: Callable[[str], bool],
        when_ready: Callable[[Running], object],
    ) -> None:
        when_idle = self.end if settings.ends_when_idle else None
        self._desk = Desk(entry, settings.queue, settings.keep_alive_seconds, when_idle)
        self._record = record
        self._settings = settings
        self._when_ready = when_ready
        self._loading: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._ended_by: int | None = None
        self._is_stopped = False
        app = make_app(
            self._desk,
            token_is,
            instance=record.instance,
            stop=self.stop,
            hosts=[f"[{settings.host}]" if ":" in settings.host else settings.host, *settings.allowed_hosts],
        )
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=Connection,
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                log_level=logging.ERROR,  # not of every request that is none
                proxy_headers=False,
                server_header=False,
                date_header=False,
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
                timeout_graceful_shutdown=CLOSING_SECONDS,
            )
        )

    def serve_on(self, sockets: list[socket.socket]) -> int:
        """Raises what loading raises."""
        self.run(sockets)
        if self._failure is not None:
            raise self._failure
        return INTERRUPTED_STATUS if self._ended_by == signal.SIGINT else 0

    def stop(self) -> None:
        """Somebody wants it to end."""
        self._is_stopped = True
        self.end()

    def end(self) -> None:
        """From whatever thread, or a signal."""
        if not self.should_exit:
            self.should_exit = True
            # Not by `threading`: what a signal interrupted may hold one of its locks.
            _thread.start_new_thread(self._end_at_last, ())

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._ended_by = self._ended_by or sig
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True  # who presses twice doesn't want to wait
        self.stop()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn would raise them again at the end, and the process would die of them.
        handlers = {}
        is_main = threading.current_thread() is threading.main_thread()
        for number in SIGNALS if is_main else []:
            # Who starts a command in the background, or with nohup, may have it ignore one.
            is_for_terminals = number == getattr(signal, "SIGHUP", None) and self._settings.is_detached
            if signal.getsignal(number) is not signal.SIG_IGN:
                handle = signal.SIG_IGN if is_for_terminals else self.handle_exit
                handlers[number] = signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        _write(self._record)
        if self._settings.ends_when_idle:
            self._desk.rest()
            self._when_ready(self._record)
        else:
            self._loading = asyncio.create_task(self._load())

    async def _load(self) -> None:
        try:
            await self._desk.load()
        except Exception as error:
            self._failure = error
            self.end()
        else:
            self._when_ready(self._record)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        running.take_away_record()  # nobody who comes now shall find it
        for server in self.servers:
            server.close()
        if self._loading is not None:
            self._loading.cancel()
        closing = asyncio.create_task(self._desk.close(REPLY_SECONDS, self._is_stopped))
        while not closing.done() and not self.force_exit:
            await asyncio.wait([closing], timeout=LOOK_UP_SECONDS)
        if not closing.done():
            closing.cancel()
        await super().shutdown(sockets)

    def _end_at_last(self) -> None:
        time.sleep(launch.END_SECONDS)
        # A thread in the middle of a long step, or of loading, which nobody can stop.
        running.take_away(self._record)
        os._exit(1 if self._failure is not None else 0)


def _take(lock: running.Lock) -> None:
    """Raises `AlreadyRunningError`."""
    deadline = time.monotonic() + LOCK_SECONDS
    while not lock.take():
        if time.monotonic() > deadline:
            raise AlreadyRunningError(str(launch.already_running(running.recorded())))
        time.sleep(LOOK_UP_SECONDS)


def _key(settings: Settings) -> str | None:
    """What it takes besides the token. Raises `ServerAccessError` if it has to have a key and has none."""
    if settings.key_name is None:
        if not settings.is_local:
            raise ServerAccessError(
                f"At {quoted(settings.host)} other machines can ask this one, so they have to show a key of your "
                "choice: `llm keys set dg-server` keeps one, and --key dg-server takes it."
            )
        return None
    key = llm.load_keys().get(settings.key_name)  # type: ignore[no-untyped-call]
    if not isinstance(key, str) or not key.strip():
        name = quoted(settings.key_name)
        raise ServerAccessError(f"There is no key {name!r} in `llm keys`: set one with `llm keys set {name}`.")
    return key.strip()


def _token() -> str:
    """This user's token, made if there is none, or others could read it. Raises `ServerError`."""
    file = running.folder() / running.TOKEN_FILE
    with running.in_a_sentence():
        token = running.token()
        if token is None or (os.name != "nt" and stat.S_IMODE(file.stat().st_mode) & 0o077):
            token = secrets.token_urlsafe(TOKEN_BYTES)
            write_whole(file, f"{token}\n", mode=0o600)
    return token


def _url(host: str, listener: socket.socket) -> str:
    address, port = listener.getsockname()[:2]
    # Who listens everywhere is asked at home.
    return _at({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address), port)


def _url_of_others(settings: Settings, listener: socket.socket) -> str | None:
    """None if only this machine can ask."""
    if settings.is_local:
        return None
    return _at(next(iter(settings.allowed_hosts), settings.host), listener.getsockname()[1])


def _at(host: str, port: int) -> str:
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def _write(record: Running) -> None:
    """Raises `ServerError`."""
    with running.in_a_sentence():
        write_whole(running.folder() / running.RECORD_FILE, running.to_json(record), mode=0o600)


def _empty_log() -> None:
    """Of the server before this one. Its own words begin here."""
    with suppress(OSError):
        sys.stderr.flush()
        os.ftruncate(sys.stderr.fileno(), 0)
