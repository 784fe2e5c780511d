"""What kernels must know of the card that they are to run on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Ampere, the first with bf16.
OLDEST = (8, 0)


@dataclass(frozen=True)
class Card:
    """One that Triton compiles for, or its interpreter, which runs on the CPU."""

    capability: tuple[int, int] | None
    """NVIDIA's compute capability; None of all others"""
    is_amd: bool = False

    @classmethod
    def of(cls, device: torch.device) -> Card:
        if device.type != "cuda":
            return cls(None)
        is_amd = torch.version.hip is not None
        return cls(None if is_amd else torch.cuda.get_device_capability(device), is_amd)

    @property
    def is_interpreter(self) -> bool:
        return self.capability is None and not self.is_amd

    @property
    def too_old(self) -> str | None:
        """Why no kernel is made for it, a sentence for people."""
        if self.capability is None or self.capability >= OLDEST:
            return None
        ours, oldest = (".".join(map(str, each)) for each in (self.capability, OLDEST))
        return f"kernels need an NVIDIA GPU of compute capability {oldest} or newer, and this one has {ours}"
