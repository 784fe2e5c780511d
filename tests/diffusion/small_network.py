"""A network small enough for milliseconds, of every format and in any place. It has learned nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from llm_diffusiongemma.diffusion import packed
from llm_diffusiongemma.diffusion.config import AttentionConfig, NetworkConfig
from llm_diffusiongemma.diffusion.kv_cache import KVCache
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.packed import Formats

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_diffusiongemma.diffusion.experts import Experts
    from llm_diffusiongemma.diffusion.placement import LayerHome

CPU = torch.device("cpu")
FORMATS = {
    "bf16": packed.PLAIN,
    "fp8": Formats(packed.Fp8, packed.Fp8, packed.Fp8),
    "modelopt": Formats(packed.ModelOptNvfp4),
    "compressed-tensors": Formats(packed.CompressedTensorsNvfp4, packed.Plain, packed.CompressedTensorsNvfp4),
}
SLIDING, FULL = (
    AttentionConfig(head_dim=8, num_key_value_heads=2, rope_theta=1e4, rope_share=1.0, window=window)
    for window in (8, None)
)
CONFIG = NetworkConfig(
    vocab_size=40,
    hidden_size=32,
    intermediate_size=16,
    num_attention_heads=2,
    num_experts=3,
    top_k_experts=2,
    moe_intermediate_size=16,
    layers=(SLIDING, FULL, SLIDING, FULL, FULL),
    rms_norm_eps=1e-6,
    final_logit_softcapping=None,
    image_tokens_see_each_other=True,
    context_length=200,
    canvas_length=8,
)
NUM_LAYERS = len(CONFIG.layers)
LAST = NUM_LAYERS - 1


def resident_network(formats: Formats = packed.PLAIN, dtype: torch.dtype = torch.float32) -> Network:
    """With every weight random. Of what it computes only the bits matter."""
    network = Network(CONFIG, dtype, CPU, formats)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.tensors():
        if tensor.dtype == torch.uint8:
            tensor.random_(256, generator=generator)
        else:
            numbers = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(numbers.abs() + 0.5 if "scale" in name else numbers * CONFIG.hidden_size**-0.5)
    return network


class Files:
    """What a network reads that has its experts elsewhere: those of another, in whose place they are."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.layers: list[int] = []
        """Those that were read, in their order."""
        self.before: Callable[[int], object] = lambda layer: None
        """Called with the layer before anything is read, and in the middle of it."""

    def read(self, layer: int, experts: Experts, check_wanted: Callable[[], None]) -> None:
        self.layers.append(layer)
        self.before(layer)
        theirs = self._network._layers[layer].experts
        assert theirs is not None
        for source, target in zip(theirs.held(), experts.held(), strict=True):
            target.view(torch.uint8).fill_(255)
            target.copy_(source)
            self.before(layer)
            check_wanted()


def network_at(homes: Sequence[LayerHome], resident: Network) -> tuple[Network, Files]:
    """One with the same weights, elsewhere, and what it reads."""
    files = Files(resident)
    first = torch.device(homes[0].device)
    network = Network(resident.config, resident.dtype, first, resident.formats, homes, files.read)
    weights = dict(resident.tensors())
    for name, tensor in network.tensors():
        tensor.copy_(weights[name])
    return network, files


@torch.no_grad()
def reply(network: Network, chunks: Sequence[int] = (5, 20), steps: int = 2) -> list[torch.Tensor]:
    """What comes out of the steps of a canvas behind a prompt read in chunks, and of another behind it."""
    cache = KVCache(CONFIG, network.dtype, network.layer_devices)
    generator = torch.Generator().manual_seed(1)

    def draw(length: int) -> torch.Tensor:
        return torch.randint(CONFIG.vocab_size, (length,), generator=generator).to(network.device)

    results = []
    for read in (chunks, [CONFIG.canvas_length]):
        for length in read:
            network.encode(network.embed(draw(length)), cache)
        canvas, soft = draw(CONFIG.canvas_length), None
        for _ in range(steps):
            results.append(network.denoise(canvas, soft, cache))
            soft = results[-1].float()
    return results


def assert_same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    assert all(result.isfinite().all() for result in theirs)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
