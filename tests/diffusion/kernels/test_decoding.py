"""The PTX that decodes packed numbers, instruction by instruction: Triton's interpreter runs none of it.

What each instruction does is from NVIDIA's "PTX ISA", read as 32-bit numbers in int64.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import torch

pytest.importorskip("triton")

from llm_diffusiongemma.diffusion.kernels import decoding
from llm_diffusiongemma.diffusion.packed import Fp8, ModelOptNvfp4

if TYPE_CHECKING:
    from collections.abc import Sequence

CPU = torch.device("cpu")
MASK = 0xFFFF_FFFF


def run(text: str, outputs: int, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The 32-bit results of a block of PTX whose operands are numbered."""
    values = {f"${outputs + i}": each for i, each in enumerate(inputs)}

    def value(operand: str) -> torch.Tensor:
        return values[operand] if operand in values else torch.tensor(int(operand, 0))

    for line in re.sub(r"//.*", "", text).strip("{} \n").split(";"):
        name, _, rest = line.strip().partition(" ")
        if not name or name == ".reg":
            continue
        target, *operands = re.split(r",\s*", rest.strip())
        values[target] = INSTRUCTIONS[name](*map(value, operands)) & MASK
    return [values[f"${i}"] for i in range(outputs)]


def permuted(a: torch.Tensor, b: torch.Tensor, selector: torch.Tensor) -> torch.Tensor:
    """prmt: of the 8 bytes of b and a each of 4, or its highest bit eight times."""
    result = torch.zeros_like(a)
    for i in range(4):
        choice = int(selector) >> 4 * i & 15
        byte = ((a | b << 32) >> 8 * (choice & 7)) & 0xFF
        result |= (byte if choice < 8 else (byte >> 7) * 0xFF) << 8 * i
    return result


def logic(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """lop3: bit by bit what the table has at the three bits."""
    result = torch.zeros_like(a)
    for i in range(8):
        if int(table) >> i & 1:
            x, y, z = (each if i >> place & 1 else ~each for place, each in ((2, a), (1, b), (0, c)))
            result |= x & y & z
    return result


def fused(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """fma.rn.bf16x2: of each half a × b + c."""
    result = torch.zeros_like(a)
    for shift in (0, 16):
        x, y, z = (as_bf16(each >> shift).double() for each in (a, b, c))
        result |= (x * y + z).bfloat16().view(torch.int16).long() % (1 << 16) << shift
    return result


def as_bf16(bits: torch.Tensor) -> torch.Tensor:
    return (bits & 0xFFFF).to(torch.int32).to(torch.uint16).view(torch.bfloat16)


INSTRUCTIONS = {
    "mov.b32": lambda a: a,
    "and.b32": lambda a, b: a & b,
    "add.u32": lambda a, b: a + b,
    "mad.lo.u32": lambda a, b, c: a * b + c,
    "shl.b32": lambda a, b: a << b,
    "shr.u32": lambda a, b: a >> b,
    "prmt.b32": permuted,
    "lop3.b32": logic,
    "fma.rn.bf16x2": fused,
}


def words(values: torch.Tensor, bits: int) -> torch.Tensor:
    """`[n, k]` of so many bits each to `[n]`, the first lowest."""
    return sum(
        (value << bits * i for i, value in enumerate(values.T)), torch.zeros(len(values), dtype=torch.int64)
    )


def halves(results: Sequence[torch.Tensor]) -> torch.Tensor:
    """bf16 `[n, 2 k]` of k words."""
    return torch.stack([as_bf16(word >> shift) for word in results for shift in (0, 16)], -1)


def any_four_bytes() -> torch.Tensor:
    """Each byte at each of four places: `[1024, 4]`."""
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randperm(1024, generator=generator) & 0xFF for _ in range(4)], -1)


def test_e4m3() -> None:
    codes = any_four_bytes()
    result = halves(run(decoding.E4M3_TO_BF16X2.value, 2, [words(codes, 8)]))
    matrices = Fp8(1, (1024,), 4, torch.float32, CPU)
    matrices.weight.copy_(codes)
    matrices.scale.fill_(1.0)
    assert_equal(result.double(), matrices)


def test_e2m1_with_scales() -> None:
    """As in a kernel, with the scale of their block, decoded by the other one and brought into bf16's range."""
    codes = any_four_bytes()
    scales = torch.arange(1024) & 0xFF
    scale = halves(run(decoding.E4M3_TO_BF16X2.value, 2, [words(scales[:, None].expand(-1, 4), 8)]))
    scale = scale * torch.tensor(decoding.PACKED_NVFP4_SCALE.value).bfloat16()
    bits = [words(each.view(torch.int16).long() & 0xFFFF, 16) for each in scale.split(2, -1)]
    results = [
        halves(run(text.value, 2, [words(codes, 8), *bits]))
        for text in (decoding.LOW_TO_BF16X2, decoding.HIGH_TO_BF16X2)
    ]
    matrices = ModelOptNvfp4(1, (1024,), 16, torch.float32, CPU)
    matrices.weight.copy_(codes.repeat(1, 2))
    matrices.scale.copy_(scales[:, None])
    matrices.global_scale.fill_(1.0)
    result = torch.stack(results, -1).flatten(1).double() * decoding.PACKED_NVFP4.value
    assert_equal(result.repeat(1, 2), matrices)


def assert_equal(result: torch.Tensor, matrices: Fp8 | ModelOptNvfp4) -> None:
    expected = torch.empty(1, matrices.outputs, matrices.inputs, dtype=torch.float64)
    matrices.dequantise(slice(None), slice(None), expected)
    assert expected.isnan().any()
    torch.testing.assert_close(result, expected[0], rtol=0, atol=0, equal_nan=True)
