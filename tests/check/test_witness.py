"""Each layer against transformers' class: rounding passes, one wrong expert doesn't."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.check import witness
from llm_diffusiongemma.diffusion.loading import describe
from llm_diffusiongemma.diffusion.network import Network

from ..layouts import synthetic
from ..layouts.writer import Layout
from .conftest import load

PROMPT = [2, 105, 636, 217, 407, 389, 288, 547, 34, 106, 217, 105, 1208, 217]


def compare(
    network: Network, folder: Path = EMBEDDED_CHECKPOINT, room_bytes: int = 1 << 30, prompt: list[int] = PROMPT
) -> witness.Finding:
    return witness.compare(network, describe(folder), prompt, room_bytes)


def in_bf16(network: Network) -> Network:
    converted = Network(network.config, torch.bfloat16, network.device)
    for (_, place), (_, tensor) in zip(converted.tensors(), network.tensors(), strict=True):
        place.copy_(tensor)
    return converted


def test_ours_computes_what_theirs_does_in_either_dtype() -> None:
    network = load(EMBEDDED_CHECKPOINT)
    assert compare(network).outcome == "passed"
    # Of enough rows that one may come to another expert by rounding, as it does on some processors.
    assert compare(in_bf16(network), prompt=PROMPT * 8).outcome == "passed"


def test_it_knows_layers_as_uneven_as_the_real_ones(tmp_path: Path) -> None:
    """Full attention has heads twice as wide and half as many keys; reading has scalars of its own."""
    sizes = {"per_layer_config": None, "global_head_dim": 64, "num_global_key_value_heads": 1}
    folder = synthetic.write(tmp_path / "uneven", "google bf16", **sizes)
    weights = load_file(folder / "model.safetensors")
    for layer in range(4):
        weights[f"model.encoder.language_model.layers.{layer}.layer_scalar"].fill_(0.5)
    save_file(weights, folder / "model.safetensors")
    assert compare(load(folder), folder).outcome == "passed"


def one_expert(network: Network) -> None:
    experts = network._layers[2].experts
    assert experts is not None
    experts.gate_up.held()[0][1].copy_(experts.gate_up.held()[0][0])


def scalar_of_reading(network: Network) -> None:
    network._layers[1].scalar["encode"].mul_(1.2)


def rope(network: Network) -> None:
    network._frequencies = {place: each * 1.01 for place, each in network._frequencies.items()}


def final_norm(network: Network) -> None:
    network._final_norm.weight.add_(1)


def no_number(network: Network) -> None:
    network._layers[2].norms.input.weight.fill_(torch.nan)


@pytest.mark.parametrize(
    ("mistake", "where"),
    [
        (one_expert, "Layer 2"),
        (scalar_of_reading, "Layer 1 (encode)"),
        (rope, "Layer"),
        (final_norm, "Layer 3 (denoise)"),
        (no_number, "Layer 2 (encode)"),
    ],
)
def test_what_is_wrong_is_found_in_its_layer(mistake: Callable[[Network], None], where: str) -> None:
    network = in_bf16(load(EMBEDDED_CHECKPOINT))
    mistake(network)
    found = compare(network)
    assert found.outcome == "failed"
    assert found.says.startswith(where)


def test_what_it_can_not_look_at_is_skipped(
    folder_of: Callable[[Layout], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = folder_of("nvidia nvfp4")
    assert compare(load(packed), packed).outcome == "skipped"
    found = compare(load(EMBEDDED_CHECKPOINT), room_bytes=-1)
    assert (found.outcome, "host's memory" in found.says) == ("skipped", True)
    # As a transformers before 5.23 has no such module.
    monkeypatch.setitem(sys.modules, "transformers.models.diffusion_gemma", None)
    found = compare(load(EMBEDDED_CHECKPOINT))
    assert (found.outcome, "transformers 5.23" in found.says) == ("skipped", True)
