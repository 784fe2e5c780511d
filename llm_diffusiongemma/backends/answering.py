"""Which backend answers a turn."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ..catalog import ModelEntry
from .turn import AsyncReply, Reply, Stop, Turn


def answer(entry: ModelEntry, turn: Turn, stop: Stop) -> Reply:
    """A reply that is ready to begin. Raises what its backend raises, and what `stop` raises."""
    from .local import LocalReply

    return LocalReply(entry, turn, stop)


def answer_async(
    entry: ModelEntry, turn: Turn, owns_process: bool, start_thread: Callable[[threading.Thread], None]
) -> AsyncReply:
    """The same in an event loop, where nothing is done before the first of its steps is asked for."""
    from .worker import AsyncLocalReply

    return AsyncLocalReply(entry, turn, owns_process, start_thread)
