"""The embedded checkpoint's network on a card, against the CPU. On a CPU all of this is skipped."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.diffusion.experts import Experts
from llm_diffusiongemma.diffusion.loading import LoadedModel, load_model

from .networks import converted, network_config, random_network
from .rightness import answer, logits, question, relative_error
from .speed import CapturedStep


@pytest.fixture(scope="module")
def reference() -> LoadedModel:
    return load_model(EMBEDDED_CHECKPOINT, torch.device("cpu"))


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_the_same_logits(reference: LoadedModel, card: torch.device, dtype: torch.dtype, most: float) -> None:
    prompt = question("What is a canvas?")
    found = logits(converted(reference.network, dtype, card), prompt)
    assert relative_error(found, logits(reference.network, prompt)) <= most


@pytest.mark.parametrize("text", ["What is a canvas?", "Count from 1 to 300"])
def test_the_same_reply(reference: LoadedModel, card: torch.device, text: str) -> None:
    """Token for token, in as many denoising steps. Counting takes two canvases."""
    ours = answer(reference, converted(reference.network, torch.float32, card), question(text), seed=1)
    assert ours == answer(reference, reference.network, question(text), seed=1)
