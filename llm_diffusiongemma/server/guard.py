"""Who may ask the server."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import ServerAccessError
from ..wording import quoted
from .refusals import RefusalError, invalid, refusal_of

HEALTH = "/health"
OWN_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})


def only(*tokens: str | None) -> Callable[[str], bool]:
    """Whether a text is one of these, found out in a time that tells nothing about them."""
    known = [token.encode() for token in tokens if token is not None]
    return lambda given: any(hmac.compare_digest(given.encode(), each) for each in known)


class Guard:
    """Lets through who names this server and has its token; who asks whether it lives needs none.

    A page in a browser can have any address asked, but not by that address's name, nor with the token.
    """

    def __init__(self, app: ASGIApp, token_is: Callable[[str], bool], hosts: Collection[str]) -> None:
        """`hosts` are names that the server is asked by, besides those of this machine for itself."""
        self._app = app
        self._token_is = token_is
        self._hosts = OWN_HOSTS | {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(Request(scope))
            except RefusalError as refusal:
                await refusal.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, request: Request) -> None:
        named = request.headers.getlist("host")
        if len(named) != 1 or _without_port(named[0]) not in self._hosts:
            name = quoted(", ".join(named))
            raise invalid(
                421,
                f"This server isn't called {name!r}. If it should be: llm diffusiongemma serve --allow-host NAME",
                param="Host",
            )
        # As the paths are told apart behind this: a URL leaves some characters out.
        if request.scope["path"] == HEALTH:
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not self._token_is(token.strip()):
            error = ServerAccessError(
                "This server wants its token (Authorization: Bearer …), and "
                + ("got none." if not token else "got another one.")
                + " `llm diffusiongemma status` says where it stands."
            )
            raise refusal_of(error)


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return (name if colon and (port.isdigit() or not port) else host).lower()
