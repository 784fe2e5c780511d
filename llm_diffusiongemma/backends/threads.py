"""Work that blocks, for who has an event loop."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
StartThread = Callable[[threading.Thread], None]


async def in_thread(start_thread: StartThread, work: Callable[[], T]) -> T:
    """What `work` returns or raises, in a thread of its own that nobody waits for any more if this is cancelled.

    asyncio's own threads it would wait for at the loop's end.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # it is raised again in the loop's thread, where it can be seen
            hand_over(outcome.set_exception, error)
        else:
            hand_over(outcome.set_result, result)

    def hand_over(settle: Callable[..., None], value: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            loop.call_soon_threadsafe(lambda: None if outcome.cancelled() else settle(value))

    context = contextvars.copy_context()
    start_thread(threading.Thread(target=context.run, args=(run,), name="diffusiongemma-server"))
    return await outcome
