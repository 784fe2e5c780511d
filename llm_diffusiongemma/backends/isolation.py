"""Work of ours in a program of somebody else's, who may have set torch, numpy and Python to anything."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from . import forks

# Python's own, which torch's and transformers' imports need about a quarter of.
LEAST_RECURSION_LIMIT = 1000

AUTOCAST_DEVICES = ("cpu", "cuda", "mps")


@contextmanager
def isolated() -> Iterator[None]:
    """Around a piece of work: what the host has set doesn't reach it, and all of it is as it was afterwards.

    Never around a `yield` to the host, who has the word then. What is changed belongs to this thread, but for two
    settings of the process, which are touched only if the host has changed them: deterministic algorithms, which a
    GPU doesn't have for all that we do, and a recursion limit below Python's own. In a process forked off one that
    had torch, work is done on one thread (see `forks`).

    The default dtype is the process's, too, and isn't touched: what we compute names its own.
    """
    import torch

    with ExitStack() as stack:
        stack.enter_context(isolated_numbers())
        if not _default_device_is_cpu():
            stack.enter_context(torch.device("cpu"))
        if torch.is_inference_mode_enabled():
            # Tensors that are made in it can't be used outside it, and weights and caches stay.
            stack.enter_context(torch.inference_mode(False))
        for device in AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        mode = torch.get_deterministic_debug_mode()
        if mode:
            stack.callback(torch.set_deterministic_debug_mode, mode)
            torch.set_deterministic_debug_mode("default")
        threads = torch.get_num_threads()
        if forks.torch_was_there and threads > 1:
            stack.callback(torch.set_num_threads, threads)
            torch.set_num_threads(1)
        yield


@contextmanager
def isolated_numbers() -> Iterator[None]:
    """`isolated` for work without torch, which need not be there for it."""
    with ExitStack() as stack:
        limit = sys.getrecursionlimit()
        if limit < LEAST_RECURSION_LIMIT:
            stack.callback(sys.setrecursionlimit, limit)
            sys.setrecursionlimit(LEAST_RECURSION_LIMIT)
        import numpy as np

        # What is no number is looked for where it matters.
        stack.enter_context(np.errstate(all="ignore"))
        yield


def _default_device_is_cpu() -> bool:
    import torch

    try:
        return torch.get_default_device().type == "cpu"
    except AttributeError:  # PyTorch 2.9's answer when somebody has set it to None again
        return True
    except (AssertionError, RuntimeError):  # it is one that isn't here
        return False
