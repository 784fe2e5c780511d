"""A checkpoint's folder to a network, checked before it takes memory. Nothing here goes to the Hub."""

from __future__ import annotations

import os
import re
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..catalog import DEVICE_VARIABLE
from ..errors import CheckpointError, CheckpointNotFoundError, DeviceError, DeviceMemoryError
from ..layout import CONFIG_FILE, GENERATION_FILE, WEIGHTS_SUFFIX, is_folder, unreadable
from ..wording import quoted
from .config_file import read_config, read_generation_settings
from .devices import is_out_of_memory
from .network import DECODER, Network
from .proving import Verdict, prove_all
from .quantization import HERE, read_packings
from .stored import UNUSED, recognise
from .weights import FLOATS, check_layers, read_headers, some

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from .config_file import ConfigFile, GenerationSettings
    from .experts import Experts
    from .packed import Formats
    from .placement import Placement
    from .stored import Layout
    from .weights import Found, Weights

# bf16 products are slow or emulated on many CPUs. The upcast is exact, and below this a doubled size is
# still small; above it the model would hardly fit twice.
MAX_UPCAST_BYTES = 4 * 2**30

ADAPTER_FILE = "adapter_config.json"
DISTRIBUTED_SHARD = re.compile(r"shard-\d+-model-\d+-of-\d+\.safetensors")

ENCODER = "model.encoder.language_model."
HEAD = "lm_head.weight"
TEXT_NETWORK = (DECODER, ENCODER, "lm_head.")
# What follows from the config may have been saved all the same.
BUFFER = re.compile(r"\binv_freq$|_inv_freq$|\bembed_scale$")
EMBEDDING = f"{DECODER}embed_tokens.weight"


@dataclass(frozen=True, eq=False)
class Described:
    """A checkpoint that has passed every check that needs no weight's value."""

    folder: Path
    config: ConfigFile
    generation: GenerationSettings
    weights: Weights
    found: Found
    layout: Layout

    @property
    def formats(self) -> Formats:
        return self.layout.formats

    def read_experts(self, layer: int, experts: Experts, check_wanted: Callable[[], None] = lambda: None) -> None:
        """Fill experts with a layer's from the weight files. Any thread may do it. `check_wanted` is called every
        some megabytes and may raise.

        Raises `CheckpointError` if a file turns out damaged or was changed, and `FileAccessError`.
        """
        names = ((f"{DECODER}layers.{layer}.experts.{name}", place) for name, place in experts.tensors())
        places = [(self.found[name][0], place) for name, place in self.layout.places(names)]
        with self.weights.reader(lambda num_bytes: check_wanted()) as reader:
            for stored, place in sorted(places, key=lambda each: each[0].place):
                reader.fill(place, stored)

    def dtype_on(self, device_type: str) -> torch.dtype:
        """What it computes in there: fp32 on the CPU for less than 4 GiB, else the dtype of the checkpoint."""
        named = self.config.dtype or self.config.torch_dtype
        dtype = getattr(torch, named) if named else FLOATS[self.found[EMBEDDING][0].dtype]
        # The network has no use for more than fp32.
        if dtype == torch.float64 or (device_type == "cpu" and self.weights.num_bytes < MAX_UPCAST_BYTES):
            return torch.float32
        return dtype


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A network ready to denoise, and what its folder says besides the weights."""

    network: Network
    config: ConfigFile
    generation: GenerationSettings
    placement: Placement
    verdict: Verdict
    """What the network computes with."""
    load_seconds: float
    weight_bytes: int
    """Size of the weight files on disk."""

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    @property
    def formats(self) -> Formats:
        return self.network.formats


def describe(folder: Path) -> Described:
    """What a DiffusionGemma checkpoint's folder holds, its text network checked name by name. Of the weight files
    only the headers are read, and the vision tower isn't looked at.

    Raises `CheckpointNotFoundError` if there is no such folder, `CheckpointError` if what is in it is
    something else, incomplete, damaged, or would leave a single weight random, and `FileAccessError`.
    """
    if not is_folder(folder):
        raise CheckpointNotFoundError(
            f"There is no folder {quoted(folder)}. Download the model, or correct the path."
        )
    _check_kind(folder)
    config = read_config(folder)
    packings = read_packings(folder)
    generation = read_generation_settings(folder, config.text_config.vocab_size)
    weights = read_headers(folder)
    # Before a network is made that is as deep.
    check_layers(weights, rf"({DECODER}|{ENCODER})", config.text_config.num_hidden_layers, "text network")
    layout = recognise(weights, packings, config.network())
    # On the meta device it has names and shapes, and takes no memory.
    network = Network(config.network(), torch.float32, torch.device("meta"), layout.formats)
    expected = dict(layout.places(network.tensors()))
    own_scales = [name for name in expected if name.startswith(ENCODER) and name not in weights.tensors]
    weights.refuse_misfits({"no scales for the encoder, which would read with the decoder's": own_scales})
    found = weights.find(expected, _also_called)
    # A bias, a scale, what another network has: without them this would compute something else.
    known = {each for name in expected for each in (name, *_also_called(name))}
    surplus = [name for name in weights.tensors if name.startswith(TEXT_NETWORK) and name not in known]
    unknown = [name for name in surplus if not BUFFER.search(name) and not UNUSED.search(name)]
    weights.refuse_misfits({"weights that it has no use for": unknown})
    return Described(folder, config, generation, weights, found, layout)


def load_model(
    described: Described,
    placement: Placement,
    check_wanted: Callable[[], None] = lambda: None,
    progress: Callable[[int], None] = lambda num_bytes: None,
    trying_kernels: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> LoadedModel:
    """Load a checkpoint's text network, each weight straight to where the placement says.

    `check_wanted` is called between the parts of the work and may raise, `progress` with the number of bytes that
    were read. `trying_kernels` is entered while kernels are tried, which takes long the first time ever.

    Raises `CheckpointError` if a file turns out damaged, `FileAccessError`, `DeviceMemoryError` if the network
    does not fit, and `DeviceError` if a device fails.
    """
    started = time.perf_counter()
    weights = described.weights
    device = torch.device(placement.layers[0].device)
    devices = " and ".join(placement.devices)
    config, dtype = described.config.network(), described.dtype_on(device.type)
    try:
        # First: their trial takes memory, of which there is enough only before the weights come.
        where = [torch.device(each) for each in placement.devices]
        verdict = prove_all(
            config, described.formats, dtype, where, weights.num_bytes, trying_kernels, check_wanted
        )
        network = Network(config, dtype, device, described.formats, placement.layers, described.read_experts)
        network.operations = verdict.operations
        weights.read(dict(described.layout.places(network.tensors())), described.found, check_wanted, progress)
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            holders = f"{devices} or the host" if placement.num_layers("host") else devices
            raise DeviceMemoryError(
                f"The model's weights take {weights.num_bytes / 2**30:.1f} GiB, and {holders} ran out of memory "
                "while loading them. Free memory that other programs hold there, or choose another device."
            ) from error
        if device.type == "cpu":
            raise
        raise DeviceError(
            f"{devices} failed while the model was loaded to it: {quoted(error)}. Check its driver, or set "
            f"{DEVICE_VARIABLE} to another device."
        ) from error
    return LoadedModel(
        network,
        described.config,
        described.generation,
        placement,
        verdict,
        time.perf_counter() - started,
        weights.num_bytes,
    )


def _check_kind(folder: Path) -> None:
    """Refuse what only looks like a checkpoint, saying what it is."""
    names = set(_names(folder))
    if any(name.endswith(".gguf") for name in names) and not any(name.endswith(WEIGHTS_SUFFIX) for name in names):
        raise CheckpointError(
            f"{quoted(folder)} holds GGUF files, which are for llama.cpp. Run them there, or use {HERE} here."
        )
    if CONFIG_FILE not in names:
        raise CheckpointError(f"{quoted(folder)} has no {CONFIG_FILE}, so it is no model's checkpoint.")
    if GENERATION_FILE not in names:
        raise CheckpointError(
            f"{quoted(folder)} has no {GENERATION_FILE}, so it names no end-of-sequence tokens and no sampler. "
            "Take the file from where the model comes from."
        )
    # Whoever puts one there means it to change the weights.
    if ADAPTER_FILE in names:
        raise CheckpointError(
            f"{quoted(folder)} holds an adapter ({ADAPTER_FILE}), which this plugin can't apply. Merge it into "
            "its base model, or take the file away to run that alone."
        )
    if parts := sorted(filter(DISTRIBUTED_SHARD.match, names)):
        raise CheckpointError(
            f"{quoted(folder)} holds weights as a distributed training saves them ({some(parts)}). Save the "
            "model with save_pretrained, and load that folder."
        )


def _names(folder: Path) -> list[str]:
    """Of everything in a folder. Raises `FileAccessError`."""
    try:
        return os.listdir(folder)
    except OSError as error:
        raise unreadable(folder, error) from error


def _also_called(name: str) -> list[str]:
    """Under which other names transformers may have saved a weight that encoder, decoder and head share."""
    if not name.startswith(DECODER) or name.endswith("layer_scalar"):
        return []
    shared = [name.replace(DECODER, ENCODER, 1)]
    return [*shared, HEAD] if name == EMBEDDING else shared
