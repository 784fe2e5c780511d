"""Which kernels a network may use on its device: those that give there what their twins in torch give.

Nobody's reply rests on what was proved elsewhere, by another compiler for another card.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .operations import PLAIN_TORCH, Operations

if TYPE_CHECKING:
    import torch

    from .config import NetworkConfig
    from .packed import Formats


@dataclass(frozen=True)
class Verdict:
    """What a network computes with on a device, and why not with more."""

    operations: Operations
    in_use: tuple[str, ...] = ()
    """The names of those operations that kernels serve."""
    switched_off: dict[str, str] = field(default_factory=dict)
    """The names of those that a kernel could serve, and why it doesn't: a sentence for people. That of "all" is
    why there are none at all, on a device that could have some."""

    def as_json(self) -> dict[str, Any]:
        """For the report and for `status`."""
        return {"in_use": [*self.in_use], "switched_off": dict(self.switched_off)}


def prove(config: NetworkConfig, formats: Formats, dtype: torch.dtype, device: torch.device) -> Verdict:
    """Run each kernel that such a network can use once on the device, beside its twin."""
    return Verdict(PLAIN_TORCH)
