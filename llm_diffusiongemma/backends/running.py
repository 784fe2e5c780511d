"""The server of this user that is running: where it can be asked, and what it answers for. No torch.

In a folder of its own (0700) are, all of them 0600:

- `lock`, locked by the server as long as it lives, however it ends;
- `server.json`, its record, from when it can be asked to its end: behind a `kill -9` it stays;
- `token`, what who asks has to show; it is made once and stays;
- `socket`, the Unix socket, unless the folder's path is too long for one;
- `server.log`, what a server in the background has said;
- `warm`, there if prompts start one.

**Invariant**: a server is asked by itself only for what this process would do just the same.
"""

from __future__ import annotations

import errno
import hmac
import importlib.metadata
import json
import os
import secrets
import socket
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import llm
from pydantic import TypeAdapter, ValidationError

from ..catalog import DEVICE_VARIABLE, GRAPH_VARIABLE, KERNELS_VARIABLE, MEMORY_VARIABLE, ModelEntry
from ..errors import DiffusionGemmaError, ServerError
from ..wording import quoted

LOCK_FILE, RECORD_FILE, TOKEN_FILE = "lock", "server.json", "token"
SOCKET_FILE, LOG_FILE, WARM_FILE = "socket", "server.log", "warm"

# What decides besides the model's entry where and how it runs, and for weights of the Hub which they are.
DEVICE_VARIABLES = (
    *(DEVICE_VARIABLE, MEMORY_VARIABLE, KERNELS_VARIABLE, GRAPH_VARIABLE),
    *("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
)
PATH_VARIABLES = ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")
HUB_VARIABLES = (*PATH_VARIABLES, "HF_HUB_OFFLINE", "HF_ENDPOINT")

# Of the folder that is made for a socket where this one has too long a path.
SOCKET_FOLDER_PREFIX = "llm-diffusiongemma-"

# A server of this machine takes a connection at once, also while it works.
CONNECT_SECONDS = 0.5
HEALTH_SECONDS = 2.0
# Of a record or a token: both have some hundred bytes.
MAX_BYTES = 1 << 16


@dataclass(frozen=True)
class Identity:
    """What decides about a reply, besides the request."""

    version: str
    model_id: str
    sources: tuple[tuple[str, str | None], ...]
    """of each where it is, and its revision"""
    device: str | None
    environment: Mapping[str, str]

    def difference(self, wanted: Identity) -> str | None:
        """What a server of this identity has that is not wanted, as the rest of a sentence; None if nothing."""
        if self.version != wanted.version:
            return f"is of version {quoted(self.version, 100)} of llm-diffusiongemma, and this is {wanted.version}"
        if self.model_id != wanted.model_id:
            return f"has {quoted(self.model_id, 100)}"
        if self.sources != wanted.sources:
            return "has other weights of that name"
        for name in sorted({*self.environment, *wanted.environment}):
            theirs, ours = self.environment.get(name), wanted.environment.get(name)
            if theirs != ours:
                return f"was started with {_setting(name, theirs)}, and here is {_setting(name, ours)}"
        if self.device != wanted.device:
            return f"has its device from an earlier entry of that name ({quoted(self.device, 100)})"
        return None


def _setting(name: str, value: str | None) -> str:
    return f"no {name}" if value is None else f"{name}={quoted(value, 100)}"


@dataclass(frozen=True)
class Running:
    """A server, as it has written itself down."""

    identity: Identity
    pid: int
    started: float
    """seconds since 1970"""
    instance: str
    """A random text that stands nowhere else: whoever knows it is that server (see `proof`)."""
    socket: str | None
    """The path of its Unix socket, where the system has such."""
    url: str | None
    """`http://127.0.0.1:8642/v1`, if it can be asked by TCP."""
    keep_alive_seconds: float | None
    """After so long without a prompt it lets the weights go; None: never."""
    ends_when_idle: bool
    """It was started by a prompt, and goes itself, too."""
    url_of_others: str | None = None
    """`http://gpu-box:8642/v1`, by which other machines can ask it."""
    key_name: str | None = None
    """A key of `llm keys` that it takes besides the token."""


def identity_of(entry: ModelEntry) -> Identity:
    """Of a server for a model, were it started here and now."""
    is_of_the_hub = any(isinstance(source.where, str) for source in entry.sources)
    names = DEVICE_VARIABLES + (HUB_VARIABLES if is_of_the_hub else ())
    return Identity(
        version=importlib.metadata.version("llm-diffusiongemma"),
        model_id=entry.model_id,
        sources=tuple((_place(source.where), source.revision) for source in entry.sources),
        device=entry.device,
        environment={
            name: absolute(os.environ[name]) if name in PATH_VARIABLES else os.environ[name]
            for name in names
            if name in os.environ
        },
    )


def _place(where: str | Path) -> str:
    return where if isinstance(where, str) else str(where.absolute())  # a server is in another folder


def absolute(path: str) -> str:
    """What a path in the environment means here, so that it means the same in another current folder."""
    return os.path.abspath(os.path.expanduser(path)) if path else path


def folder() -> Path:
    """Where the server keeps what concerns it, there or not. Raises `OSError` where llm has no folder."""
    user_folder = Path(llm.user_dir())  # type: ignore[no-untyped-call]
    # What a server says of itself is read in other current folders.
    return user_folder.absolute() / "diffusiongemma" / "server"


def make_folder() -> Path:
    """The folder, which nobody else may look into. Raises `ServerError`."""
    with in_a_sentence():
        place = folder()
        # Nor put another one in its place: parents are made by the process's mask, whatever that lets others do.
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.mkdir(mode=0o700, exist_ok=True)
        if stat.S_IMODE(place.stat().st_mode) & 0o077:
            place.chmod(0o700)
        return place


@contextmanager
def in_a_sentence() -> Iterator[None]:
    """Raises `ServerError` for what the disk refuses."""
    try:
        yield
    except DiffusionGemmaError:
        raise
    except OSError as error:
        raise ServerError(
            f"The server's folder can't be used: {_reason(error)}. Check the rights of llm's folder and the disk "
            "that it is on."
        ) from error


def _reason(error: OSError) -> str:
    where = f" ({quoted(error.filename)})" if error.filename is not None else ""
    return quoted(error.strerror or error) + where


def recorded() -> Running | None:
    """The server that was running last, alive or not; None if it has ended as it should."""
    text = _read(RECORD_FILE)
    return None if text is None else read(text)


def has_record() -> bool:
    """Whether there is a record, understood or not."""
    return _read(RECORD_FILE) is not None


def token() -> str | None:
    """What a server of this user wants to see; None if there has been none yet."""
    text = _read(TOKEN_FILE)
    return None if text is None else text.decode("ascii", "replace").strip() or None


def answers(running: Running) -> bool:
    """Whether a server of which there is a record is still there. It may be hung.

    A socket in a folder of this user's own is nobody else's, and refuses at once if its server is dead. A port may
    be anybody's by now: who listens there has to prove who it is, before it is shown a token.
    """
    if running.socket is not None:
        return not _is_taken_over(Path(running.socket).parent) and _listens(running.socket)
    if running.url is None:
        return False
    import httpx2

    challenge = secrets.token_hex(16)
    try:
        with httpx2.Client(timeout=HEALTH_SECONDS, trust_env=False) as client:
            url = f"{running.url.removesuffix('/v1')}/health"
            health = client.get(url, params={"challenge": challenge})
        return bool(health.json()["proof"] == proof(running.instance, challenge))
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, KeyError, TypeError):
        return False


def proof(instance: str, challenge: str) -> str:
    """What only that server answers to a challenge, and nobody who has heard it answer others."""
    return hmac.digest(instance.encode(), challenge.encode(), "sha256").hex()


def _is_taken_over(folder: Path) -> bool:
    """Whether a folder for a socket is somebody else's: those for temporary files are cleared now and then, and
    anybody may make one of that name again."""
    if not folder.name.startswith(SOCKET_FOLDER_PREFIX):
        return False
    with suppress(OSError):
        return folder.stat().st_uid != os.getuid()
    return True


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(CONNECT_SECONDS)
        try:
            connection.connect(path)
        except TimeoutError:  # so many wait to be let in that there is no room for more
            return True
        except OSError as error:
            return error.errno == errno.EAGAIN  # the same
        return True


def _read(name: str) -> bytes | None:
    """A file of the folder; None if it isn't there, or can't be read."""
    with suppress(OSError), (folder() / name).open("rb") as stream:
        return stream.read(MAX_BYTES)
    return None


class Lock:
    """Held by a server for its life: the system lets go of it with the process, however that ends."""

    def __init__(self) -> None:
        """Raises `ServerError`."""
        with in_a_sentence():
            self._file = os.open(make_folder() / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)

    def take(self, shared: bool = False) -> bool:
        """Whether nobody else has it, but who has it `shared` himself. Raises `ServerError`."""
        with in_a_sentence():
            try:
                if sys.platform == "win32":
                    import msvcrt

                    msvcrt.locking(self._file, msvcrt.LK_NBLCK, 1)
                else:
                    import fcntl

                    fcntl.flock(self._file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                    return False
                raise
        return True

    def close(self) -> None:
        """Lets go of it."""
        os.close(self._file)


def is_locked() -> bool:
    """Whether a server is there, starting, at work or ending. Raises `ServerError`."""
    lock = Lock()
    try:
        # Who looks at the same time is no server.
        return not lock.take(shared=True)
    finally:
        lock.close()


def forget_dead() -> bool:
    """Takes the record of a server away that is there no more; False if one is, or is starting or ending.

    Raises `ServerError`.
    """
    lock = Lock()
    try:
        if not lock.take():
            return False
        take_away(recorded())
        return True
    finally:
        lock.close()


def take_away_record() -> None:
    with suppress(OSError):
        (folder() / RECORD_FILE).unlink(missing_ok=True)


def take_away(running: Running | None) -> None:
    """The record, and the socket that it names: for who has the lock."""
    take_away_record()
    if running is not None and running.socket is not None:
        path = Path(running.socket)
        with suppress(OSError):
            path.unlink(missing_ok=True)
            if path.parent.name.startswith(SOCKET_FOLDER_PREFIX):
                path.parent.rmdir()


def read(text: bytes) -> Running | None:
    """None if that is nothing a server of this version has written."""
    try:
        running = TypeAdapter(Running).validate_json(text)
    except ValidationError:
        return None
    return None if "\0" in (running.socket or "") else running  # no path has that


def to_json(running: Running) -> str:
    return json.dumps(asdict(running), indent=2) + "\n"
