"""Answers a turn by asking an OpenAI-compatible server: our own, vLLM, or somebody else's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AsyncExitStack, ExitStack, suppress
from typing import TYPE_CHECKING

from llm.parts import StreamEvent

from ..view.progress import Progress, indicate
from ..view.records import Reading, Snapshot
from ..wording import quoted
from .address import Address as Address
from .connection import ASK_SECONDS, async_client, sync_client, telling
from .dialects import Served, body_of, read_models, served_by_ours, to_json, unlisted
from .stream import ReplyStream
from .threads import StartThread, in_thread
from .turn import Delegate, Stop, Turn

if TYPE_CHECKING:
    import openai

# What is waited for, by the state that our server tells.
STATES = {
    "queued": "Waiting for other replies",
    "loading": "Loading the model",
    # One that tells no readings has read the prompt at some time before that.
    "reading": "Waiting for the first canvas",
}

PATH = "/chat/completions"
NO_MORE = object()

# What servers have said they are, by where and with which key they were asked: until one fails.
_known: dict[Address, Served] = {}


def ask_what_it_is(address: Address) -> Served:
    """What kind of server it is and what it calls the model, asked once a process.

    Raises `ServerError` and `ServerAccessError`.
    """
    if address.is_ours and address.model is not None:
        return served_by_ours(address)
    served = _known.get(address)  # it may be forgotten at any time, in another thread
    if served is None:
        served = _known[address] = _ask(address)
    return served


def _ask(address: Address) -> Served:
    import openai

    with telling(address), sync_client(address) as client:
        try:
            listing = client.get("/models", cast_to=object, options={"timeout": ASK_SECONDS})
        except openai.APIStatusError as error:
            if address.model is None or error.status_code not in (404, 405):
                raise
            return unlisted(address)  # it has no such list, but a model by that name
    return read_models(listing, address)


def _prepare(address: Address, turn: Turn) -> tuple[Served, bytes]:
    """The server, and the body of the request to it."""
    served = ask_what_it_is(address)
    return served, to_json(body_of(turn, served))


class RemoteReply(Delegate[ReplyStream]):
    """One turn being answered by a server: iterate `steps`, then read `report`."""

    def __init__(self, address: Address, turn: Turn, stop: Stop) -> None:
        """Asks, and waits until the server has taken the prompt or refused it.

        Raises what reading the messages raises, `UnsupportedByServerError`, `ServerUnreachableError` if nothing at
        all came back, and the other errors of servers; of a server of ours what a reply of this process raises,
        too; and what `stop` raises.
        """
        self._stop = stop
        self._resources = ExitStack()
        try:
            self._begin(address, turn)
        except BaseException:
            self._resources.close()
            _known.pop(address, None)
            raise

    def _begin(self, address: Address, turn: Turn) -> None:
        with self._stop.importing():
            import openai
        # Until there is something to be seen of the reply.
        self._waiting = self._resources.enter_context(ExitStack())
        progress = self._waiting.enter_context(indicate(_waiting_for(address)))
        served, body = _prepare(address, turn)
        self._address = served.address
        self._reply = _stream_of(served, turn, progress, self._waiting.close)
        client = self._resources.enter_context(sync_client(self._address))
        self._stop.check()
        with telling(self._address, served.models):
            self._stream: openai.Stream[object] = client.post(
                PATH, content=body, cast_to=object, stream=True, stream_cls=openai.Stream[object]
            )

    def steps(self) -> Generator[list[StreamEvent], None, None]:
        """The events of each chunk that has any. Closing it ends the reply."""
        with self._resources:
            while True:
                with telling(self._address, has_begun=True):
                    chunk = next(self._stream, NO_MORE)
                    events = self._begun.finalize() if chunk is NO_MORE else self._begun.consume(chunk)
                if events:
                    self._waiting.close()
                    yield events
                if chunk is NO_MORE:
                    return
                self._stop.check()

    def cut_short(self) -> list[StreamEvent]:
        """Ends the reply: its report says that it was interrupted. What was held back of it."""
        self._resources.close()
        return self._begun.cut_short()


class AsyncRemoteReply(Delegate[ReplyStream]):
    """The same for who has an event loop, which it never keeps from going on."""

    def __init__(self, address: Address, turn: Turn, start_thread: StartThread = threading.Thread.start) -> None:
        """Nothing is done before `start` or `steps`."""
        self._to_ask, self._turn, self._start_thread = address, turn, start_thread
        self._resources = AsyncExitStack()

    async def start(self) -> None:
        """Asks, and waits as `RemoteReply` does. Raises the same."""
        try:
            await self._begin()
        except BaseException:
            await self._resources.aclose()
            _known.pop(self._to_ask, None)
            raise

    async def _begin(self) -> None:
        import openai

        self._waiting = self._resources.enter_context(ExitStack())
        progress = self._waiting.enter_context(indicate(_waiting_for(self._to_ask)))
        # Attachments are read there, and may be fetched.
        served, body = await in_thread(self._start_thread, lambda: _prepare(self._to_ask, self._turn))
        self._address = served.address
        self._reply = _stream_of(served, self._turn, progress, self._waiting.close)
        client = await self._resources.enter_async_context(async_client(self._address))
        with telling(self._address, served.models):
            self._stream: openai.AsyncStream[object] = await client.post(
                PATH, content=body, cast_to=object, stream=True, stream_cls=openai.AsyncStream[object]
            )
        self._resources.push_async_callback(self._leave)

    async def _leave(self) -> None:
        """Closes the stream, and ends the generators that read it: the innermost finds it closed.

        The client leaves them to the garbage collector, and a loop that ends before that closes all of them at
        once, of which they complain.
        """
        await self._stream.close()
        with suppress(Exception):
            async for _ in self._stream:
                pass

    async def steps(self) -> AsyncGenerator[list[StreamEvent], None]:
        """The events of each chunk that has any. Closing it ends the reply."""
        if self._reply is None:
            await self.start()
        came: asyncio.Queue[list[StreamEvent] | Exception | None] = asyncio.Queue(1)
        # In a task of its own: a loop that ends complains of a generator that has to wait as it is closed.
        reading = asyncio.ensure_future(self._read(came))
        try:
            while (events := await came.get()) is not None:
                if isinstance(events, Exception):
                    raise events
                yield events
                came.task_done()
        finally:
            reading.cancel()

    async def _read(self, came: asyncio.Queue[list[StreamEvent] | Exception | None]) -> None:
        """Hands over the events of each chunk, and at last what went wrong, or None."""
        failure = None
        try:
            async with self._resources:
                chunk: object = None
                while chunk is not NO_MORE:
                    with telling(self._address, has_begun=True):
                        chunk = await anext(self._stream, NO_MORE)
                        events = self._begun.finalize() if chunk is NO_MORE else self._begun.consume(chunk)
                    if events:
                        self._waiting.close()
                        await came.put(events)
                        # Who watches would see what comes behind them first, if it is there already.
                        await came.join()
        except Exception as error:  # it is raised again where the reply is read
            failure = error
        await came.put(failure)


def _stream_of(served: Served, turn: Turn, progress: Progress, end_waiting: Callable[[], object]) -> ReplyStream:
    """`progress` tells what is waited for, until there is something to be seen of the reply itself."""
    watch, address = turn.watch, served.address

    def see(seen: Reading | Snapshot) -> None:
        assert watch is not None
        watch.see(seen)
        if isinstance(seen, Snapshot):
            end_waiting()  # behind what is shown now: who ends the last that is shown waits for the terminal

    return ReplyStream(
        served,
        bool(turn.tools),
        say_state=lambda state: progress.describe(STATES.get(state, _waiting_for(address))),
        see=None if watch is None else see,
    )


def _waiting_for(address: Address) -> str:
    return f"Waiting for {'the ' if address.was_found else ''}{quoted(address.name, 60)}"
