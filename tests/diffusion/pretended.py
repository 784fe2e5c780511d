"""Several devices on a machine that has one: tensors lie on the CPU and pretend to lie elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

CPU = torch.device("cpu")
# What gives the host the values of a tensor.
READS = {
    getattr(torch.Tensor, name)
    for name in "cpu item tolist numpy __bool__ __int__ __float__ __index__ nonzero".split()
}


class PretendedDevices(TorchFunctionMode):
    """Every tensor has a device, which it says, and what is computed from tensors of two devices is refused.

    Only a copy may cross, which is noted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.crossings: list[tuple[str, str]] = []
        """from, to"""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:  # made anew at each access
            return device_of(args[0])
        devices = {device_of(each) for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
        if func is torch.Tensor.to and isinstance(args[1], torch.device):
            target = args[1]
            self._cross(args[0], target)
            args = (args[0], CPU, *args[2:])
        elif func in (torch.Tensor.copy_, torch.Tensor.__setitem__):
            target = device_of(args[0])
            self._cross(args[-1], target)
            assert not kwargs.get("non_blocking") or "cuda" in (target.type, device_of(args[-1]).type)
        elif kwargs.get("device") is not None:
            target = torch.device(kwargs["device"])
            kwargs["device"] = CPU
        else:
            assert len(devices) <= 1, f"{func} of tensors on {devices}"
            target = next(iter(devices), CPU)
        result = func(*args, **kwargs)
        if func is torch.Tensor.to and devices != {target} and isinstance(result, torch.Tensor):
            result = result.clone()
        tree_map_only(torch.Tensor, lambda each: setattr(each, "pretended", target), result)
        return result

    def _cross(self, source: Any, target: torch.device) -> None:
        if isinstance(source, torch.Tensor) and device_of(source) != target:
            self.crossings.append((str(device_of(source)), str(target)))


def device_of(tensor: torch.Tensor) -> torch.device:
    return getattr(tensor, "pretended", CPU)


class PretendedCard(PretendedDevices):
    """A CUDA card, in whose place the CPU is. Only copies by way of pinned memory may cross: those to the host
    happen as late as they may, when it waits for an event behind them. It must wait for nothing else.
    """

    device = torch.device("cuda", 0)

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.waits = 0
        self._under_way: list[Callable[[], object]] = []
        self._pinned: list[torch.Tensor] = []
        monkeypatch.setattr(torch.cuda, "Event", lambda: _Event(self._under_way, self._wait))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: device)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.pin_memory:
            self._pinned.append(args[0].clone())
            return self._pinned[-1]
        if kwargs.pop("pin_memory", False):
            result = super().__torch_function__(func, types, args, kwargs)
            self._pinned.append(result)
            return result
        assert func not in READS or device_of(args[0]) == CPU, f"{func} waits for the card"
        if func is torch.Tensor.copy_ and device_of(args[0]) != device_of(args[1]):
            target, source = args
            assert kwargs["non_blocking"], "it is waited for"
            here = target if device_of(target) == CPU else source
            assert any(here is each for each in self._pinned), "it goes by way of pinned memory, and is waited for"
            if here is target:
                self._cross(source, CPU)
                now = source.clone()
                self._under_way.append(lambda: target.copy_(now))
                return target
        return super().__torch_function__(func, types, args, kwargs)

    def _wait(self, copies: int) -> None:
        """For so many of those that are under way."""
        self.waits += 1
        for copy in self._under_way[:copies]:
            copy()
        del self._under_way[:copies]


class _Event:
    """Behind some of the copies that are under way."""

    def __init__(self, under_way: list[Callable[[], object]], wait: Callable[[int], None]) -> None:
        self._under_way, self._wait = under_way, wait
        self._copies = 0

    def record(self, stream: object) -> None:
        self._copies = len(self._under_way)

    def synchronize(self) -> None:
        self._wait(self._copies)
