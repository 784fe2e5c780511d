"""A folder of weights, checked and placed on a device. Nothing here goes to the network."""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    DiffusionGemmaGenerationConfig,
    EntropyBoundSamplerConfig,
)
from transformers.utils import logging as transformers_logging

from ..catalog import DEVICE_VARIABLE
from ..errors import (
    CheckpointError,
    CheckpointNotFoundError,
    DeviceError,
    DeviceMemoryError,
    DiffusionGemmaError,
    FileAccessError,
    NoGpuError,
)
from ..layout import (
    CONFIG_FILE,
    GENERATION_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    is_file,
    is_folder,
    read_start,
    unreadable,
    weight_names,
)
from ..wording import quoted
from .config_file import VisionConfig, read_config, read_generation_settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from .config_file import ConfigFile, GenerationSettings

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
NAME_CHARACTERS_SHOWN = 150

ADAPTER_FILE = "adapter_config.json"
DISTRIBUTED_SHARD = re.compile(r"shard-\d+-model-\d+-of-\d+\.safetensors")

# The real model's header has some hundred kilobytes.
MAX_HEADER_BYTES = 1 << 24
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})

# More than that of a model can't be in its files under other names than the model's own.
MAX_MISSING_SHARE = 2


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


def load_model(folder: Path, device: torch.device) -> LoadedModel:
    """Load a DiffusionGemma checkpoint straight to `device`.

    On the CPU a checkpoint below 4 GiB becomes fp32; otherwise the checkpoint's own dtype is kept.

    Raises `CheckpointNotFoundError` if there is no such folder, `CheckpointError` if what is in it is
    something else, incomplete, damaged, or would leave a single weight random, and `DeviceMemoryError` if
    it does not fit.
    """
    started = time.perf_counter()
    if not is_folder(folder):
        raise CheckpointNotFoundError(
            f"There is no folder {quoted(folder)}. Download the model, or correct the path."
        )
    _check_kind(folder)
    config = read_config(folder)
    generation = read_generation_settings(folder, config.text_config.vocab_size)
    files = _weight_files(folder)
    tensors = _read_headers(files)
    _check_layers(folder, config, tensors)
    weight_bytes = sum(file.stat().st_size for file in files)
    upcast = device.type == "cpu" and weight_bytes < MAX_UPCAST_BYTES

    try:
        with _quiet_transformers():
            transformers_config = DiffusionGemmaConfig(**config.to_dict())
            _check_sizes(folder, transformers_config, tensors)
            model, info = DiffusionGemmaForBlockDiffusion.from_pretrained(
                folder,
                # Both are made of what passed the schema: of the folder transformers reads the weights alone.
                config=transformers_config,
                generation_config=_generation_config(generation),
                trust_remote_code=False,
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
    except DiffusionGemmaError:
        raise
    except Exception as error:
        # Whatever transformers finds wrong is wrong with the folder, and most of it is not its own error
        # class: an impossible config alone can be a KeyError, a TypeError or a validation error.
        raise _unloadable(folder, error) from error

    _check_loaded(folder, info, tensors)
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


def _unloadable(folder: Path, error: Exception) -> DiffusionGemmaError:
    if isinstance(error, OSError) and error.errno is not None:
        return unreadable(folder, error)
    return CheckpointError(
        f"transformers can't load {quoted(folder)}: {type(error).__name__}: {quoted(error)}. Take the files from "
        "where the model comes from."
    )


def _check_kind(folder: Path) -> None:
    """Refuse what only looks like a checkpoint, saying what it is."""
    names = set(_names(folder))
    if CONFIG_FILE not in names:
        if any(name.endswith(".gguf") for name in names):
            raise CheckpointError(
                f"{quoted(folder)} holds GGUF files, which are for llama.cpp. This plugin needs the original "
                "checkpoint in safetensors files."
            )
        raise CheckpointError(f"{quoted(folder)} has no {CONFIG_FILE}, so it is no model's checkpoint.")
    if GENERATION_FILE not in names:
        raise CheckpointError(
            f"{quoted(folder)} has no {GENERATION_FILE}, so it names no end-of-sequence tokens and no sampler. "
            "Take the file from where the model comes from."
        )
    # transformers would take either by itself, in place of the weights or on top of them.
    if ADAPTER_FILE in names:
        raise CheckpointError(
            f"{quoted(folder)} holds an adapter ({ADAPTER_FILE}), which this plugin can't apply. Merge it into "
            "its base model, or take the file away to run that alone."
        )
    if parts := sorted(filter(DISTRIBUTED_SHARD.match, names)):
        raise CheckpointError(
            f"{quoted(folder)} holds weights as a distributed training saves them ({_some(parts)}). Save the "
            "model with save_pretrained, and load that folder."
        )


def _names(folder: Path) -> list[str]:
    """Of everything in a folder. Raises `FileAccessError`."""
    try:
        return os.listdir(folder)
    except OSError as error:
        raise unreadable(folder, error) from error


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers will read, all of them present."""
    names = weight_names(folder)
    if not names:
        raise CheckpointError(
            f"{quoted(folder)} has no weights: neither {WEIGHTS_FILE} nor {INDEX_FILE} is there. Download the "
            "model again."
        )
    missing = [name for name in names if not is_file(folder / name)]
    if missing:
        raise CheckpointError(
            f"{quoted(folder)} is incomplete: {len(missing)} of {len(names)} weight files are missing "
            f"({_some(missing)}). Download the model again; what is there will be kept."
        )
    return [folder / name for name in names]


@dataclass(frozen=True)
class _Tensor:
    """What a weight file's header says of a tensor."""

    shape: tuple[int, ...]
    dtype: str
    """as safetensors writes it: "BF16" """


def _read_headers(files: list[Path]) -> dict[str, _Tensor]:
    """The tensors of all files by name. Refuses damaged files and layouts with a tensor an expert."""
    found: dict[str, _Tensor] = {}
    for file in files:
        tensors = _read_header(file)
        if per_expert := [name for name in tensors if PER_EXPERT_TENSOR.search(name)]:
            raise CheckpointError(
                f"{quoted(file.parent)} keeps each expert in a tensor of its own ({_some(per_expert)}), a layout "
                "for vLLM that transformers would load with random experts. Serve it with vLLM and use the "
                "server, or load the original checkpoint here."
            )
        if twice := sorted(found.keys() & tensors.keys()):
            raise CheckpointError(
                f"{quoted(file.parent)} has the same tensors in two of its files ({_some(twice)}). Download the "
                "model again."
            )
        found |= tensors
    return found


def _read_header(file: Path) -> dict[str, _Tensor]:
    """The tensors of a file. The library holds their places against each other and the file's size."""
    try:
        if int.from_bytes(read_start(file, 8), "little") > MAX_HEADER_BYTES:
            raise SafetensorError("its header is larger than any such file's")
        with safe_open(file, framework="pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            return {name: _Tensor(tuple(each.get_shape()), each.get_dtype()) for name, each in slices.items()}
    except FileAccessError:
        raise
    except OSError as error:
        raise unreadable(file, error) from error
    except (SafetensorError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{quoted(file)} is damaged or was not downloaded whole ({quoted(error)}). {_replacement(file)}"
        ) from error


def _replacement(file: Path) -> str:
    """How to come by a whole file. Only in the Hub's cache what a link leads to is this file's own."""
    content, blobs = file.resolve(), file.parent.parent.parent / "blobs"
    if file.is_symlink() and file.parent.parent.name == "snapshots" and content.parent == blobs.resolve():
        return f"Delete {quoted(content)} and download it again."
    return "Replace it by a whole copy."


def _generation_config(settings: GenerationSettings) -> DiffusionGemmaGenerationConfig:
    values = settings.model_dump(exclude={"sampler_config"}, exclude_none=True)
    if settings.sampler_config is not None:
        values["sampler_config"] = EntropyBoundSamplerConfig(settings.sampler_config.entropy_bound)
    return DiffusionGemmaGenerationConfig(**values)


def _check_layers(folder: Path, config: ConfigFile, tensors: dict[str, _Tensor]) -> None:
    """Refuse a config of other layers than the weights have, before they are made."""
    vision = config.vision_config or VisionConfig()
    for kind, layers in (("decoder", config.text_config), ("encoder.vision_tower.encoder", vision)):
        named = {match[1] for name in tensors if (match := re.match(rf"model\.{kind}\.layers\.(\d+)\.", name))}
        if len(named) != layers.num_hidden_layers:
            raise CheckpointError(
                f"The {CONFIG_FILE} in {quoted(folder)} describes {layers.num_hidden_layers} layers of the "
                f"{kind}, and there are weights of {len(named)}. Download the model again."
            )


def _check_sizes(folder: Path, config: DiffusionGemmaConfig, tensors: dict[str, _Tensor]) -> None:
    """Refuse a config of other sizes than the weights have, before anything takes memory by it."""
    with torch.device("meta"):
        model = DiffusionGemmaForBlockDiffusion(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    _refuse_misfits(
        folder,
        {
            "weights of another size": [
                f"{name} is {list(tensor.shape)}, not {list(expected[name])}"
                for name, tensor in sorted(tensors.items())
                if name in expected and tensor.shape != expected[name]
            ],
        },
    )
    # Weights that are missing are made first, and then found missing.
    elements = sum(parameter.numel() for parameter in model.parameters())
    stored = sum(math.prod(tensor.shape) for tensor in tensors.values())
    if elements > MAX_MISSING_SHARE * stored:
        raise CheckpointError(
            f"The {CONFIG_FILE} in {quoted(folder)} describes a model of {elements:,} weights, and there are "
            f"{stored:,}. Download the model again, or use another revision of it."
        )


def _check_loaded(folder: Path, info: dict[str, Any], tensors: dict[str, _Tensor]) -> None:
    """Refuse a model of which any weight is random.

    transformers leaves tied weights out of the missing ones by itself. Tensors that it has no use for are
    let through: they make nothing random, and a checkpoint may carry some for other programs.
    """
    _refuse_misfits(
        folder,
        {
            "missing weights": sorted(info["missing_keys"]),
            "weights of another size": sorted(
                f"{name} is {list(found)}, not {list(expected)}"
                for name, found, expected in info["mismatched_keys"]
            ),
            "weights that are no plain floating-point numbers": sorted(
                f"{name} is {tensor.dtype}"
                for name, tensor in tensors.items()
                if tensor.dtype not in FLOATS and name not in info["unexpected_keys"]
            ),
            "errors": sorted(info["error_msgs"]),
        },
    )


def _refuse_misfits(folder: Path, problems: dict[str, list[str]]) -> None:
    found = [f"{what} ({_some(names)})" for what, names in problems.items() if names]
    if found:
        raise CheckpointError(
            f"The weights in {quoted(folder)} don't fit the model that its {CONFIG_FILE} describes: "
            f"{'; '.join(found)}. Download the model again, or use another revision of it."
        )


def _some(names: Iterable[str]) -> str:
    """The first few names, for a sentence."""
    names = list(names)
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(quoted(name, NAME_CHARACTERS_SHOWN) for name in names[:NAMES_SHOWN]) + more


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
