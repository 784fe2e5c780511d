"""A checkpoint loaded whole to one device, as most tests want it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from llm_diffusiongemma.diffusion.loading import LoadedModel, describe, load_model
from llm_diffusiongemma.diffusion.placement import whole

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def load_whole(
    folder: Path,
    device: torch.device | str = "cpu",
    check_wanted: Callable[[], None] = lambda: None,
    progress: Callable[[int], None] = lambda num_bytes: None,
) -> LoadedModel:
    described = describe(folder)
    num_layers = described.config.text_config.num_hidden_layers
    placement = whole(described.formats.representation, num_layers, str(device))
    return load_model(described, placement, check_wanted, progress)
