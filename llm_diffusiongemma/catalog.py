"""Which models there are. So far the two built-in ones."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

FULL_REPO = "google/diffusiongemma-26B-A4B-it"
#: Of its weight files, which is what they take in memory.
FULL_WEIGHT_BYTES = 51_600_000_000

#: The trained network that comes with the package, in the layout of a Hub repository.
EMBEDDED_CHECKPOINT = Path(__file__).parent / "tiny" / "checkpoint"

#: A checkpoint folder of one's own, used by `diffusiongemma` instead of the Hub's.
MODEL_VARIABLE = "LLM_DIFFUSIONGEMMA_MODEL"
#: The device that models run on, for example "cuda:1" or "cpu".
DEVICE_VARIABLE = "LLM_DIFFUSIONGEMMA_DEVICE"


@dataclass(frozen=True)
class ModelEntry:
    """A model that `llm` can run: its name, and where its weights are."""

    model_id: str
    source: str | Path
    """A Hub repository ("owner/name"), or a folder with a checkpoint in the same layout."""
    device: str | None = None
    """A torch device; None takes the best there is."""
    weight_bytes: int | None = None
    """About how large a repository's weights are, to judge this machine by where the Hub can't be asked."""

    def __str__(self) -> str:
        """How `llm models` shows it."""
        return f"DiffusionGemma: {self.model_id}"


def built_in() -> tuple[ModelEntry, ...]:
    """The built-in models, with what the environment says. Touches no file."""
    own_folder = os.environ.get(MODEL_VARIABLE, "").strip()
    device = os.environ.get(DEVICE_VARIABLE, "").strip() or None
    if own_folder:
        full = ModelEntry("diffusiongemma", Path(os.path.expanduser(own_folder)), device)
    else:
        full = ModelEntry("diffusiongemma", FULL_REPO, device, FULL_WEIGHT_BYTES)
    return full, ModelEntry("diffusiongemma-tiny", EMBEDDED_CHECKPOINT, device)
