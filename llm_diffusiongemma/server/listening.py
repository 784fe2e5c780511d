"""The door of the server: its sockets, and connections that take too long to say what they want."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..backends import running
from ..errors import ServerError
from ..wording import quoted

# What the systems have room for in the address of a Unix socket, with its end: 108 bytes on Linux, 104 on others.
MAX_SOCKET_BYTES = 103

# In so many seconds a request has to be whole, or so much of it more must have come: then a request's head, which
# is smaller, has them once, and a body of the largest size some minutes.
REQUEST_SECONDS = 10.0
REQUEST_BYTES = 1 << 17
MAX_HEAD_BYTES = 1 << 16
# Who takes nothing for so long is gone.
STALLED_SECONDS = 60.0
# Far more than may wait for replies. By TCP and by the Unix socket so many each: nobody else's keep its user out.
MAX_CONNECTIONS = 256
MAX_WAITING_CONNECTIONS = 128


def listen_on_tcp(host: str, port: int) -> socket.socket:
    """Raises `ServerError` for a port that is in use, and an address that isn't this machine's."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            if sys.platform == "win32":
                # Where SO_REUSEADDR lets a second program take the port.
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
            else:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(MAX_WAITING_CONNECTIONS)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ServerError(
                f"Port {port} of {quoted(host)} is used by another program: choose another one with --port, or "
                "have the system choose one with --port 0."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise ServerError(
                f"This user may not listen at port {port} of {quoted(host)}: choose another one with --port."
            ) from error
        if isinstance(error, socket.gaierror):
            reason = "there is no machine of that name"
        elif error.errno == errno.EADDRNOTAVAIL:
            reason = "that is no address of this machine"
        else:
            reason = quoted(error.strerror or error)
        raise ServerError(
            f"Nobody can listen at port {port} of {quoted(host)}: {reason}. --host is one of this machine's own "
            "addresses, 127.0.0.1 for itself alone, or 0.0.0.0 for all of them."
        ) from error
    except UnicodeError as error:
        raise ServerError(f"{quoted(repr(host))} can't be the name of a machine.") from error
    return listener


def listen_on_unix(folder: Path) -> socket.socket | None:
    """A socket in the server's folder or, if that has too long a path or its disk no sockets, in a new one for
    temporary files, which is this user's alone, too. None if the system has none there either."""
    if not hasattr(socket, "AF_UNIX") or sys.platform == "win32":
        return None
    with suppress(OSError):
        return _bound(folder / running.SOCKET_FILE)
    with suppress(OSError):
        return _bound(_temporary_folder() / running.SOCKET_FILE)
    return None


def _bound(path: Path) -> socket.socket:
    """Raises `OSError`."""
    if not _fits(path):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    # One of a server that was killed: the lock says that it isn't there any more.
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(MAX_WAITING_CONNECTIONS)
    except BaseException:
        listener.close()
        raise
    return listener


def _temporary_folder() -> Path:
    """Raises `OSError`."""
    places = [os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"]
    for place in filter(None, places):
        with suppress(OSError):
            # 0700, under a name that was never there.
            made = Path(tempfile.mkdtemp(prefix=running.SOCKET_FOLDER_PREFIX, dir=place))
            if _fits(made / running.SOCKET_FILE):
                return made
            made.rmdir()
    raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= MAX_SOCKET_BYTES


class Connection(H11Protocol):
    """One that closes by itself on a client that begins a request and doesn't go on with it, or that doesn't take
    what it is answered."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._is_by_socket = isinstance(transport.get_extra_info("sockname"), str)
        super().connection_made(transport)  # type: ignore[arg-type]
        # What the system doesn't take off us at once, the client doesn't take either.
        self.transport.set_write_buffer_limits(0)
        self._came = self._left = 0
        self._watch: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        alike = (
            isinstance(each, Connection) and each._is_by_socket is self._is_by_socket for each in self.connections
        )
        if sum(alike) > MAX_CONNECTIONS:
            self.transport.abort()
        else:
            self._begin_to_watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._came += len(data)
        if not self._is_waiting():
            self._stop_watching()
        elif self._watch is None:
            self._begin_to_watch()

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:  # it is answered already
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_until_taken()

    def resume_writing(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        self.resume_writing()
        super().connection_lost(exc)

    def _wait_until_taken(self) -> None:
        self._left = self.transport.get_write_buffer_size()
        self._stall = self.loop.call_later(STALLED_SECONDS, self._look_what_is_taken)

    def _look_what_is_taken(self) -> None:
        if self.transport.get_write_buffer_size() < self._left:
            self._wait_until_taken()
        else:
            self.transport.abort()

    def _is_waiting(self) -> bool:
        """Whether it is the client's turn: to send a request, what is left of one, or the next one."""
        return self.cycle is None or self.cycle.more_body or self.cycle.response_complete

    def _begin_to_watch(self) -> None:
        self._came = 0
        self._watch = self.loop.call_later(REQUEST_SECONDS, self._look)

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _look(self) -> None:
        self._watch = None
        if self.transport.is_closing():
            return
        # Nothing comes either while the application has yet to take what is there.
        if self._came >= REQUEST_BYTES or not self.transport.is_reading():
            self._begin_to_watch()
        elif self._is_waiting():
            self.transport.abort()
