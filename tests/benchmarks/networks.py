"""What the measurements run: a random network with Gemma's vocabulary, and the embedded checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion, DiffusionGemmaTextConfig

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.tiny.network import build_config

from ..diffusion.tiny_models import network_of
from .measure import Sizes


@dataclass(frozen=True)
class Twins:
    """The same weights twice: for the others transformers' model, for us our network."""

    model: Any
    network: Network


def twins(model: Any, device: torch.device) -> Twins:
    model = model.eval().to(device)
    model.generation_config.pad_token_id = 0
    # Nothing ends a reply before its last canvas.
    model.generation_config.eos_token_id = [model.config.text_config.vocab_size]
    return Twins(model, network_of(model))


def random_twins(device: torch.device, **sizes: int) -> Twins:
    """Of the tiny checkpoint's kind, but for some sizes."""
    tiny = build_config()
    config = DiffusionGemmaConfig(
        text_config=DiffusionGemmaTextConfig(**{**tiny.text_config.to_dict(), **sizes}),
        vision_config=tiny.vision_config,
        canvas_length=tiny.canvas_length,
        boi_token_id=tiny.boi_token_id,
        eoi_token_id=tiny.eoi_token_id,
        image_token_id=tiny.image_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return twins(DiffusionGemmaForBlockDiffusion(config), device)


def small_body(device: torch.device, sizes: Sizes) -> Twins:
    """Random, with Gemma's vocabulary: what surrounds the layers dominates."""
    return random_twins(device, vocab_size=sizes.vocabulary, hidden_size=64)


def real_surroundings(device: torch.device, sizes: Sizes) -> Twins:
    """Random: what surrounds the layers is as large as the real network's, and the layers are next to nothing."""
    return random_twins(device, vocab_size=sizes.vocabulary, hidden_size=sizes.real_hidden)


def wide_body(device: torch.device, sizes: Sizes) -> Twins:
    """Random and wide, with a small vocabulary: reading the prompt dominates, as it does at real sizes."""
    return random_twins(
        device,
        hidden_size=sizes.hidden,
        intermediate_size=2 * sizes.hidden,
        moe_intermediate_size=sizes.hidden,
        num_attention_heads=8,
        max_position_embeddings=16_384,
    )


def embedded_checkpoint(device: torch.device) -> Twins:
    model = DiffusionGemmaForBlockDiffusion.from_pretrained(EMBEDDED_CHECKPOINT, dtype=torch.float32)
    return twins(model, device)


def hidden_like_a_reply(network: Network) -> torch.Tensor:
    """What the layers make of a canvas half-way, `[256, H]`: a tenth is sure of one token, the rest is not."""
    generator = torch.Generator().manual_seed(0)
    rows, vocabulary, size = network.config.canvas_length, network.size, network.hidden_size
    embedding = network.embed(torch.arange(vocabulary, device=network.device)) / size**0.5
    length = embedding.norm(dim=-1).mean()
    hidden = torch.randn(rows, size, generator=generator).to(network.device) * 3 / length
    sure = torch.randperm(rows, generator=generator)[: rows // 10].to(network.device)
    of = torch.randint(vocabulary, (len(sure),), generator=generator).to(network.device)
    hidden[sure] = embedding[of] * 60 / length**2
    return hidden.to(network.dtype)
