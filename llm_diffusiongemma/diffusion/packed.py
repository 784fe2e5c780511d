"""How stored bytes become numbers: one small class a format. Pure functions over tensors; no network, no file.

A `Matrices` is a stack of S matrices `[out, in]` that lie in memory together. Its rows may be those of several
matrices of a checkpoint (gate and up, or q, k and v), here called parts. Bytes stay bytes, uint8, until somebody
needs numbers: they are decoded by tables, since not every device has fp8 numbers.

Formats of the Hub's checkpoints, read from their definitions:

    fp8     e4m3 (OCP 8-bit floating point, fn variant) × one scale an output row
    nvfp4   e2m1, two a byte and the low nibble first, × an e4m3 scale for each 16 input channels, and a scale for
            the matrix, which ModelOpt multiplies by and compressed-tensors divides by
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..catalog import Representation

# Input channels that share a scale.
NVFP4_BLOCK = 16

# So much of a matrix is numbers at a time: what a cache of a processor holds, and what keeps a card busy.
PIECE_BYTES = {"cpu": 1 << 24, "cuda": 1 << 27}


class Scratch:
    """One piece of memory for numbers that live for one product. What was in it is gone with the next use."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self.piece_bytes = PIECE_BYTES.get(device.type, 1 << 26)
        self._memory = torch.empty(0, dtype=dtype, device=device)

    def of(self, *shape: int) -> torch.Tensor:
        """Uninitialised, contiguous."""
        count = math.prod(shape)
        if count > len(self._memory):
            self._memory = self._memory.new_empty(0)  # let go of it first
            self._memory = self._memory.new_empty(count)
        return self._memory[:count].view(shape)

    def matrices_at_a_time(self, outputs: int, inputs: int) -> int:
        """How many whole ones are one piece: one at least."""
        return max(1, self.piece_bytes // (outputs * inputs * self.dtype.itemsize))

    def rows_at_a_time(self, inputs: int) -> int:
        """How many rows of one are a piece."""
        return max(1, self.piece_bytes // (inputs * self.dtype.itemsize))


class Matrices:
    """S matrices `[out, in]` in one format. Their values are whatever was in memory, until somebody fills them."""

    name: ClassVar[Representation]

    def __init__(
        self, stack: int, parts: tuple[int, ...], inputs: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """`parts` are the output rows of each matrix of a checkpoint that they are made of, in their order.

        `dtype` is that of the numbers where the format leaves it open.
        """
        self.stack, self.parts, self.outputs, self.inputs = stack, parts, sum(parts), inputs

    def held(self) -> tuple[torch.Tensor, ...]:
        """All that is in memory, each contiguous. The same for equal sizes and format, so one can be copied over
        another."""
        raise NotImplementedError

    def tensors(self, which: int, part: int) -> Iterator[tuple[str, torch.Tensor]]:
        """Where one matrix's values belong, as views of the dtypes that they are stored in, each with the end of
        its name in a checkpoint."""
        raise NotImplementedError

    def dequantise(self, which: slice, rows: slice, out: torch.Tensor) -> torch.Tensor:
        """The numbers of some rows of some matrices, into `out` `[k, n, in]` of any floating-point dtype.

        Exact in fp32, and rounded from there.
        """
        raise NotImplementedError

    def times(self, x: torch.Tensor, scratch: Scratch) -> torch.Tensor:
        """The first matrix as a linear layer: `[n, in]` to `[n, out]`, a piece of it after the other."""
        result = x.new_empty(len(x), self.outputs)
        step = scratch.rows_at_a_time(self.inputs)
        for start in range(0, self.outputs, step):
            rows = slice(start, min(start + step, self.outputs))
            weight = self.dequantise(slice(1), rows, scratch.of(1, rows.stop - rows.start, self.inputs))
            result[:, rows] = F.linear(x, weight[0])
        return result

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.held())

    def _rows(self, part: int) -> slice:
        start = sum(self.parts[:part])
        return slice(start, start + self.parts[part])


class Plain(Matrices):
    """Numbers as they are: bf16, or what the network computes in."""

    name = "bf16"

    def __init__(
        self, stack: int, parts: tuple[int, ...], inputs: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(stack, parts, inputs, dtype, device)
        self.weight = torch.empty(stack, self.outputs, inputs, dtype=dtype, device=device)
        """`[S, out, in]`"""

    def held(self) -> tuple[torch.Tensor, ...]:
        return (self.weight,)

    def tensors(self, which: int, part: int) -> Iterator[tuple[str, torch.Tensor]]:
        yield "weight", self.weight[which, self._rows(part)]

    def dequantise(self, which: slice, rows: slice, out: torch.Tensor) -> torch.Tensor:
        return out.copy_(self.weight[which, rows])

    def times(self, x: torch.Tensor, scratch: Scratch) -> torch.Tensor:
        return F.linear(x, self.weight[0])


class Fp8(Matrices):
    """value = e4m3(byte) × scale of its row"""

    name = "fp8"

    def __init__(
        self, stack: int, parts: tuple[int, ...], inputs: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(stack, parts, inputs, dtype, device)
        self.weight = torch.empty(stack, self.outputs, inputs, dtype=torch.uint8, device=device)
        """e4m3 `[S, out, in]`"""
        self.scale = torch.empty(stack, self.outputs, 1, dtype=torch.float32, device=device)
        """fp32 `[S, out, 1]`"""

    def held(self) -> tuple[torch.Tensor, ...]:
        return self.weight, self.scale

    def tensors(self, which: int, part: int) -> Iterator[tuple[str, torch.Tensor]]:
        rows = self._rows(part)
        yield "weight", _as_e4m3(self.weight[which, rows])
        yield "weight_scale", self.scale[which, rows]

    def dequantise(self, which: slice, rows: slice, out: torch.Tensor) -> torch.Tensor:
        numbers = F.embedding(self.weight[which, rows].int(), _e4m3(self.weight.device)).squeeze(-1)
        return torch.mul(numbers, self.scale[which, rows], out=out)


class Nvfp4(Matrices):
    """value = e2m1(nibble) × (scale of its block ∘ scale of its matrix)"""

    name = "nvfp4"
    weight_name: ClassVar[str]
    global_scale_name: ClassVar[str]

    def __init__(
        self, stack: int, parts: tuple[int, ...], inputs: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(stack, parts, inputs, dtype, device)

        def new(*shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
            return torch.empty(stack, *shape, dtype=dtype, device=device)

        self.weight = new(self.outputs, inputs // 2)
        """e2m1 pairs `[S, out, in / 2]`"""
        self.scale = new(self.outputs, inputs // NVFP4_BLOCK)
        """e4m3 `[S, out, in / 16]`"""
        self.global_scale = new(len(parts), dtype=torch.float32)
        """fp32 `[S, parts]`"""
        numbers = torch.arange(len(parts), device="cpu").repeat_interleave(torch.tensor(parts, device="cpu"))
        self._part_of_row = numbers.to(device)  # [out]

    def held(self) -> tuple[torch.Tensor, ...]:
        return self.weight, self.scale, self.global_scale

    def tensors(self, which: int, part: int) -> Iterator[tuple[str, torch.Tensor]]:
        rows = self._rows(part)
        yield self.weight_name, self.weight[which, rows]
        yield "weight_scale", _as_e4m3(self.scale[which, rows])
        yield self.global_scale_name, self.global_scale[which, part]

    def dequantise(self, which: slice, rows: slice, out: torch.Tensor) -> torch.Tensor:
        device = self.weight.device
        pairs = F.embedding(self.weight[which, rows].int(), _e2m1_pairs(device))  # [k, n, in / 2, 2]
        scale = F.embedding(self.scale[which, rows].int(), _e4m3(device))  # [k, n, in / 16, 1]
        global_scale = self.global_scale[which][:, self._part_of_row[rows], None, None]  # [k, n, 1, 1]
        blocks = (*scale.shape[:-1], NVFP4_BLOCK)
        torch.mul(pairs.view(blocks), self._combined(scale, global_scale), out=out.view(blocks))
        return out

    def _combined(self, scale: torch.Tensor, global_scale: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class ModelOptNvfp4(Nvfp4):
    """As NVIDIA's ModelOpt writes it."""

    weight_name, global_scale_name = "weight", "weight_scale_2"

    def _combined(self, scale: torch.Tensor, global_scale: torch.Tensor) -> torch.Tensor:
        return scale * global_scale


class CompressedTensorsNvfp4(Nvfp4):
    """As compressed-tensors writes it: the scale of a matrix is the reciprocal of the other convention's."""

    weight_name, global_scale_name = "weight_packed", "weight_global_scale"

    def _combined(self, scale: torch.Tensor, global_scale: torch.Tensor) -> torch.Tensor:
        return scale / global_scale


def _as_e4m3(tensor: torch.Tensor) -> torch.Tensor:
    """Apple's devices have no such numbers; what is read to one of them was checked before."""
    return tensor if tensor.device.type == "mps" else tensor.view(torch.float8_e4m3fn)


@cache
def _e4m3(device: torch.device) -> torch.Tensor:
    """The number of each byte, fp32 `[256, 1]`: sign, 4 bits of exponent with bias 7, 3 of mantissa."""
    code = torch.arange(256, device="cpu")
    exponent, mantissa = code >> 3 & 15, (code & 7) / 8
    numbers = torch.where(exponent == 0, mantissa * 2.0**-6, (1 + mantissa) * 2.0 ** (exponent - 7))
    numbers[code & 127 == 127] = torch.nan  # there is no infinity
    return torch.where(code < 128, numbers, -numbers).to(device)[:, None]


@cache
def _e2m1_pairs(device: torch.device) -> torch.Tensor:
    """The two numbers of each byte, fp32 `[256, 2]`: sign, 2 bits of exponent with bias 1, 1 of mantissa."""
    code = torch.arange(16, device="cpu")
    exponent, mantissa = code >> 1 & 3, (code & 1) / 2
    numbers = torch.where(exponent == 0, mantissa, (1 + mantissa) * 2.0 ** (exponent - 1))
    numbers = torch.where(code < 8, numbers, -numbers)
    byte = torch.arange(256, device="cpu")
    return torch.stack((numbers[byte & 15], numbers[byte >> 4]), -1).to(device)


@dataclass(frozen=True)
class Formats:
    """In which format each kind of a network's matrices is stored. All else is plain."""

    experts: type[Matrices] = Plain
    attention: type[Matrices] = Plain
    """q, k, v and o"""
    mlp: type[Matrices] = Plain
    """the dense one beside the experts"""

    @property
    def representation(self) -> Representation:
        """That of the experts, which are nine tenths of the network."""
        return self.experts.name


PLAIN = Formats()
