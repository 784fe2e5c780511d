"""The URLs of servers: what can be one, and its one form."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

from .errors import RegistryError
from .wording import quoted

HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
USER = re.compile(r"[^/]*//[^/?#]*@")
NO_PATH = re.compile(r"[\s\\\x00-\x1f\x7f]")


def parse_url(text: str) -> str:
    """A server's URL in its one form, without a slash at its end. Raises `RegistryError`."""
    if USER.match(text):
        # Not shown again: there may be a password in it.
        raise RegistryError(
            "A server's URL can't hold a name or a password: it is shown and logged. Keep the key with `llm keys "
            "set NAME`, and give --key NAME."
        )
    shown = quoted(repr(text), 200)
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError as error:  # a port that is none, half a pair of brackets
        raise RegistryError(f"{shown} can't be the URL of a server: {quoted(error)}.") from error
    if parts.scheme not in ("http", "https") or not _is_host(parts) or NO_PATH.search(parts.path):
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
