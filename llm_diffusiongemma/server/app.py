"""The server as an ASGI application: its paths, and what of a request is looked at before it is read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from typing import Any, get_args

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ..backends.protocol import EXTENSION, OWNER
from ..backends.running import proof
from ..view.records import Wants
from ..wording import quoted
from .desk import Desk
from .guard import HEALTH, Guard
from .refusals import RefusalError, invalid, refusal_of
from .replying import Replying
from .requests import RequestError, read_request

# A conversation with many pictures, most of it base64.
MAX_BODY_BYTES = 64 << 20


def make_app(
    desk: Desk,
    token_is: Callable[[str], bool],
    *,
    instance: str,
    stop: Callable[[], object],
    hosts: Collection[str] = (),
    max_body_bytes: int = MAX_BODY_BYTES,
) -> ASGIApp:
    """By `instance` `/health` proves which server this is, and `stop` begins its end. `hosts` are the names by
    which it is asked, besides those that this machine has for itself."""
    paths = _Paths(desk, instance, stop, max_body_bytes)
    app = Starlette(
        routes=[
            Route(HEALTH, paths.health),
            Route("/v1/models", paths.models),
            Route("/v1/models/{model_id:path}", paths.model),
            Route("/v1/chat/completions", paths.complete, methods=["POST"]),
            Route("/diffusiongemma/status", paths.status),
            Route("/diffusiongemma/stop", paths.stop, methods=["POST"]),
            Route("/diffusiongemma/give-way", paths.give_way, methods=["POST"]),
        ],
        exception_handlers={HTTPException: _no_path, RefusalError: _refused},
    )
    app.router.redirect_slashes = False
    return Guard(app, token_is, hosts)


class _Paths:
    def __init__(self, desk: Desk, instance: str, stop: Callable[[], object], max_body_bytes: int) -> None:
        self._desk = desk
        self._instance = instance
        self._stop = stop
        self._max_body_bytes = max_body_bytes
        self._created = int(time.time())

    async def health(self, request: Request) -> Response:
        challenge = request.query_params.get("challenge")
        said = {} if challenge is None else {"proof": proof(self._instance, challenge)}
        return JSONResponse({"status": "ok", **said})

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        name, served = request.path_params["model_id"], self._desk.entry.model_id
        if name != served:
            raise invalid(404, f"There is no model {quoted(name)!r} here, only {served}.", code="model_not_found")
        return JSONResponse(self._model())

    async def status(self, request: Request) -> Response:
        return JSONResponse(self._desk.status())

    async def stop(self, request: Request) -> Response:
        self._stop()
        return JSONResponse({"status": "stopping"})

    async def give_way(self, request: Request) -> Response:
        return JSONResponse({"gives_way": self._desk.give_way()})

    async def complete(self, request: Request) -> Response:
        try:
            body = await self._read(request)
            # A large one takes seconds, in which others are heard.
            asked = await asyncio.to_thread(read_request, body, self._desk.entry.model_id)
            order = self._desk.order(asked.turn, asked.watch)
        except RequestError as error:
            raise invalid(error.status, error.message, param=error.param) from error
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except Exception as error:
            raise refusal_of(error, self._desk.retry_after) from error
        return Replying(self._desk, order, asked)

    def _model(self) -> dict[str, Any]:
        model: dict[str, Any] = {
            "id": self._desk.entry.model_id,
            "object": "model",
            "created": self._created,
            "owned_by": OWNER,
            EXTENSION: {"watch": list(get_args(Wants))},
        }
        if self._desk.context_tokens is not None:
            model["max_model_len"] = self._desk.context_tokens
        return model

    async def _read(self, request: Request) -> bytes:
        """The body, no larger than it may be."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise invalid(415, f"The request has to be JSON (Content-Type: application/json), not {quoted(kind)}.")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise invalid(415, "The request's body has to come uncompressed.")
        said = request.headers.get("content-length", "")
        if said.isdecimal() and int(said[:20]) > self._max_body_bytes:
            raise self._too_large()
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self._max_body_bytes:
                raise self._too_large()
        return bytes(body)

    def _too_large(self) -> RefusalError:
        return invalid(
            413,
            f"The request is larger than {self._max_body_bytes >> 20} MiB. Attach fewer or smaller pictures, or "
            "start a new conversation.",
        )


async def _no_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = quoted(request.scope["path"])
    if error.status_code == 405:
        allow = (error.headers or {}).get("Allow")
        return invalid(405, f"{path} is asked by {allow}, not {quoted(request.method)}.", allow=allow).response()
    return invalid(
        error.status_code, f"There is nothing at {path}. Replies are at /v1/chat/completions."
    ).response()


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusalError)
    return error.response()
