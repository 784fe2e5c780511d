"""The server of this user that is running: where it can be asked, and what it answers for. No torch.

**Invariant**: a server is asked by itself only for what this process would do just the same.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import llm
from pydantic import TypeAdapter, ValidationError

from ..catalog import DEVICE_VARIABLE, MEMORY_VARIABLE, ModelEntry

# What decides besides the model's entry which weights are taken, and where they go.
VARIABLES = (
    DEVICE_VARIABLE,
    MEMORY_VARIABLE,
    *("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HF_HUB_OFFLINE", "HF_ENDPOINT"),
    *("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
)


@dataclass(frozen=True)
class Identity:
    """What decides about a reply, besides the request."""

    version: str
    model_id: str
    sources: tuple[tuple[str, str | None], ...]
    """of each where it is, and its revision"""
    device: str | None
    environment: Mapping[str, str]

    def difference(self, other: Identity) -> str | None:
        """What isn't the same, in a few words; None if nothing."""
        mine, its = asdict(self), asdict(other)
        return next((name for name in mine if mine[name] != its[name]), None)


@dataclass(frozen=True)
class Running:
    """A server, as it has written itself down."""

    identity: Identity
    pid: int
    started: float
    """seconds since 1970"""
    instance: str
    """A random name, which its `/health` says, so that nobody else is taken for it."""
    socket: str | None
    """The path of its Unix socket, where the system has such."""
    url: str | None
    """`http://127.0.0.1:8642/v1`, if it can be asked by TCP."""
    keep_alive_seconds: float | None
    """After so long without a prompt it lets the weights go; None: never."""
    ends_when_idle: bool
    """It was started by a prompt, and goes itself, too."""


def identity_of(entry: ModelEntry) -> Identity:
    return Identity(
        version=importlib.metadata.version("llm-diffusiongemma"),
        model_id=entry.model_id,
        sources=tuple((str(source.where), source.revision) for source in entry.sources),
        device=entry.device,
        environment={name: os.environ[name] for name in VARIABLES if name in os.environ},
    )


def folder() -> Path:
    """Where the server keeps what concerns it, there or not. Raises `OSError` where llm has no folder."""
    return Path(llm.user_dir()) / "diffusiongemma" / "server"  # type: ignore[no-untyped-call]


def read(text: bytes) -> Running | None:
    """None if that is nothing a server of this version has written."""
    try:
        return TypeAdapter(Running).validate_json(text)
    except ValidationError:
        return None


def as_json(running: Running) -> dict[str, Any]:
    return asdict(running)
