"""What the measurements run: a random network with Gemma's vocabulary, and the embedded checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion, DiffusionGemmaTextConfig

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.diffusion.loading import load_model
from llm_diffusiongemma.tiny.network import build_config

from .measure import Sizes


def small_body(device: torch.device, sizes: Sizes) -> Any:
    """Random, of the tiny checkpoint's kind, with Gemma's vocabulary: what surrounds the layers dominates."""
    tiny = build_config()
    text = DiffusionGemmaTextConfig(
        **{**tiny.text_config.to_dict(), "vocab_size": sizes.vocabulary, "hidden_size": 64}
    )
    config = DiffusionGemmaConfig(
        text_config=text, vision_config=tiny.vision_config, canvas_length=tiny.canvas_length
    )
    return _random(config).to(device)


def _random(config: DiffusionGemmaConfig) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DiffusionGemmaForBlockDiffusion(config).eval()
    model.generation_config.pad_token_id = 0
    return model


def wide_body(device: torch.device, sizes: Sizes) -> Any:
    """Random and wide, with a small vocabulary: reading the prompt dominates, as it does at real sizes."""
    tiny = build_config()
    widths = {
        "hidden_size": sizes.hidden,
        "intermediate_size": 2 * sizes.hidden,
        "moe_intermediate_size": sizes.hidden,
        "num_attention_heads": 8,
        "max_position_embeddings": 16_384,
    }
    text = DiffusionGemmaTextConfig(**{**tiny.text_config.to_dict(), **widths})
    config = DiffusionGemmaConfig(
        text_config=text, vision_config=tiny.vision_config, canvas_length=tiny.canvas_length
    )
    return _random(config).to(device)


def embedded_checkpoint(device: torch.device) -> Any:
    return load_model(EMBEDDED_CHECKPOINT, device).model


def logits_like_a_reply(device: torch.device, sizes: Sizes) -> torch.Tensor:
    """Logits fp32 `[1, 256, V]` of a canvas half-way: a tenth of it is sure of one token, the rest is not."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 256, sizes.vocabulary, generator=generator).mul_(3)
    sure = torch.randperm(256, generator=generator)[:26]
    logits[0, sure, torch.randint(sizes.vocabulary, (26,), generator=generator)] = 30.0
    return logits.to(device)
