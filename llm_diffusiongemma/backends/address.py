"""Where a server is asked, and with which key. No network, nothing heavy."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

import llm

from ..catalog import SERVER_VARIABLE, ModelEntry
from ..errors import RegistryError, ServerAccessError
from ..wording import quoted

#: Under which `llm keys` has the key of the server that SERVER_VARIABLE names, and the variable that may have it.
KEY_NAME = "diffusiongemma"
KEY_VARIABLE = "LLM_DIFFUSIONGEMMA_KEY"

# What a header can carry.
KEY = re.compile(r"[!-~]+")
HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")


@dataclass(frozen=True)
class Address:
    """Where a model of a server's is asked."""

    url: str
    """`http://host:8000/v1`"""
    key: str | None = field(repr=False)
    socket: str | None
    """The path of a Unix socket to go through, whatever host the URL names."""
    model: str | None
    """What the server calls the model; None if it is to be asked."""
    is_ours: bool
    """It is known to be one of llm-diffusiongemma, so that it needn't be asked what it is."""
    name: str
    """What reports and sentences call it."""
    wanted: tuple[str, ...] = ()
    """By which names the model can be known among several of a server's."""
    takes_any: bool = False
    """Whether a server's only model is meant, whatever its name."""
    key_name: str | None = None
    """Where the key is from, or would be: a name in `llm keys`."""

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine, so that no proxy is in between."""
        return self.socket is not None or is_loopback(urlsplit(self.url).hostname or "")


def address_of(entry: ModelEntry) -> Address | None:
    """The server that the user has named for a model: of a model that is a server's that one, else the one that
    the environment names, if it does.

    Raises `RegistryError` if the environment names none that can be, `ServerAccessError` if its key isn't there.
    """
    if entry.server is not None:
        server = entry.server
        return Address(
            url=server.url,
            key=_key(server.key_name),
            socket=None,
            model=server.served_model,
            is_ours=False,
            name=server.url,
            wanted=(entry.model_id,),
            takes_any=True,
            key_name=server.key_name,
        )
    named = os.environ.get(SERVER_VARIABLE, "").strip()
    if not named or named.lower() == "off":
        return None
    try:
        url = parse_url(named)
    except RegistryError as error:
        raise RegistryError(f"{SERVER_VARIABLE} is neither off nor the URL of a server. {error}") from error
    key = llm.get_key(alias=KEY_NAME, env=KEY_VARIABLE)
    return Address(
        url=url,
        key=_checked(key, KEY_NAME) if key else None,
        socket=None,
        model=None,
        is_ours=False,
        name=url,
        wanted=(entry.model_id, *(str(source) for source in entry.sources if isinstance(source.where, str))),
        key_name=KEY_NAME,
    )


def parse_url(text: str) -> str:
    """A server's URL in its one form, without a slash at its end. Raises `RegistryError`."""
    shown = quoted(repr(text), 200)
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError as error:  # a port that is none, half a pair of brackets
        raise RegistryError(f"{shown} can't be the URL of a server: {quoted(error)}.") from error
    if parts.username is not None or parts.password is not None:
        # Not shown again: there may be a password in it.
        raise RegistryError(
            "A server's URL can't hold a name or a password: it is shown and logged. Keep the key with `llm keys "
            "set NAME`, and give --key NAME."
        )
    if parts.scheme not in ("http", "https") or not _is_host(parts) or re.search(r"[\s\\\x00-\x1f]", parts.path):
        raise RegistryError(f"{shown} can't be the URL of a server, which is written like http://host:8000/v1.")
    if parts.query or parts.fragment:
        raise RegistryError(f"{shown} can't be the URL of a server: leave out what stands behind ? or #.")
    host = str(parts.hostname)
    netloc = f"[{host}]" if ":" in host else host
    netloc += f":{port}" if port is not None else ""
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{netloc}{path}"


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _is_host(parts: SplitResult) -> bool:
    host = parts.hostname or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        try:
            return HOST_NAME.fullmatch(host.encode("idna").decode()) is not None
        except UnicodeError:
            return False
    return True


def _key(name: str | None) -> str | None:
    """The key of that name, which has to be there if there is a name."""
    if name is None:
        return None
    key = llm.get_key(alias=name)
    if key is None:
        raise ServerAccessError(f"`llm keys` has no key named {quoted(name)}. Set it: llm keys set {quoted(name)}")
    return _checked(key, name)


def _checked(key: str, name: str) -> str:
    if not KEY.fullmatch(key.strip()):
        raise ServerAccessError(
            f"The key named {quoted(name)} holds blanks, line ends or characters that no key has. Set it again: "
            f"llm keys set {quoted(name)}"
        )
    return key.strip()
