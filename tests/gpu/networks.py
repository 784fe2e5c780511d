"""The networks that are measured: random ones of the real sizes, in any place, ours and transformers'."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F

from llm_diffusiongemma.diffusion.config import NetworkConfig
from llm_diffusiongemma.diffusion.config_file import ConfigFile
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.packed import PLAIN, CompressedTensorsNvfp4, Formats, Fp8, Matrices, Nvfp4
from llm_diffusiongemma.diffusion.placement import LayerHome

# DiffusionGemma 26B-A4B's.
REAL: dict[str, Any] = {
    "text_config": {
        "vocab_size": 262_144, "hidden_size": 2816, "intermediate_size": 2112, "num_hidden_layers": 30,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256, "sliding_window": 1024,
        "global_head_dim": 512, "num_global_key_value_heads": 2, "num_experts": 128, "top_k_experts": 8,
        "moe_intermediate_size": 704, "max_position_embeddings": 262_144, "use_bidirectional_attention": "vision",
    },
    "vision_config": {
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
        "num_key_value_heads": 16, "head_dim": 72,
    },
    "canvas_length": 256,
}  # fmt: skip
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


def random_network(
    config: NetworkConfig,
    device: torch.device,
    formats: Formats = PLAIN,
    homes: Sequence[LayerHome] | None = None,
) -> Network:
    """Computing in bf16, each weight drawn on the device, of a size that keeps activations near one.

    It never converges: each canvas takes all its denoising steps.
    """
    network = Network(config, torch.bfloat16, device, formats, homes)
    generator = torch.Generator(device).manual_seed(0)
    for name, tensor in network.tensors():
        if ".experts." in name:
            continue
        if tensor.dtype == torch.float8_e4m3fn:
            _draw_fp8(tensor.view(torch.uint8), generator)
        elif name.endswith("weight_scale"):
            tensor.fill_(_fp8_scale(config.hidden_size))
        elif tensor.ndim < 2:
            tensor.fill_(1.0)  # norms and scales
        else:
            # A router that tells tokens apart; the outputs of everything else are as large as its inputs.
            size = 1.0 if name.endswith("router.proj.weight") else tensor.shape[-1] ** -0.5
            tensor.normal_(0.0, size, generator=generator)
    for layer in network._layers:
        assert layer.experts is not None
        for matrices in (layer.experts.gate_up, layer.experts.down):
            # Not by their names: there are thirty thousand of them.
            for held, drawn in zip(matrices.held(), _drawn(matrices, generator), strict=True):
                held.copy_(drawn)
    return network


def _drawn(matrices: Matrices, generator: torch.Generator) -> list[torch.Tensor]:
    """Values for all that a stack holds, on the generator's device."""
    drawn = [torch.empty_like(held, device=generator.device) for held in matrices.held()]
    codes, *scales = drawn
    if isinstance(matrices, Nvfp4):
        codes.random_(generator=generator)
        scales[0].random_(0x30, 0x40, generator=generator)  # 0.5 to 1.875
        size = matrices.inputs**-0.5 / 3.2  # over that of the nibbles and of the scales
        scales[1].fill_(1 / size if isinstance(matrices, CompressedTensorsNvfp4) else size)
    elif isinstance(matrices, Fp8):
        _draw_fp8(codes, generator)
        scales[0].fill_(_fp8_scale(matrices.inputs))
    else:
        codes.normal_(0.0, matrices.inputs**-0.5, generator=generator)
    return drawn


def _draw_fp8(codes: torch.Tensor, generator: torch.Generator) -> None:
    """Without the highest bit of the exponent: below 2, and no NaN."""
    codes.random_(generator=generator)
    codes &= 0b1011_1111


def _fp8_scale(inputs: int) -> float:
    return 1 / (0.6 * math.sqrt(inputs))  # over the size of what `_draw_fp8` draws


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


def transformers_of(network: Network, config: ConfigFile) -> Any:
    """transformers' model of the same weights, in the same memory. Its vision tower has none."""
    from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

    from ..diffusion.tiny_models import as_read

    default = torch.get_default_dtype()
    torch.set_default_dtype(network.dtype)  # as from_pretrained does it: rotary frequencies stay fp32
    try:
        with _parameters_without_memory():
            model = DiffusionGemmaForBlockDiffusion(DiffusionGemmaConfig(**as_read(config))).eval()
    finally:
        torch.set_default_dtype(default)
    left_out = model.load_state_dict(dict(network.tensors()), strict=False, assign=True)
    assert not left_out.unexpected_keys, left_out.unexpected_keys
    model.tie_weights()
    for name, buffer in list(model.named_buffers()):
        owner, _, last = name.rpartition(".")
        model.get_submodule(owner)._buffers[last] = buffer.to(network.device)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


@contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """What is built meanwhile has its parameters on the meta device, and its buffers as they are."""
    register = torch.nn.Module.register_parameter

    def register_empty(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        register(module, name, None if parameter is None else torch.nn.Parameter(parameter.to("meta")))

    with patch.object(torch.nn.Module, "register_parameter", register_empty):
        yield
