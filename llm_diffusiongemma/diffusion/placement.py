"""Sizes and memories to what goes where: pure functions over plain values. No torch.

A network's layers lie on devices, whole and in order. Where a layer's experts don't fit beside the rest they stay
in the host's memory or in the weight files, and pass through two buffers on their device at every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ..catalog import Representation

ExpertsHome = Literal["device", "host", "files"]
"""Where a layer's experts lie between steps: on its device, in pinned host memory, or only in the weight files."""


@dataclass(frozen=True)
class DeviceMemory:
    """What may be used of one device."""

    device: str
    """as torch names it: "cuda:0" """
    total_bytes: int
    """All of its memory, used or not, or the most that may be taken of it."""
    shares_host: bool = False
    """Whether its memory is the host's: the CPU, and Apple's."""


@dataclass(frozen=True)
class Machine:
    """What there is to place a network on."""

    devices: tuple[DeviceMemory, ...]
    """In the order in which layers are put on them. One, or several CUDA devices."""
    host_bytes: int
    """The host's memory."""


@dataclass(frozen=True)
class LayerHome:
    """Where one layer is."""

    device: str
    experts: ExpertsHome


@dataclass(frozen=True)
class Placement:
    """What lies where, and what it takes. Embedding, head and sampler are on the first layer's device."""

    representation: Representation
    layers: tuple[LayerHome, ...]
    vision: str
    """The device of the vision tower, once an image asks for it."""
    device_bytes: tuple[tuple[str, int], ...]
    """Expected at the peak on each device, room to work in counted."""
    host_bytes: int
    """Of them pinned in the host's memory besides."""
    step_bytes: int
    """What comes to the device at every denoising step, from the host or from files."""
    context_tokens: int
    """The longest context that there is room for."""


def whole(representation: Representation, num_layers: int, device: str) -> Placement:
    """Everything on one device, and nothing counted."""
    return Placement(representation, (LayerHome(device, "device"),) * num_layers, device, (), 0, 0, 0)
