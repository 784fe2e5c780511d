"""softmax(z) over a whole vocabulary, taken in block by block, each for all positions at once: in plain torch.

z are the logits behind softcap and temperature. What has been added up of exp(z - m) is relative to the maximum m
so far, and is scaled when that moves, as in flash attention. `Operations` names these functions.

Sizes in comments: n positions, V vocabulary, H hidden, B blocks of P parts of `PART` tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

# A draw finds its part of the vocabulary first, then its token in the part.
PART = 512

LOG2_E = math.log2(math.e)
LARGEST_BELOW_ONE = math.nextafter(1.0, 0.0)
LOWEST = torch.finfo(torch.float32).min

# nats below the maximum. What is less probable is taken to be as probable as that, which changes no sum: on a
# CPU an exponential that underflows takes up to 30 times as long, and so do products that do. So there is room
# for weights of an embedding below it: from -80 on, where a constraint forbids nearly all tokens, the soft
# embeddings took five times as long.
FLOOR = -60.0

# The same in fp64. What is less probable has a probability of zero.
FLOOR_FP64 = -700.0


@dataclass(frozen=True, eq=False)
class Softmax:
    """What is known of it, fp32. The last block is padded with `LOWEST`."""

    size: int
    """V"""
    z: torch.Tensor
    """`[n, B, P, PART]`"""
    part_max: torch.Tensor
    """`[n, B, P]`, of each part's z"""
    part_sum: torch.Tensor
    """`[n, B, P]`, of each part's e = exp(z - m), with the m behind its block"""
    deviation: torch.Tensor
    """`[n, B]`, of each block the sum of e (m - z)"""
    maximum: torch.Tensor
    """`[n, B + 1]`: m before the first block, `LOWEST`, and behind each"""
    total: torch.Tensor
    """`[n]`: the sum of exp(z - m) over the vocabulary, when `conclude` has found it"""

    @classmethod
    def empty(cls, positions: int, size: int, block_bytes: int, device: torch.device) -> Softmax:
        """In as few blocks as are at most `block_bytes` of z. All have the same shape."""
        parts = -(-size // PART)
        num_blocks = -(-parts // max(1, block_bytes // (positions * PART * 4)))
        parts = -(-parts // num_blocks)  # of a block, from here on

        def empty(*shape: int) -> torch.Tensor:
            # Not of the default dtype, which is the host program's.
            return torch.empty(positions, *shape, dtype=torch.float32, device=device)

        z, maximum = empty(num_blocks, parts, PART), empty(num_blocks + 1)
        z.view(positions, -1)[:, size:] = LOWEST
        maximum[:, 0] = LOWEST
        each_part = (num_blocks, parts)
        return cls(size, z, empty(*each_part), empty(*each_part), empty(num_blocks), maximum, empty())

    @property
    def logits(self) -> torch.Tensor:
        """`[n, V]`: z without the padding."""
        return self.z.view(len(self.z), -1)[:, : self.size]

    @property
    def blocks(self) -> list[slice]:
        """The tokens of each."""
        _, num_blocks, parts, _ = self.z.shape
        width = parts * PART
        return [slice(i * width, min((i + 1) * width, self.size)) for i in range(num_blocks)]


class Conclusion(NamedTuple):
    """What follows when all blocks have been taken in, each `[n]`."""

    argmax: torch.Tensor
    """int64: the most likely token, of equal ones the first"""
    entropy: torch.Tensor
    """fp32, nats"""
    drawn: torch.Tensor
    """int64: a token drawn with a uniform number"""


def temper(
    raw: torch.Tensor, softcap: float | None, temperature: torch.Tensor, softmax: Softmax, block: int
) -> None:
    """Write z of a block: the raw logits `[n, tokens of the block]`, which this **uses up**, each capped to
    c tanh(raw / c) by a softcap c, over `temperature`, an fp32 scalar tensor."""
    raw = raw.float()
    if softcap is not None:
        soft_cap_(raw, softcap)
    torch.div(raw, temperature, out=softmax.z[:, block].view(len(raw), -1)[:, : raw.shape[1]])


def measure(softmax: Softmax, block: int, weights: torch.Tensor, scale: float) -> None:
    """Take in a block whose z stands there, behind the one before it, and write e × `scale` of all its tokens, in
    whatever dtype, to `weights`, `[n, P PART]`."""
    z = softmax.z[:, block]  # [n, P, PART]
    part_max = z.amax(-1)
    maximum = torch.maximum(softmax.maximum[:, block], part_max.amax(-1))
    softmax.part_max[:, block] = part_max
    softmax.maximum[:, block + 1] = maximum
    below = torch.sub(z, maximum[:, None, None]).clamp_(min=FLOOR)
    same = weights.dtype == below.dtype
    # On a CPU twice as fast as `exp`.
    e = torch.mul(below, LOG2_E, out=weights.view(z.shape) if same else None).exp2_()
    softmax.part_sum[:, block] = e.sum(-1)
    softmax.deviation[:, block] = below.mul_(e).flatten(1).sum(-1).neg_()
    if scale != 1:
        e.mul_(scale)
    if not same:
        weights.copy_(e.flatten(1))


def temper_and_measure(
    raw: torch.Tensor,
    softcap: float | None,
    temperature: torch.Tensor,
    softmax: Softmax,
    block: int,
    weights: torch.Tensor,
    scale: float,
) -> None:
    """`temper` and `measure`."""
    temper(raw, softcap, temperature, softmax, block)
    measure(softmax, block, weights, scale)


def add_up(total: torch.Tensor, added: torch.Tensor, softmax: Softmax, block: int) -> None:
    """Add what a block's e make of something, `[n, H]`, to what those before it made, fp32 `[n, H]` **in place**.

    That was relative to the maximum before. The first block overwrites what stood there.
    """
    if block == 0:
        total.copy_(added)
    else:
        moved = softmax.maximum[:, block] - softmax.maximum[:, block + 1]
        total.mul_(moved.exp_()[:, None]).add_(added)


def log_total(softmax: Softmax) -> torch.Tensor:
    """When all blocks are in: the logarithm of the sum of exp(z) over the vocabulary, fp32 `[n]`."""
    return torch.logsumexp(softmax.maximum[:, 1:] + softmax.part_sum.sum(-1).log(), -1)


def conclude(softmax: Softmax, uniforms: torch.Tensor) -> Conclusion:
    """When all blocks are in; finds the total, too.

    `uniforms` are fp64 `[n]` in [0, 1), on the device that is to draw, in fp64.
    """
    maximum = softmax.maximum[:, -1:]
    gap = (maximum - softmax.maximum[:, 1:]).clamp_(max=-FLOOR)  # [n, B]
    scale = (-gap).exp_()
    sums = softmax.part_sum.sum(-1)
    total = torch.sum(scale * sums, -1, out=softmax.total)
    # With S = sum e it is log S + sum e (m - z) / S. No term of it is negative, so it can't fall below zero
    # however sure the model is.
    deviation = (scale * softmax.deviation + scale * gap * sums).sum(-1)
    entropy = total.log() + deviation / total
    return Conclusion(_argmax(softmax), entropy, _draw(softmax, uniforms))


def _argmax(softmax: Softmax) -> torch.Tensor:
    """In two levels: a reduction that carries an index is many times slower on a CPU than one that does not."""
    part = softmax.part_max.flatten(1).argmax(-1)
    return _real(part * PART + pick(softmax.z.flatten(1, 2), part).argmax(-1), softmax)


def _draw(softmax: Softmax, uniforms: torch.Tensor) -> torch.Tensor:
    """Where the cumulative distribution passes the uniform number. A token of probability zero is never drawn.

    Two levels, first which part of the vocabulary, then which token of it: a cumulative sum over a whole
    row in fp32 would lose the small probabilities, and in fp64 it would cost more than all the rest.
    """
    device, exact = softmax.z.device, uniforms.device
    maximum = softmax.maximum[:, -1:]
    scale = (softmax.maximum[:, 1:] - maximum).clamp_(min=FLOOR).to(exact).double().exp_()  # [n, B]
    part_cdf = (softmax.part_sum.to(exact).double() * scale[..., None]).flatten(1).cumsum(-1)  # [n, B P]
    # A number stands for an interval of 2^-53, and none of these is below what `FLOOR` adds up to.
    target = uniforms.clamp(min=2.0**-54)[:, None] * part_cdf[:, -1:]
    part = _first_above(part_cdf, target)  # [n, 1]
    # How far into the part the uniform number lies. Rounding must not push it over an end: there a token of
    # probability zero might wait.
    below = torch.where(part > 0, part_cdf.gather(-1, (part - 1).clamp_(min=0)), 0.0)
    inside = ((target - below) / (part_cdf.gather(-1, part) - below)).clamp_(0, LARGEST_BELOW_ONE)

    z = pick(softmax.z.flatten(1, 2), part[:, 0].to(device))  # [n, PART]
    z = z.to(exact).double() - maximum.to(exact)
    cdf = z.clamp(min=FLOOR_FP64).exp_().mul_(z > FLOOR_FP64).cumsum_(-1)
    token = _first_above(cdf, inside * cdf[:, -1:])
    return _real((part * PART + token)[:, 0].to(device), softmax)


def soft_cap_(logits: torch.Tensor, cap: float) -> None:
    """cap tanh(z / cap) **in place**, by way of an exponential: on a CPU 2.5 times as fast as torch's tanh.

    It is 2 cap (1/2 - 1 / (1 + exp(2 z / cap))), here within cap / 2^22 of it.
    """
    logits.mul_(2 * LOG2_E / cap).exp2_().add_(1).reciprocal_().sub_(0.5).mul_(-2 * cap)


def pick(items: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """One item of each row: `[n, items, width]` and `[n]` to `[n, width]`. Or k: `[n, k]` to `[n, k, width]`."""
    rows = torch.arange(len(index), device=index.device)
    return items[rows.view(-1, *[1] * (index.dim() - 1)), index]


def _first_above(cdf: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The first index whose cumulative sum is above `target`: `[rows, n]`, `[rows, 1]` to `[rows, 1]`.

    A fraction below 1 of the total stays below it in fp64, so there always is one, and the sum has grown at it,
    so its own share is not zero. Where the sums are no numbers it is the last: a number, at least.
    """
    return torch.searchsorted(cdf, target, right=True).clamp_(max=cdf.shape[-1] - 1)


def _real(tokens: torch.Tensor, softmax: Softmax) -> torch.Tensor:
    """Where z are no numbers, a token might be one of the padding, which no embedding has."""
    return tokens.clamp_(max=softmax.size - 1)
