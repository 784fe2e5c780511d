"""A denoising step on paper: what it has to read and to compute, and how fast cards could do that at best.

    python -m tests.gpu.roofline

prints the tables of docs/gpu.md, which tests/gpu/test_roofline.py holds against this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch

from llm_diffusiongemma.diffusion.config import DIFFUSIONGEMMA_26B_A4B, NetworkConfig
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.packed import PLAIN, Formats, Fp8, ModelOptNvfp4
from llm_diffusiongemma.diffusion.placement import DeviceMemory, Machine, place
from llm_diffusiongemma.diffusion.sizes import META, Sizes, sizes_of

GIB = 2**30
STEPS = 15
CONTEXT = 1024
DTYPE = torch.bfloat16
# As the repositories are packed.
FORMATS = {"bf16": PLAIN, "fp8": Formats(Fp8, Fp8, Fp8), "nvfp4": Formats(ModelOptNvfp4)}


@dataclass(frozen=True)
class Card:
    """By its maker's data sheet."""

    name: str
    memory_gib: float
    bandwidth: float
    """bytes of memory a second"""
    rate: float
    """multiplications and additions a second of bf16 matrices, added up in fp32, without sparsity"""


CARDS = (
    # "NVIDIA Ampere GA102 GPU Architecture", table 2: its tensor cores add up in fp32 at half the rate of fp16.
    Card("RTX 3090", 24, 936e9, 71e12),
    # "NVIDIA Ada GPU Architecture", table 2.
    Card("RTX 4090", 24, 1008e9, 165.2e12),
    # "NVIDIA RTX Blackwell GPU Architecture", table 3.
    Card("RTX 5090", 32, 1792e9, 209.5e12),
    # Data sheets of the SXM modules.
    Card("A100, 80 GB", 80, 2039e9, 312e12),
    Card("H100", 80, 3350e9, 989e12),
    Card("H200", 141e9 / GIB, 4800e9, 989e12),
)


@dataclass(frozen=True)
class Part:
    """Of a denoising step."""

    bytes: int
    """read of the card's memory, or written there"""
    operations: int
    """multiplications and additions"""
    is_vocabulary: bool = False
    """That it is no layer's, so nothing that an encoder does."""

    def seconds(self, card: Card) -> float:
        """At best: the longer of both, the other one hidden behind it."""
        return max(self.bytes / card.bandwidth, self.operations / card.rate)


def parts_of_a_step(config: NetworkConfig, formats: Formats, context: int = CONTEXT) -> dict[str, Part]:
    """What has to come from memory. What a kernel leaves for the next one is not counted, see `activations`."""
    n, hidden, num_layers = config.canvas_length, config.hidden_size, len(config.layers)
    weights = _weight_bytes(config, formats)
    queries = config.num_attention_heads
    attention = seen_bytes = seeing = 0
    for kind in config.layers:
        heads = 2 * queries + (1 + kind.has_value_projection) * kind.num_key_value_heads
        attention += hidden * heads * kind.head_dim
        seen = n + min(context, context if kind.window is None else kind.window - 1)
        seen_bytes += 2 * kind.num_key_value_heads * kind.head_dim * seen * DTYPE.itemsize
        seeing += 2 * 2 * queries * kind.head_dim * seen
    mlp = 3 * hidden * config.intermediate_size
    experts = 3 * hidden * config.moe_intermediate_size * config.top_k_experts
    vocabulary = hidden * config.vocab_size
    return {
        "experts": Part(weights["experts"], 2 * n * num_layers * experts),
        "attention's projections": Part(weights["self_attn"], 2 * n * attention),
        "dense MLPs": Part(weights["mlp"], 2 * n * num_layers * mlp),
        "routers and norms": Part(weights["rest"], 2 * n * num_layers * hidden * config.num_experts),
        "keys and values": Part(seen_bytes, n * seeing),
        "self-conditioning's MLP": Part(weights["self_conditioning"], 2 * n * mlp, True),
        "head: the embedding": Part(weights["embed_tokens"], 2 * n * vocabulary, True),
        "soft embeddings: it once more": Part(weights["embed_tokens"], 2 * n * vocabulary, True),
        "logits, fp32": Part(4 * n * config.vocab_size, 0, True),
    }


def activations(config: NetworkConfig) -> int:
    """Bytes that a layer's kernels write for each other, and read again: what of that goes to memory, and not to
    the L2 cache and back, is the card's affair. No tensor of it is above 12 MB."""
    widths = 0
    for kind in config.layers:
        heads = config.num_attention_heads * kind.head_dim
        keys = (1 + kind.has_value_projection) * kind.num_key_value_heads * kind.head_dim
        around = heads + keys + heads + heads + config.hidden_size  # projected, queries, attended, its projection
        norms = 6 * config.hidden_size  # the residual twice, and the norms of both that are read
        dense = 3 * config.intermediate_size + config.hidden_size
        experts = config.top_k_experts * (config.moe_intermediate_size + config.hidden_size)
        widths += around + norms + dense + experts + config.num_experts
    return 2 * DTYPE.itemsize * config.canvas_length * widths


def _weight_bytes(config: NetworkConfig, formats: Formats) -> Counter[str]:
    """Counted on the meta device, of one layer of each kind."""
    kinds = tuple(dict.fromkeys(config.layers))
    times = [config.layers.count(kind) for kind in kinds]
    found: Counter[str] = Counter()
    for name, tensor in Network(replace(config, layers=kinds), DTYPE, META, formats).tensors():
        words = name.split(".")
        part = next((p for p in ("experts", "self_attn", "mlp") if p in words and "layers" in words), "rest")
        part = next((p for p in ("embed_tokens", "self_conditioning") if p in words), part)
        found[part] += tensor.nbytes * (times[int(words[words.index("layers") + 1])] if "layers" in words else 1)
    return found


@cache
def _sizes(name: str) -> Sizes:
    return sizes_of(DIFFUSIONGEMMA_26B_A4B, FORMATS[name], DTYPE, 0)


def holds(card: Card, name: str) -> bool:
    """Whether all weights of a format are resident there, by the plugin's own plan."""
    memory = DeviceMemory("cuda:0", int(card.memory_gib * GIB))
    return place(_sizes(name), Machine((memory,), 256 * GIB)).is_resident


def step_seconds(card: Card, parts: dict[str, Part]) -> float:
    return sum(part.seconds(card) for part in parts.values())


def canvas_seconds(card: Card, parts: dict[str, Part]) -> float:
    """So many steps, and the encoder's reading of what came of them."""
    reading = sum(part.seconds(card) for part in parts.values() if not part.is_vocabulary)
    return STEPS * step_seconds(card, parts) + reading


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("".join(f"| {cell} " if cell else "| " for cell in line) + "|" for line in lines)


def by_part() -> str:
    """GB and TFLOP of a step."""
    found = {name: parts_of_a_step(DIFFUSIONGEMMA_26B_A4B, formats) for name, formats in FORMATS.items()}
    rows = []
    for part in found["bf16"]:
        read = [f"{found[name][part].bytes / 1e9:.2f}" for name in FORMATS]
        rows.append([part, *read, f"{found['bf16'][part].operations / 1e12:.3f}"])
    totals = [f"{sum(part.bytes for part in parts.values()) / 1e9:.1f}" for parts in found.values()]
    operations = sum(part.operations for part in found["bf16"].values())
    rows.append(["all of it", *totals, f"{operations / 1e12:.2f}"])
    return table([f"A step behind {CONTEXT:,} tokens", *(f"{name}, GB" for name in FORMATS), "TFLOP"], rows)


def by_card() -> str:
    """Milliseconds a step and tokens a second at best."""
    parts = {name: parts_of_a_step(DIFFUSIONGEMMA_26B_A4B, formats) for name, formats in FORMATS.items()}
    length = DIFFUSIONGEMMA_26B_A4B.canvas_length

    def cells(card: Card) -> Iterator[str]:
        for name in FORMATS:
            if not holds(card, name):
                yield ""
                continue
            step, canvas = step_seconds(card, parts[name]), canvas_seconds(card, parts[name])
            yield f"{step * 1e3:.1f} ms, {length / canvas:,.0f}"

    said = [[f"{card.name} ({card.bandwidth / 1e12:.2f} TB/s, {card.rate / 1e12:.0f} TFLOP/s)"] for card in CARDS]
    rows = [[*head, *cells(card)] for head, card in zip(said, CARDS, strict=True)]
    return table([f"At best: a step, tokens a second at {STEPS}", *FORMATS], rows)


if __name__ == "__main__":
    print(by_part(), by_card(), sep="\n\n")
    passed_on = activations(DIFFUSIONGEMMA_26B_A4B) / 1e9
    print(f"\nWritten by a layer's kernels for each other and read: {passed_on:.1f} GB a step")
