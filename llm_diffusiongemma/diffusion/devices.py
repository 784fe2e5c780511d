"""The device that a network is placed on, and whether it fits there."""

from __future__ import annotations

import os

import torch

from ..catalog import DEVICE_VARIABLE
from ..errors import DeviceError, DeviceMemoryError, NoGpuError

# A model up to this size is tried on whatever there is.
SMALL_MODEL_BYTES = 4 * 2**30

# KV cache and logits, next to the weights of a large model.
WORKING_BYTES = 3 * 2**30

OUT_OF_MEMORY_WORDS = (
    "DefaultCPUAllocator",
    "MPS backend out of memory",
    "CUDA error: out of memory",  # of a card that another program has filled
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def resolve_device(name: str | None) -> torch.device:
    """The device of that name, or the best one here if it is None: CUDA, else MPS, else the CPU.

    Capitals and blanks around a name don't matter.

    Raises `DeviceError` for a name that means nothing or a device that is not there.
    """
    available = _available_devices()
    if name is None:
        return torch.device(available[0])
    try:
        device = torch.device(name.strip().lower())
    except RuntimeError as error:
        raise DeviceError(f"There is no device called {name!r}. Here are: {', '.join(available)}.") from error
    # "cuda" and "cuda:0" are one device and should compare equal; the others have one of a kind, without number.
    index = device.index or 0
    device = torch.device(device.type, index) if index or device.type == "cuda" else torch.device(device.type)
    if str(device) not in available:
        hint = ""
        if device.type == "cuda" and not torch.cuda.is_available():
            hint = " This PyTorch sees no CUDA GPU: check the driver, and that PyTorch is a CUDA build."
        raise DeviceError(f"{name!r} can't be used here. Here are: {', '.join(available)}.{hint}")
    return device


def _available_devices() -> list[str]:
    """The names of what a model can be placed on here, the best first."""
    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")  # bf16 on it is untested
    return [*devices, "cpu"]


def check_fits(weight_bytes: int, device: torch.device, *, chosen: bool) -> None:
    """Refuse a model that this machine can't hold, before it is downloaded or loaded.

    `chosen` says that somebody has asked for the device. The CPU is too slow for a large model to take it
    just because there is nothing else.

    Raises `NoGpuError`, or `DeviceMemoryError` if weights and room to work are more than all of the
    device's memory. How much of it is free now only loading can tell.
    """
    if weight_bytes <= SMALL_MODEL_BYTES:
        return
    weights = f"The model's weights take {weight_bytes / 2**30:.1f} GiB"
    tiny = "use the embedded model: llm -m diffusiongemma-tiny"
    total = _total_memory(device)
    is_too_small = total is not None and total < weight_bytes + WORKING_BYTES
    where = "this machine" if device.type == "cpu" else str(device)
    memory = f"{where} has {(total or 0) / 2**30:.1f} GiB of memory in all"
    if device.type == "cpu" and not chosen:
        cpu = "on the CPU a reply would take very long"
        way_out = f"Set {DEVICE_VARIABLE}=cpu to run it there all the same, or {tiny}"
        if is_too_small:
            cpu, way_out = f"for the CPU {memory}", f"Run it on a machine that has more, or {tiny}"
        raise NoGpuError(f"{weights}, and PyTorch finds no GPU here: {cpu}. {way_out}")
    if is_too_small:
        elsewhere = "Run it on a machine that has more"
        if len(_available_devices()) > 1:
            elsewhere = f"Set {DEVICE_VARIABLE} to a device that has more"
        raise DeviceMemoryError(
            f"{weights} and {WORKING_BYTES / 2**30:.0f} GiB more to work in, and {memory}. {elsewhere}, or {tiny}"
        )


def _total_memory(device: torch.device) -> int | None:
    """All memory of a device in bytes, used or not; None if it can't be told."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """On a GPU, or on the CPU or MPS, whose allocators have no error class of their own."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error) for words in OUT_OF_MEMORY_WORDS)
