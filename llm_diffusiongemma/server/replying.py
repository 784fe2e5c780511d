"""A reply on its way to who has asked for it: whole, or as server-sent events while it is written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ..view.records import Reading, Snapshot
from . import responses
from .desk import Desk
from .orders import Ended, News, Order, Written
from .refusals import refusal_of

if TYPE_CHECKING:
    from llm.parts import StreamEvent

    from .requests import Asked

# No stream is begun for so long while its prompt may still be refused: an error then has a status of its own.
ACCEPT_SECONDS = 3.0
# Who hears nothing for a minute takes the server for dead.
COMMENT_SECONDS = 5.0

EVENT_STREAM = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
COMMENT = b": waiting\n\n"
DONE = b"data: [DONE]\n\n"


class Replying(Response):
    """The answer to a request for a reply. When the client goes away, the order is dropped."""

    def __init__(self, desk: Desk, order: Order, asked: Asked) -> None:
        self._desk = desk
        self._order = order
        self._asked = asked
        self._response = responses.Response(desk.entry.model_id)
        self._is_told = False
        """To the end."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(scope, receive, send))
        gone = asyncio.create_task(_until_gone(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._desk.drop(self._order)
            is_sent = sending.done()
            for task in (sending, gone):
                task.cancel()
            await asyncio.wait({sending, gone})
        if is_sent:
            sending.result()

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if self._asked.stream:
                early = await self._until_accepted()
            else:
                whole = await self._whole()
        except Exception as error:
            await refusal_of(error).response()(scope, receive, send)
            return
        if not self._asked.stream:
            await JSONResponse(whole)(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": EVENT_STREAM})
        async for lines in self._lines(early):
            await send({"type": "http.response.body", "body": lines, "more_body": not self._is_told})

    async def _whole(self) -> dict[str, Any]:
        events: list[StreamEvent] = []
        while not isinstance(news := await self._order.next(), Ended):
            if isinstance(news, Written):
                events += news.events
        return self._response.whole(events, news.report, self._warnings)

    async def _until_accepted(self) -> list[News]:
        """What happens until the prompt is known to be fine, or for a while."""
        early: list[News] = []
        with suppress(TimeoutError):
            async with asyncio.timeout(ACCEPT_SECONDS):
                while not early or early[-1] in ("queued", "loading"):
                    early.append(await self._order.next())
        return early

    async def _lines(self, early: Iterable[News]) -> AsyncIterator[bytes]:
        """What is sent at once."""
        try:
            yield b"".join([_data(self._response.beginning()), *map(self._told, early)])
            while not self._is_told:
                try:
                    async with asyncio.timeout(COMMENT_SECONDS):
                        news = await self._order.next()
                except TimeoutError:
                    yield COMMENT
                else:
                    yield self._told(news)
        except Exception as error:
            # The status is out. Without an end nobody takes what has come for all of it.
            self._is_told = True
            yield _data(refusal_of(error).wire)

    def _told(self, news: News) -> bytes:
        asked, response = self._asked, self._response
        if isinstance(news, Ended):
            chunks = response.end(news.report, self._warnings, asked.include_usage)
            self._is_told = True
            return b"".join([*map(_data, chunks), DONE])
        if isinstance(news, Written):
            return b"".join(map(_data, response.block(news.events, news.report if asked.progress else None)))
        if isinstance(news, Reading | Snapshot):
            return _data(response.seen(news))
        return _data(response.waiting(news)) if asked.progress else b""

    @property
    def _warnings(self) -> list[str]:
        return [*self._asked.warnings, *self._order.told]


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _data(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"
