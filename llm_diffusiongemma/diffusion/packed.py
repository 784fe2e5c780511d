"""How stored bytes become numbers: one small class a format. Pure functions over tensors; no network, no file.

A `Matrices` is a stack of S matrices `[out, in]` that lie in memory together. Its rows may be those of several
matrices of a checkpoint (gate and up, or q, k and v), here called parts. Bytes stay bytes, uint8, until somebody
needs numbers.

Formats of the Hub's checkpoints, read from their definitions:

    fp8     e4m3 (OCP 8-bit floating point, fn variant) × one scale an output row
    nvfp4   e2m1, two a byte and the low nibble first, × an e4m3 scale for each 16 input channels, and a scale for
            the matrix, which ModelOpt multiplies by and compressed-tensors divides by

Both small floats are fp16 with less exponent and less mantissa: their bits, moved to where fp16 has them, are the
number over a power of two, exactly. A processor does that three to five times as fast as it looks bytes up in a
table or converts torch's own fp8, and a device needs no fp8 numbers for it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..catalog import Representation

# Input channels that share a scale.
NVFP4_BLOCK = 16

# So much of a matrix is numbers at a time: what a processor's cache holds, and what keeps an accelerator busy
# while the host queues the next. Making them takes up to twice as much beside them.
CPU_PIECE_BYTES, PIECE_BYTES = 1 << 22, 1 << 26


class Scratch:
    """One piece of memory for numbers that live for one product. What was in it is gone with the next use."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        """`dtype` is that of the network."""
        is_cpu = device.type == "cpu"
        # Few processors multiply bf16 or fp16 as fast as fp32: here bf16 took six times as long.
        self.dtype = dtype if not is_cpu or is_multiplied_fast(dtype) else torch.float32
        self.piece_bytes = CPU_PIECE_BYTES if is_cpu else PIECE_BYTES
        self._memory = torch.empty(0, dtype=self.dtype, device=device)

    def of(self, *shape: int) -> torch.Tensor:
        """Uninitialised, contiguous."""
        count = math.prod(shape)
        if count > len(self._memory):
            self._memory = self._memory.new_empty(0)  # let go of it first
            self._memory = self._memory.new_empty(count)
        return self._memory[:count].view(shape)


def is_multiplied_fast(dtype: torch.dtype) -> bool:
    """Whether this processor has instructions for products of such numbers."""
    # torch says so under no public name.
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported") if dtype == torch.bfloat16 else ()
    return dtype == torch.float32 or any(getattr(torch.cpu, name, bool)() for name in asked)


class Matrices(ABC):
    """S matrices `[out, in]` in one format. Their values are whatever was in memory, until somebody fills them."""

    name: ClassVar[Representation]

    def __init__(
        self, stack: int, parts: tuple[int, ...], inputs: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """`parts` are the output rows of each matrix of a checkpoint that they are made of, in their order.

        `dtype` is that of the numbers where the format leaves it open.
        """
        self.stack, self.parts, self.outputs, self.inputs = stack, parts, sum(parts), inputs

    @abstractmethod
    def held(self) -> tuple[torch.Tensor, ...]:
        """All that is in memory, each contiguous. The same for equal sizes and format, so one can be copied over
        another."""

    @abstractmethod
    def tensors(self, which: int, part: int) -> Iterator[tuple[str, torch.Tensor]]:
        """Where one matrix's values belong, as views of the dtypes that they are stored in, each with the end of
        its name in a checkpoint."""

    @abstractmethod
    def dequantise(self, which: slice, rows: slice, out: torch.Tensor) -> torch.Tensor:
        """The numbers of some rows of some matrices, into `out` `[k, n, in]`: contiguous, of any float dtype.

        A format's products are rounded to fp32 each, and the last to `out`'s dtype.
        """

    def pieces(self, scratch: Scratch) -> Iterator[tuple[slice, slice]]:
        """Which matrices and which of their rows become numbers at a time: several whole ones, or part of one."""
        row_bytes = self.inputs * scratch.dtype.itemsize
        matrices = max(1, scratch.piece_bytes // (self.outputs * row_bytes))
        rows = min(self.outputs, max(1, scratch.piece_bytes // row_bytes))
        for first in range(0, self.stack, matrices):
            for row in range(0, self.outputs, rows):
                yield slice(first, min(first + matrices, self.stack)), slice(row, min(row + rows, self.outputs))

    def numbers(self, which: slice, rows: slice, scratch: Scratch) -> torch.Tensor:
        """Of one of `pieces`: `[k, n, in]`, until the next is asked for."""
        out = scratch.of(which.stop - which.start, rows.stop - rows.start, self.inputs)
        return self.dequantise(which, rows, out)

    def times(self, x: torch.Tensor, scratch: Scratch) -> torch.Tensor:
        """The only matrix of a stack as a linear layer: `[n, in]` to `[n, out]`."""
        result = x.new_empty(len(x), self.outputs)
        for which, rows in self.pieces(scratch):
            multiply(x, self.numbers(which, rows, scratch)[0], result[:, rows])
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

    # They are multiplied as they lie, but where a processor is slow at that.

    def pieces(self, scratch: Scratch) -> Iterator[tuple[slice, slice]]:
        if self.weight.dtype != scratch.dtype:
            yield from super().pieces(scratch)
        else:
            yield slice(0, self.stack), slice(0, self.outputs)

    def numbers(self, which: slice, rows: slice, scratch: Scratch) -> torch.Tensor:
        if self.weight.dtype != scratch.dtype:
            return super().numbers(which, rows, scratch)
        return self.weight[which, rows]

    def times(self, x: torch.Tensor, scratch: Scratch) -> torch.Tensor:
        return super().times(x, scratch) if self.weight.dtype != scratch.dtype else F.linear(x, self.weight[0])


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
        scale = self.scale[which, rows] * E4M3_IN_FP16
        return torch.mul(_e4m3(self.weight[which, rows]), scale, out=out)


class Nvfp4(Matrices):
    """value = e2m1(nibble) × (scale of its block ∘ scale of its matrix)"""

    name = "nvfp4"
    weight_name: ClassVar[str]
    global_scale_name: ClassVar[str]

    def __init__(
        self, stack: int, parts: tuple[int, ...], inputs: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        if inputs % NVFP4_BLOCK:
            raise ValueError(
                f"nvfp4 has a scale for each {NVFP4_BLOCK} input channels, and {inputs} are no multiple"
            )
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
        self.part_of_row = numbers.to(device)
        """int64 `[out]`"""

    def held(self) -> tuple[torch.Tensor, ...]:
        return self.weight, self.scale, self.global_scale

    def tensors(self, which: int, part: int) -> Iterator[tuple[str, torch.Tensor]]:
        rows = self._rows(part)
        yield self.weight_name, self.weight[which, rows]
        yield "weight_scale", _as_e4m3(self.scale[which, rows])
        yield self.global_scale_name, self.global_scale[which, part]

    def dequantise(self, which: slice, rows: slice, out: torch.Tensor) -> torch.Tensor:
        scale = _e4m3(self.scale[which, rows]).float() * (E4M3_IN_FP16 * E2M1_IN_FP16)  # [k, n, in / 16]
        global_scale = self.global_scale[which][:, self.part_of_row[rows], None]  # [k, n, 1]
        blocks = (*scale.shape, NVFP4_BLOCK)
        numbers = _e2m1(self.weight[which, rows]).view(blocks)
        torch.mul(numbers, self._combined(scale, global_scale)[..., None], out=out.view(blocks))
        return out

    @abstractmethod
    def _combined(self, scale: torch.Tensor, global_scale: torch.Tensor) -> torch.Tensor:
        """The scale of each block `[k, n, in / 16]`, of its own and that of its matrix."""


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


# What a small float's bits in fp16 must be multiplied by: 2 to the difference of the biases of their exponents.
E4M3_IN_FP16 = 2.0 ** (15 - 7)
E2M1_IN_FP16 = 2.0 ** (15 - 1)


def _e4m3(codes: torch.Tensor) -> torch.Tensor:
    """The number of each byte / `E4M3_IN_FP16`, fp16: sign, 4 bits of exponent, 3 of mantissa.

    uint8 `[...]`, as the results. There is no infinity, and all ones behind the sign are no number (NaN).
    """
    bits = codes.view(torch.int8).to(torch.int16)
    bits <<= 7  # sseeeemmm: fp16's exponent is a bit longer, and the sign stands in its place
    carry = bits + 0x80  # changes that bit for a NaN only
    carry &= 0x4000
    bits ^= carry  # clears it, or for a NaN sets it: fp16's largest exponent, which is NaN
    return bits.view(torch.float16)


def _e2m1(codes: torch.Tensor) -> torch.Tensor:
    """The two numbers of each byte / `E2M1_IN_FP16`, fp16: sign, 2 bits of exponent, 1 of mantissa.

    uint8 `[..., n]` to `[..., 2 n]`.
    """
    bits = codes.int()
    bits *= 1 << 12 | 1 << 24  # the low nibble at the top of the low half, the high one at that of the high half
    bits = bits.view(torch.int16)  # little-endian: the low half is the first
    bits >>= 3  # sssseem and what else was there: an arithmetic shift
    bits &= 0x8E00 - (1 << 16)  # s000eem
    return bits.view(torch.float16)


def multiply(x: torch.Tensor, matrix: torch.Tensor, out: torch.Tensor) -> None:
    """`[n, in]` times `[m, in]`, in the matrix's dtype, into `out` `[n, m]`, of x's."""
    if x.dtype == matrix.dtype:
        torch.mm(x, matrix.T, out=out)
    else:
        out.copy_(x.to(matrix.dtype) @ matrix.T)


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
