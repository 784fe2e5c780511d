"""A reply of this process in a thread of its own, for who has an event loop."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING

from llm.parts import StreamEvent

from ..catalog import ModelEntry
from .turn import Delegate, Stop, StoppedError, Turn

if TYPE_CHECKING:
    from .engine import ReentrantLock
    from .local import LocalReply


class AsyncLocalReply(Delegate["LocalReply"], Stop):
    """One reply, handed over block by block.

    Its thread holds the engine for the whole reply, so that replies queue; but not while nobody asks for the next
    block, and not a step longer than somebody wants it.
    """

    PATIENCE_SECONDS = 0.5
    LOOK_UP_SECONDS = 0.1

    def __init__(
        self,
        entry: ModelEntry,
        turn: Turn,
        owns_process: bool = False,
        start_thread: Callable[[threading.Thread], None] = threading.Thread.start,
    ) -> None:
        """To be made in the loop's thread. Nothing is done before `start` or `steps`."""
        self._entry, self._turn = entry, turn
        self.owns_process = owns_process
        self._start_thread = start_thread
        self._loop = asyncio.get_running_loop()
        self._results: asyncio.Queue[LocalReply | list[StreamEvent] | BaseException | None] = asyncio.Queue()
        self._wanted = threading.Semaphore(0)
        self._stopped = threading.Event()
        self._ended = asyncio.Event()
        self._ended.set()

    async def start(self) -> None:
        """Loads the model if need be. Raises what `LocalReply` raises."""
        # As in the loop's thread: who listens to what is said beside this reply is told it from there, too.
        context = contextvars.copy_context()
        # Not a daemon: a thread that is inside torch when the interpreter ends takes the process down.
        self._start_thread(threading.Thread(target=context.run, args=(self._run,), name="diffusiongemma"))
        self._ended.clear()
        reply = await self._next()
        assert reply is not None
        assert not isinstance(reply, list)
        self._reply = reply

    async def steps(self) -> AsyncGenerator[list[StreamEvent], None]:
        """The events of each converged block. Closing it stops the denoising within a step."""
        try:
            if self._reply is None:
                await self.start()
            while (events := await self._next()) is not None:
                assert isinstance(events, list)
                yield events
                self._wanted.release()
        finally:
            self.stop()

    def stop(self) -> None:
        """Nobody wants the reply any more."""
        self._stopped.set()

    async def ended(self) -> None:
        """Waits until its thread is done with it: soon after its last step, or after `stop`."""
        await self._ended.wait()

    async def _next(self) -> LocalReply | list[StreamEvent] | None:
        result = await self._results.get()
        if isinstance(result, BaseException):
            raise result
        return result

    def _run(self) -> None:
        try:
            self._answer()
        finally:
            self._call_in_loop(self._ended.set)

    def _answer(self) -> None:
        from .local import LocalReply

        try:
            reply = LocalReply(self._entry, self._turn, self)
            self._hand_over(reply)
            while not reply.lock.acquire(timeout=self.LOOK_UP_SECONDS):
                if self.is_set():
                    return
            try:
                for events in reply.steps():
                    self._hand_over(events)
                    if not self._wanted.acquire(timeout=self.PATIENCE_SECONDS):
                        self._wait_without_engine(reply.lock)
            finally:
                reply.lock.release()
            if not self.is_set():
                self._hand_over(None)
        except StoppedError:
            pass
        except BaseException as error:  # it is raised again in the loop's thread, where it can be seen
            self._hand_over(error)

    def _wait_without_engine(self, lock: ReentrantLock) -> None:
        lock.release()
        try:
            while not self._wanted.acquire(timeout=self.LOOK_UP_SECONDS):
                if self.is_set():
                    return
        finally:
            lock.acquire()

    def is_set(self) -> bool:
        # A program that ends without closing its generators must not wait for this thread for ever.
        return self._stopped.is_set() or self._loop.is_closed() or not threading.main_thread().is_alive()

    def _hand_over(self, result: LocalReply | list[StreamEvent] | BaseException | None) -> None:
        self._call_in_loop(self._results.put_nowait, result)

    def _call_in_loop(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop is closed: nobody listens any more
            self._stopped.set()
