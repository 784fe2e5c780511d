"""Which backend answers a turn: a server, or this process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

from llm.parts import StreamEvent

from ..catalog import ModelEntry
from ..errors import ServerError, ServerStoppedError
from ..wording import tell
from .address import Address
from .finding import find, has_gone
from .threads import StartThread, in_thread
from .turn import AsyncReply, Delegate, Reply, Stop, Turn


def answer(entry: ModelEntry, turn: Turn, stop: Stop) -> Reply:
    """A reply that is ready to begin. Raises what its backend raises, and what `stop` raises."""
    address = find(entry, may_start=stop.owns_process)
    stop.check()
    if address is not None:
        try:
            return _Reply(address, entry, turn, stop)
        except ServerStoppedError:
            raise
        except ServerError:
            if not has_gone(address):
                raise
        _tell_gone()
    return _here(entry, turn, stop)


def answer_async(entry: ModelEntry, turn: Turn, owns_process: bool, start_thread: StartThread) -> AsyncReply:
    """The same in an event loop, where nothing is done before the first of its steps is asked for."""
    return _AsyncReply(entry, turn, owns_process, start_thread)


def _here(entry: ModelEntry, turn: Turn, stop: Stop) -> Reply:
    with stop.importing():
        from .local import LocalReply

    return LocalReply(entry, turn, stop)


def _tell_gone() -> None:
    tell("The local server ended before it could answer, so this process does.")


class _Reply(Delegate[Reply]):
    """A server's; or this process's, if that was found by itself and is gone before anything has come of it."""

    def __init__(self, address: Address, entry: ModelEntry, turn: Turn, stop: Stop) -> None:
        with stop.importing():
            from .remote import RemoteReply

        self._address, self._entry, self._turn, self._stop = address, entry, turn, stop
        self._reply = RemoteReply(address, turn, stop)

    def steps(self) -> Iterator[list[StreamEvent]]:
        has_come = False
        try:
            for events in self._begun.steps():
                has_come = True
                yield events
            return
        except ServerStoppedError:
            raise
        except ServerError:
            if has_come or not has_gone(self._address):
                raise
        _tell_gone()
        self._reply = _here(self._entry, self._turn, self._stop)
        yield from self._reply.steps()

    def cut_short(self) -> list[StreamEvent]:
        return self._begun.cut_short()


class _AsyncReply(Delegate[AsyncReply]):
    """Either, as it turns out."""

    def __init__(self, entry: ModelEntry, turn: Turn, owns_process: bool, start_thread: StartThread) -> None:
        self._entry, self._turn = entry, turn
        self._owns_process, self._start_thread = owns_process, start_thread

    async def steps(self) -> AsyncGenerator[list[StreamEvent], None]:
        # A server may have to be started.
        address = await in_thread(self._start_thread, lambda: find(self._entry, may_start=self._owns_process))
        if address is not None:
            from .remote import AsyncRemoteReply

            has_come = False
            try:
                self._reply = AsyncRemoteReply(address, self._turn, self._start_thread)
                async with aclosing(self._reply.steps()) as steps:
                    async for events in steps:
                        has_come = True
                        yield events
                return
            except ServerStoppedError:
                raise
            except ServerError:
                if has_come or not has_gone(address):
                    raise
            _tell_gone()
        from .worker import AsyncLocalReply

        self._reply = AsyncLocalReply(self._entry, self._turn, self._owns_process, self._start_thread)
        async with aclosing(self._reply.steps()) as steps:
            async for events in steps:
                yield events
