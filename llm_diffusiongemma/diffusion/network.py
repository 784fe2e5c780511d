"""DiffusionGemma's text network: one set of weights that reads (encodes) and denoises.

A Gemma 4 with experts, as transformers' `DiffusionGemmaModel` computes it; tests/diffusion/test_network.py holds
every mode, mask and dtype against that class. The two modes differ in what a position sees, in a scalar a layer,
and in what goes in: an encoder reads causally and writes the KV cache, a denoiser sees it and its whole canvas.

Its layers may lie on several devices: what goes through them crosses where the device changes, once, and comes
back to the first one behind the last layer.

Batch size is 1 and has no axis. Sizes in comments: n positions, H hidden, Q attention heads, K key and value
heads, D head_dim, V vocabulary, E experts.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .experts import Experts
from .metering import StreamingMeter
from .operations import PLAIN_TORCH, LayerNorms, Norm, Rotation
from .packed import PLAIN, Plain, Scratch
from .placement import LayerHome
from .streaming import StreamedExperts, pin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from .config import AttentionConfig, NetworkConfig
    from .kv_cache import KVCache
    from .operations import Operations
    from .packed import Formats, Matrices

Mode = Literal["encode", "denoise"]

DECODER = "model.decoder."
ENCODER_LAYERS = "model.encoder.language_model.layers."

# Whatever the host program prefers. Not cuDNN's, which plans anew for each number of keys, so at each canvas of a
# context below the window: two seconds on an H200, and then no faster.
ATTENTION_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class _GatedMLP:
    """down(gelu(gate x) × up x), gate and up as one product. I is its width."""

    def __init__(
        self,
        hidden: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        format: type[Matrices],  # noqa: A002
        scratch: Scratch,
    ) -> None:
        self._gate_up = format(1, (width, width), hidden, dtype, device)  # [2 I, H]
        self._down = format(1, (hidden,), width, dtype, device)  # [H, I]
        self._scratch = scratch

    def __call__(self, x: torch.Tensor, operations: Operations) -> torch.Tensor:
        gated = operations.gelu_gate(operations.linear(x, self._gate_up, self._scratch))
        return operations.linear(gated, self._down, self._scratch)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from _named(self._gate_up, "gate_proj", "up_proj")
        yield from _named(self._down, "down_proj")


class _Layer:
    """One layer's weights."""

    def __init__(
        self,
        config: NetworkConfig,
        kind: AttentionConfig,
        dtype: torch.dtype,
        device: torch.device,
        formats: Formats,
        scratch: Scratch,
        experts: Experts | None,
    ) -> None:
        """`experts` is what the layer has in memory of them, on the device or not."""

        def new(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        def norm(size: int) -> Norm:
            return Norm(new(size), config.rms_norm_eps)

        hidden, width = config.hidden_size, config.intermediate_size
        self.kind = kind
        self.device = device
        self.scratch = scratch
        self.num_queries = config.num_attention_heads
        queries, keys = (heads * kind.head_dim for heads in (self.num_queries, kind.num_key_value_heads))
        parts = (queries, keys, keys) if kind.has_value_projection else (queries, keys)
        self.qkv = formats.attention(1, parts, hidden, dtype, device)
        self.output = formats.attention(1, (hidden,), queries, dtype, device)
        self.q_norm, self.k_norm = norm(kind.head_dim), norm(kind.head_dim)
        self.norms = LayerNorms(*(norm(hidden) for _ in fields(LayerNorms)))
        self.mlp = _GatedMLP(hidden, width, dtype, device, formats.mlp, scratch)
        self.router = new(config.num_experts, hidden)
        self.per_expert_scale = new(config.num_experts)
        self.experts = experts
        self.scalar: dict[Mode, torch.Tensor] = {"encode": new(1), "denoise": new(1)}

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Each weight by its name in a checkpoint, behind the layer's; the parts of a merged one as views."""
        projections = ("q_proj", "k_proj", "v_proj")[: len(self.qkv.parts)]
        yield from ((f"self_attn.{name}", tensor) for name, tensor in _named(self.qkv, *projections))
        yield from ((f"self_attn.{name}", tensor) for name, tensor in _named(self.output, "o_proj"))
        yield "self_attn.q_norm.weight", self.q_norm.weight
        yield "self_attn.k_norm.weight", self.k_norm.weight
        yield "input_layernorm.weight", self.norms.input.weight
        yield "post_attention_layernorm.weight", self.norms.post_attention.weight
        yield "pre_feedforward_layernorm.weight", self.norms.mlp.weight
        yield "post_feedforward_layernorm_1.weight", self.norms.post_mlp.weight
        yield "pre_feedforward_layernorm_2.weight", self.norms.experts.weight
        yield "post_feedforward_layernorm_2.weight", self.norms.post_experts.weight
        yield "post_feedforward_layernorm.weight", self.norms.post.weight
        yield from ((f"mlp.{name}", tensor) for name, tensor in self.mlp.tensors())
        yield "router.proj.weight", self.router
        yield "router.scale", self.norms.router.weight
        yield "router.per_expert_scale", self.per_expert_scale
        if self.experts is not None:
            yield from ((f"experts.{name}", tensor) for name, tensor in self.experts.tensors())
        yield "layer_scalar", self.scalar["denoise"]


class Network:
    """The text network. Its weights are whatever was in memory until each of `tensors` has been filled."""

    def __init__(
        self,
        config: NetworkConfig,
        dtype: torch.dtype,
        device: torch.device,
        formats: Formats = PLAIN,
        homes: Sequence[LayerHome] | None = None,
        read_experts: Callable[[int, Experts, Callable[[], None]], None] | None = None,
    ) -> None:
        """`formats` say how its matrices are stored; `dtype` is what it computes in, and that of all else.

        `device` is that of everything but the layers, whose `homes` are by default there as well. `read_experts`
        fills experts with those of a layer whose home is the weight files: whenever it comes to that layer, maybe
        in another thread, and on a card maybe on another stream than the current one. What it raises comes out of
        `encode` and `denoise`.
        """
        if homes is None:
            homes = [LayerHome(str(device), "device")] * len(config.layers)
        self.config = config
        self.dtype = dtype
        self.device = device
        self.formats = formats
        self.operations: Operations = PLAIN_TORCH
        """How it computes what stands between its products. Kernels may take the place of some."""
        self.layer_devices = [torch.device(home.device) for home in homes]
        scratches = {each: Scratch(dtype, each) for each in (device, *self.layer_devices)}
        hidden, width, eps = config.hidden_size, config.intermediate_size, config.rms_norm_eps

        def new(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        def new_experts(where: torch.device) -> Experts:
            size, scratch = config.moe_intermediate_size, scratches.get(where)
            return Experts(config.num_experts, hidden, size, dtype, where, formats.experts, scratch)

        def kept_experts(home: LayerHome) -> Experts | None:
            """What is in memory of a layer's experts."""
            if home.experts == "files":
                return None
            if home.experts == "device":
                return new_experts(torch.device(home.device))
            experts = new_experts(torch.device("cpu"))
            if torch.device(home.device).type == "cuda":
                pin(experts)
            return experts

        self._embedding = new(config.vocab_size, hidden)  # [V, H], of the head, too
        self.product_dtype = dtype if dtype == torch.float16 else scratches[device].dtype
        """What the head and what it is mixed to multiply in."""
        self._layers = [
            _Layer(config, kind, dtype, where, formats, scratches[where], kept_experts(home))
            for kind, where, home in zip(config.layers, self.layer_devices, homes, strict=True)
        ]
        self._final_norm = Norm(new(hidden), eps)
        self._conditioning_norm = Norm(new(hidden), eps)
        self._conditioning = _GatedMLP(hidden, width, dtype, device, Plain, scratches[device])
        # As a number of the weights' dtype, which transformers makes of it first.
        self._embedding_scale = torch.tensor(hidden**0.5, dtype=dtype, device="cpu").item()
        places = dict.fromkeys(zip(self.layer_devices, config.layers, strict=True))
        self._frequencies = {(where, kind): _frequencies(kind, where) for where, kind in places}
        self._is_streamed = [home.experts != "device" for home in homes]
        self._streams: dict[torch.device, StreamedExperts] = {}
        for where in dict.fromkeys(self.layer_devices):
            here = [i for i, each in enumerate(self.layer_devices) if each == where and self._is_streamed[i]]
            if here:
                kept = {i: self._layers[i].experts for i in here}
                self._streams[where] = StreamedExperts(where, partial(new_experts, where), kept, read_experts)
        self._meter = StreamingMeter(self._streams.values(), device) if self._streams else None

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Each weight by its name in a checkpoint: where its values belong, a tensor or a view of one.

        But for the experts that stay in the weight files.
        """
        yield f"{DECODER}embed_tokens.weight", self._embedding
        for i, layer in enumerate(self._layers):
            yield from ((f"{DECODER}layers.{i}.{name}", tensor) for name, tensor in layer.tensors())
            yield f"{ENCODER_LAYERS}{i}.layer_scalar", layer.scalar["encode"]
        yield f"{DECODER}norm.weight", self._final_norm.weight
        yield f"{DECODER}self_conditioning.pre_norm.weight", self._conditioning_norm.weight
        for name, tensor in self._conditioning.tensors():
            yield f"{DECODER}self_conditioning.{name}", tensor

    @property
    def size(self) -> int:
        """V"""
        return self.config.vocab_size

    @property
    def hidden_size(self) -> int:
        """H"""
        return self.config.hidden_size

    @property
    def canvas_length(self) -> int:
        """Of its own canvases. It denoises shorter ones, too."""
        return self.config.canvas_length

    def start_reply(self) -> None:
        """Let experts that are elsewhere start on their way, and count anew for `streaming_report`."""
        if self._meter is not None:
            self._meter.start_reply()
        self.prefetch()

    def streaming_report(self) -> dict[str, int | float] | None:
        """What the experts that are elsewhere have cost the reply: see `StreamingMeter`. None if all stay."""
        return None if self._meter is None else self._meter.report()

    @property
    def is_streamed(self) -> bool:
        """Whether any experts are elsewhere than on their device."""
        return any(self._is_streamed)

    @property
    def waits_for_experts(self) -> bool:
        """Whether the host has to wait for the device in each layer."""
        if self.operations.through_experts is not PLAIN_TORCH.through_experts:
            return False
        return any(layer.experts is not None and layer.experts.waits for layer in self._layers)

    def prefetch(self) -> None:
        """Let experts that are elsewhere start on their way. `encode` and `denoise` do it themselves."""
        for stream in self._streams.values():
            stream.prefetch()

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens int64 `[n]` as both modes read them: `[n, H]`."""
        return F.embedding(tokens, self._embedding) * self._embedding_scale

    def encode(self, embeddings: torch.Tensor, cache: KVCache, spans: Sequence[range] = ()) -> None:
        """Read `[n, H]` behind what is in the cache, and put it there.

        `spans` are positions, counted from the conversation's first: the soft tokens of an image each, which stand
        among the n and see each other.
        """
        cache.reserve(len(embeddings))
        self._run(embeddings, "encode", cache, spans if self.config.image_tokens_see_each_other else ())
        cache.commit(len(embeddings))

    def denoise(self, canvas: torch.Tensor, soft_embeddings: torch.Tensor | None, cache: KVCache) -> torch.Tensor:
        """One step over a canvas int64 `[256]` behind what is in the cache: `[256, H]`, for the head.

        `soft_embeddings` `[256, H]` are the mean embedding of each position by the step before
        (self-conditioning), as `mix` gives them; None at a canvas's first step.
        """
        cache.reserve(len(canvas))
        x = self.embed(canvas)
        if soft_embeddings is not None:
            soft = (soft_embeddings * self._embedding_scale).to(self.dtype)
            x = x + self._conditioning(self._conditioning_norm(soft), self.operations)
        x = F.rms_norm(x, x.shape[-1:], None, self.config.rms_norm_eps)
        return self._run(x, "denoise", cache)

    def logits(self, hidden: torch.Tensor, tokens: slice) -> torch.Tensor:
        """The head for some tokens, before the softcap: `[n, H]` to `[n, len(tokens)]` of `product_dtype`."""
        return hidden.to(self.product_dtype) @ self._embedding[tokens].T.to(self.product_dtype)

    def mix(self, weights: torch.Tensor, tokens: slice) -> torch.Tensor:
        """Sums of the embeddings of some of the vocabulary, `[n, H]`, by weights `[n, len(tokens)]`, both of
        `product_dtype`. That of fp16 ends at 65,504."""
        return weights @ self._embedding[tokens].to(self.product_dtype)

    def _run(self, x: torch.Tensor, mode: Mode, cache: KVCache, spans: Sequence[range] = ()) -> torch.Tensor:
        """Through all layers and, when denoising, the last norm, `[n, H]` to `[n, H]`. Encoding ends with the keys
        and values of the last layer."""
        try:
            with nullcontext() if self._meter is None else self._meter.one_pass(is_step=mode == "denoise"):
                return self._run_whole(x, mode, cache, spans)
        except BaseException:
            for stream in self._streams.values():
                stream.give_up()  # who ends the process needn't wait for what is read ahead
            raise

    @sdpa_kernel(ATTENTION_KERNELS)
    def _run_whole(self, x: torch.Tensor, mode: Mode, cache: KVCache, spans: Sequence[range]) -> torch.Tensor:
        self.prefetch()
        operations, n = self.operations, len(x)
        positions = {
            where: torch.arange(cache.length, cache.length + n, device=where)
            for where in dict.fromkeys(self.layer_devices)
        }
        rotations, masks = {}, {}
        for (where, kind), frequencies in self._frequencies.items():
            rotations[where, kind] = _rotation(frequencies, positions[where], x.dtype)
            if mode == "encode":
                masks[where, kind] = _mask(kind, positions[where], cache, spans)
        normed: torch.Tensor | None = None
        for i, layer in enumerate(self._layers):
            place = (layer.device, layer.kind)
            x = x.to(layer.device)
            if normed is None:
                normed = layer.norms.input(x)
            projected = operations.linear(normed, layer.qkv, layer.scratch)
            slots = cache.slots(i, n)
            queries = operations.heads(
                projected, layer.num_queries, layer.q_norm, layer.k_norm, rotations[place], *slots
            )
            if mode == "denoise":
                attended = _attend(queries, *cache.seen(i, n))
            elif layer is self._layers[-1]:
                return x
            else:
                attended = _attend_causally(queries, *cache.seen(i, n), masks[place])
            x, for_mlp, for_router, for_experts = operations.after_attention(
                x, operations.linear(attended, layer.output, layer.scratch), layer.norms
            )
            dense = layer.mlp(for_mlp, operations)
            scores = F.linear(for_router, layer.router)  # [n, E]
            routing = operations.route(scores, layer.per_expert_scale, self.config.top_k_experts)
            with self._experts_of(i, mode) as experts:
                parts = operations.through_experts(for_experts, experts, *routing)
            x, normed = operations.finish(x, dense, parts, layer.norms, layer.scalar[mode], self._norm_behind(i))
        return self._final_norm(x.to(self.device)) if normed is None else normed

    def _norm_behind(self, i: int) -> Norm | None:
        """What a layer's result goes through next, if that is on the same device."""
        if i + 1 == len(self._layers):
            following, where = self._final_norm, self.device
        else:
            following, where = self._layers[i + 1].norms.input, self.layer_devices[i + 1]
        return following if where == self.layer_devices[i] else None

    def _experts_of(self, i: int, mode: Mode) -> AbstractContextManager[Experts]:
        """A layer's experts, on its device."""
        layer = self._layers[i]
        if self._is_streamed[i]:
            skipped = len(self._layers) - 1 if mode == "encode" else None
            return self._streams[layer.device].experts_of(i, skipped)
        assert layer.experts is not None
        return nullcontext(layer.experts)


def _named(matrices: Matrices, *names: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Where the values of each part belong, by its name in a checkpoint."""
    for part, name in enumerate(names):
        yield from ((f"{name}.{end}", tensor) for end, tensor in matrices.tensors(0, part))


def _frequencies(kind: AttentionConfig, device: torch.device) -> torch.Tensor:
    """Radians a position by which each pair of a head turns, theta^(-2 i / D) for pair i: fp32 `[D]`, of its first
    half the negatives."""
    pairs = kind.head_dim // 2
    exponents = torch.arange(pairs, dtype=torch.float32, device="cpu") * 2 / kind.head_dim
    turning = int(kind.rope_share * kind.head_dim // 2)
    frequencies = torch.where(torch.arange(pairs, device="cpu") < turning, 1 / kind.rope_theta**exponents, 0)
    return torch.cat((-frequencies, frequencies)).to(device)


def _rotation(frequencies: torch.Tensor, positions: torch.Tensor, dtype: torch.dtype) -> Rotation:
    angles = positions[:, None, None] * frequencies  # [n, 1, D]
    return Rotation(angles.cos().to(dtype), angles.sin().to(dtype))


def _mask(
    kind: AttentionConfig, positions: torch.Tensor, cache: KVCache, spans: Sequence[range]
) -> torch.Tensor | None:
    """What each of n positions sees of what `KVCache.seen` returns: bool `[n, seen]`; None for plainly causal."""
    n, first = len(positions), cache.first_seen(kind.window)
    if cache.length == 0 and not spans and (kind.window is None or n <= kind.window):
        return None
    rows, columns = positions[:, None], torch.arange(first, cache.length + n, device=positions.device)
    mask = columns <= rows
    if kind.window is not None:
        mask &= columns > rows - kind.window
    for span in spans:
        mask[span.start - cache.length : span.stop - cache.length, span.start - first : span.stop - first] = True
    return mask


def _attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Everything sees everything: queries `[K, Q / K, n, D]`, keys and values `[K, seen, D]`, to `[n, Q D]`.

    The queries that share a key head become its rows: exact without a mask, and no head is repeated.
    """
    rows = queries.flatten(1, 2)[None]  # [1, K, Q / K × n, D]
    result = F.scaled_dot_product_attention(rows, keys[None], values[None], scale=1.0)
    return _in_rows(result.view(queries.shape))


def _attend_causally(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """The same for an encoder, whose mask is `[n, seen]`. A key head stands for its queries by a stride of 0."""
    share = queries.shape[1]
    keys, values = (each[:, None].expand(-1, share, -1, -1) for each in (keys, values))
    return _in_rows(F.scaled_dot_product_attention(queries, keys, values, mask, is_causal=mask is None, scale=1.0))


def _in_rows(attended: torch.Tensor) -> torch.Tensor:
    """`[K, Q / K, n, D]`, which a kernel may have laid out in memory as it likes, to `[n, Q D]`."""
    return attended.permute(2, 0, 1, 3).reshape(attended.shape[2], -1)
