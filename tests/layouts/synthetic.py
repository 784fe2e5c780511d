"""Checkpoints of any size in any of the layouts, with random numbers, written as a stream.

The embedded checkpoint's small files, with other sizes in its config; without a vision tower. What a network of
them says means nothing, but it is of the right order of magnitude everywhere.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.diffusion.config_file import ConfigFile
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.packed import CompressedTensorsNvfp4, Formats, Fp8, ModelOptNvfp4, Plain

from .writer import QUANTIZATION, Layout

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORMATS: dict[Layout, Formats] = {
    "google bf16": Formats(),
    "redhat fp8": Formats(Fp8, Fp8, Fp8),
    "nvidia nvfp4": Formats(ModelOptNvfp4, Plain, Plain),
    "redhat nvfp4": Formats(CompressedTensorsNvfp4, Plain, CompressedTensorsNvfp4),
}
#: The sizes of the real network.
REAL_SIZES: dict[str, Any] = {
    "vocab_size": 262_144,
    "hidden_size": 2816,
    "intermediate_size": 2112,
    "num_hidden_layers": 30,
    "layer_types": None,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "per_layer_config": None,
    "global_head_dim": 512,
    "num_global_key_value_heads": 2,
    "num_experts": 128,
    "top_k_experts": 8,
    "moe_intermediate_size": 704,
}
UNUSED = {"weight_scale_2": "input_scale", "weight_global_scale": "input_global_scale"}

DTYPES = {torch.bfloat16: "BF16", torch.uint8: "U8", torch.float8_e4m3fn: "F8_E4M3", torch.float32: "F32"}
ONE_IN_E4M3 = 0x38
# So much is made and written at a time.
PIECE = 1 << 24
# The largest file of the Hub's has 27 GB.
MAX_FILE_BYTES = 30_000_000_000


def write(
    folder: Path, layout: Layout, *, is_hollow: bool = False, shard_bytes: int = MAX_FILE_BYTES, **sizes: Any
) -> Path:
    """Write a checkpoint whose text_config has these values (None: the default), and return its folder.

    A hollow one has all of its headers, and takes no room on the disk: its numbers are all 0.
    """
    shutil.copytree(EMBEDDED_CHECKPOINT, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    config = json.loads((folder / "config.json").read_text())
    text = {key: value for key, value in {**config["text_config"], **sizes}.items() if value is not None}
    config |= {"text_config": text}
    if (quantization := QUANTIZATION[layout]) is not None:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    tensors = list(_tensors(ConfigFile.model_validate(config), layout))
    whole = sum(tensor.nbytes for _, tensor in tensors)
    if whole <= shard_bytes:
        _write_file(folder / "model.safetensors", tensors, is_hollow=is_hollow)
        return folder
    shards: list[list[tuple[str, torch.Tensor]]] = [[]]
    size = 0
    for each in tensors:
        if size + each[1].nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(each)
        size += each[1].nbytes
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_file(folder / file, shard, is_hollow=is_hollow)
        weight_map |= {name: file for name, _ in shard}
    index = {"metadata": {"total_size": whole}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _write_file(file: Path, tensors: list[tuple[str, torch.Tensor]], *, is_hollow: bool) -> None:
    header, start = {}, 0
    for name, tensor in tensors:
        end = start + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    described = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(described).to_bytes(8, "little") + described)
        if not is_hollow:
            random_ = random.Random(file.name)
            for name, tensor in tensors:
                for piece in _numbers(name, tensor, random_):
                    stream.write(piece.view(torch.uint8).numpy().data)
    if is_hollow:
        os.truncate(file, 8 + len(described) + start)


def _tensors(config: ConfigFile, layout: Layout) -> Iterator[tuple[str, torch.Tensor]]:
    """On the meta device, by their names and of the dtypes in the file."""
    network = Network(config.network(), torch.bfloat16, torch.device("meta"), FORMATS[layout])
    for name, tensor in network.tensors():
        is_row_scale = tensor.ndim > 0 and name.endswith("weight_scale") and tensor.dtype == torch.float32
        yield name, tensor.bfloat16() if is_row_scale else tensor
        matrix, _, end = name.rpartition(".")
        if end in UNUSED:
            yield f"{matrix}.{UNUSED[end]}", tensor


@cache
def _random_bytes() -> torch.Tensor:
    return torch.randint(1 << 62, (PIECE // 4,), generator=torch.Generator().manual_seed(0)).view(torch.uint8)


@cache
def _normal_numbers() -> torch.Tensor:
    return torch.randn(2 * PIECE, generator=torch.Generator().manual_seed(0)).bfloat16()


@cache
def _ones_in_e4m3() -> torch.Tensor:
    # Once: there are thirty thousand scales, and making each takes all threads.
    return torch.full((PIECE,), ONE_IN_E4M3, dtype=torch.uint8)


def _numbers(name: str, tensor: torch.Tensor, random_: random.Random) -> Iterator[torch.Tensor]:
    """A tensor's values, a piece after the other, each flat and on the CPU."""
    end = name.rpartition(".")[2]
    size = tensor.shape[-1] if tensor.ndim else 1
    for start in range(0, tensor.numel(), PIECE):
        count = min(PIECE, tensor.numel() - start)
        # Making each number anew takes minutes: a part of those that were made once, from another place.
        part = slice(first := random_.randrange(PIECE), first + count)
        if tensor.dtype == torch.uint8:
            yield _random_bytes()[part]
        elif tensor.dtype == torch.float8_e4m3fn and end == "weight_scale":
            yield _ones_in_e4m3()[:count]
        elif tensor.dtype == torch.float8_e4m3fn:
            # Without the highest bit of the exponent: below 2, and no NaN.
            yield _random_bytes()[part] & 0b1011_1111
        elif end == "weight_global_scale":
            yield torch.full((count,), 64.0)
        elif end == "weight_scale_2":
            yield torch.full((count,), 1 / 64)
        elif end == "weight_scale":
            yield torch.full((count,), 1 / 32, dtype=tensor.dtype)
        elif tensor.ndim < 2:
            yield torch.ones(count, dtype=tensor.dtype)
        else:
            yield _normal_numbers()[part] / math.sqrt(size)
