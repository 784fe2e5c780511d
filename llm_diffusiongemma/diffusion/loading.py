"""A folder of weights, checked and placed on a device. Nothing here goes to the network."""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import DiffusionGemmaForBlockDiffusion
from transformers.utils import logging as transformers_logging

from ..catalog import DEVICE_VARIABLE
from ..errors import (
    CheckpointError,
    CheckpointNotFoundError,
    DeviceError,
    DeviceMemoryError,
    NoGpuError,
)
from ..layout import CONFIG_FILE, GENERATION_FILE, INDEX_FILE, WEIGHTS_FILE, read_json, weight_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

MODEL_TYPE = "diffusion_gemma"

# bf16 products are slow or emulated on many CPUs. The upcast is exact, and below this a doubled size is
# still small; above it the model would hardly fit twice.
MAX_UPCAST_BYTES = 4 * 2**30

# A model up to this size is tried on whatever there is.
SMALL_MODEL_BYTES = 4 * 2**30

# KV cache and logits, next to the weights of a large model.
WORKING_BYTES = 3 * 2**30

# transformers packs the experts of a layer into one tensor. What was written for vLLM has one tensor for
# each, which transformers skips with a warning, leaving **random** experts in the model.
PER_EXPERT_TENSOR = re.compile(r"\.experts\.\d+\.")

OUT_OF_MEMORY_WORDS = (
    "DefaultCPUAllocator",
    "MPS backend out of memory",
    "CUDA error: out of memory",  # of a card that another program has filled
    "CUBLAS_STATUS_ALLOC_FAILED",
)

NAMES_SHOWN = 3


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model ready to denoise."""

    model: DiffusionGemmaForBlockDiffusion
    """In eval mode."""
    device: torch.device
    dtype: torch.dtype
    load_seconds: float
    weight_bytes: int
    """Size of the weight files on disk."""


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
    if device.type == "cpu" and not chosen:
        raise NoGpuError(
            f"{weights}, and PyTorch finds no GPU here: on the CPU a reply would take very long. Set "
            f"{DEVICE_VARIABLE}=cpu to run it there all the same, or {tiny}"
        )
    total = _total_memory(device)
    if total is not None and total < weight_bytes + WORKING_BYTES:
        raise DeviceMemoryError(
            f"{weights} and {WORKING_BYTES / 2**30:.0f} GiB more to work in, and {device} has "
            f"{total / 2**30:.1f} GiB of memory in all. Set {DEVICE_VARIABLE} to a device that has more, or {tiny}"
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


def load_model(folder: Path, device: torch.device) -> LoadedModel:
    """Load a DiffusionGemma checkpoint straight to `device`.

    On the CPU a checkpoint below 4 GiB becomes fp32; otherwise the checkpoint's own dtype is kept.

    Raises `CheckpointNotFoundError` if there is no such folder, `CheckpointError` if what is in it is
    something else, incomplete, damaged, or would leave a single weight random, and `DeviceMemoryError` if
    it does not fit.
    """
    started = time.perf_counter()
    if not folder.is_dir():
        raise CheckpointNotFoundError(f"There is no folder {folder}. Download the model, or correct the path.")
    _check_config(folder)
    _check_generation_config(folder)
    files = _weight_files(folder)
    _check_weight_files(files)
    weight_bytes = sum(file.stat().st_size for file in files)
    upcast = device.type == "cpu" and weight_bytes < MAX_UPCAST_BYTES

    try:
        with _quiet_transformers():
            model, info = DiffusionGemmaForBlockDiffusion.from_pretrained(
                folder,
                dtype=torch.float32 if upcast else "auto",
                # An explicit place for everything: straight from the file to the device, no hooks.
                device_map={"": device},
                local_files_only=True,
                use_safetensors=True,
                # So that they are listed in `info`, with both shapes, and not just raised.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise _unloadable(folder, error) from error
        raise DeviceMemoryError(
            f"The model's weights take {weight_bytes / 2**30:.1f} GiB, and {device} ran out of memory while "
            "loading them. Free memory that other programs hold on it, or choose another device."
        ) from error
    except Exception as error:
        # Whatever transformers finds wrong is wrong with the folder, and most of it is not its own error
        # class: an impossible config alone can be a KeyError, a TypeError or a validation error.
        raise _unloadable(folder, error) from error

    _check_loaded(folder, info)
    if model.generation_config.eos_token_id in (None, []):
        raise CheckpointError(
            f"{folder} names no end-of-sequence tokens, so a reply would never end. Its "
            "generation_config.json must have eos_token_id: take the file from where the model comes from."
        )
    return LoadedModel(
        model=model,
        device=device,
        dtype=model.dtype,
        load_seconds=time.perf_counter() - started,
        weight_bytes=weight_bytes,
    )


def is_out_of_memory(error: BaseException) -> bool:
    """On a GPU, or on the CPU or MPS, whose allocators have no error class of their own."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error) for words in OUT_OF_MEMORY_WORDS)


def _unloadable(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"transformers can't load {folder}: {type(error).__name__}: {error}.")


def _check_config(folder: Path) -> None:
    """Refuse what is no DiffusionGemma, or one for another runtime, saying what it is."""
    if not (folder / CONFIG_FILE).is_file():
        if any(folder.glob("*.gguf")):
            raise CheckpointError(
                f"{folder} holds GGUF files, which are for llama.cpp. This plugin needs the original "
                "checkpoint in safetensors files."
            )
        raise CheckpointError(f"{folder} has no {CONFIG_FILE}, so it is no model's checkpoint.")
    config = read_json(folder / CONFIG_FILE)
    model_type = config.get("model_type")
    if model_type != MODEL_TYPE:
        raise CheckpointError(
            f"{folder} holds a model of type {model_type!r}, and this plugin runs {MODEL_TYPE!r} only."
        )
    quantization = config.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise CheckpointError(
            f"{folder} is quantised ({method or 'method not named'}), a layout for vLLM that transformers "
            "would load with random experts. Serve it with vLLM and use the server, or load the "
            "unquantised checkpoint here."
        )
    if "quantization" in config:
        raise CheckpointError(
            f"{folder} is quantised for MLX, which only mlx-vlm runs. Load the unquantised checkpoint here."
        )


def _check_generation_config(folder: Path) -> None:
    """Refuse a folder without one: transformers would make one up, with another sampler."""
    if not (folder / GENERATION_FILE).is_file():
        raise CheckpointError(
            f"{folder} has no {GENERATION_FILE}, so it names no end-of-sequence tokens and no sampler. Take the "
            "file from where the model comes from."
        )
    read_json(folder / GENERATION_FILE)


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers will read, all of them present."""
    names = weight_names(folder)
    if not names:
        raise CheckpointError(
            f"{folder} has no weights: neither {WEIGHTS_FILE} nor {INDEX_FILE} is there. Download the model again."
        )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} is incomplete: {len(missing)} of {len(names)} weight files are missing "
            f"({_some(missing)}). Download the model again; what is there will be kept."
        )
    return [folder / name for name in names]


def _check_weight_files(files: list[Path]) -> None:
    """Refuse damaged files and layouts with a tensor an expert. Reads the headers only."""
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                names = list(tensors.keys())
        except (SafetensorError, OSError) as error:
            # In the Hub's cache a link: to delete only that would bring the same content back.
            raise CheckpointError(
                f"{file} is damaged or was not downloaded whole ({error}). Delete {file.resolve()} and "
                "download it again."
            ) from error
        per_expert = [name for name in names if PER_EXPERT_TENSOR.search(name)]
        if per_expert:
            raise CheckpointError(
                f"{file.parent} keeps each expert in a tensor of its own ({_some(per_expert)}), a layout for "
                "vLLM that transformers would load with random experts. Serve it with vLLM and use the "
                "server, or load the original checkpoint here."
            )


def _check_loaded(folder: Path, info: dict[str, Any]) -> None:
    """Refuse a model of which any weight is random.

    transformers leaves tied weights out of the missing ones by itself. Tensors that it has no use for are
    let through: they make nothing random, and a checkpoint may carry some for other programs.
    """
    mismatched = sorted(
        f"{name} is {list(found)}, not {list(expected)}" for name, found, expected in info["mismatched_keys"]
    )
    problems = [
        ("missing weights", sorted(info["missing_keys"])),
        ("weights of another size", mismatched),
        ("errors", sorted(info["error_msgs"])),
    ]
    found = [f"{what} ({_some(names)})" for what, names in problems if names]
    if found:
        raise CheckpointError(
            f"The weights in {folder} don't fit the model that its {CONFIG_FILE} describes: "
            f"{'; '.join(found)}. Download the model again, or use another revision of it."
        )


def _some(names: Iterable[str]) -> str:
    """The first few names, for a sentence."""
    names = list(names)
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bar and no load report on the user's stderr; what it would report is checked instead."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    # Not `disable_progress_bar`, which turns the hub's download bars off as well, and its counterpart
    # would turn them on for somebody who wants none.
    hook = transformers_logging.set_tqdm_hook(lambda bar, args, kwargs: bar(*args, **{**kwargs, "disable": True}))
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.set_tqdm_hook(hook)
