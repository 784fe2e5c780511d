"""Which of a model's weights this machine takes, where they go, and what is said about it.

It asks no network and loads nothing: what isn't here yet is judged by the sizes that are known of it.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from .. import hub
from ..catalog import DEVICE_VARIABLE, HUB_SOURCES, MEMORY_VARIABLE
from ..diffusion.config import DIFFUSIONGEMMA_26B_A4B
from ..diffusion.devices import find_machine, memory_limit
from ..diffusion.loading import describe
from ..diffusion.packed import PLAIN, Formats, Fp8, ModelOptNvfp4
from ..diffusion.placement import FILE_WAY, HOST_WAY, STEPS_A_CANVAS, place, step_seconds, whole
from ..diffusion.sizes import sizes_of
from ..diffusion.vision import PROJECTION, TOWER
from ..errors import CheckpointError, DeviceMemoryError, DiffusionGemmaError, NoGpuError
from ..layout import missing_weights, weights_here
from ..wording import gib, quoted, tell_once

if TYPE_CHECKING:
    from pathlib import Path

    from ..catalog import ModelEntry, Representation, Source
    from ..diffusion.loading import Described
    from ..diffusion.placement import Machine, Placement
    from ..diffusion.sizes import Sizes

# A model up to this size is put on whatever there is, unless a limit is set.
SMALL_MODEL_BYTES = 4 * 2**30

# Of the repositories of the real network.
VISION_BYTES = 1_146_000_000
FORMATS: dict[Representation, Formats] = {
    "bf16": PLAIN,
    "fp8": Formats(Fp8, Fp8, Fp8),
    "nvfp4": Formats(ModelOptNvfp4),
}

TINY = "use the embedded model: llm -m diffusiongemma-tiny"


class Candidate:
    """One of a model's sources on this machine."""

    def __init__(self, entry: ModelEntry, source: Source, machine: Machine) -> None:
        self.entry = entry
        self.source = source
        self.machine = machine
        self.on_disk = hub.on_disk(source)
        """What is here of it; None if that is nothing."""

    @property
    def folder(self) -> Path | None:
        """Where it is, if all of it is here."""
        return self.on_disk.folder if self.on_disk is not None and self.on_disk.is_whole else None

    @property
    def is_here(self) -> bool:
        """Whether its weights are, whatever small file is missing."""
        return self.on_disk is not None and not missing_weights(self.on_disk.folder)

    @cached_property
    def weight_bytes(self) -> int | None:
        """Of its weight files; None if nobody knows before the Hub is asked."""
        if self.folder is not None:
            return sum(file.stat().st_size for file in weights_here(self.folder))
        return self.source.weight_bytes

    @cached_property
    def sizes(self) -> Sizes | None:
        """None if they can't be told before it is here, or what is here is damaged."""
        if self.folder is not None and not (self.source in HUB_SOURCES and not is_small(self.weight_bytes)):
            try:
                return described_sizes(describe(self.folder), self.machine.devices[0].device)
            except CheckpointError:  # loading it will say so
                return None
        return None if self.weight_bytes is None else known_sizes(self.source.representation, self.weight_bytes)

    @cached_property
    def outcome(self) -> Placement | DeviceMemoryError | None:
        """Where it goes, or why it can't; None if its sizes aren't known."""
        if self.sizes is None or self.weight_bytes is None:
            return None
        try:
            return _placed(self.entry, self.sizes, self.weight_bytes, self.machine)
        except DeviceMemoryError as error:
            return error

    @property
    def fits(self) -> bool:
        return not isinstance(self.outcome, DeviceMemoryError | None)

    @property
    def is_resident(self) -> bool:
        return not isinstance(self.outcome, DeviceMemoryError | None) and self.outcome.is_resident


@dataclass(frozen=True)
class Choice:
    """Which of its sources a model takes on this machine."""

    entry: ModelEntry
    machine: Machine
    candidate: Candidate

    @property
    def source(self) -> Source:
        return self.candidate.source

    @property
    def on_disk(self) -> hub.OnDisk | None:
        return self.candidate.on_disk

    @property
    def placement(self) -> Placement | None:
        """None if it does not fit, or its sizes aren't known."""
        outcome = self.candidate.outcome
        return None if isinstance(outcome, DeviceMemoryError) else outcome

    @property
    def refusal(self) -> DiffusionGemmaError | None:
        """Why this machine can't, or shouldn't, run it; None if it may."""
        outcome, sizes = self.candidate.outcome, self.candidate.sizes
        if isinstance(outcome, DeviceMemoryError):
            return outcome
        if sizes is None or outcome is None:
            return None
        try:
            _check_gpu(self.entry, sizes, outcome, self.candidate.weight_bytes or 0)
        except NoGpuError as error:
            return error
        return None

    @property
    def reason(self) -> str:
        """That of its refusal, without the ways out, which are those of a prompt."""
        return str(self.refusal and self.refusal.__cause__)

    @property
    def download_bytes(self) -> int | None:
        """How much a prompt would download, about; None if nobody knows."""
        if self.on_disk is None or self.on_disk.missing_bytes is None:
            return self.source.weight_bytes
        return self.on_disk.missing_bytes

    def sentence(self) -> str:
        """What a prompt would do."""
        if self.refusal is not None:
            return str(self.refusal)
        if self.placement is None or self.candidate.sizes is None:
            return f"{self.entry.model_id}: the weights of {quoted(self.source)}."
        return _line(self.entry, self.source, self.candidate.sizes, self.placement)

    def check_size(self, weight_bytes: int) -> None:
        """Before weights of so many bytes come. Raises `NoGpuError` or `DeviceMemoryError` if this machine should
        not have them."""
        if not is_small(weight_bytes):
            self._expected(weight_bytes)

    def announce(self, weight_bytes: int) -> None:
        """Say what will become of weights of so many bytes before they come."""
        if not is_small(weight_bytes):
            sizes, placement = self._expected(weight_bytes)
            if not _is_unremarkable(placement, weight_bytes):
                tell_once(_line(self.entry, self.source, sizes, placement))

    def _expected(self, weight_bytes: int) -> tuple[Sizes, Placement]:
        sizes = known_sizes(self.source.representation, weight_bytes)
        placement = _placed(self.entry, sizes, weight_bytes, self.machine)
        _check_gpu(self.entry, sizes, placement, weight_bytes)
        return sizes, placement


def choose(entry: ModelEntry) -> Choice:
    """A model's weights for this machine: of several sources the first that is resident on its devices, and one
    that is here already before any that isn't. If none can be resident, the smallest that fits.

    Raises `DeviceError` for a device or a limit that means nothing, and `FileAccessError`.
    """
    machine = find_machine(entry.device)
    candidates = [Candidate(entry, source, machine) for source in entry.sources]
    return Choice(entry, machine, _best(candidates))


def _best(candidates: list[Candidate]) -> Candidate:
    if len(candidates) == 1:
        return candidates[0]
    here = [each for each in candidates if each.is_here]
    resident = next((each for each in (*here, *candidates) if each.is_resident), None)
    # The last is the smallest, but what of it is always on the device is more than of fp8.
    fitting = next((each for each in reversed(candidates) if each.fits), candidates[-1])
    return resident or fitting


def place_described(entry: ModelEntry, described: Described, machine: Machine) -> Placement:
    """Where a checkpoint that is here goes. Raises `NoGpuError` or `DeviceMemoryError`."""
    sizes, weight_bytes = described_sizes(described, machine.devices[0].device), described.weights.num_bytes
    placement = _placed(entry, sizes, weight_bytes, machine)
    _check_gpu(entry, sizes, placement, weight_bytes)
    return placement


def bytes_to_read(described: Described, placement: Placement) -> int:
    """About how much of a checkpoint's files is read before the first reply."""
    sizes = described_sizes(described, placement.devices[0])
    left = sizes.vision_bytes + placement.num_layers("files") * sizes.experts_bytes
    share = 1 - left / (sizes.weight_bytes + sizes.vision_bytes)
    return int(described.weights.num_bytes * share)


def is_small(weight_bytes: int | None) -> bool:
    return weight_bytes is not None and weight_bytes <= SMALL_MODEL_BYTES


def described_sizes(described: Described, device: str) -> Sizes:
    """What a checkpoint that is here takes, counted from its headers."""
    dtype = described.dtype_on(device.partition(":")[0])
    vision = (tensor for name, tensor in described.weights.tensors.items() if name.startswith((TOWER, PROJECTION)))
    vision_bytes = sum(math.prod(tensor.shape) for tensor in vision) * dtype.itemsize
    return sizes_of(described.config.network(), described.formats, dtype, vision_bytes)


def known_sizes(representation: Representation | None, weight_bytes: int) -> Sizes:
    """Of weights that are not here: the real network's. Where no representation is named it is the one whose
    repository has about as many bytes."""
    if representation is None:
        nearest = min(HUB_SOURCES, key=lambda source: abs((source.weight_bytes or 0) - weight_bytes))
        representation = nearest.representation or "bf16"
    return sizes_of(DIFFUSIONGEMMA_26B_A4B, FORMATS[representation], torch.bfloat16, VISION_BYTES)


def _placed(entry: ModelEntry, sizes: Sizes, weight_bytes: int, machine: Machine) -> Placement:
    """Raises `DeviceMemoryError` with the way out."""
    if is_small(weight_bytes) and memory_limit() is None:
        return whole(sizes.representation, sizes.num_layers, machine.devices[0].device)
    try:
        return place(sizes, machine)
    except DeviceMemoryError as error:
        raise DeviceMemoryError(f"{error} {_way_out(entry, sizes, machine)}") from error


def _check_gpu(entry: ModelEntry, sizes: Sizes, placement: Placement, weight_bytes: int) -> None:
    """The CPU is too slow for a large model to take it just because there is nothing else. Raises `NoGpuError`."""
    if placement.devices[0] == "cpu" and entry.device is None and not is_small(weight_bytes):
        reason = NoGpuError(
            f"The model's weights take {gib(weight_bytes)}, and PyTorch finds no GPU here: on the CPU "
            f"{_slowness(sizes, placement)}."
        )
        raise NoGpuError(f"{reason} Set {DEVICE_VARIABLE}=cpu to run it there all the same, or {TINY}") from reason


def _way_out(entry: ModelEntry, sizes: Sizes, machine: Machine) -> str:
    ways = ["Use a machine or a device that has more"]
    if sizes.config == DIFFUSIONGEMMA_26B_A4B and (other := _fitting(machine)) is not None:
        ways.append(f"take other weights with -m diffusiongemma-{other}")
    if memory_limit() is not None:
        ways.append(f"set {MEMORY_VARIABLE} to more, if there is more")
    elif len(find_machine(None).devices) > 1 and entry.device is not None:
        ways.append(f"unset {DEVICE_VARIABLE}, and all devices are used")
    return f"{', '.join(ways)}, or {TINY}"


def _fitting(machine: Machine) -> Representation | None:
    """The smallest of the Hub's weights that a machine has room for."""
    for source in reversed(HUB_SOURCES):
        with suppress(DeviceMemoryError):
            return place(known_sizes(source.representation, source.weight_bytes or 0), machine).representation
    return None


def told(entry: ModelEntry, source: Source, described: Described, placement: Placement) -> str | None:
    """What is said of what was loaded, if anything."""
    if _is_unremarkable(placement, described.weights.num_bytes):
        return None
    return _line(entry, source, described_sizes(described, placement.devices[0]), placement)


def _is_unremarkable(placement: Placement, weight_bytes: int) -> bool:
    """Plain weights on one GPU, or few anywhere."""
    is_plain = placement.representation == "bf16" and placement.is_resident and len(placement.devices) == 1
    return is_plain and (is_small(weight_bytes) or placement.devices[0] != "cpu")


def _line(entry: ModelEntry, source: Source, sizes: Sizes, placement: Placement) -> str:
    devices = " and ".join(placement.devices)
    line = f"{entry.model_id}: {placement.representation} weights ({quoted(source)}) on {devices}"
    host, files = placement.num_layers("host"), placement.num_layers("files")
    if host or files:
        line += f", the experts of {host + files} of {len(placement.layers)} layers streamed "
        if host and files:
            line += f"at every step, {host} from memory and {files} from the weight files"
        else:
            line += f"from {'memory' if host else 'the weight files'} at every step"
    is_large = not is_small(sizes.weight_bytes)
    if is_large and (host or files or placement.devices[0] == "cpu"):
        line += f": {_slowness(sizes, placement)}"
    return f"{line}."


def _slowness(sizes: Sizes, placement: Placement) -> str:
    cores = torch.get_num_threads()
    seconds = step_seconds(sizes, placement, cores)
    rate = sizes.config.canvas_length / (STEPS_A_CANVAS * seconds)
    if placement.devices[0] != "cpu":
        return f"about {_rounded(rate)} tokens a second at best {_by_which_way(placement)}"
    return (
        f"a denoising step takes about {_rounded(seconds)} seconds ({cores} core{'s' * (cores > 1)}), and "
        f"{sizes.config.canvas_length} tokens about {STEPS_A_CANVAS} steps"
    )


def _by_which_way(placement: Placement) -> str:
    """What a rate rests on: a faster bus or disk than these makes more of it."""
    ways = [HOST_WAY] if placement.num_layers("host") else []
    ways += [FILE_WAY] if placement.num_layers("files") else []
    return " and ".join(ways)


def _rounded(number: float) -> str:
    """To one digit, two above 10."""
    digits = 1 - math.floor(math.log10(number)) - (number < 10)
    return f"{round(number, digits):,.{max(0, digits)}f}"
