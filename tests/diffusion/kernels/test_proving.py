"""All kernels together at their trial, as at load: what is used is right, whatever it was proved beside before."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import NoReturn

import pytest
import torch

pytest.importorskip("triton")

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.diffusion import trial
from llm_diffusiongemma.diffusion.config_file import read_config
from llm_diffusiongemma.diffusion.kernels import layer
from llm_diffusiongemma.diffusion.operations import Operations
from llm_diffusiongemma.diffusion.packed import PLAIN
from llm_diffusiongemma.diffusion.proving import _start_triton, import_kernels, tried
from llm_diffusiongemma.diffusion.trial import Trial

# The embedded checkpoint's network, with less of a canvas and a vocabulary: the interpreter takes minutes for all.
CONFIG = replace(read_config(EMBEDDED_CHECKPOINT).network(), canvas_length=3, vocab_size=600)


def explain(error: Exception) -> NoReturn:
    raise error


def test_all_are_right_together(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "CHUNKS", (1,))
    kernels = import_kernels()
    offers = [module.usable(CONFIG, PLAIN, torch.float32, device) for module in kernels]
    verdict = tried(offers, Trial(CONFIG, PLAIN, torch.float32, device, explain))
    assert verdict.switched_off == {}
    # Of plain dense matrices torch's own product is the best there is.
    assert {*verdict.in_use} == {each.name for each in fields(Operations)} - {"linear"}


def test_one_that_is_broken_is_found(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a hundredth."""
    monkeypatch.setattr(trial, "CHUNKS", (1,))
    kernels = {"gelu_gate": lambda gate_up: layer.gelu_gate(gate_up * 1.01), "route": layer.route}
    verdict = tried([(kernels, {})], Trial(CONFIG, PLAIN, torch.float32, device, explain))
    assert (verdict.in_use, verdict.failed) == (("route",), ("gelu_gate",))


def test_interpreted_kernels_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would give what is right, in minutes; whichever way Triton was told so."""
    monkeypatch.setenv("TRITON_INTERPRET", "true")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET has kernels interpreted"):
        _start_triton()
