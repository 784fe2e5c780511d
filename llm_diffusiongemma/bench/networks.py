"""A network of random weights, made where it is to lie: what can be measured without any download."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from ..diffusion.network import Network
from ..diffusion.packed import PLAIN, CompressedTensorsNvfp4, Fp8, Nvfp4, Plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..diffusion.config import NetworkConfig
    from ..diffusion.packed import Formats, Matrices
    from ..diffusion.placement import LayerHome

#: What DiffusionGemma 26B-A4B's config.json says of its sizes.
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
        if tensor.dtype != network.dtype or ".experts." in name:
            continue
        if tensor.ndim < 2:
            tensor.fill_(1.0)  # norms and scales
        else:
            # A router that tells tokens apart; the outputs of everything else are as large as its inputs.
            size = 1.0 if name.endswith("router.proj.weight") else tensor.shape[-1] ** -0.5
            tensor.normal_(0.0, size, generator=generator)
    for layer in network._layers:
        assert layer.experts is not None
        matrices = (layer.qkv, layer.output, layer.mlp._gate_up, layer.mlp._down)
        packed = [each for each in matrices if not isinstance(each, Plain)]
        # Not by their names: there are thirty thousand of them.
        for each in (*packed, layer.experts.gate_up, layer.experts.down):
            for held, drawn in zip(each.held(), _drawn(each, generator), strict=True):
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
