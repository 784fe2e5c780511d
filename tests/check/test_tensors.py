"""Weight files counted, and two representations of one network compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.check import tensors
from llm_diffusiongemma.diffusion.loading import describe

from ..layouts.writer import Layout
from .conftest import LAYOUTS, PACKED

FolderOf = Callable[[Layout], Path]
EXPERTS = "model.decoder.layers.3.experts."


@pytest.mark.parametrize("layout", PACKED)
def test_a_packed_copy_is_the_same_network(folder_of: FolderOf, layout: Layout) -> None:
    plain, packed = describe(EMBEDDED_CHECKPOINT), describe(folder_of(layout))
    assert tensors.compare(plain, packed).outcome == tensors.compare(packed, plain).outcome == "passed"


def changed(folder: Path, to: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    shutil.copytree(folder, to)
    weights = load_file(to / "model.safetensors")
    change(weights)
    save_file(weights, to / "model.safetensors")
    return to


def one_experts_nibbles(weights: dict[str, torch.Tensor]) -> None:
    name = f"{EXPERTS}0.down_proj.weight"
    weights[name] = weights[name] << 4 | weights[name] >> 4


def one_inverted_scale(weights: dict[str, torch.Tensor]) -> None:
    weights[f"{EXPERTS}3.up_proj.weight_scale_2"].reciprocal_()


def two_experts_exchanged(weights: dict[str, torch.Tensor]) -> None:
    for end in ("weight", "weight_scale", "weight_scale_2"):
        names = [f"{EXPERTS}{expert}.gate_proj.{end}" for expert in (0, 1)]
        weights[names[0]], weights[names[1]] = weights[names[1]], weights[names[0]]


@pytest.mark.parametrize("mistake", [one_experts_nibbles, one_inverted_scale, two_experts_exchanged])
def test_one_wrong_matrix_is_found_and_named(
    folder_of: FolderOf, tmp_path: Path, mistake: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    wrong = changed(folder_of("nvidia nvfp4"), tmp_path / "wrong", mistake)
    found = tensors.compare(describe(EMBEDDED_CHECKPOINT), describe(wrong))
    assert found.outcome == "failed"
    assert found.says.startswith("1 of 44 matrices")
    assert "layers.3.experts." in found.figures[1]


def test_another_network_is_not_compared(tmp_path: Path) -> None:
    other = shutil.copytree(EMBEDDED_CHECKPOINT, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["text_config"]["sliding_window"] = 128
    (other / "config.json").write_text(json.dumps(config))
    assert tensors.compare(describe(EMBEDDED_CHECKPOINT), describe(other)).outcome == "skipped"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_headers_are_counted(folder_of: FolderOf, layout: Layout) -> None:
    found = tensors.headers(describe(folder_of(layout)))
    assert found.outcome == "passed"
    page = "\n".join(found.figures)
    stored = load_file(folder_of(layout) / "model.safetensors")
    assert f"{sum(tensor.dtype == torch.bfloat16 for tensor in stored.values())} BF16" in page
    assert "15 vision_tower" in page
    assert ("48 input_scale" in page) == (layout == "nvidia nvfp4")
