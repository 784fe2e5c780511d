"""The layouts of the Hub's four repositories, made of any plain checkpoint.

Written from the formats' definitions, with no line of the package's: what it writes is what the package is held
against.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Iterator

Layout = Literal["google bf16", "redhat fp8", "nvidia nvfp4", "redhat nvfp4"]
REPOSITORIES: dict[Layout, str] = {
    "google bf16": "google/diffusiongemma-26B-A4B-it",
    "redhat fp8": "RedHatAI/diffusiongemma-26B-A4B-it-FP8-dynamic",
    "nvidia nvfp4": "nvidia/diffusiongemma-26B-A4B-it-NVFP4",
    "redhat nvfp4": "RedHatAI/diffusiongemma-26B-A4B-it-NVFP4",
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"

# Between the numbers of e2m1, which are 0, 0.5, 1, 1.5, 2, 3, 4 and 6.
E2M1_BOUNDARIES = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
LARGEST_E2M1, LARGEST_E4M3 = 6.0, 448.0

EXPERTS = re.compile(r"(.*\.layers\.\d+\.experts)\.(gate_up_proj|down_proj)")
ATTENTION = re.compile(r".*decoder\.layers\.\d+\.self_attn\.[qkvo]_proj\.weight")
MLP = re.compile(r".*decoder\.layers\.\d+\.mlp\.(gate|up|down)_proj\.weight")


def write(source: Path, folder: Path, layout: Layout) -> Path:
    """Write a copy of a plain checkpoint in one of the layouts, and return its folder."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors = load_file(source / "model.safetensors")
    save_file(dict(converted(tensors, layout)), folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    if (quantization := QUANTIZATION[layout]) is not None:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_to_cache(source: Path, cache: Path, layout: Layout) -> Path:
    """The same in a cache of the Hub, under the name of the layout's repository."""
    repo = cache / f"models--{REPOSITORIES[layout].replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    return write(source, repo / "snapshots" / COMMIT, layout)


def converted(tensors: dict[str, torch.Tensor], layout: Layout) -> Iterator[tuple[str, torch.Tensor]]:
    """A plain checkpoint's tensors, by the names and in the formats of a layout."""
    pack = {"google bf16": None, "redhat fp8": fp8, "nvidia nvfp4": modelopt_nvfp4, "redhat nvfp4": redhat_nvfp4}[
        layout
    ]
    for name, tensor in tensors.items():
        dense = ATTENTION.fullmatch(name) or MLP.fullmatch(name)
        packs_dense = (layout == "redhat fp8" and dense) or (layout == "redhat nvfp4" and MLP.fullmatch(name))
        if pack is not None and (match := EXPERTS.fullmatch(name)):
            for expert, stacked in enumerate(tensor):
                parts = zip(("gate", "up"), stacked.chunk(2), strict=True)
                matrices = dict(parts) if match[2] == "gate_up_proj" else {"down": stacked}
                for kind, matrix in matrices.items():
                    for end, packed in pack(matrix.float()).items():
                        yield f"{match[1]}.{expert}.{kind}_proj.{end}", packed
        elif pack is not None and packs_dense:
            for end, packed in pack(tensor.float()).items():
                yield f"{name.removesuffix('weight')}{end}", packed
        else:
            yield name, tensor


def fp8(matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    """e4m3 with a bf16 scale an output row."""
    scale = (matrix.abs().amax(1, keepdim=True) / LARGEST_E4M3).clamp(min=1e-12).bfloat16()
    return {"weight": (matrix / scale.float()).to(torch.float8_e4m3fn), "weight_scale": scale}


def modelopt_nvfp4(matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    """Scales of blocks times a scale of the matrix. `input_scale` is for 4-bit activations."""
    whole = matrix.abs().amax() / (LARGEST_E2M1 * LARGEST_E4M3)
    packed, scale = _nvfp4(matrix, whole)
    return {
        "weight": packed,
        "weight_scale": scale,
        "weight_scale_2": whole.clone(),
        "input_scale": torch.tensor(0.01),
    }


def redhat_nvfp4(matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    """Scales of blocks divided by a scale of the matrix."""
    whole = LARGEST_E2M1 * LARGEST_E4M3 / matrix.abs().amax()
    packed, scale = _nvfp4(matrix, 1 / whole)
    return {
        "weight_packed": packed,
        "weight_scale": scale,
        "weight_global_scale": whole.reshape(1),
        "input_global_scale": torch.tensor([100.0]),
    }


def _nvfp4(matrix: torch.Tensor, whole: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    blocks = matrix.view(len(matrix), -1, 16)
    scale = (blocks.abs().amax(-1) / LARGEST_E2M1 / whole).to(torch.float8_e4m3fn)
    scaled = blocks / (scale.float() * whole).clamp(min=1e-30)[..., None]
    codes = torch.bucketize(scaled.abs(), E2M1_BOUNDARIES) + 8 * (scaled < 0)
    low, high = codes.view(len(matrix), -1, 2).unbind(-1)
    return (low | high << 4).to(torch.uint8), scale


_FP4_WEIGHTS = {"num_bits": 4, "type": "float", "group_size": 16, "dynamic": False, "symmetric": True}

QUANTIZATION: dict[Layout, dict[str, Any] | None] = {
    "google bf16": None,
    "redhat fp8": {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head", "re:.*router.*", "re:.*vision.*", "re:.*embed_vision.*", "re:.*self_conditioning.*"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 8,
                    "type": "float",
                    "strategy": "channel",
                    "dynamic": False,
                    "symmetric": True,
                },
                "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
            }
        },
    },
    "nvidia nvfp4": {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "ignore": [
            "lm_head",
            "model.embed_vision*",
            "*mlp*",
            "*router*",
            "*self_attn*",
            "*self_conditioning*",
            "*vision_tower*",
        ],
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": _FP4_WEIGHTS, "input_activations": _FP4_WEIGHTS}
        },
        "producer": {"name": "modelopt", "version": "0.40.0"},
    },
    "redhat nvfp4": {
        "quant_method": "compressed-tensors",
        "format": "nvfp4-pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head", "re:.*router.*", "re:.*self_attn.*", "re:.*vision.*", "re:.*self_conditioning.*"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**_FP4_WEIGHTS, "strategy": "tensor_group"},
                "input_activations": {**_FP4_WEIGHTS, "strategy": "tensor_group", "dynamic": "local"},
            }
        },
    },
}
