"""The experts of a layer: small gated MLPs, of which each token goes through the few that its router chose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Iterator

# Public since torch 2.10. Products of the rows of each expert with its matrix, one launch whatever the routing.
_GROUPED_MM: Any = getattr(F, "grouped_mm", getattr(torch, "_grouped_mm", None))


def gelu_gate(gate_up: torch.Tensor) -> torch.Tensor:
    """`[n, 2 I]`, the gates first, to `[n, I]`: gelu(gate) × up, with the tanh approximation of gelu."""
    gate, up = gate_up.chunk(2, -1)
    return F.gelu(gate, approximate="tanh") * up


class Experts:
    """All experts of one layer. E experts of width I over a hidden size H."""

    def __init__(self, experts: int, hidden: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        """The weights are whatever was in memory, until somebody fills them."""
        self.gate_up = torch.empty(experts, 2 * width, hidden, dtype=dtype, device=device)
        """`[E, 2 I, H]`, the gates first"""
        self.down = torch.empty(experts, hidden, width, dtype=dtype, device=device)
        """`[E, H, I]`"""
        # By way of the CPU: on the meta device, where names and shapes are looked at, it would import sympy.
        self._numbers = torch.arange(experts, device="cpu").to(device)
        self._is_grouped = _can_group(self.gate_up)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Each weight by the end of its name in a checkpoint."""
        yield "gate_up_proj", self.gate_up
        yield "down_proj", self.down

    def __call__(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """`x` `[n, H]` through its experts: `chosen` int64 and their `weights`, both `[n, k]`, to `[n, H]`.

        A token's results are added in the order of `chosen`, so that two runs are equal bit for bit.
        """
        by_expert, order = chosen.flatten().sort(stable=True)  # [n k]
        rows = x.index_select(0, order // chosen.shape[1])  # [n k, H], those of an expert together
        results = self._grouped(rows, by_expert) if self._is_grouped else self._one_by_one(rows, by_expert)
        back = torch.empty_like(results).index_copy_(0, order, results)
        return (back.view(*chosen.shape, -1) * weights[..., None]).sum(1).to(x.dtype)

    def _grouped(self, rows: torch.Tensor, by_expert: torch.Tensor) -> torch.Tensor:
        """Nothing waits for the device, and no shape depends on the routing."""
        ends = torch.searchsorted(by_expert, self._numbers, right=True, out_int32=True)  # [E]
        gated = gelu_gate(_GROUPED_MM(rows, self.gate_up.transpose(1, 2), offs=ends))
        result: torch.Tensor = _GROUPED_MM(gated, self.down.transpose(1, 2), offs=ends)
        return result

    def _one_by_one(self, rows: torch.Tensor, by_expert: torch.Tensor) -> torch.Tensor:
        """The host has to know how many rows each expert has: on an accelerator it waits for them."""
        results = torch.empty_like(rows)
        start = 0
        for expert, count in enumerate(torch.bincount(by_expert, minlength=len(self._numbers)).tolist()):
            if count:
                mine = slice(start, start + count)
                gated = gelu_gate(F.linear(rows[mine], self.gate_up[expert]))
                torch.mm(gated, self.down[expert].T, out=results[mine])
                start += count
        return results


def _can_group(gate_up: torch.Tensor) -> bool:
    """torch has the kernel for bf16 from Hopper on, rows of whole 16 bytes; elsewhere it loops, or refuses."""
    if _GROUPED_MM is None or gate_up.device.type != "cuda" or gate_up.dtype != torch.bfloat16:
        return False
    _, two_widths, hidden = gate_up.shape
    is_aligned = hidden % 8 == 0 and two_widths % 16 == 0
    return is_aligned and torch.version.hip is None and torch.cuda.get_device_capability(gate_up.device) >= (9, 0)
