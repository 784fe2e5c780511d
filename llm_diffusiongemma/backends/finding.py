"""Whether a server answers for a model, and what is said of one that is there and doesn't.

No torch, and of a server that is found no more than a connection to its socket: a prompt through it should cost
little more than the reply.
"""

from __future__ import annotations

import os
from contextlib import suppress

from ..catalog import SERVER_VARIABLE, ModelEntry
from ..errors import DiffusionGemmaError, ServerError, ServerStoppedError
from ..view.screen import on_terminal
from ..wording import quoted, tell, tell_once
from . import running
from .address import LOCAL_SERVER, Address, address_of
from .running import Running, identity_of


def find(entry: ModelEntry, may_start: bool) -> Address | None:
    """Where a model is asked: of the server that is named for it, or of this user's that is running, or of one
    that is started now, if `may_start` and the user has it so. None if this process answers.

    Raises what `address_of` raises, and `ServerStoppedError` if somebody ends the one that is started.
    """
    if (named := address_of(entry)) is not None:
        return named
    if os.environ.get(SERVER_VARIABLE, "").strip().lower() == "off":
        return None
    server = running.recorded()
    there = server if server is not None and running.answers(server) else None
    if may_start and not _cannot_start and _has_to_start(there, entry):
        return _started(entry)
    if there is not None:
        return _address(there, entry)
    if server is not None or running.has_record():
        _tell_why_not(server, entry)
    return None


def _has_to_start(there: Running | None, entry: ModelEntry) -> bool:
    """Whether prompts start servers, and there is none: or one that a prompt has started for something else, and
    that has made way now."""
    if there is not None and (not there.ends_when_idle or there.identity.difference(identity_of(entry)) is None):
        return False
    from .launch import give_way, is_warm

    return is_warm() and (there is None or give_way(there))


def has_gone(address: Address) -> bool:
    """Whether this is a server that was found by itself, and isn't there any more."""
    server = running.recorded()
    return address.was_found and (server is None or not running.answers(server))


def _address(server: Running, entry: ModelEntry) -> Address | None:
    """Of a server that is there; None if it isn't to be asked, which is said."""
    identity = server.identity
    difference = identity.difference(identity_of(entry))
    token = running.token()
    if difference is None and token is not None:
        # By a socket the host is a formality.
        url = "http://localhost/v1" if server.socket is not None else str(server.url)
        return Address(url, token, server.socket, identity.model_id, is_ours=True, name=LOCAL_SERVER)
    if identity.model_id != entry.model_id and not on_terminal():
        # Who works with two models knows that, and a script that does would have its output full of it.
        return None
    tell_once(
        f"The local server {difference or 'has lost its token'}, so this process answers. To have one for this: "
        f"{_anew(entry)}"
    )
    return None


def _tell_why_not(server: Running | None, entry: ModelEntry) -> None:
    """Of a record without a server that takes connections, or one that can't be understood: None."""
    with suppress(ServerError):
        if running.forget_dead():
            process = f" (process {server.pid})" if server is not None else ""
            model_id = server.identity.model_id if server is not None else entry.model_id
            tell(
                f"The local server{process} has ended without a word, so this process answers. To start it again: "
                + _serve(model_id)
            )
        elif server is None:
            tell_once(
                "The local server is of another version, and what it says of itself can't be understood, so this "
                f"process answers. To have one of this version: {_anew(entry)}"
            )


def _anew(entry: ModelEntry) -> str:
    from .launch import is_warm

    stop = "llm diffusiongemma stop"
    # The next prompt starts one.
    return stop if is_warm() else f"{stop}, then {_serve(entry.model_id)}"


def _serve(model_id: str) -> str:
    return f"llm diffusiongemma serve {quoted(model_id)}" + ("" if os.name == "nt" else " --detach")


_cannot_start = False
"""It was tried: who chats needn't wait for that at every turn."""


def _started(entry: ModelEntry) -> Address | None:
    global _cannot_start
    from .launch import start
    from .settings import Settings

    try:
        server = start(entry, Settings(ends_when_idle=True))
    except ServerStoppedError:
        raise
    except DiffusionGemmaError as error:
        _cannot_start = True
        tell(f"No server could be started, so this process answers. {error}")
        return None
    return _address(server, entry)
