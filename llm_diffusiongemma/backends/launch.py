"""Starting, asking and ending the server of this user from another process. No torch, no starlette."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, get_args

from ..catalog import MODEL_VARIABLE, SERVER_VARIABLE, ModelEntry
from ..errors import ServerError, ServerStoppedError
from ..installation import install_command
from ..view.progress import Progress, indicate
from ..wording import quoted, tell
from . import protocol, running
from .running import Running, identity_of
from .settings import Settings

if TYPE_CHECKING:
    import httpx2

#: Within so long a server ends that was asked to, whatever its clients do.
END_SECONDS = 10.0

# Another one that was started at the same time has yet to import what it needs.
OTHER_START_SECONDS = 60.0
ASK_SECONDS = 5.0
LOOK_UP_SECONDS = 0.05
# For the system to take a killed process away, with all the memory that it has.
KILL_SECONDS = 20.0
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
LAST_WORDS_BYTES = 2000

MODULE = "llm_diffusiongemma.server"


_started: list[subprocess.Popen[bytes]] = []
"""What is let go of before it has ended, Python warns of."""

Message = Literal["progress", "told", "ready", "taken", "failed"]
"""A line that a detached server writes to who started it, `{"is": Message, …}`: what it is at `now`, and bytes of
how many; a `text` that it has to tell; it can be asked, and has loaded; another server is there already; its end,
and the `error`, as in protocol.py."""


def start(entry: ModelEntry, settings: Settings) -> Running:
    """Have a server run in the background, and wait until it can be asked; unless it loads with its first prompt,
    until it has loaded.

    If one was started for the same at the same time, that one is as good for prompts (`ends_when_idle`).

    Raises what keeps it from running, as it says it, and `ServerError`.
    """
    check_background()
    if running.is_locked():
        return _other(entry, settings)
    log = running.folder() / running.LOG_FILE
    command = [sys.executable, "-P", "-m", MODULE, entry.model_id]
    command += replace(settings, is_detached=True).arguments()
    with (
        indicate(f"Starting a server for {entry.model_id}"),
        running.in_a_sentence(),
        open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as errors,
    ):
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd="/",
            env=_environment(),
            start_new_session=True,
        )
        _started.append(server)
        try:
            is_taken = _listen(server)
        except KeyboardInterrupt:
            server.terminate()  # nobody waits for it any more
            raise
    if is_taken:
        return _other(entry, settings)
    found = running.recorded()
    if found is not None and found.pid == server.pid and server.poll() is None:
        return found
    raise _ended(server, log)


def _listen(server: subprocess.Popen[bytes]) -> bool:
    """Until it is ready, or has ended. Whether another one was there before. Raises what it has failed of."""
    assert server.stdout is not None
    with server.stdout as lines, _Shown() as shown:
        for message in _messages(lines):
            if message["is"] == "progress":
                shown.show(*message["now"])
            elif message["is"] == "told":
                tell(str(message["text"]))
            elif message["is"] == "failed":
                # Who reads why, and mends it, may start another one at once.
                with suppress(subprocess.TimeoutExpired):
                    server.wait(END_SECONDS)
                error = message["error"]
                raise protocol.error_from_wire(error) or ServerError(quoted(error["message"]))
            else:
                return bool(message["is"] == "taken")
    return False


class _Shown(ExitStack):
    """What takes long in another process, as if it were in this one."""

    _what: tuple[str, int | None] | None = None
    _num_bytes = 0
    _progress: Progress

    def show(self, what: str, num_bytes: int, total_bytes: int | None) -> None:
        if (what, total_bytes) != self._what:
            self.close()
            self._what = (what, total_bytes)
            self._progress = self.enter_context(indicate(quoted(what), total_bytes, num_bytes))
        else:
            self._progress.advance(num_bytes - self._num_bytes)
        self._num_bytes = num_bytes


def check_background() -> None:
    """Raises `ServerError` where no server can be in the background."""
    if os.name == "nt":
        raise ServerError(
            "On Windows no server can be put into the background: run `llm diffusiongemma serve` in a window of "
            "its own."
        )
    check_installed()


def check_installed() -> None:
    """Raises `ServerError` if there is nothing here that a server is made of."""
    if any(importlib.util.find_spec(name) is None for name in ("starlette", "uvicorn")):
        raise ServerError(f"A server needs two more libraries: {install_command('serve')}")


def _messages(lines: IO[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        with suppress(ValueError):  # some library writes there, too
            message = json.loads(line)
            if isinstance(message, dict) and message.get("is") in get_args(Message):
                yield message


def _environment() -> dict[str, str]:
    """This process's, for one with another current folder, that asks no server itself."""
    environment = dict(os.environ)
    for name in (*running.PATH_VARIABLES, MODEL_VARIABLE, "LLM_USER_PATH"):
        if environment.get(name, "").strip():
            environment[name] = running.absolute(environment[name].strip())
    if environment.get("PYTHONPATH"):
        folders = environment["PYTHONPATH"].split(os.pathsep)
        environment["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, folders))
    environment[SERVER_VARIABLE] = "off"
    return environment


def _other(entry: ModelEntry, settings: Settings) -> Running:
    """The server that was there first. Raises `ServerError` if it is not what was to be started."""
    deadline = time.monotonic() + OTHER_START_SECONDS
    found = running.recorded()
    while settings.ends_when_idle and time.monotonic() < deadline:
        if found is not None and running.answers(found):
            if found.identity.difference(identity_of(entry)) is None:
                return found
            break
        if not running.is_locked():
            raise ServerError("The server that was started just before has ended again. Run the command again.")
        time.sleep(LOOK_UP_SECONDS)
        found = running.recorded()
    raise already_running(found)


def already_running(found: Running | None) -> ServerError:
    """For who can't start another one."""
    which = f" for {quoted(found.identity.model_id)} (process {found.pid})" if found is not None else ""
    return ServerError(
        f"A server{which} is running already, and a user has one at a time: `llm diffusiongemma stop` ends it."
    )


def _ended(server: subprocess.Popen[bytes], log: Path) -> ServerError:
    """What is said of a server that has ended, or is about to, without a word."""
    try:
        status = server.wait(END_SECONDS)
        if status == 0:
            return ServerStoppedError("The server was stopped while it was starting. Run the command again.")
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    except subprocess.TimeoutExpired:
        how = "doesn't answer"
    with suppress(OSError), log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - LAST_WORDS_BYTES))
        lines = stream.read().decode("utf-8", "replace").splitlines()
        if lines:
            return ServerError(
                f"The server {how} before it was ready: {quoted(lines[-1])}. {quoted(log)} has all it has said."
            )
    return ServerError(f"The server {how} before it was ready, and has said nothing.")


def ask(found: Running, method: str, path: str) -> dict[str, Any]:
    """A JSON object from a server of this user's. Raises `ServerError`."""
    import httpx2

    try:
        with _client(found) as client:
            answer = client.request(method, path)
            value = answer.raise_for_status().json()
    except httpx2.HTTPError as error:
        raise ServerError(f"The server (process {found.pid}) doesn't answer: {_why(error)}.") from error
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ServerError(f"The server (process {found.pid}) answers what can't be understood.")
    return value


def _why(error: httpx2.HTTPError) -> str:
    import httpx2

    if isinstance(error, httpx2.HTTPStatusError):
        return f"its status is {error.response.status_code}"
    if isinstance(error, httpx2.TimeoutException):
        return f"nothing came for {ASK_SECONDS:g} s, and `llm diffusiongemma stop` ends it"
    return "the connection to it breaks off"


def _client(found: Running) -> httpx2.Client:
    import httpx2

    transport = httpx2.HTTPTransport(uds=found.socket) if found.socket is not None else None
    url = "http://localhost" if found.url is None else found.url.removesuffix("/v1")
    headers = {"Authorization": f"Bearer {running.token()}"}
    return httpx2.Client(base_url=url, headers=headers, transport=transport, timeout=ASK_SECONDS, trust_env=False)


def stop() -> Running | None:
    """End the server, by force if it takes longer than it may. The one that was ended; None if there was none.

    Raises `ServerError` if it is still there.
    """
    if not (running.folder() / running.LOCK_FILE).exists() or not running.is_locked():
        if running.has_record():
            running.forget_dead()  # one that was killed: nobody has to be told of it any more
        return None
    found = running.recorded()
    deadline = time.monotonic() + END_SECONDS
    while found is None or not running.answers(found):  # it is starting, or ending
        if not running.is_locked():
            return found
        if time.monotonic() > deadline:
            raise _endless(found)
        time.sleep(LOOK_UP_SECONDS)
        found = running.recorded() or found
    with suppress(ServerError):  # if it is hung
        ask(found, "POST", "/diffusiongemma/stop")
        if _is_gone_within(found, END_SECONDS):
            return found
    for number, seconds in ((signal.SIGTERM, END_SECONDS), (KILL, KILL_SECONDS)):
        pid = _peer(found)
        if pid is None:
            break
        with suppress(OSError):
            os.kill(pid, number)
        if _is_gone_within(found, seconds):
            running.forget_dead()  # one that was killed has left its record
            return found
    raise _endless(found)


def give_way(found: Running) -> bool:
    """Has a server end if it is idle. Whether it is gone."""
    with suppress(ServerError):
        return bool(ask(found, "POST", "/diffusiongemma/give-way").get("gives_way")) and _is_gone_within(
            found, END_SECONDS
        )
    return False


def _endless(found: Running | None) -> ServerError:
    process = f"process {found.pid}" if found is not None else "a process of yours"
    return ServerError(f"The server doesn't end, and it is not certain that it is {process}: end that yourself.")


def _is_gone_within(found: Running, seconds: float) -> bool:
    """A server; there may be another one by then."""
    deadline = time.monotonic() + seconds
    while running.is_locked():
        now = running.recorded()
        if now is not None and now.instance != found.instance:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_UP_SECONDS)
    return True


def _peer(found: Running) -> int | None:
    """Which process listens on a server's socket, as the system says: its record may be of another machine or
    container. None if that can't be told."""
    import socket

    if found.socket is None:
        return None
    with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(running.CONNECT_SECONDS)
        connection.connect(found.socket)
        if sys.platform == "linux":
            size = struct.calcsize("3i")
            pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
            return pid or None
        if sys.platform == "darwin":
            local, peer_pid = 0, 2  # SOL_LOCAL, LOCAL_PEERPID
            return int(connection.getsockopt(local, peer_pid)) or None
    return None


def is_warm() -> bool:
    """Whether prompts start a server."""
    try:
        return (running.folder() / running.WARM_FILE).exists()
    except OSError:  # llm has no folder
        return False


def set_warm(is_on: bool) -> None:
    """Raises `ServerError`."""
    with running.in_a_sentence():
        if is_on:
            (running.make_folder() / running.WARM_FILE).touch(mode=0o600)
        else:
            (running.folder() / running.WARM_FILE).unlink(missing_ok=True)
