"""The networks that are measured: of the real sizes or very small, and what is looked at in them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from llm_diffusiongemma.bench.networks import REAL
from llm_diffusiongemma.diffusion.config_file import ConfigFile
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.proving import Verdict, prove

# The same shape, very small.
TINY: dict[str, Any] = {
    "text_config": {
        **REAL["text_config"], "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 48,
        "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "sliding_window": 128, "global_head_dim": 32, "num_global_key_value_heads": 1, "num_experts": 16,
        "top_k_experts": 4, "moe_intermediate_size": 32,
    },
    "vision_config": {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1,
        "num_key_value_heads": 1, "head_dim": 32,
    },
    "canvas_length": 64,
    "boi_token_id": 4093, "image_token_id": 4094, "eoi_token_id": 4095,
}  # fmt: skip


def network_config(*, is_tiny: bool, layers: int | None = None) -> ConfigFile:
    document = TINY if is_tiny else REAL
    text = document["text_config"]
    return ConfigFile.model_validate(
        {**document, "text_config": {**text, "num_hidden_layers": layers or text["num_hidden_layers"]}}
    )


def routing_of(network: Network, layer: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts of each row of `x` `[n, H]` and their weights, `[n, k]`, as that layer's router chooses them."""
    its = network._layers[layer]
    scores = F.linear(its.norms.router(x) * network.hidden_size**-0.5, its.router)
    return network.operations.route(scores, its.per_expert_scale, network.config.top_k_experts)


def converted(network: Network, dtype: torch.dtype, device: torch.device) -> Network:
    """The same weights as another dtype in another place."""
    copy = Network(network.config, dtype, device)
    for (_, target), (_, source) in zip(copy.tensors(), network.tensors(), strict=True):
        target.copy_(source)
    return copy


def proved(network: Network) -> Verdict:
    """Has a network compute with all kernels that are right on its device, as loading does it."""
    verdict = prove(network.config, network.formats, network.dtype, network.device)
    network.operations = verdict.operations
    return verdict
