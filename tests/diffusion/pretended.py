"""Several devices on a machine that has one: tensors lie on the CPU and pretend to lie elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

CPU = torch.device("cpu")


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
