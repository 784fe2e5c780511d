"""What a layer computes between its products, one launch each; how, is said at the twins in `operations`.

A kernel reads what it needs once, computes in fp32, and rounds at its outputs only. A program has a tile of whole
rows, so that the mean of a norm stays within it: one row of the real widths, many of small ones. Sums are made in
the same order each time.

What varies from call to call is not specialised, or a kernel would be compiled in the middle of a reply.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from ..operations import AfterAttention
from . import launching

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..config import NetworkConfig
    from ..operations import LayerNorms, Norm, Rotation
    from ..packed import Formats

# The widest row of a program: with more there are too few registers.
MAX_WIDTH = 8192
# Numbers of a program. A norm of the hidden size has several rows of them in registers, so each thread has fewer.
ELEMENTS, ROW_ELEMENTS = 1024, 4096
WARP = 32


def usable(
    config: NetworkConfig, formats: Formats, dtype: torch.dtype, device: torch.device
) -> tuple[dict[str, Callable[..., Any]], dict[str, str]]:
    """The kernels by the names of their twins, and for those that such a network can't have, why: for people."""
    kernels: dict[str, Callable[..., Any]] = {
        "heads": heads,
        "after_attention": after_attention,
        "gelu_gate": gelu_gate,
        "route": route,
        "finish": finish,
    }
    widths = {
        "heads": ("heads", max(layer.head_dim for layer in config.layers)),
        "after_attention": ("hidden size", config.hidden_size),
        "route": ("number of experts", config.num_experts),
        "finish": ("hidden size", config.hidden_size),
    }
    refused = {}
    for name, (what, width) in widths.items():
        if width > MAX_WIDTH:
            del kernels[name]
            refused[name] = f"its kernel takes up to {MAX_WIDTH}, and this network's {what} is {width}"
    return kernels, refused


def heads(
    projected: torch.Tensor,
    num_queries: int,
    q_norm: Norm,
    k_norm: Norm,
    rotation: Rotation,
    keys: torch.Tensor,
    values: torch.Tensor,
) -> torch.Tensor:
    """Both norms have the same eps. Each head of `keys` and `values` begins a whole number of rows behind the one
    before, as in a cache."""
    groups, n, width = keys.shape
    num_heads = projected.shape[1] // width
    queries = projected.new_empty(groups, num_queries // groups, n, width)
    block = triton.next_power_of_2(width // 2)
    rows = max(1, ELEMENTS // block)
    launching.launch(
        _heads,
        (triton.cdiv(n * num_heads, rows),),
        projected,
        q_norm.weight,
        k_norm.weight,
        rotation.cos,
        rotation.signed_sin,
        queries,
        keys,
        values,
        n,
        keys.stride(0) // width,
        values.stride(0) // width,
        k_norm.eps,
        QUERIES=num_queries,
        KEYS=groups,
        HEADS=num_heads,
        WIDTH=width,
        ROWS=rows,
        BLOCK=block,
        num_warps=4,
    )
    return queries


@triton.jit(do_not_specialize=["n", "key_rows", "value_rows"])
def _heads(
    projected: tl.tensor,
    q_weight: tl.tensor,
    k_weight: tl.tensor,
    cos: tl.tensor,
    signed_sin: tl.tensor,
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    n: tl.tensor,
    key_rows: tl.tensor,
    value_rows: tl.tensor,
    eps: tl.tensor,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A row is a head of a position, in two halves, as RoPE turns each by the other. `key_rows` and `value_rows`
    are from a head's first row in the cache to the next one's."""
    HALF: tl.constexpr = WIDTH // 2
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    position = row // HEADS
    head = row % HEADS
    i = tl.arange(0, BLOCK)[None, :]
    is_one = (position < n)[:, None] & (i < HALF)
    at = row[:, None] * WIDTH + i
    first = _loaded(projected + at, is_one)
    second = _loaded(projected + at + HALF, is_one)
    scale = tl.rsqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / WIDTH + eps)[:, None]
    first *= scale
    second *= scale
    # The last heads are those of the values: their own, or the keys once more.
    FIRST_VALUE: tl.constexpr = HEADS - KEYS
    to_values = values + ((head - FIRST_VALUE).to(tl.int64) * value_rows + position)[:, None] * WIDTH + i
    is_value = is_one & (head >= FIRST_VALUE)[:, None]
    tl.store(to_values, first, is_value)
    tl.store(to_values + HALF, second, is_value)

    is_query = is_one & (head < QUERIES)[:, None]
    is_key = is_one & ((head >= QUERIES) & (head < QUERIES + KEYS))[:, None]
    is_turned = is_query | is_key
    # Of all rows, as what it is multiplied by: of one it would go to the others by way of shared memory.
    weight = tl.broadcast_to(i, ROWS, BLOCK)
    first *= _loaded(q_weight + weight, is_query) + _loaded(k_weight + weight, is_key)
    weight += HALF
    second *= _loaded(q_weight + weight, is_query) + _loaded(k_weight + weight, is_key)
    turn = position[:, None] * WIDTH + i
    turned_first = first * _loaded(cos + turn, is_turned) + second * _loaded(signed_sin + turn, is_turned)
    turn += HALF
    turned_second = second * _loaded(cos + turn, is_turned) + first * _loaded(signed_sin + turn, is_turned)
    to_queries = queries + (head * n + position)[:, None] * WIDTH + i
    tl.store(to_queries, turned_first, is_query)
    tl.store(to_queries + HALF, turned_second, is_query)
    to_keys = keys + ((head - QUERIES).to(tl.int64) * key_rows + position)[:, None] * WIDTH + i
    tl.store(to_keys, turned_first, is_key)
    tl.store(to_keys + HALF, turned_second, is_key)


@triton.jit
def _loaded(pointers: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """In fp32, 0 where the mask is not."""
    return tl.load(pointers, mask, 0.0).to(tl.float32)


def after_attention(x: torch.Tensor, attended: torch.Tensor, norms: LayerNorms) -> AfterAttention:
    """The norms have the same eps."""
    n, width = x.shape
    out = AfterAttention(*(x.new_empty(n, width) for _ in AfterAttention._fields))
    tile = _tile(width)
    launching.launch(
        _after_attention,
        (triton.cdiv(n, tile["ROWS"]),),
        x,
        attended,
        norms.post_attention.weight,
        norms.mlp.weight,
        norms.router.weight,
        norms.experts.weight,
        *out,
        n,
        norms.mlp.eps,
        width**-0.5,
        WIDTH=width,
        **tile,
    )
    return out


@triton.jit(do_not_specialize=["n"])
def _after_attention(
    x: tl.tensor,
    attended: tl.tensor,
    post_attention: tl.tensor,
    mlp: tl.tensor,
    router: tl.tensor,
    experts: tl.tensor,
    to_x: tl.tensor,
    to_mlp: tl.tensor,
    to_router: tl.tensor,
    to_experts: tl.tensor,
    n: tl.tensor,
    eps: tl.tensor,
    router_scale: tl.tensor,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    i = tl.arange(0, BLOCK)[None, :]
    inside = i < WIDTH
    is_one = (row < n) & inside
    at = row * WIDTH + i
    added = _loaded(attended + at, is_one)
    residual = _loaded(x + at, is_one)
    # All is asked for before the sums, for which threads wait for each other.
    post_attention_weight = _loaded(post_attention + i, inside)
    mlp_weight = _loaded(mlp + i, inside)
    router_weight = _loaded(router + i, inside)
    experts_weight = _loaded(experts + i, inside)
    residual += _normed(added, eps, WIDTH) * post_attention_weight
    tl.store(to_x + at, residual, is_one)
    normed = _normed(residual, eps, WIDTH)
    tl.store(to_mlp + at, normed * mlp_weight, is_one)
    tl.store(to_router + at, normed * router_weight * router_scale, is_one)
    tl.store(to_experts + at, normed * experts_weight, is_one)


@triton.jit
def _normed(x: tl.tensor, eps: tl.tensor, width: tl.constexpr) -> tl.tensor:
    """The rows of `x`, fp32 `[rows, BLOCK]` and 0 behind their width, with a mean square of 1."""
    return x * tl.rsqrt(tl.sum(x * x, 1) / width + eps)[:, None]


def gelu_gate(gate_up: torch.Tensor) -> torch.Tensor:
    n, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(n, width)
    launching.launch(
        _gelu_gate,
        (triton.cdiv(n * width, ELEMENTS),),
        gate_up,
        out,
        n,
        WIDTH=width,
        BLOCK=ELEMENTS,
        num_warps=4,
    )
    return out


@triton.jit(do_not_specialize=["n"])
def _gelu_gate(
    gate_up: tl.tensor,
    out: tl.tensor,
    n: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_one = i < n * WIDTH
    at = i // WIDTH * (2 * WIDTH) + i % WIDTH
    gate = _loaded(gate_up + at, is_one)
    up = _loaded(gate_up + at + WIDTH, is_one)
    tl.store(out + i, gelu(gate) * up, is_one)


@triton.jit
def gelu(x: tl.tensor) -> tl.tensor:
    """With the tanh approximation, of fp32: 0.5 (1 + tanh(z)) is 1 / (1 + exp(-2 z)), z is sqrt(2 / pi) (...)."""
    return x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))


def route(scores: torch.Tensor, per_expert_scale: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts as int32. Of equal ones the first is the likeliest."""
    n, experts = scores.shape
    chosen = scores.new_empty(n, top_k, dtype=torch.int32)
    weights = scores.new_empty(n, top_k, dtype=torch.float32)
    block = triton.next_power_of_2(experts)
    rows = max(1, ELEMENTS // block)
    launching.launch(
        _route,
        (triton.cdiv(n, rows),),
        scores,
        per_expert_scale,
        chosen,
        weights,
        n,
        EXPERTS=experts,
        TOP_K=top_k,
        ROWS=rows,
        BLOCK=block,
        CHOSEN_BLOCK=triton.next_power_of_2(top_k),
        num_warps=4,
    )
    return chosen, weights


@triton.jit(do_not_specialize=["n"])
def _route(
    scores: tl.tensor,
    per_expert_scale: tl.tensor,
    chosen: tl.tensor,
    weights: tl.tensor,
    n: tl.tensor,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHOSEN_BLOCK: tl.constexpr,
) -> None:
    """The chosen weights are divided by their sum, so what softmax divides all by needs no computing."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    expert = tl.arange(0, BLOCK)[None, :]
    nth = tl.arange(0, CHOSEN_BLOCK)[None, :]
    left = tl.load(scores + row * EXPERTS + expert, (row < n) & (expert < EXPERTS), float("-inf")).to(tl.float32)
    # A row that is not there, all -inf, would make NaN: harmless, but the interpreter warns.
    left = tl.where(row < n, left, 0.0)
    most = tl.max(left, 1)[:, None]
    picks = tl.zeros((ROWS, CHOSEN_BLOCK), tl.int32)
    parts = tl.zeros((ROWS, CHOSEN_BLOCK), tl.float32)
    for k in tl.static_range(TOP_K):
        value, pick = tl.max(left, 1, return_indices=True)
        # Among NaNs the pick may be none of the experts, whose memory somebody will read.
        pick = tl.minimum(pick, EXPERTS - 1)[:, None]
        picks = tl.where(nth == k, pick, picks)
        parts = tl.where(nth == k, tl.exp(value[:, None] - most), parts)
        left = tl.where(expert == pick, float("-inf"), left)
    parts /= tl.sum(parts, 1)[:, None]
    is_one = (row < n) & (nth < TOP_K)
    scale = _loaded(per_expert_scale + picks, is_one)
    at = row * TOP_K + nth
    tl.store(chosen + at, picks, is_one)
    tl.store(weights + at, parts * scale, is_one)


def finish(
    x: torch.Tensor,
    dense: torch.Tensor,
    parts: torch.Tensor,
    norms: LayerNorms,
    scalar: torch.Tensor,
    next_norm: Norm | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The norms have the same eps. Without a next one, where the next layer is on another card, some norm is made
    all the same: so it is the kernel that was tried at load, where there always is one."""
    n, width = x.shape
    out, normed = x.new_empty(n, width), x.new_empty(n, width)
    tile = _tile(width)
    launching.launch(
        _finish,
        (triton.cdiv(n, tile["ROWS"]),),
        x,
        dense,
        parts,
        norms.post_experts.weight,
        norms.post_mlp.weight,
        norms.post.weight,
        (next_norm or norms.post).weight,
        scalar,
        out,
        normed,
        n,
        norms.post.eps,
        WIDTH=width,
        PARTS=parts.shape[1],
        **tile,
    )
    return out, None if next_norm is None else normed


@triton.jit(do_not_specialize=["n"])
def _finish(
    x: tl.tensor,
    dense: tl.tensor,
    parts: tl.tensor,
    post_experts: tl.tensor,
    post_mlp: tl.tensor,
    post: tl.tensor,
    following: tl.tensor,
    scalar: tl.tensor,
    out: tl.tensor,
    to_following: tl.tensor,
    n: tl.tensor,
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    i = tl.arange(0, BLOCK)[None, :]
    inside = i < WIDTH
    is_one = (row < n) & inside
    at = row * WIDTH + i
    part = parts + row * (PARTS * WIDTH) + i
    sparse = _loaded(part, is_one)
    for k in tl.static_range(1, PARTS):
        sparse += _loaded(part + k * WIDTH, is_one)
    from_mlp = _loaded(dense + at, is_one)
    residual = _loaded(x + at, is_one)
    post_experts_weight = _loaded(post_experts + i, inside)
    post_mlp_weight = _loaded(post_mlp + i, inside)
    post_weight = _loaded(post + i, inside)
    factor = tl.load(scalar).to(tl.float32)
    added = _normed(from_mlp, eps, WIDTH) * post_mlp_weight + _normed(sparse, eps, WIDTH) * post_experts_weight
    residual = (residual + _normed(added, eps, WIDTH) * post_weight) * factor
    tl.store(out + at, residual, is_one)
    tl.store(to_following + at, _normed(residual, eps, WIDTH) * _loaded(following + i, inside), is_one)


def _tile(width: int) -> dict[str, int]:
    """That of a program which has whole rows of the hidden size: 16 numbers a thread."""
    block = triton.next_power_of_2(width)
    rows = max(1, ROW_ELEMENTS // block)
    return {"ROWS": rows, "BLOCK": block, "num_warps": max(1, rows * block // (16 * WARP))}
