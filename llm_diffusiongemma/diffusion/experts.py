"""The experts of a layer: small gated MLPs, of which each token goes through the few that its router chose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from .packed import Plain, Scratch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .packed import Matrices

# Public since torch 2.10. Products of the rows of each expert with its matrix, one launch whatever the routing.
_GROUPED_MM: Any = getattr(F, "grouped_mm", getattr(torch, "_grouped_mm", None))


def gelu_gate(gate_up: torch.Tensor) -> torch.Tensor:
    """`[n, 2 I]`, the gates first, to `[n, I]`: gelu(gate) × up, with the tanh approximation of gelu."""
    gate, up = gate_up.chunk(2, -1)
    return F.gelu(gate, approximate="tanh") * up


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

    def held(self) -> tuple[torch.Tensor, ...]:
        """All that is in memory, to be copied over that of another layer's experts."""
        return (*self.gate_up.held(), *self.down.held())

    def __call__(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """`x` `[n, H]` through its experts: `chosen` int64 and their `weights`, both `[n, k]`, to `[n, H]`.

        A token's results are added in the order of `chosen`, so that two runs are equal bit for bit.
        """
        by_expert, order = chosen.flatten().sort(stable=True)  # [n k]
        rows = x.index_select(0, order // chosen.shape[1])  # [n k, H], those of an expert together
        if self._is_grouped and isinstance(self.gate_up, Plain) and isinstance(self.down, Plain):
            ends = torch.searchsorted(by_expert, self._numbers, right=True, out_int32=True)  # [E]
            # Nothing waits for the device, and no shape depends on the routing.
            results = _grouped(rows, ends, self.gate_up.weight, self.down.weight)
        else:
            results = self._one_by_one(rows, by_expert)
        back = torch.empty_like(results).index_copy_(0, order, results)
        return (back.view(*chosen.shape, -1) * weights[..., None]).sum(1).to(x.dtype)

    def _one_by_one(self, rows: torch.Tensor, by_expert: torch.Tensor) -> torch.Tensor:
        """The host has to know how many rows each expert has: on an accelerator it waits for them."""
        results = torch.empty_like(rows)
        start = 0
        for expert, count in enumerate(torch.bincount(by_expert, minlength=len(self._numbers)).tolist()):
            if count:
                mine = slice(start, start + count)
                gated = gelu_gate(F.linear(rows[mine], self._matrix(self.gate_up, expert)))
                torch.mm(gated, self._matrix(self.down, expert).T, out=results[mine])
                start += count
        return results

    def _matrix(self, matrices: Matrices, expert: int) -> torch.Tensor:
        """An expert's numbers, until the next one's are asked for."""
        if isinstance(matrices, Plain):
            return matrices.weight[expert]
        out = self._scratch.of(1, matrices.outputs, matrices.inputs)
        return matrices.dequantise(slice(expert, expert + 1), slice(matrices.outputs), out)[0]


def _grouped(rows: torch.Tensor, ends: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    gated = gelu_gate(_GROUPED_MM(rows, gate_up.transpose(1, 2), offs=ends))
    result: torch.Tensor = _GROUPED_MM(gated, down.transpose(1, 2), offs=ends)
    return result


def _can_group(gate_up: Matrices, dtype: torch.dtype, device: torch.device) -> bool:
    """torch has the kernel for bf16 from Hopper on, rows of whole 16 bytes; elsewhere it loops, or refuses."""
    if _GROUPED_MM is None or device.type != "cuda" or dtype != torch.bfloat16 or not isinstance(gate_up, Plain):
        return False
    is_aligned = gate_up.inputs % 8 == 0 and gate_up.outputs % 16 == 0
    return is_aligned and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)
