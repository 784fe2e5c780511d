"""Which models there are, and where their weights come from. The user's own are in registry.py. No torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Representation = Literal["bf16", "fp8", "nvfp4"]
"""In which numbers a network's experts, nine tenths of it, are stored."""

#: The trained network that comes with the package, in the layout of a Hub repository.
EMBEDDED_CHECKPOINT = Path(__file__).parent / "tiny" / "checkpoint"

#: A checkpoint folder of one's own, used by `diffusiongemma` instead of the Hub's.
MODEL_VARIABLE = "LLM_DIFFUSIONGEMMA_MODEL"
#: The device that models run on, for example "cuda:1" or "cpu".
DEVICE_VARIABLE = "LLM_DIFFUSIONGEMMA_DEVICE"
#: The most that this plugin may take of a device, for example "24GiB".
MEMORY_VARIABLE = "LLM_DIFFUSIONGEMMA_MEMORY"
#: "off": no kernels of ours on a card, everything by PyTorch. "on": for a small network, too.
KERNELS_VARIABLE = "LLM_DIFFUSIONGEMMA_KERNELS"
#: "off": no denoising step is captured as a CUDA graph.
GRAPH_VARIABLE = "LLM_DIFFUSIONGEMMA_GRAPH"
#: "off": no server is asked that was not named for a model. Or the URL of the one to be asked.
SERVER_VARIABLE = "LLM_DIFFUSIONGEMMA_SERVER"
#: The model that the tool `diffusiongemma_decide` asks, by default `diffusiongemma`.
DECIDES_VARIABLE = "LLM_DIFFUSIONGEMMA_DECIDES"


@dataclass(frozen=True)
class Source:
    """Where weights are from: a Hub repository ("owner/name"), or a folder in the same layout."""

    where: str | Path
    representation: Representation | None = None
    """None until its config says it."""
    weight_bytes: int | None = None
    """About how large a repository's weights are, to judge this machine by where the Hub can't be asked."""
    revision: str | None = None
    """A branch, tag or commit of a repository; None for the newest that is here, or there is."""

    def __str__(self) -> str:
        return str(self.where)


#: The same network in three representations, the most exact first.
HUB_SOURCES = (
    Source("google/diffusiongemma-26B-A4B-it", "bf16", 51_648_000_000),
    Source("RedHatAI/diffusiongemma-26B-A4B-it-FP8-dynamic", "fp8", 27_198_000_000),
    Source("nvidia/diffusiongemma-26B-A4B-it-NVFP4", "nvfp4", 18_818_000_000),
)


@dataclass(frozen=True)
class Server:
    """An OpenAI-compatible server of somebody's, to be asked in place of weights."""

    url: str
    """as clients are told it: `http://host:8000/v1`"""
    served_model: str | None = None
    """What it calls the model; None if it has only one."""
    key_name: str | None = None
    """Under which `llm keys` has its key."""


@dataclass(frozen=True)
class ModelEntry:
    """A model that `llm` can run: its name, and where its weights may come from."""

    model_id: str
    sources: tuple[Source, ...]
    """One, or the same network in several representations, the most exact first: then the machine decides. None
    if a server has them."""
    device: str | None = None
    """A torch device; None takes the best there is."""
    server: Server | None = None

    def asks_the_same(self, other: ModelEntry) -> bool:
        """Whether both are of one server, be it with another key or another model of it."""
        return self.server is not None and other.server is not None and self.server.url == other.server.url

    def __str__(self) -> str:
        """How `llm models` shows it."""
        return f"DiffusionGemma: {self.model_id}"


def built_in() -> tuple[ModelEntry, ...]:
    """The built-in models, with what the environment says. Touches no file."""
    device, folder = chosen_device(), chosen_folder()
    return (
        ModelEntry("diffusiongemma", HUB_SOURCES if folder is None else (Source(folder),), device),
        *(ModelEntry(f"diffusiongemma-{source.representation}", (source,), device) for source in HUB_SOURCES),
        ModelEntry("diffusiongemma-tiny", (Source(EMBEDDED_CHECKPOINT),), device),
    )


def chosen_folder() -> Path | None:
    """What the environment names for `diffusiongemma`, in place of the Hub's."""
    name = os.environ.get(MODEL_VARIABLE, "").strip()
    return Path(os.path.expanduser(name)) if name else None


def chosen_device() -> str | None:
    """What the environment says, which goes before what a model of the user's own says."""
    return os.environ.get(DEVICE_VARIABLE, "").strip() or None
