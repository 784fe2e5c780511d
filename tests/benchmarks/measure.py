"""Time and memory of things done side by side in one process."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

Action = Callable[[], object]


@dataclass(frozen=True)
class Sizes:
    """How much is measured. The defaults are what the tables of docs/speed.md were made with."""

    vocabulary: int = 262_144
    steps: int = 4
    canvases: int = 4
    prompt_tokens: int = 64
    turns: int = 20
    question_tokens: int = 100
    hidden: int = 768
    real_hidden: int = 2816
    long_context: int = 8000
    questions: int = 20


MIB = 1 << 20

# Of glibc's malloc.h; and what its threshold becomes by itself where large blocks come and go.
M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD = -3, 32 * MIB


@dataclass(frozen=True)
class Cost:
    """Median seconds, and the most memory held beyond what was held before, in bytes."""

    seconds: float
    peak_bytes: int


def compare(
    actions: Mapping[str, Action], repeats: int, device: torch.device, before_each: Action = lambda: None
) -> dict[str, Cost]:
    """What each action costs, every one after the other in each round.

    A first round warms up and measures the memory. `before_each` is not part of the time.
    """
    peaks = {}
    for name, action in actions.items():
        before_each()
        peaks[name] = peak_bytes(action, device)
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats):
        for name, action in actions.items():
            before_each()
            times[name].append(seconds(action, device))
    return {name: Cost(statistics.median(times[name]), peaks[name]) for name in actions}


def seconds(action: Action, device: torch.device) -> float:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def peak_bytes(action: Action, device: torch.device) -> int:
    """On a CPU the rise of the process's resident memory as Linux accounts for it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    libc = ctypes.CDLL(None)
    # Large blocks go back to the system when they are freed. In the heap they would stay between others, counted
    # or used again as it happens: a sixth of the peak from one run to the next.
    libc.mallopt(M_MMAP_THRESHOLD, MIB)
    try:
        libc.malloc_trim(0)  # or what an earlier action has freed would be used again, uncounted
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
        before = _status_bytes("VmRSS")
        action()
        return _status_bytes("VmHWM") - before
    finally:
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"Linux does not report {field} here")
