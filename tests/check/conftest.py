"""The embedded checkpoint in the layouts of the Hub's repositories."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pytest

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.check import first_layers
from llm_diffusiongemma.diffusion.loading import describe, load_model
from llm_diffusiongemma.diffusion.placement import whole

from ..layouts.writer import Layout, write

if TYPE_CHECKING:
    from llm_diffusiongemma.diffusion.network import Network

LAYOUTS: tuple[Layout, ...] = get_args(Layout)
PACKED = LAYOUTS[1:]


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Layout], Path]:
    """The folder of a layout."""
    folder = tmp_path_factory.mktemp("layouts")
    return cache(lambda layout: write(EMBEDDED_CHECKPOINT, folder / f"my-own {layout}", layout))


def load(folder: Path, num_layers: int = 4) -> Network:
    """A network of one's own, maybe of the first few layers only."""
    described = describe(folder)
    cut = replace(described, config=first_layers(described.config, num_layers))
    return load_model(cut, whole(cut.formats.representation, num_layers, "cpu")).network
