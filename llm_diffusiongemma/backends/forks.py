"""What a process has to know of the fork that it began with. Imported before anything heavy is.

Of its parent's threads a forked process has only the one that forked. What the others held is held for ever,
and those that computed for the parent are gone.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property

from ..errors import DiffusionGemmaError

_PACKAGE = __name__.partition(".")[0]

torch_was_there = False
"""Whether this process was forked off one that had PyTorch, whose pool of threads (OpenMP's) is dead here if it
had computed: who hands it work waits for ever."""

cuda_was_used = False
"""Whether this process was forked off one that had begun to use a GPU, which can't be used in both."""

_uses_cuda = False
_was_cut = False
_imported: set[str] = set()
_at_it: list[int] = []
"""The threads in the middle of something that a fork would cut."""


@contextmanager
def indivisible() -> Iterator[None]:
    """Around what a fork cuts for good: an import, which nobody ends in the forked process and whoever needs it
    waits for; and the loading of a model, in the middle of which libraries hold locks of their own.

    Raises `DiffusionGemmaError` if this process was forked while another thread was at such a thing.
    """
    if _was_cut:
        raise DiffusionGemmaError(
            "This process was forked off one in which another thread was just importing PyTorch or loading a "
            "model, and can do neither itself. Fork when the first reply is there, or start the process anew "
            '(multiprocessing: start method "spawn").'
        )
    thread = threading.get_ident()
    _at_it.append(thread)
    try:
        yield
    finally:
        _at_it.remove(thread)


@contextmanager
def importing(what: str) -> Iterator[None]:
    """`indivisible` around what imports something large the first time."""
    with nullcontext() if what in _imported else indivisible():
        yield
    _imported.add(what)


def _before_fork() -> None:
    global _uses_cuda
    # Asked here: in the forked process PyTorch denies it.
    is_initialized = getattr(sys.modules.get("torch.cuda"), "is_initialized", None)
    _uses_cuda = is_initialized is not None and is_initialized()


def _after_fork() -> None:
    global torch_was_there, cuda_was_used, _was_cut
    cuda_was_used = cuda_was_used or _uses_cuda
    torch_was_there = torch_was_there or "torch" in sys.modules
    here = threading.get_ident()
    _was_cut = _was_cut or any(thread != here for thread in _at_it)
    _at_it[:] = [thread for thread in _at_it if thread == here]
    _make_property_locks_anew()


def _make_property_locks_anew() -> None:
    """Before Python 3.12 a cached property has a lock, one for all objects of the class."""
    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == _PACKAGE]
    classes = [value for module in modules for value in list(vars(module).values()) if isinstance(value, type)]
    for member in (member for each in classes for member in list(vars(each).values())):
        if isinstance(member, cached_property) and hasattr(member, "lock"):
            member.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
