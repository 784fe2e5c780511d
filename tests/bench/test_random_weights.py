"""A network of random weights: placed as the real one would be, and measured, transformers beside it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from llm_diffusiongemma import bench
from llm_diffusiongemma.backends import choice
from llm_diffusiongemma.bench import networks, random_weights
from llm_diffusiongemma.bench.networks import random_network
from llm_diffusiongemma.bench.theirs import check, transformers_of
from llm_diffusiongemma.catalog import DEVICE_VARIABLE, MEMORY_VARIABLE
from llm_diffusiongemma.diffusion import devices
from llm_diffusiongemma.diffusion.config import DIFFUSIONGEMMA_26B_A4B
from llm_diffusiongemma.diffusion.config_file import ConfigFile
from llm_diffusiongemma.diffusion.placement import LayerHome, Placement
from llm_diffusiongemma.errors import OptionError

from ..conftest import TINY, Llm
from ..gpu.networks import TINY as SIZES

CPU = torch.device("cpu")
CONFIG = ConfigFile.model_validate(SIZES)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has the real network's sizes has these, and no GPU is missed."""
    monkeypatch.setattr(random_weights, "REAL", SIZES)
    monkeypatch.setattr(choice, "DIFFUSIONGEMMA_26B_A4B", CONFIG.network())
    monkeypatch.setattr(bench, "CONTEXT_LENGTHS", (16, 100_000_000))
    monkeypatch.setenv(DEVICE_VARIABLE, "cpu")


def test_its_sizes_are_the_real_ones() -> None:
    assert ConfigFile.model_validate(networks.REAL).network() == DIFFUSIONGEMMA_26B_A4B


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("representation", ["fp8", "nvfp4"])
def test_packed(representation: str, llm_command: Llm) -> None:
    command = ("diffusiongemma", "bench", "--random-weights", representation, "--repeats", "1", "--steps", "2")
    found = json.loads(llm_command.ok(*command, "--json"))
    assert (found["random_weights"], found["representation"]) == (representation, representation)
    assert found["model"] is None
    assert (found["max_denoising_steps"], found["dtype"]) == (2, "bfloat16")
    assert found["left_out_prompt_tokens"] == [100_000_000]
    kind = found["kinds"]["16 tokens"]
    assert kind["steps_per_canvas"] == {"median": 2, "least": 2, "most": 2}
    assert (kind["converged_canvases"]["most"], kind["canvases"]["most"]) == (0, 2)
    assert kind["output_tokens"]["median"] == 2 * CONFIG.canvas_length


@pytest.mark.usefixtures("small")
def test_against_transformers(llm_command: Llm) -> None:
    command = ("diffusiongemma", "bench", "--random-weights", "bf16", "--repeats", "1", "--steps", "2")
    printed = llm_command.ok(*command, "--against", "transformers")
    assert printed.startswith("Random bf16 weights\n")
    assert "canvases of exactly 2 steps" in " ".join(printed.split())
    assert "For a prompt of 100,000,000 tokens there is no room" in " ".join(printed.split())
    _, _, table = printed.partition("Against `generate` of transformers")
    row = next(line for line in table.splitlines() if "16 tokens" in line)
    ours, theirs, times = (float(cell.replace(",", "")) for cell in row.split()[2:])
    assert times == pytest.approx(ours / theirs, rel=0.02)


def test_transformers_has_the_same_memory() -> None:
    network = random_network(CONFIG.network(), CPU)
    model = transformers_of(network, CONFIG)
    theirs = dict(model.named_parameters())
    addresses = {tensor.data_ptr() for _, tensor in network.tensors()}
    ours = {name: each for name, each in theirs.items() if not each.is_meta}
    assert {each.data_ptr() for each in ours.values()} <= addresses
    assert all("vision" in name for name in theirs.keys() - ours.keys())
    assert torch.nn.Linear(2, 2).weight.device == CPU  # what was changed to build it is as it was


def fails(llm_command: Llm, *arguments: str) -> str:
    return llm_command.fails("diffusiongemma", "bench", *arguments)


@pytest.mark.usefixtures("small")
def test_packed_weights_are_none_of_transformers(llm_command: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anybody asks whether they would fit."""
    monkeypatch.setattr(random_weights, "place", None)
    message = fails(llm_command, "--random-weights", "nvfp4", "--against", "transformers")
    assert "--against needs the bf16 ones" in message
    assert "--against needs the bf16 ones" in fails(
        llm_command, "diffusiongemma-nvfp4", "--against", "transformers"
    )


def test_what_does_not_fit_is_refused_with_what_would(llm_command: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_weights, "random_network", None)
    monkeypatch.setattr(devices, "total_memory", lambda device: 2**40)
    monkeypatch.setenv(DEVICE_VARIABLE, "cpu")
    monkeypatch.setenv(MEMORY_VARIABLE, "40GiB")
    message = fails(llm_command, "--random-weights", "bf16")
    assert "no weight files that they could be read from" in message
    assert "Here would fit: --random-weights fp8 and --random-weights nvfp4." in message
    monkeypatch.setenv(MEMORY_VARIABLE, "1GiB")
    message = fails(llm_command, "--random-weights", "bf16")
    assert "There may be taken 1.0 GiB of cpu" in message
    assert f"llm diffusiongemma bench {TINY}" in message
    assert "llm -m" not in message  # that measures nothing
    message = fails(llm_command, "--random-weights", "bf16", "--against", "transformers")
    assert message.endswith(f"llm diffusiongemma bench {TINY} --against transformers")


def test_without_a_gpu_somebody_has_to_insist(llm_command: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("there is one")
    monkeypatch.setattr(random_weights, "random_network", None)
    for gib, is_room in ((64, True), (8, False)):
        monkeypatch.setattr(devices, "total_memory", lambda device, gib=gib: gib * 2**30)
        message = fails(llm_command, "--random-weights", "nvfp4")
        assert (f"Set {DEVICE_VARIABLE}=cpu to measure it there all the same" in message) == is_room
        assert message.endswith(f": llm diffusiongemma bench {TINY}")
        assert "llm -m" not in message
    # Of weights that aren't here, too, only that is named which fits.
    message = fails(llm_command, "diffusiongemma-nvfp4")
    assert message.endswith(f"What it can measure: llm diffusiongemma bench {TINY}")
    assert "--random-weights" not in message


@pytest.mark.usefixtures("small")
def test_memory_that_others_have(llm_command: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(random_weights, "random_network", full)
    assert "cpu ran out of memory while the weights were drawn" in fails(llm_command, "--random-weights", "bf16")


def test_a_streamed_network_is_not_comparable() -> None:
    homes = (LayerHome("cuda:0", "device"), LayerHome("cuda:0", "host"))
    with pytest.raises(OptionError, match="where all are on one device"):
        check(Placement("bf16", homes, "cpu", (), 0, 1, None))
