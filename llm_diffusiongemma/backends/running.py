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
from ..wording import quoted

# What decides besides the model's entry where it runs, and for weights of the Hub which they are.
DEVICE_VARIABLES = (
    *(DEVICE_VARIABLE, MEMORY_VARIABLE),
    *("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
)
HUB_VARIABLES = ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HF_HUB_OFFLINE", "HF_ENDPOINT")


@dataclass(frozen=True)
class Identity:
    """What decides about a reply, besides the request."""

    version: str
    model_id: str
    sources: tuple[tuple[str, str | None], ...]
    """of each where it is, and its revision"""
    device: str | None
    environment: Mapping[str, str]

    def difference(self, wanted: Identity) -> str | None:
        """What a server of this identity has that is not wanted, as the rest of a sentence; None if nothing."""
        if self.version != wanted.version:
            return f"is of version {quoted(self.version, 100)} of llm-diffusiongemma, and this is {wanted.version}"
        if self.model_id != wanted.model_id:
            return f"has {quoted(self.model_id, 100)}"
        if self.sources != wanted.sources:
            return "has other weights of that name"
        for name in sorted({*self.environment, *wanted.environment}):
            theirs, ours = self.environment.get(name), wanted.environment.get(name)
            if theirs != ours:
                return f"was started with {_setting(name, theirs)}, and here is {_setting(name, ours)}"
        if self.device != wanted.device:
            return f"has its device from an earlier entry of that name ({quoted(self.device, 100)})"
        return None


def _setting(name: str, value: str | None) -> str:
    return f"no {name}" if value is None else f"{name}={quoted(value, 100)}"


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
    """Of a server for a model, were it started here and now."""
    is_of_the_hub = any(isinstance(source.where, str) for source in entry.sources)
    names = DEVICE_VARIABLES + (HUB_VARIABLES if is_of_the_hub else ())
    return Identity(
        version=importlib.metadata.version("llm-diffusiongemma"),
        model_id=entry.model_id,
        sources=tuple((_place(source.where), source.revision) for source in entry.sources),
        device=entry.device,
        environment={name: os.environ[name] for name in names if name in os.environ},
    )


def _place(where: str | Path) -> str:
    return where if isinstance(where, str) else str(where.absolute())  # a server is in another folder


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
