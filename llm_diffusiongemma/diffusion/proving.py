"""Which kernels a network may use on its device: those that give there what their twins in torch give.

Nobody's reply rests on what was proved elsewhere, by another compiler for another card. It takes milliseconds once
Triton has compiled the kernels for that card. What it compiles it keeps in the folder that TRITON_CACHE_DIR names,
by default ~/.triton/cache.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from ..catalog import KERNELS_VARIABLE
from ..errors import DeviceError
from ..switches import switch
from ..wording import quoted
from .devices import give_memory_back, is_out_of_memory
from .kernels.cards import Card
from .operations import PLAIN_TORCH, Operations
from .trial import Kernels, Trial

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from .config import NetworkConfig
    from .packed import Formats

# The rooms of `kernels`.
MODULES = ("experts", "layer", "vocabulary")

# A step of a smaller network takes some milliseconds whatever computes it, and to start Triton takes each command
# a second.
LEAST_WEIGHT_BYTES = 1 << 30

ALL = "all"
"""Stands in `Verdict.switched_off` for every kernel."""

NO_ROOM = "has no room to try them, which takes 5 to 8 GiB while the model is loaded"

# Of an error's text enough to look it up by, without where it was: what is said here anybody may be shown.
MOST_CHARACTERS = 160
PATH = re.compile(r"\S*[/\\]\S*")


@dataclass(frozen=True)
class Verdict:
    """What a network computes with on a device, and why not with more."""

    operations: Operations
    in_use: tuple[str, ...] = ()
    """The names of those operations that kernels serve."""
    switched_off: dict[str, str] = field(default_factory=dict)
    """The names of those that a kernel could serve, and why it doesn't: a part of a sentence for people. That of
    "all" is why there are none at all, on a device that could have some."""
    failed: tuple[str, ...] = ()
    """Which of them a kernel should have served: somebody should hear of it."""

    def as_json(self) -> dict[str, Any] | None:
        """For the report and for `status`; None where there could be none."""
        if not (self.in_use or self.switched_off):
            return None
        return {"in_use": [*self.in_use], "switched_off": dict(self.switched_off)}

    @property
    def warning(self) -> str | None:
        """What is wrong, as a sentence; None if nothing is."""
        names_of: dict[str, list[str]] = {}
        for name in self.failed:
            names_of.setdefault(self.switched_off[name], []).append(name)
        if not names_of:
            return None
        told = (
            why if ALL in names else f"{', '.join(names).replace('_', ' ')}: {why}"
            for why, names in names_of.items()
        )
        return f"kernels are switched off, and PyTorch computes in their place ({'; '.join(told)})."


def none_because(device: torch.device, weight_bytes: int | None = None) -> str | None:
    """Why there are no kernels on a device that could have some, for weights of that size, as far as it is known
    without trying; None if they are to be tried, or it is no such device. Raises `OptionError`."""
    if device.type != "cuda":  # what torch calls AMD's, too
        return None
    asked = switch(KERNELS_VARIABLE)
    if asked is False:
        return f"{KERNELS_VARIABLE} is off"
    if (too_old := Card.of(device).too_old) is not None:
        return too_old
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed, which comes with PyTorch for Linux"
    if weight_bytes is not None and weight_bytes < LEAST_WEIGHT_BYTES and not asked:
        return f"so small a network gains nothing by them ({KERNELS_VARIABLE}=on tries them all the same)"
    return None


def is_to_be_tried(device: torch.device, weight_bytes: int | None = None) -> bool:
    """Whether kernels are to be tried on a device, for weights of that size."""
    return device.type == "cuda" and none_because(device, weight_bytes) is None


def import_kernels() -> list[ModuleType]:
    """Triton, and the rooms of `kernels`. Raises whatever that raises."""
    import triton  # noqa: F401

    return [import_module(f"{__package__}.kernels.{name}") for name in MODULES]


def prove(
    config: NetworkConfig,
    formats: Formats,
    dtype: torch.dtype,
    device: torch.device,
    check_wanted: Callable[[], None] = lambda: None,
) -> Verdict:
    """Run each kernel that such a network can use on the device, beside its twin: see `trial`.

    The first time ever Triton compiles them, which takes up to a minute. `check_wanted` is called in between and
    may raise.

    Where there is no room to try them there are none: a card may be there for a few layers only.

    Raises `DeviceError` if a kernel has broken CUDA off, which can't be mended in this process.
    """
    if not is_to_be_tried(device):
        return _none(device)

    def explain(error: Exception) -> str:
        check_wanted()  # a Ctrl-C ends the compiler, too, which is none of the kernel's faults
        _check_alive(device, error)
        if is_out_of_memory(error):
            raise error
        return _why(error)

    # Triton compiles for the current device, and keeps it for that one.
    with torch.cuda.device(device):
        try:
            modules = import_kernels()
            _start_triton()
            offers = [module.usable(config, formats, dtype, device) for module in modules]
        except Exception as error:
            return Verdict(PLAIN_TORCH, switched_off={ALL: explain(error)}, failed=(ALL,))
        try:
            verdict = tried(offers, Trial(config, formats, dtype, device, explain, check_wanted))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            error.__traceback__ = None  # in a circle with `explain`, and it holds the trial's memory
            verdict = Verdict(PLAIN_TORCH, switched_off={ALL: f"{device} {NO_ROOM}"}, failed=(ALL,))
    give_memory_back()
    return verdict


def _none(device: torch.device, weight_bytes: int | None = None) -> Verdict:
    reason = none_because(device, weight_bytes)
    return Verdict(PLAIN_TORCH, switched_off={} if reason is None else {ALL: reason})


def _start_triton() -> None:
    """Have Triton compile its stub of the driver: what this machine lacks is said once, and of no kernel."""
    from triton import knobs

    if knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET has kernels interpreted on the CPU: unset it")
    has_folder = any(os.environ.get(name) for name in ("TRITON_CACHE_DIR", "TRITON_HOME"))
    if not has_folder and not os.path.isabs(os.path.expanduser("~")):
        # It would be a folder called "~" in the current one.
        raise PermissionError(errno.EACCES, "this user has no home")
    from triton.runtime import driver

    _ = driver.active.utils


def tried(offers: Iterable[tuple[Kernels, dict[str, str]]], trial: Trial) -> Verdict:
    """The verdict on what some rooms of `kernels` have for a network: see their `usable`."""
    kernels: Kernels = {}
    switched_off: dict[str, str] = {}
    for usable, unusable in offers:
        kernels |= usable
        switched_off |= unusable
    faults = trial.faults(kernels)
    in_use = {name: kernel for name, kernel in kernels.items() if name not in faults}
    return Verdict(replace(PLAIN_TORCH, **in_use), (*in_use,), switched_off | faults, (*faults,))


def prove_all(
    config: NetworkConfig,
    formats: Formats,
    dtype: torch.dtype,
    devices: Sequence[torch.device],
    weight_bytes: int,
    trying: Callable[[], AbstractContextManager[object]],
    check_wanted: Callable[[], None],
) -> Verdict:
    """The same for weights of that size on some devices: the kernels that are right on all of them. `trying` is
    entered if any are tried. Raises the same."""
    first = devices[0]
    if not is_to_be_tried(first, weight_bytes):
        return _none(first, weight_bytes)
    with trying():
        return in_common([prove(config, formats, dtype, device, check_wanted) for device in devices])


def in_common(verdicts: Sequence[Verdict]) -> Verdict:
    """That on a network which lies on several devices, by the verdict on each."""
    in_use = [name for name in verdicts[0].in_use if all(name in each.in_use for each in verdicts)]
    kernels = {name: getattr(verdicts[0].operations, name) for name in in_use}
    switched_off = {name: why for each in verdicts for name, why in each.switched_off.items()}
    failed = dict.fromkeys(name for each in verdicts for name in each.failed)
    return Verdict(replace(PLAIN_TORCH, **kernels), (*in_use,), switched_off, (*failed,))


def _check_alive(device: torch.device, error: Exception) -> None:
    """Raises `DeviceError` if nothing can be computed on a device any more."""
    try:
        torch.cuda.synchronize(device)
    except Exception as broken:
        raise DeviceError(
            f"{device} failed while a kernel was tried on it: {quoted(error, MOST_CHARACTERS)}. Check its driver, "
            f"or set {KERNELS_VARIABLE}=off, and PyTorch computes everything."
        ) from broken


def _why(error: Exception) -> str:
    """Why a kernel can't run, for people: what this machine lacks, if it is that."""
    if isinstance(error, subprocess.CalledProcessError) or "C compiler" in str(error):
        return (
            "Triton finds no C compiler that works, which it needs to launch kernels: install gcc and Python's "
            "headers, or have CC name one"
        )
    if isinstance(error, FileNotFoundError):
        name = os.path.basename(str(error.filename))
        return (
            f"Triton calls a program that is not here ({quoted(name)}): install it, or have CC name a C compiler"
        )
    if isinstance(error, OSError):
        return (
            f"Triton can't write to its cache ({quoted(error.strerror or type(error).__name__)}): have "
            "TRITON_CACHE_DIR name a folder that can be written to"
        )
    # A compiler's errors are pages, whose first line, if it isn't in them apart, says what it is.
    text = PATH.sub("…", str(getattr(error, "error_message", None) or error).strip().partition("\n")[0])
    told = ": ".join(filter(None, (type(error).__name__, text)))
    return f"it fails on this GPU ({quoted(told, MOST_CHARACTERS)})"
