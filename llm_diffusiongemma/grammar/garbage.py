"""Python's collector of garbage, at rest while nothing but what is of use is made."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_resting = 0
_was_enabled = False


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """Hundreds of thousands of small objects are made, none of them garbage, and the collector would look at all
    of them, and at all that the process has, again and again: up to half of the time that a large automaton takes.

    It is one for all threads: the first one that comes puts it to rest, the last one that goes wakes it, unless
    it was at rest before.
    """
    global _resting, _was_enabled
    with _lock:
        if not _resting:
            _was_enabled = gc.isenabled()
            gc.disable()
        _resting += 1
    try:
        yield
    finally:
        with _lock:
            _resting -= 1
            if not _resting and _was_enabled:
                gc.enable()
