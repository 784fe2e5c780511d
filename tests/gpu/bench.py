"""What the sections of `first_light` share: the device, its clock, the network that they measure."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from llm_diffusiongemma.bench.networks import random_network
from llm_diffusiongemma.diffusion.config_file import ConfigFile
from llm_diffusiongemma.diffusion.network import Network

from .networks import network_config, proved

GIB = 2**30
Result = dict[str, Any]


class OutOfTimeError(Exception):
    """A section has used up its budget."""


@dataclass
class Bench:
    """Where the sections run."""

    device: torch.device
    is_tiny: bool
    """A network of the real one's shape, very small."""
    out: Path | None = None
    """The folder for what is written."""
    copy_rate: float = 3.0e12
    """Bytes read and written a second; the section `machine` measures it."""
    found: Result = field(default_factory=dict)
    """What a long section has found so far, which is said even if it is cut off."""

    records: dict[str, Result] = field(default_factory=dict)
    """What each section has said, by its name."""

    def begin(self) -> Result:
        """Where a long section puts what it finds as it goes."""
        self.found = {}
        return self.found

    @property
    def on_card(self) -> bool:
        return self.device.type == "cuda"

    @property
    def steps(self) -> int:
        """Denoising steps of each canvas. Tokens a second are said at that many."""
        return 2 if self.is_tiny else 15

    @cached_property
    def config(self) -> ConfigFile:
        return network_config(is_tiny=self.is_tiny)

    @cached_property
    def network(self) -> Network:
        """The random one in bf16, made when it is first wanted, with all kernels that are right here."""
        network = random_network(self.config.network(), self.device)
        proved(network)
        return network

    def let_go(self) -> None:
        """Of that network. Who wants it next has it made again."""
        self.__dict__.pop("network", None)
        gc.collect()
        if self.on_card:
            torch.cuda.empty_cache()

    def wait(self) -> None:
        if self.on_card:
            torch.cuda.synchronize(self.device)

    def mark(self) -> Any:
        """A moment of the device's clock, for `between`."""
        if not self.on_card:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        """Milliseconds. Waits for the device."""
        if not self.on_card:
            return float(end - start) * 1e3
        end.synchronize()
        return float(start.elapsed_time(end))

    def ms(self, call: Callable[[], object], repeats: int = 10, warmup: int = 2) -> float:
        """Median milliseconds of a call. Without a card it is to run at all, and soon."""
        if not self.on_card:
            repeats, warmup = 1, 0
        for _ in range(warmup):
            call()
        self.wait()
        found = []
        for _ in range(repeats):
            start = self.mark()
            call()
            found.append(self.between(start, self.mark()))
        return round(statistics.median(found), 3)

    def forget_peak(self) -> None:
        if self.on_card:
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> Result:
        """The most memory since the section's start, or since it was forgotten."""
        if not self.on_card:
            return {}
        return {"peak_gib": round(torch.cuda.max_memory_allocated(self.device) / GIB, 2)}

    def taken(self) -> int:
        """Bytes of the card that are not free, whoever has them."""
        if not self.on_card:
            return 0
        free, total = torch.cuda.mem_get_info(self.device)
        return total - free

    def tokens(self, count: int) -> torch.Tensor:
        """Random ones, int64 `[count]`."""
        return torch.randint(self.config.text_config.vocab_size, (count,), device=self.device)
