"""Python's collector of garbage, at rest while nothing but what is of use is made."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Iterator

_lock = threading.Lock()
# The threads that keep it at rest, each as often as it does.
_resting: list[int] = []
_was_enabled = False


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """Hundreds of thousands of small objects are made, none of them garbage, and the collector would look at all
    of them, and at all that the process has, again and again: up to half of the time that a large automaton takes.

    It is one for all threads: the first one that comes puts it to rest, the last one that goes wakes it, unless
    it was at rest before.
    """
    global _was_enabled
    thread = threading.get_ident()
    with _lock:
        if not _resting:
            _was_enabled = gc.isenabled()
        _resting.append(thread)
        gc.disable()
    try:
        yield
    finally:
        with _lock:
            _resting.remove(thread)
            if not _resting and _was_enabled:
                gc.enable()


def _go_on_without_the_others() -> None:
    """In a forked process: the other threads aren't here to wake it, nor to let go of the lock."""
    global _lock
    _lock = threading.Lock()
    here = threading.get_ident()
    others = [thread for thread in _resting if thread != here]
    _resting[:] = [thread for thread in _resting if thread == here]
    if others and not _resting and _was_enabled:
        gc.enable()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_go_on_without_the_others)
