"""Where a server is asked, and with which key. No network, nothing heavy."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import llm

from ..catalog import SERVER_VARIABLE, ModelEntry
from ..errors import RegistryError, ServerAccessError
from ..urls import is_loopback, parse_url
from ..wording import quoted

#: Under which `llm keys` has the key of the server that SERVER_VARIABLE names, and the variable that may have it.
KEY_NAME = "diffusiongemma"
KEY_VARIABLE = "LLM_DIFFUSIONGEMMA_KEY"

#: What reports call the server that was found by itself.
LOCAL_SERVER = "local server"

# What a header can carry.
KEY = re.compile(r"[!-~]+")


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
    key_variable: str | None = None
    """Of the environment, if the key is from there."""
    variable: str | None = None
    """Of the environment, if that names it: who has set that may have forgotten it."""

    @property
    def was_found(self) -> bool:
        """Whether nobody has named it: this process could answer, too."""
        return self.name == LOCAL_SERVER

    @property
    def subject(self) -> str:
        """It, where a sentence about it begins."""
        return "The local server" if self.was_found else quoted(self.name)

    @property
    def which_model(self) -> str:
        """How the user says which of the server's models is meant."""
        if self.takes_any:
            return "Add it with --served-model and one of these names."
        return "Add the one that you mean as a model: llm diffusiongemma add NAME URL --served-model NAME"

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
    kept, given = llm.get_key(alias=KEY_NAME), os.environ.get(KEY_VARIABLE, "").strip()
    if not kept and given and not KEY.fullmatch(given):
        raise ServerAccessError(f"{KEY_VARIABLE} holds blanks, line ends or characters that no key has.")
    return Address(
        url=url,
        key=_checked(kept, KEY_NAME) if kept else given or None,
        socket=None,
        model=None,
        is_ours=False,
        name=url,
        wanted=(entry.model_id, *(str(source) for source in entry.sources if isinstance(source.where, str))),
        key_name=KEY_NAME,
        key_variable=KEY_VARIABLE if given and not kept else None,
        variable=SERVER_VARIABLE,
    )


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
