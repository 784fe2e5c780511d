"""The devices that there are, and how much may be taken of them."""

from __future__ import annotations

import ctypes
import itertools
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..catalog import DEVICE_VARIABLE, GRAPH_VARIABLE, KERNELS_VARIABLE, MEMORY_VARIABLE
from ..errors import DeviceError
from ..switches import switch
from ..wording import quoted
from .placement import DeviceMemory, Machine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# "24G" is what others mean by 24 GiB.
AMOUNT = re.compile(r"(?P<number>\d{1,9}(\.\d{1,9})?)\s*(?P<unit>[kmgt](i?b)?)", re.IGNORECASE)
UNITS = {
    f"{letter}{end}": base**power
    for power, letter in enumerate("kmgt", start=1)
    for end, base in (("b", 1000), ("ib", 1024), ("", 1024))
}
NO_LIMIT = 1 << 60

# Of the host's memory so much is left to the system, other programs and Python itself; more of a large one.
LEAST_LEFT_BYTES = 2 * 2**30
# Of Linux: which groups this process is in, and where what they may take stands, by either version of it.
OWN_GROUPS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")

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
    available = available_devices()
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
        if device.type == "xpu":
            hint = " Intel's GPUs are not supported: nobody has tried this plugin on one."
        raise DeviceError(f"{name!r} can't be used here. Here are: {', '.join(available)}.{hint}")
    return device


def available_devices() -> list[str]:
    """The names of what a model can be placed on here, the best first."""
    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")  # bf16 on it is untested
    return [*devices, "cpu"]


def memory_limit() -> int | None:
    """The most bytes that may be taken of a device, if somebody has set that.

    Raises `DeviceError` if it is no amount of memory.
    """
    text = os.environ.get(MEMORY_VARIABLE, "").strip()
    if not text:
        return None
    match = AMOUNT.fullmatch(text)
    amount = 0 if match is None else int(float(match["number"]) * UNITS[match["unit"].lower()])
    if amount == 0:
        raise DeviceError(
            f"{MEMORY_VARIABLE} is {quoted(repr(text), 100)}, which is no amount of memory. Write it like 24GiB, "
            "24GB or 800MiB, or unset it."
        )
    return amount


def find_machine(name: str | None) -> Machine:
    """What there is to place a network on: the device of that name; for None all CUDA devices, the largest first,
    or else the best device.

    It goes by all memory, used or not: what happens to be free must not decide on other weights.

    Raises what `resolve_device` and `memory_limit` raise, and `OptionError` if nobody knows what a card is to be
    kept from, be there one or not.
    """
    chosen = resolve_device(name)
    devices = [chosen]
    if name is None and chosen.type == "cuda":
        devices = [torch.device(each) for each in available_devices() if each.startswith("cuda")]
        devices.sort(key=_usable_memory, reverse=True)
    limit = memory_limit()
    for variable in (KERNELS_VARIABLE, GRAPH_VARIABLE):
        switch(variable)
    memories = (
        DeviceMemory(str(device), min(_usable_memory(device), limit or NO_LIMIT), device.type in ("cpu", "mps"))
        for device in devices
    )
    return Machine(tuple(memories), _usable_memory(torch.device("cpu")))


def _usable_memory(device: torch.device) -> int:
    """In bytes: of a device all of it, of the host without what the system and this process need."""
    total = total_memory(device)
    if total is None:
        return NO_LIMIT
    return max(0, total - max(LEAST_LEFT_BYTES, total // 8)) if device.type == "cpu" else total


def total_memory(device: torch.device) -> int | None:
    """All memory of a device in bytes, used or not; None if it can't be told."""
    if device.type == "cuda":
        try:
            return int(torch.cuda.get_device_properties(device).total_memory)
        except RuntimeError as error:  # of a card that is counted and doesn't answer
            raise DeviceError(
                f"{device} can't be used: {quoted(error)}. Check its driver, or set {DEVICE_VARIABLE} to another "
                "device."
            ) from error
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return None
    return min([physical, *_group_limits()])


def _group_limits() -> Iterator[int]:
    """What the groups that this process is in may take: its container's, its batch job's, its service's."""
    try:
        lines = OWN_GROUPS.read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, name = GROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = GROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        # Those around it count as well. In a container the path may be one outside, and only the root is there.
        for group in itertools.accumulate(path.strip("/").split("/"), Path.joinpath, initial=root):
            with suppress(OSError, ValueError):  # it has none
                yield int((group / name).read_text())


def peak_memory(devices: Sequence[str]) -> int | None:
    """The most bytes that this process has held on some devices at any time; of the host's memory if one of them
    shares it, whatever was held there. None if it can't be told."""
    if all(device.startswith("cuda") for device in devices):
        return sum(torch.cuda.max_memory_allocated(device) for device in devices)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def give_memory_back() -> None:
    """To other programs, what PyTorch and the C library have in store for what comes next: on devices, pinned in
    the host's memory, and in the heap."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
        # Or what was pinned for a card to fetch stays pinned, of a streamed model most of its experts.
        torch._C._host_emptyCache()  # PyTorch 2.9 has no public name for it
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
    with suppress(OSError, AttributeError, TypeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """On a GPU, or on the CPU or MPS, whose allocators have no error class of their own."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error) for words in OUT_OF_MEMORY_WORDS)
