"""What it costs a reply that some experts don't stay on their device, measured where it is paid."""

from __future__ import annotations

import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from .streaming import StreamedExperts


class Stopwatch:
    """Adds up how long something takes, by the host's clock."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Adds what is done before this is left, unless that raises."""
        begin = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - begin

    def seconds(self) -> float:
        return self._seconds


class CardStopwatch(Stopwatch):
    """Adds up how long a card is at what is queued to its current stream, or waits there for more to be queued.

    Nothing waits for the card: what it hasn't come to by the time that somebody asks is left out.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def reset(self) -> None:
        super().reset()
        self._laps: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def running(self) -> Iterator[None]:
        begin = self._mark()
        yield
        self._laps.append((begin, self._mark()))
        self._add_up()  # a card is never more than a step behind, so there are never many

    def seconds(self) -> float:
        self._add_up()
        return self._seconds

    def _mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _add_up(self) -> None:
        while self._laps and self._laps[0][1].query():  # type: ignore[no-untyped-call]
            begin, end = self._laps.popleft()
            self._seconds += begin.elapsed_time(end) / 1000


def stopwatch(device: torch.device) -> Stopwatch:
    """One for what a device does. Where only the host has a clock, it is that one's."""
    return CardStopwatch(device) if device.type == "cuda" else Stopwatch()


class StreamingMeter:
    """Counts what one reply after another takes of experts that are elsewhere."""

    def __init__(self, streams: Collection[StreamedExperts], device: torch.device) -> None:
        """`streams` are all that a network has; `device` is where its passes begin and end."""
        self._streams = streams
        self._passes = stopwatch(device)
        self.start_reply()

    def start_reply(self) -> None:
        """Count anew."""
        self._passes.reset()
        self._steps = self._step_bytes = 0
        for stream in self._streams:
            stream.waiting.reset()
            stream.bytes_fetched = 0

    @contextmanager
    def one_pass(self, is_step: bool) -> Iterator[None]:
        """What is computed before this is left is a pass through all layers: a denoising step's, or a prompt's."""
        before = self._bytes_fetched()
        with self._passes.running():
            yield
        if is_step:
            self._steps += 1
            self._step_bytes += self._bytes_fetched() - before

    def report(self) -> dict[str, int | float] | None:
        """Of the reply so far, None before its first step.

        `bytes_a_step` came to the devices for a denoising step, in the mean. `waited_share` is the share of the
        time of all passes, those of the prompt among them, that was spent waiting for what was to come, and
        `bytes_a_second` is how much came in that time.
        """
        seconds = self._passes.seconds()
        if not (self._steps and seconds):
            return None
        waited = sum(stream.waiting.seconds() for stream in self._streams)
        return {
            "bytes_a_step": round(self._step_bytes / self._steps),
            "waited_share": round(min(waited / seconds, 1.0), 3),
            "bytes_a_second": round(self._bytes_fetched() / seconds),
        }

    def _bytes_fetched(self) -> int:
        return sum(stream.bytes_fetched for stream in self._streams)
