"""The experts of a layer: small gated MLPs, of which each token goes through the few that its router chose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from .operations import gelu_gate
from .packed import Plain, Scratch, multiply

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .packed import Matrices

# Public since torch 2.10. Products of the rows of each expert with its matrix, one launch whatever the routing.
_GROUPED_MM: Any = getattr(F, "grouped_mm", getattr(torch, "_grouped_mm", None))


class Experts:
    """All experts of one layer, in whatever format they are stored. E experts of width I over a hidden size H.

    Plain ones are computed from as they lie. Of others a few at a time become numbers, in `scratch`: never a
    whole layer.
    """

    def __init__(
        self,
        experts: int,
        hidden: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        format: type[Matrices] = Plain,  # noqa: A002
        scratch: Scratch | None = None,
    ) -> None:
        """The weights are whatever was in memory, until somebody fills them."""
        self.gate_up = format(experts, (width, width), hidden, dtype, device)
        """E matrices `[2 I, H]`, the gates first"""
        self.down = format(experts, (hidden,), width, dtype, device)
        """E matrices `[H, I]`"""
        self._scratch = Scratch(dtype, device) if scratch is None else scratch
        # By way of the CPU: on the meta device, where names and shapes are looked at, it would import sympy.
        self._numbers = torch.arange(experts, device="cpu").to(device)
        self._is_grouped = _can_group(self.gate_up, dtype, device)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Where each weight's values belong, by the end of its name in a checkpoint.

        Plain ones are two stacks there; of packed ones each matrix of each expert has its own tensors.
        """
        if isinstance(self.gate_up, Plain) and isinstance(self.down, Plain):
            yield from (("gate_up_proj", self.gate_up.weight), ("down_proj", self.down.weight))
            return
        for expert in range(self.gate_up.stack):
            for name, matrices, part in (
                ("gate_proj", self.gate_up, 0),
                ("up_proj", self.gate_up, 1),
                ("down_proj", self.down, 0),
            ):
                for end, tensor in matrices.tensors(expert, part):
                    yield f"{expert}.{name}.{end}", tensor

    @property
    def waits(self) -> bool:
        """Whether the host has to know how many rows each expert has: on an accelerator it waits for them."""
        return not (self._is_grouped and isinstance(self.gate_up, Plain) and isinstance(self.down, Plain))

    def held(self) -> tuple[torch.Tensor, ...]:
        """All that is in memory, to be copied over that of another layer's experts."""
        return (*self.gate_up.held(), *self.down.held())

    def __call__(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """`x` `[n, H]` through its experts: `chosen`, integers, and their `weights`, both `[n, k]`, to the result
        of each times its weight, fp32 `[n, k, H]`."""
        by_expert, order = chosen.flatten().sort(stable=True)  # [n k]
        rows = x.index_select(0, order // chosen.shape[1])  # [n k, H], those of an expert together
        numbers = self._numbers.to(by_expert.dtype)
        ends = torch.searchsorted(by_expert, numbers, right=True, out_int32=True)  # [E]
        if self._is_grouped and isinstance(self.gate_up, Plain) and isinstance(self.down, Plain):
            # Nothing waits for the device, and no shape depends on the routing.
            gated = gelu_gate(_grouped(rows, self.gate_up.weight, ends))
            results = _grouped(gated, self.down.weight, ends)
        else:
            bounds = [0, *ends.tolist()]
            gated = gelu_gate(self._products(rows, self.gate_up, ends, bounds))
            results = self._products(gated, self.down, ends, bounds)
        back = torch.empty_like(results).index_copy_(0, order, results)
        return back.view(*chosen.shape, -1) * weights[..., None]

    def _products(
        self, rows: torch.Tensor, matrices: Matrices, ends: torch.Tensor, bounds: list[int]
    ) -> torch.Tensor:
        """The rows of each expert times its matrix: `[n k, in]` to `[n k, out]`.

        Expert e has those from `bounds[e]` to `bounds[e + 1]`, which is `ends[e]`.
        """
        results = rows.new_empty(len(rows), matrices.outputs)
        for which, outputs in matrices.pieces(self._scratch):
            first, last = bounds[which.start], bounds[which.stop]
            if first == last:
                continue
            numbers = matrices.numbers(which, outputs, self._scratch)
            if self._is_grouped:
                results[first:last, outputs] = _grouped(rows[first:last], numbers, ends[which] - first)
                continue
            for expert, matrix in enumerate(numbers, which.start):
                mine = slice(bounds[expert], bounds[expert + 1])
                if mine.start < mine.stop:
                    multiply(rows[mine], matrix, results[mine, outputs])
        return results


def _grouped(rows: torch.Tensor, matrices: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """`[n, in]`, the rows up to `ends` `[k]` times each of `[k, out, in]`: `[n, out]`."""
    results: torch.Tensor = _GROUPED_MM(rows, matrices.transpose(1, 2), offs=ends)
    return results


def _can_group(gate_up: Matrices, dtype: torch.dtype, device: torch.device) -> bool:
    """torch has the kernel for bf16 from Hopper on, rows of whole 16 bytes; elsewhere it loops, or refuses."""
    if _GROUPED_MM is None or device.type != "cuda" or dtype != torch.bfloat16:
        return False
    is_aligned = gate_up.inputs % 8 == 0 and gate_up.outputs % 16 == 0
    return is_aligned and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)
