"""Sizes and memories to what goes where: pure functions over plain values. No torch.

A network's layers lie on devices, whole and in order. Where a layer's experts don't fit beside the rest they stay
in the host's memory or in the weight files, and pass through two buffers on their device at every step. All else
is always on a device. Of the real network in nvfp4 that is 4.5 GiB; with the buffers (0.8), the cache of 4,096
tokens (0.7), CUDA and room to compute (1.7) it comes to 7.7 GiB. So a card of 8 GB holds it if nothing else is on
it, and a smaller one is refused.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ..errors import DeviceMemoryError
from ..wording import gib

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ..catalog import Representation
    from .sizes import Sizes

# There is to be room for a context so long before anything else is put on a device. Where more is left the context
# may be longer; where it would not fit with all experts streamed it may be shorter, down to the least.
PLANNED_CONTEXT_TOKENS = 16_384
LEAST_CONTEXT_TOKENS = 4096
CONTEXT_STEP_TOKENS = 1024

# Through which the experts of streamed layers pass: one is computed from while the other is filled.
BUFFERS = 2

# To say how quick it can be at best, and by which way. Pinned host memory gave 55 GB/s over PCIe 5 x16; most cards
# that have to stream have half of that bus, or less.
HOST_BYTES_A_SECOND = 25e9
HOST_WAY = "over PCIe 4 x16"
FILE_BYTES_A_SECOND = 3e9
FILE_WAY = "from a disk of 3 GB/s"
# About what a core does in fp32, which all products become where there are no instructions for bf16: one did 25 to
# 70 GFLOP/s, by the rows at a time, and decoded 1.1 billion numbers a second, which memory won't let many do.
CORE_OPERATIONS_A_SECOND = 30e9
CORE_DECODED_A_SECOND = 1.1e9
CPU_DECODED_A_SECOND = 4e9
# What a canvas takes as a rule.
STEPS_A_CANVAS = 15

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
    """What may be taken of the host's memory."""


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
    """Expected at the peak on each device with the planned context, room to work in and the vision tower counted.
    Empty if nobody has counted."""
    host_bytes: int
    """Of them pinned in the host's memory besides."""
    step_bytes: int
    """What comes to the devices at every denoising step, from the host or from files."""
    context_tokens: int | None
    """The longest context that there is room for; None if nobody has counted."""
    has_room_for_graph: bool = True
    """Whether a denoising step may take memory of its own to be captured. Where nobody has counted it is tried."""

    @property
    def devices(self) -> tuple[str, ...]:
        """Those with layers, the first layer's first."""
        return tuple(dict.fromkeys(home.device for home in self.layers))

    @property
    def is_resident(self) -> bool:
        """Whether nothing is streamed."""
        return self.step_bytes == 0

    def num_layers(self, experts: ExpertsHome) -> int:
        """Of how many layers the experts have that home."""
        return sum(home.experts == experts for home in self.layers)

    def as_json(self) -> dict[str, Any]:
        """For `llm logs --json`."""
        expected = dict(self.device_bytes)
        return {
            "devices": {
                device: {
                    "layers": sum(home.device == device for home in self.layers),
                    "expected_bytes": expected.get(device),
                }
                for device in self.devices
            },
            "vision": self.vision,
            "experts_streamed_from_memory": self.num_layers("host"),
            "experts_streamed_from_files": self.num_layers("files"),
            "pinned_bytes": self.host_bytes,
            "step_bytes": self.step_bytes,
            "context_tokens": self.context_tokens,
        }


def whole(representation: Representation, num_layers: int, device: str) -> Placement:
    """Everything on one device, nothing counted."""
    return Placement(representation, (LayerHome(device, "device"),) * num_layers, device, (), 0, 0, None)


def place(sizes: Sizes, machine: Machine, context_tokens: int = PLANNED_CONTEXT_TOKENS) -> Placement:
    """Where a network goes: whole on as few devices as hold it with a context of so many tokens, or else on all of
    them with as few layers' experts streamed as possible.

    Raises `DeviceMemoryError` if there is no room even with all of them streamed.
    """
    plan, planned = _fewest_streamed(sizes, machine.devices, min(context_tokens, sizes.config.context_length))
    # Neither is worth streaming experts for. The first one serves every reply.
    with_graph = replace(plan, graph_bytes=sizes.graph_bytes(machine.devices[0].device.partition(":")[0]))
    has_graph = len(plan.devices) == 1 and not plan.streamed and with_graph.pack(planned) is not None
    if has_graph:
        plan = with_graph
    with_vision = replace(plan, vision_bytes=sizes.vision_bytes)
    has_vision = with_vision.pack(planned) is not None
    if has_vision:
        plan = with_vision
    longest = plan.longest_context(planned)
    numbers = plan.pack(longest)
    assert numbers is not None
    num_pinned = _num_pinned(len(plan.streamed), sizes.pinned_experts_bytes, machine)
    pinned = {plan.streamed[i] for i in _spread(num_pinned, len(plan.streamed))}
    homes = tuple(
        LayerHome(
            plan.devices[number].device,
            "device" if layer not in plan.streamed else "host" if layer in pinned else "files",
        )
        for layer, number in enumerate(numbers)
    )
    layers_of = {number: [i for i, each in enumerate(numbers) if each == number] for number in numbers}
    return Placement(
        sizes.representation,
        homes,
        homes[0].device if has_vision else "cpu",
        tuple((plan.devices[i].device, plan.needed(i, layers, planned)) for i, layers in layers_of.items()),
        num_pinned * sizes.pinned_experts_bytes,
        len(plan.streamed) * sizes.experts_bytes,
        longest,
        has_graph,
    )


def step_seconds(sizes: Sizes, placement: Placement, cores: int) -> float:
    """About how long a denoising step takes at least over `HOST_WAY` and `FILE_WAY`: what is streamed has to come,
    and a CPU of so many cores has to compute. What a GPU computes is not counted."""
    from_files = sizes.experts_bytes * placement.num_layers("files") / FILE_BYTES_A_SECOND
    from_host = sizes.experts_bytes * placement.num_layers("host") / HOST_BYTES_A_SECOND
    computed = 0.0
    if placement.devices[0] == "cpu":
        computed = sizes.step_operations / (cores * CORE_OPERATIONS_A_SECOND)
        computed += sizes.step_decoded / min(cores * CORE_DECODED_A_SECOND, CPU_DECODED_A_SECOND)
    return max(from_files, from_host, computed)


@dataclass(frozen=True)
class _Plan:
    """Which layers' experts are streamed, and what they are put on."""

    sizes: Sizes
    devices: tuple[DeviceMemory, ...]
    streamed: tuple[int, ...]
    vision_bytes: int = 0
    """Of the vision tower, if it is on the first device."""
    graph_bytes: int = 0
    """Of a captured step, if there is to be one."""

    def needed(self, number: int, layers: Sequence[int], context: int) -> int:
        """What one layer or several take on a device with a context of so many tokens."""
        *_, total = self._growing(number, layers, context)
        return total

    def _growing(self, number: int, layers: Iterable[int], context: int) -> Iterator[int]:
        """The same with the first of the layers, with the first two, and so on."""
        sizes, kind = self.sizes, self.devices[number].device.partition(":")[0]
        total = sizes.working_bytes(kind, context)
        if number == 0:
            total += sizes.ends_bytes + sizes.sampler_bytes(kind) + self.vision_bytes + self.graph_bytes
        has_buffers = False
        for layer in layers:
            total += sizes.layer_bytes(layer, context)
            if layer not in self.streamed:
                total += sizes.experts_bytes
            elif not has_buffers:
                has_buffers = True
                total += BUFFERS * sizes.experts_bytes
            yield total

    def pack(self, context: int) -> list[int] | None:
        """The number of the device that each layer is on: as many on the first as fit, and so on. None if layers
        are left over, or the first device, where the embedding is, has room for none."""
        homes: list[int] = []
        for number, device in enumerate(self.devices):
            for total in self._growing(number, range(len(homes), self.sizes.num_layers), context):
                if total > device.total_bytes:
                    break
                homes.append(number)
            if not homes:
                return None
        return homes if len(homes) == self.sizes.num_layers else None

    def longest_context(self, least: int) -> int:
        """The longest that there is room for, where there is room for `least`."""
        most = self.sizes.config.context_length
        lengths: list[int] = [*range(least, most, CONTEXT_STEP_TOKENS), most]
        return lengths[bisect_left(lengths, True, key=lambda length: self.pack(length) is None) - 1]


def _fewest_streamed(sizes: Sizes, devices: tuple[DeviceMemory, ...], planned: int) -> tuple[_Plan, int]:
    """The best plan, and the context that it has room for: `planned` if possible. Raises `DeviceMemoryError`."""
    for count in range(1, len(devices) + 1):
        plan = _Plan(sizes, devices[:count], ())
        if plan.pack(planned) is not None:
            return plan, planned
    for num_streamed in range(1, sizes.num_layers + 1):
        plan = _Plan(sizes, devices, tuple(_spread(num_streamed, sizes.num_layers)))
        if plan.pack(planned) is not None:
            return plan, planned
    least = min(LEAST_CONTEXT_TOKENS, planned)
    if plan.pack(least) is None:
        raise _too_small(plan, least)
    return plan, min(planned, plan.longest_context(least))


def _spread(count: int, of: int) -> list[int]:
    """So many of the numbers below `of`, as evenly as can be: what is streamed has time to come between them."""
    return [i for i in range(of) if (i + 1) * count // of > i * count // of]


def _num_pinned(num_streamed: int, pinned_experts_bytes: int, machine: Machine) -> int:
    """Of how many streamed layers the host holds the experts."""
    if any(device.shares_host for device in machine.devices):
        return 0
    return min(num_streamed, machine.host_bytes // pinned_experts_bytes)


def _too_small(plan: _Plan, context: int) -> DeviceMemoryError:
    sizes, device = plan.sizes, plan.devices[0]
    dense = sizes.weight_bytes - sizes.num_layers * sizes.experts_bytes
    buffers = BUFFERS * sizes.experts_bytes
    needed = plan.needed(0, range(sizes.num_layers), context)
    where = device.device
    if len(plan.devices) > 1:
        where += f", the largest of {len(plan.devices)} devices"
    return DeviceMemoryError(
        f"In {sizes.representation} the model takes {gib(needed)} at the least, even if no expert stays on the "
        f"device: {gib(dense)} for all that is no expert, {gib(buffers)} for experts passing through, and "
        f"{gib(needed - dense - buffers)} to work in with {context:,} tokens of context. There may be taken "
        f"{gib(device.total_bytes)} of {where}."
    )
