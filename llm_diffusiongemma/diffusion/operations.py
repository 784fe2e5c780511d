"""What a layer is computed of, each in plain torch: the reference, and what runs everywhere.

Of the vocabulary's end that is in `softmax`.

`Operations` names them. On a card kernels of ours may stand in place of some, one launch for what takes several
here, once they have given on that very card what their twin here gives (see `proving`).

Sizes in comments: n positions, H hidden, Q attention heads, K key and value heads, D head_dim, E experts, k of
them chosen, I the width of a gated MLP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

from .softmax import add_up, conclude, measure, temper, temper_and_measure

if TYPE_CHECKING:
    from collections.abc import Callable

    from .experts import Experts
    from .packed import Matrices, Scratch
    from .softmax import Conclusion, Softmax


@dataclass(frozen=True, eq=False)
class Norm:
    """RMS norm over the last axis, in fp32, times a weight that is not counted from 1."""

    weight: torch.Tensor
    eps: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


class Rotation(NamedTuple):
    """Rotary embedding of n positions, over the halves of a head: x cos + (second half, first half) sin."""

    cos: torch.Tensor
    """`[n, 1, D]`"""
    signed_sin: torch.Tensor
    """`[n, 1, D]`, negative in the first half"""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`[n, heads, D]`, turned."""
        return torch.addcmul(x * self.cos, x.roll(x.shape[-1] // 2, -1), self.signed_sin)


@dataclass(frozen=True, eq=False)
class LayerNorms:
    """Those of a layer outside of its attention, all `[H]`."""

    input: Norm
    post_attention: Norm
    mlp: Norm
    router: Norm
    experts: Norm
    post_mlp: Norm
    post_experts: Norm
    post: Norm


class AfterAttention(NamedTuple):
    """What goes on behind attention, each `[n, H]`."""

    x: torch.Tensor
    """the residual"""
    mlp: torch.Tensor
    router: torch.Tensor
    experts: torch.Tensor


def gelu_gate(gate_up: torch.Tensor) -> torch.Tensor:
    """`[n, 2 I]`, the gates first, to `[n, I]`: gelu(gate) × up, with the tanh approximation of gelu."""
    gate, up = gate_up.chunk(2, -1)
    return F.gelu(gate, approximate="tanh") * up


def linear(x: torch.Tensor, matrices: Matrices, scratch: Scratch) -> torch.Tensor:
    """The only matrix of a stack as a linear layer: `[n, in]` to `[n, out]`."""
    return matrices.times(x, scratch)


def heads(
    projected: torch.Tensor,
    num_queries: int,
    q_norm: Norm,
    k_norm: Norm,
    rotation: Rotation,
    keys: torch.Tensor,
    values: torch.Tensor,
) -> torch.Tensor:
    """From what was projected to what attention reads: the three norms, RoPE, and the write into the cache.

    `projected` is `[n, heads D]`: Q = `num_queries` heads of queries, K of keys, and K of values where the layer
    projects them; else those are made of the keys. Fills `keys` and `values`, views `[K, n, D]` of the cache, and
    returns the queries `[K, Q / K, n, D]`, those that share a key head together.
    """
    groups, n, width = keys.shape
    projected = projected.view(n, -1, width)
    raw_keys = projected[:, num_queries : num_queries + groups]
    raw_values = projected[:, -groups:]  # of a layer without a projection for them the keys
    turned = rotation(torch.cat((q_norm(projected[:, :num_queries]), k_norm(raw_keys)), 1))
    keys.copy_(turned[:, num_queries:].transpose(0, 1))
    values.copy_(F.rms_norm(raw_values, raw_values.shape[-1:], None, k_norm.eps).transpose(0, 1))
    return turned[:, :num_queries].transpose(0, 1).view(groups, -1, n, width)


def after_attention(x: torch.Tensor, attended: torch.Tensor, norms: LayerNorms) -> AfterAttention:
    """The residual `[n, H]` with what attention has to add, and the norms of it that the products want.

    The router's is over sqrt(H) besides.
    """
    x = x + norms.post_attention(attended)
    return AfterAttention(x, norms.mlp(x), norms.router(x) * x.shape[-1] ** -0.5, norms.experts(x))


def route(scores: torch.Tensor, per_expert_scale: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts of each position, integers `[n, k]`, the likeliest first, and their weights, fp32 `[n, k]`.

    `scores` are the router's, `[n, E]`; `per_expert_scale` is `[E]`.
    """
    weights, chosen = scores.softmax(-1, dtype=torch.float32).topk(top_k)
    return chosen, weights / weights.sum(-1, keepdim=True) * per_expert_scale[chosen]


def through_experts(
    x: torch.Tensor, experts: Experts, chosen: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """`x` `[n, H]` through the experts of each position, by `chosen` and `weights`, `[n, k]`, to the result of
    each times its weight: `[n, k, H]`, in fp32 or x's dtype, still to be added up."""
    return experts(x, chosen, weights)


def finish(
    x: torch.Tensor,
    dense: torch.Tensor,
    parts: torch.Tensor,
    norms: LayerNorms,
    scalar: torch.Tensor,
    next_norm: Norm | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The end of a layer: the residual `[n, H]` with what the dense MLP and the experts have to add, times the
    layer's scalar `[1]`; and the norm of it that comes next, if that is known.

    `dense` is `[n, H]`, `parts` are `[n, k, H]`. These are added up in their order, so that two runs are equal bit
    for bit.
    """
    sparse = norms.post_experts(parts.sum(1).to(x.dtype))
    x = (x + norms.post(norms.post_mlp(dense) + sparse)) * scalar
    return x, None if next_norm is None else next_norm(x)


@dataclass(frozen=True)
class Operations:
    """How a network computes what stands in this module and in `softmax`. Each field does what the function of its
    name does here, but for rounding; what it returns may lie in memory otherwise."""

    linear: Callable[[torch.Tensor, Matrices, Scratch], torch.Tensor] = linear
    gelu_gate: Callable[[torch.Tensor], torch.Tensor] = gelu_gate
    heads: Callable[
        [torch.Tensor, int, Norm, Norm, Rotation, torch.Tensor, torch.Tensor],
        torch.Tensor,
    ] = heads
    after_attention: Callable[[torch.Tensor, torch.Tensor, LayerNorms], AfterAttention] = after_attention
    route: Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]] = route
    through_experts: Callable[[torch.Tensor, Experts, torch.Tensor, torch.Tensor], torch.Tensor] = through_experts
    finish: Callable[
        [torch.Tensor, torch.Tensor, torch.Tensor, LayerNorms, torch.Tensor, Norm | None],
        tuple[torch.Tensor, torch.Tensor | None],
    ] = finish
    temper: Callable[[torch.Tensor, float | None, torch.Tensor, Softmax, int], None] = temper
    measure: Callable[[Softmax, int, torch.Tensor, float], None] = measure
    temper_and_measure: Callable[
        [torch.Tensor, float | None, torch.Tensor, Softmax, int, torch.Tensor, float], None
    ] = temper_and_measure
    add_up: Callable[[torch.Tensor, torch.Tensor, Softmax, int], None] = add_up
    conclude: Callable[[Softmax, torch.Tensor], Conclusion] = conclude


PLAIN_TORCH = Operations()
