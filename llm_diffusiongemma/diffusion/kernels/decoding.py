"""Stored bytes to numbers, in registers: what `packed` does, for kernels.

Small floats are those of a wider type with less exponent and less mantissa: their bits, moved to where that type
has them, are the number over a power of two, exactly. All that is made here is exact in bf16, fp16 and fp32.

PACKED is for bf16 on NVIDIA's cards: PTX for four bytes at a time, about two operations a number. Everywhere else,
in Triton's interpreter too, it is by way of fp32, about a dozen.
"""

from __future__ import annotations

import triton
import triton.language as tl

# What a small float's bits in fp32, or in bf16, must be multiplied by: 2 to the difference of their biases.
E4M3_IN_FP32 = tl.constexpr(2.0 ** (127 - 7))
E2M1_IN_FP32 = tl.constexpr(2.0 ** (127 - 1))
# Of nvfp4 in bf16 a scale takes as much of that as it can, up to 448 of it, and the product's result the rest.
PACKED_NVFP4_SCALE = tl.constexpr(2.0**119)
PACKED_NVFP4 = tl.constexpr(2.0**7)

# Of four e4m3 bytes, two in each result. The magnitude of a byte is moved by multiplication, on another unit than
# what moves bits; a byte of all ones behind its sign carries into the sign's place, which prmt spreads over an
# addend that is NaN. That is nothing for all others, so -0 becomes 0.
E4M3_TO_BF16X2 = tl.constexpr("""{
    .reg .b32 m, s, c, a, b, z, f;
    mov.b32 f, 0x7B807B80;           // 2^120 twice: from bf16's bias of 127 to 7
    and.b32 m, $2, 0x7F7F7F7F;
    and.b32 s, $2, 0x80808080;
    add.u32 c, m, 0x01010101;
    prmt.b32 a, m, 0, 0x4140;        // bytes 0 and 1 in the low ends of two halves
    prmt.b32 b, s, 0, 0x1404;        // and in the high ends
    mad.lo.u32 a, a, 16, b;
    prmt.b32 z, c, 0, 0x9988;        // bytes 0 and 1, each twice, and of each its highest bit eight times
    fma.rn.bf16x2 $0, a, f, z;
    prmt.b32 a, m, 0, 0x4342;
    prmt.b32 b, s, 0, 0x3424;
    mad.lo.u32 a, a, 16, b;
    prmt.b32 z, c, 0, 0xBBAA;
    fma.rn.bf16x2 $1, a, f, z;
    }""")

# Of four bytes the low nibbles, e2m1, and of four bytes the high ones, two in each result, times their scales.
LOW_TO_BF16X2 = tl.constexpr("""{
    .reg .b32 w, m, s, z;
    mov.b32 z, 0x80008000;           // -0 twice: this fma is a product, and sm_80 has it, too
    prmt.b32 w, $2, 0, 0x3120;       // bytes 0, 2, 1, 3: what goes together stands alike in both halves
    shl.b32 m, w, 6;
    and.b32 m, m, 0x01C001C0;
    shl.b32 s, w, 12;
    lop3.b32 m, s, 0x80008000, m, 0xEA;
    fma.rn.bf16x2 $0, m, $3, z;
    shr.u32 m, w, 2;
    and.b32 m, m, 0x01C001C0;
    shl.b32 s, w, 4;
    lop3.b32 m, s, 0x80008000, m, 0xEA;
    fma.rn.bf16x2 $1, m, $4, z;
    }""")
HIGH_TO_BF16X2 = tl.constexpr("""{
    .reg .b32 w, m, s, z;
    mov.b32 z, 0x80008000;
    prmt.b32 w, $2, 0, 0x3120;
    shl.b32 m, w, 2;
    and.b32 m, m, 0x01C001C0;
    shl.b32 s, w, 8;
    lop3.b32 m, s, 0x80008000, m, 0xEA;
    fma.rn.bf16x2 $0, m, $3, z;
    shr.u32 m, w, 6;
    and.b32 m, m, 0x01C001C0;
    lop3.b32 m, w, 0x80008000, m, 0xEA;
    fma.rn.bf16x2 $1, m, $4, z;
    }""")


@triton.jit
def decode_e4m3(codes: tl.tensor, PACKED: tl.constexpr, OPERAND: tl.constexpr) -> tl.tensor:
    """Sign, 4 bits of exponent, 3 of mantissa; all ones behind the sign are NaN, and there is no infinity."""
    if PACKED:
        numbers = tl.inline_asm_elementwise(
            E4M3_TO_BF16X2, "=r,=r,r", [codes], dtype=tl.bfloat16, is_pure=True, pack=4
        )
    else:
        bits = codes.to(tl.int32)
        bits = tl.where((bits & 0x7F) == 0x7F, 0x7FC00000, (bits & 0x80) << 24 | (bits & 0x7F) << 20)
        numbers = (bits.to(tl.float32, bitcast=True) * E4M3_IN_FP32).to(OPERAND)
    return numbers


@triton.jit
def decode_nvfp4(
    codes: tl.tensor, scales: tl.tensor, WORD: tl.constexpr, PACKED: tl.constexpr, OPERAND: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Of bytes `codes [BN, c]` the numbers of their low nibbles and those of the high ones, each `[BN, c]`, with
    the scales of their blocks. Those are `scales [BN, c / 8 / WORD]`, WORD bytes each.

    When PACKED the results are those over `PACKED_NVFP4`.
    """
    ROWS: tl.constexpr = codes.shape[0]
    BLOCKS: tl.constexpr = codes.shape[1] // 8
    if WORD == 4:
        pairs = tl.join(tl.join(scales, scales >> 16), tl.join(scales >> 8, scales >> 24))
        scales = tl.reshape(pairs, (ROWS, BLOCKS)).to(tl.uint8)
    if PACKED:
        s = decode_e4m3(scales, True, tl.bfloat16) * tl.full([1], PACKED_NVFP4_SCALE, tl.bfloat16)
    else:
        s = decode_e4m3(scales, False, tl.float32)
    s = tl.reshape(tl.broadcast_to(s[:, :, None], (ROWS, BLOCKS, 8)), codes.shape)
    if PACKED:
        even = tl.inline_asm_elementwise(
            LOW_TO_BF16X2, "=r,=r,r,r,r", [codes, s], dtype=tl.bfloat16, is_pure=True, pack=4
        )
        odd = tl.inline_asm_elementwise(
            HIGH_TO_BF16X2, "=r,=r,r,r,r", [codes, s], dtype=tl.bfloat16, is_pure=True, pack=4
        )
    else:
        bits = codes.to(tl.int32)
        low = ((bits & 0x08) << 28 | (bits & 0x07) << 22).to(tl.float32, bitcast=True)
        high = ((bits & 0x80) << 24 | (bits & 0x70) << 18).to(tl.float32, bitcast=True)
        even, odd = (low * E2M1_IN_FP32 * s).to(OPERAND), (high * E2M1_IN_FP32 * s).to(OPERAND)
    return even, odd
