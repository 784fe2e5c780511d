"""What a network takes of a device: its weights, counted where they take no memory, and its room to work in.

The room to work in is made up of what the modules beside this one allocate; each formula names its source.
tests/diffusion/test_sizes.py holds their sum against a measured peak.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from .experts import Experts
from .kv_cache import PIECE, SLIDING_PIECE
from .network import Network
from .packed import CPU_PIECE_BYTES, PIECE_BYTES, Plain
from .pipeline import MAX_PREFILL_TOKENS
from .sampler import chunk_bytes

if TYPE_CHECKING:
    from ..catalog import Representation
    from .config import AttentionConfig, NetworkConfig
    from .packed import Formats

# An image at the end of a chunk is read whole: so many soft tokens unless `image_tokens` says more.
IMAGE_TOKENS = 280

# CUDA's context with its kernels, cuBLAS's workspace, and what torch's allocator holds and can't use.
CUDA_BYTES = 768 << 20

# A workspace of its own for cuBLAS, and what CUDA keeps of a captured step.
GRAPH_BYTES = 96 << 20

META = torch.device("meta")
LAYER = re.compile(r"model\..*layers\.(?P<layer>\d+)\.(?P<rest>.*)")


@dataclass(frozen=True)
class Sizes:
    """What a network in some formats takes, in bytes."""

    config: NetworkConfig
    formats: Formats
    dtype: torch.dtype
    """What it computes in."""
    dense_bytes: dict[AttentionConfig, int]
    """Of a layer of each kind, without its experts."""
    experts_bytes: int
    """Of the experts of one layer."""
    pinned_experts_bytes: int
    """The same in pinned host memory."""
    ends_bytes: int
    """Of what is no layer's: embedding and head, self-conditioning, the last norm."""
    vision_bytes: int
    """Of the vision tower; 0 if there is none."""

    @property
    def representation(self) -> Representation:
        return self.formats.representation

    @property
    def num_layers(self) -> int:
        return len(self.config.layers)

    @property
    def weight_bytes(self) -> int:
        """All of the text network's."""
        dense = sum(self.dense_bytes[kind] for kind in self.config.layers)
        return dense + self.ends_bytes + self.num_layers * self.experts_bytes

    @property
    def step_operations(self) -> int:
        """What a denoising step computes: multiplications and additions of each position of a canvas with the
        weights that it meets. The embedding is met twice, by the head and by the soft embeddings."""
        config = self.config
        hidden, queries = config.hidden_size, config.num_attention_heads
        mlp = 3 * hidden * config.intermediate_size
        experts = config.top_k_experts * 3 * hidden * config.moe_intermediate_size
        attention = sum(
            (2 * queries + (1 + kind.has_value_projection) * kind.num_key_value_heads) * kind.head_dim * hidden
            for kind in config.layers
        )
        weights = attention + self.num_layers * (mlp + experts) + mlp + 2 * config.vocab_size * hidden
        return 2 * config.canvas_length * weights

    @property
    def step_decoded(self) -> int:
        """How many numbers of experts a denoising step decodes: a canvas's positions choose nearly all of them."""
        if self.formats.experts is Plain:
            return 0
        config = self.config
        return self.num_layers * config.num_experts * 3 * config.hidden_size * config.moe_intermediate_size

    @property
    def chunk(self) -> int:
        """The most positions that are read at once."""
        return MAX_PREFILL_TOKENS + (IMAGE_TOKENS if self.vision_bytes else 0)

    def layer_bytes(self, layer: int, context: int) -> int:
        """Of one layer without its experts, with its keys and values of a context of so many tokens."""
        kind = self.config.layers[layer]
        return self.dense_bytes[kind] + self._cache_bytes(kind, context)

    def _cache_bytes(self, kind: AttentionConfig, context: int) -> int:
        """See `kv_cache`: a full layer grows by pieces; a sliding one holds what the next chunk or canvas sees and
        that itself, and at a mark what it saw there once more."""
        if kind.window is None:
            return self._position_bytes(kind) * _up_to(context, PIECE)
        seen = kind.window - 1
        held = _up_to(min(context, seen + max(self.chunk, self.config.canvas_length)), SLIDING_PIECE)
        marked = seen if context > held else 0
        return self._position_bytes(kind) * (held + marked)

    def _position_bytes(self, kind: AttentionConfig) -> int:
        return 2 * kind.num_key_value_heads * kind.head_dim * self.dtype.itemsize

    def working_bytes(self, device_type: str, context: int) -> int:
        """What computing takes on each device that has layers, beside weights and cache."""
        fixed = CUDA_BYTES if device_type == "cuda" else 0
        full = [self._position_bytes(kind) for kind in self.config.layers if kind.window is None]
        growing = max(full, default=0) * _up_to(context, PIECE)  # the old keys and values beside the new ones
        return fixed + max(self._prefill_bytes(device_type, context), growing) + self._decoding_bytes(device_type)

    def _prefill_bytes(self, device_type: str, context: int) -> int:
        """Of a chunk. The masks of both kinds of layer stay."""
        n = min(self.chunk, context)
        # A mask is bool; attention makes numbers of it, and comparing takes one more.
        masks = n * (context + min(context, self.config.window or 0) + n) * (2 + self.dtype.itemsize)
        return masks + self._layers_bytes(device_type, n)

    def _layers_bytes(self, device_type: str, n: int) -> int:
        """See `Network._run` and `Experts.__call__`: what n positions are while a layer reads them. Attention and
        experts come one after the other."""
        config, itemsize = self.config, self.dtype.itemsize
        # The residual, its norms and sums, and the dense MLP's result.
        stream = 6 * n * config.hidden_size * itemsize
        # The projection, and what rotating it makes: joined, times cos, rolled, the sum.
        heads = max(
            (5 * config.num_attention_heads + 7 * k.num_key_value_heads) * k.head_dim for k in config.layers
        )
        attention = n * heads * itemsize
        # Rows by expert and their gated products; results by expert and by token, and these times fp32 weights,
        # for which a CPU casts them.
        cast = 4 if device_type == "cpu" and itemsize < 4 else 0
        inside = config.hidden_size * (3 * itemsize + 4 + cast) + config.moe_intermediate_size * itemsize
        experts = n * config.top_k_experts * inside
        return stream + max(attention, experts)

    def _decoding_bytes(self, device_type: str) -> int:
        """See `Scratch`: a piece of the numbers of a stack of matrices, and up to twice as much to make them."""
        config, formats = self.config, self.formats
        projections = max(
            (config.num_attention_heads + 2 * kind.num_key_value_heads) * kind.head_dim for kind in config.layers
        )
        rows = (
            (formats.experts, config.num_experts * 2 * config.moe_intermediate_size),
            (formats.attention, projections),
            (formats.mlp, 2 * config.intermediate_size),
        )
        most = max((each for format, each in rows if format is not Plain), default=0)  # noqa: A001
        is_cpu = device_type == "cpu"
        largest = most * config.hidden_size * (4 if is_cpu else self.dtype.itemsize)
        return 3 * min(largest, CPU_PIECE_BYTES if is_cpu else PIECE_BYTES)

    def sampler_bytes(self, device_type: str) -> int:
        """See `Distributions`: a canvas's logits, the temporaries of a block of the vocabulary, and the canvas's
        soft embeddings a few times."""
        return self._logits_bytes + self._sampling_bytes(device_type)

    @property
    def _logits_bytes(self) -> int:
        return self.config.canvas_length * self.config.vocab_size * 4

    def _sampling_bytes(self, device_type: str) -> int:
        soft = 4 * self.config.canvas_length * self.config.hidden_size * 4
        return 4 * min(chunk_bytes(torch.device(device_type)), self._logits_bytes) + soft

    def graph_bytes(self, device_type: str) -> int:
        """See `graphs`: a captured step has its own memory for what it makes and drops. 0 where there is none."""
        if device_type != "cuda":
            return 0
        canvas = self._layers_bytes(device_type, self.config.canvas_length)
        return GRAPH_BYTES + canvas + self._sampling_bytes(device_type)


def sizes_of(config: NetworkConfig, formats: Formats, dtype: torch.dtype, vision_bytes: int) -> Sizes:
    """Count what a network takes, on the meta device. Layers of a kind are alike, so one of each is enough."""
    kinds = tuple(dict.fromkeys(config.layers))
    network = Network(replace(config, layers=kinds), dtype, META, formats)
    dense = dict.fromkeys(kinds, 0)
    experts = ends = 0
    for name, tensor in network.tensors():
        match = LAYER.match(name)
        if match is None:
            ends += tensor.nbytes
        elif match["rest"].startswith("experts."):
            experts += tensor.nbytes
        else:
            dense[kinds[int(match["layer"])]] += tensor.nbytes
    one = Experts(
        config.num_experts, config.hidden_size, config.moe_intermediate_size, dtype, META, formats.experts
    )
    # PyTorch's allocator of pinned memory rounds each tensor up to a power of two.
    pinned = sum(1 << (tensor.nbytes - 1).bit_length() for tensor in one.held())
    return Sizes(config, formats, dtype, dense, experts // len(kinds), pinned, ends, vision_bytes)


def _up_to(positions: int, piece: int) -> int:
    return -(-positions // piece) * piece
