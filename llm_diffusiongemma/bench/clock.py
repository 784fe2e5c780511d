"""When what of a reply was over: by the host's clock, and where a device runs behind the host by its own.

Nothing is put into the loop that makes the reply. Before and behind each denoising step that asks whether it is
still wanted, and it tells how far it has read: so who measures is who is asked.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..backends.turn import Stop
from ..view.records import Reading, Snapshot

if TYPE_CHECKING:
    from ..diffusion.network import Network


class DeviceClock:
    """The time of some devices, which a CPU does not keep apart from the host's."""

    def __init__(self, devices: Sequence[str]) -> None:
        self._devices = [torch.device(device) for device in devices]

    def now(self) -> list[Any]:
        """The moment at which they will have done all that they have been given so far. Waits for nothing."""
        return [self._moment(device) for device in self._devices]

    def seconds(self, start: list[Any], end: list[Any]) -> float:
        """From one moment to another, on the device where it took longest. Waits for that."""
        return max(map(self._between, self._devices, start, end))

    def wait(self) -> None:
        """Until they have done all of it."""
        for device in self._devices:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            elif device.type == "mps":
                torch.mps.synchronize()

    def _moment(self, device: torch.device) -> Any:
        if device.type == "cpu":
            return time.perf_counter()
        if device.type == "mps":
            event: Any = torch.mps.event.Event(enable_timing=True)
            event.record()
        else:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(device))
        return event

    @staticmethod
    def _between(device: torch.device, start: Any, end: Any) -> float:
        if device.type == "cpu":
            return float(end - start)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


@dataclass
class Sample:
    """What one reply was like."""

    prompt_tokens: int = 0
    tokens: int = 0
    """without ends of sequence"""
    seconds: float = 0.0
    """from the prompt's text to the last block"""
    first_block_seconds: float | None = None
    reading_seconds: float | None = None
    """of the prompt, by the device's clock; None if nothing was to be read"""
    canvases: int = 0
    converged: int = 0
    """of the canvases"""
    steps: int = 0
    """of all canvases"""
    step_seconds: list[float] = field(default_factory=list)
    """From the end of each step to the end of the next one of the same canvas."""
    forward_seconds: list[float] = field(default_factory=list)
    """Of each step, if `ReplyClock.waiting` was on; so is the rest of it."""
    sampler_seconds: list[float] = field(default_factory=list)
    peak_memory_bytes: int | None = None
    writes: bool = True
    """Whether a text is asked for. A decision is none."""


class ReplyClock(Stop):
    """Is asked by one reply whether it is still wanted, which is for `wanted` to say, and notes when."""

    def __init__(self, wanted: Stop, device: DeviceClock) -> None:
        self.owns_process = wanted.owns_process
        self.sample = Sample()
        self._wanted = wanted
        self._device = device
        self._asked: list[float] = []
        self._readings: list[list[Any]] = []
        self._forward_ended: float | None = None
        self._started = time.perf_counter()

    def is_set(self) -> bool:
        if self._forward_ended is not None:
            self._device.wait()
            self.sample.sampler_seconds.append(time.perf_counter() - self._forward_ended)
            self._forward_ended = None
        self._asked.append(time.perf_counter())
        return self._wanted.is_set()

    def check(self) -> None:
        self._wanted.check()

    def importing(self) -> AbstractContextManager[None]:
        return self._wanted.importing()

    def read(self, reading: Reading | Snapshot) -> None:
        """So much of the prompt has been given to the device to read."""
        if isinstance(reading, Reading):
            self._readings.append(self._device.now())
            self.sample.prompt_tokens = reading.of

    def block(self, tokens: int, steps: int, converged: bool) -> None:
        """A canvas is done."""
        sample = self.sample
        sample.seconds = time.perf_counter() - self._started
        if sample.first_block_seconds is None:
            sample.first_block_seconds = sample.seconds
        sample.canvases += 1
        sample.converged += converged
        sample.tokens += tokens
        sample.steps += steps
        ends = self._asked[-steps:]  # whatever else it was asked for before
        sample.step_seconds += [after - before for before, after in itertools.pairwise(ends)]

    def end(self) -> Sample:
        """All of the reply is there."""
        if len(self._readings) > 1:
            self.sample.reading_seconds = self._device.seconds(self._readings[0], self._readings[-1])
        return self.sample

    @contextmanager
    def waiting(self, network: Network) -> Iterator[None]:
        """In here the host waits behind each forward and each step for the device: so they can be told apart, and
        take longer than they do where the one is queued while the other is computed."""
        denoise = network.denoise

        def timed(*inputs: Any) -> torch.Tensor:
            self._device.wait()
            started = time.perf_counter()
            hidden = denoise(*inputs)
            self._device.wait()
            self._forward_ended = time.perf_counter()
            self.sample.forward_seconds.append(self._forward_ended - started)
            return hidden

        network.denoise = timed  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            network.denoise = denoise  # type: ignore[method-assign]
