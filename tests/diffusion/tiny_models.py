"""Random models small enough to denoise in milliseconds, made sure enough of themselves to converge."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    DiffusionGemmaConfig,
    DiffusionGemmaForBlockDiffusion,
    DiffusionGemmaTextConfig,
    Gemma4VisionConfig,
)

from llm_diffusiongemma.diffusion.config_file import ConfigFile
from llm_diffusiongemma.diffusion.network import Network

if TYPE_CHECKING:
    from collections.abc import Sequence

SLIDING, FULL = "sliding_attention", "full_attention"
IMAGE_TOKEN_ID = 6
# The padding token's embedding is zero, so its logit is, too, and it never wins.
NEVER = 0


def tiny_config(
    *,
    vocab_size: int = 96,
    canvas_length: int = 16,
    layer_types: Sequence[str] = (SLIDING, FULL),
    max_position_embeddings: int = 512,
) -> DiffusionGemmaConfig:
    text = DiffusionGemmaTextConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=32,
        moe_intermediate_size=16,
        num_experts=4,
        top_k_experts=2,
        num_hidden_layers=len(layer_types),
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        global_head_dim=16,
        num_global_key_value_heads=1,
        sliding_window=16,
        max_position_embeddings=max_position_embeddings,
        layer_types=list(layer_types),
        use_bidirectional_attention="vision",
        initializer_range=0.2,
    )
    vision = Gemma4VisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        patch_size=4,
        position_embedding_size=16,
    )
    return DiffusionGemmaConfig(
        text_config=text,
        vision_config=vision,
        canvas_length=canvas_length,
        image_token_id=IMAGE_TOKEN_ID,
        boi_token_id=7,
        eoi_token_id=8,
    )


def tiny_model(
    *, sharpness: float = 12.0, dtype: torch.dtype = torch.float32, seed: int = 0, **config: object
) -> DiffusionGemmaForBlockDiffusion:
    """A random model. `sharpness` scales its logits; about 12 makes canvases converge in some 20 steps."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DiffusionGemmaForBlockDiffusion(tiny_config(**config)).eval()
    with torch.no_grad():
        decoder = model.model.decoder
        decoder.norm.weight.mul_(sharpness)
        # Less of what the layers say makes a canvas depend less on itself, so that it settles.
        for layer in decoder.layers:
            layer.post_attention_layernorm.weight.mul_(0.3)
            layer.post_feedforward_layernorm.weight.mul_(0.3)
    generation_config = model.generation_config
    generation_config.eos_token_id = [NEVER]
    generation_config.pad_token_id = 0
    generation_config.max_denoising_steps = 20
    return model.to(dtype)


@functools.cache
def shared_model() -> DiffusionGemmaForBlockDiffusion:
    """One for all the tests that don't change it. It never ends a reply by itself."""
    return tiny_model(max_position_embeddings=128)


def network_of(model: DiffusionGemmaForBlockDiffusion, config: dict[str, Any] | None = None) -> Network:
    """The same text network with the same weights, of the model's own dtype. `config` in another spelling."""
    checked = ConfigFile.model_validate(config or model.config.to_dict())
    network = Network(checked.network(), model.dtype, model.device)
    weights = model.state_dict()
    for name, tensor in network.tensors():
        assert tensor.shape == weights[name].shape, name
        tensor.copy_(weights[name])
    return network


def prompt_of(length: int, vocab_size: int = 96, seed: int = 0) -> list[int]:
    """Random tokens, none of them special to a tiny model."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(9, vocab_size, (length,), generator=generator).tolist()
