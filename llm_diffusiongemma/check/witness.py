"""Each layer against transformers' own class, one at a time: bounded memory, whatever the network's size.

The network runs once, and what goes into each of its layers is kept: a few hundred rows. Then each layer of
transformers' gets its weights, in fp32 on the CPU and read by a reader of its own, and the same input. What it
makes of it is what ours made, or loading, order or arithmetic of this very layer is wrong.
"""

from __future__ import annotations

import inspect
import math
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..diffusion.kv_cache import KVCache
from ..diffusion.network import DECODER, ENCODER_LAYERS
from ..diffusion.packed import PLAIN
from ..wording import gib
from .report import Finding
from .tensors import DTYPES, stored_numbers

if TYPE_CHECKING:
    from ..diffusion.config_file import TextConfig
    from ..diffusion.loading import Described
    from ..diffusion.network import Network
    from ..diffusion.weights import StoredTensor

# How far a row may be off, as a share of what the layer changes in it: another order of additions, and in 16 bits
# the rounding of each intermediate value. Some rows may be further off: a token whose last two experts score alike
# may come to the other one. One expert of the real network's 128 is asked by one row of sixteen.
OF_CHANGE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.05}
ROWS = 0.98

LAYER = re.compile(rf"{re.escape(DECODER)}layers\.\d+\.")


def compare(network: Network, described: Described, prompt: Sequence[int], room_bytes: int) -> Finding:
    """All layers of a network with what its weight files hold, behind some prompt. `room_bytes` are left in the
    host's memory."""
    tensors = described.weights.tensors
    if f"{DECODER}layers.0.experts.gate_up_proj" not in tensors or described.formats != PLAIN:
        return Finding(
            "layers", "skipped", "transformers' class takes weights that are stored as it stores them, not packed."
        )
    try:
        from transformers.models.diffusion_gemma import modeling_diffusion_gemma as theirs
    except ImportError:
        return Finding("layers", "skipped", "It needs transformers 5.23 or newer: pip install -U transformers")
    if (needed := _layer_bytes(tensors)) > room_bytes:
        says = f"A layer of theirs takes {gib(needed)} of the host's memory, and beside the model it has "
        return Finding("layers", "skipped", f"{says}{gib(max(0, room_bytes))}.")
    started = time.perf_counter()
    seen = _Seen(network, prompt)
    witness = _Witness(theirs, described.config.text_config, tensors)
    shares = {
        f"{layer} ({mode})": share
        for layer in range(len(network.config.layers))
        for mode, share in _differences(witness, seen, layer, OF_CHANGE[network.dtype])
    }
    where = max(shares, key=lambda each: shares[each])
    passed = shares[where] <= 1
    return Finding(
        "layers",
        "passed" if passed else "failed",
        f"All {len(network.config.layers)} layers compute what transformers' do."
        if passed
        else f"Layer {where} computes something else than transformers' class does with the same weights.",
        [
            f"largest difference: {shares[where]:.3f} of what may be, in layer {where}",
            f"all of them: {' '.join(f'{share:.2f}' for share in shares.values())}",
            f"transformers {theirs_version()}, fp32 on the CPU; ours {str(network.dtype).removeprefix('torch.')}",
            f"{time.perf_counter() - started:.1f} s",
        ],
    )


def theirs_version() -> str:
    import transformers

    return str(transformers.__version__)


def _layer_bytes(tensors: Mapping[str, StoredTensor]) -> int:
    """The largest: as it is stored, and in fp32."""
    sizes: Counter[str] = Counter()
    for name, stored in tensors.items():
        if match := LAYER.match(name):
            sizes[match[0]] += math.prod(stored.shape) * (DTYPES[stored.dtype].itemsize + torch.float32.itemsize)
    return max(sizes.values())


def _differences(witness: _Witness, seen: _Seen, layer: int, of_change: float) -> Iterator[tuple[str, float]]:
    """How far ours is from theirs in each mode, as a share of what may be."""
    results = witness.run(layer, seen.encoded[layer], seen.denoised[layer])
    is_last = layer == len(seen.encoded) - 1
    if is_last:
        # Ours reads on only to its keys and values, and norms what it has denoised.
        results = {"denoise": witness.norm(results["denoise"])}
    for mode, theirs in results.items():
        before, ours = (
            (seen.encoded[layer], seen.encoded[layer + 1])
            if mode == "encode"
            else (seen.denoised[layer], seen.result if is_last else seen.denoised[layer + 1])
        )
        change = (theirs if is_last else theirs - before).norm(dim=-1)
        allowed = of_change * change + torch.finfo(seen.dtype).eps * theirs.norm(dim=-1)
        share = ((ours - theirs).norm(dim=-1) / allowed).quantile(ROWS).item()
        yield mode, math.inf if math.isnan(share) else share


class _Seen:
    """What goes into each layer of ours, for a prompt and the canvas 0, 1, … behind it: fp32 on the CPU."""

    def __init__(self, network: Network, prompt: Sequence[int]) -> None:
        self.dtype = network.dtype
        device = network.device
        with torch.no_grad():
            cache = KVCache(network.config, network.dtype, network.layer_devices)
            with _noting_inputs(network) as self.encoded:
                network.encode(network.embed(torch.tensor(prompt, device=device)), cache)
            with _noting_inputs(network) as self.denoised:
                canvas = torch.arange(network.config.canvas_length, device=device)
                self.result = _plain(network.denoise(canvas, None, cache))
                """Behind the last layer and the final norm."""


@contextmanager
def _noting_inputs(network: Network) -> Iterator[list[torch.Tensor]]:
    """What each layer is given, and at the end what the last one has made, if it makes anything."""
    noted: list[torch.Tensor] = []
    run, operations = network._run, network.operations

    def noting_run(x: torch.Tensor, *others: Any, **named: Any) -> torch.Tensor:
        noted.append(_plain(x))
        return run(x, *others, **named)

    def noting_finish(*inputs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        x, normed = operations.finish(*inputs)
        noted.append(_plain(x))
        return x, normed

    network._run = noting_run  # type: ignore[method-assign]
    network.operations = replace(operations, finish=noting_finish)
    try:
        yield noted
    finally:
        network._run = run  # type: ignore[method-assign]
        network.operations = operations


class _Witness:
    """Layers of transformers' class, each made when it is asked for."""

    def __init__(self, theirs: Any, text: TextConfig, tensors: Mapping[str, StoredTensor]) -> None:
        from transformers import DiffusionGemmaTextConfig

        self._theirs, self._tensors = theirs, tensors
        # What has passed our schema, and nothing else of a stranger's file.
        self._config = DiffusionGemmaTextConfig(**text.model_dump(exclude_unset=True, exclude={"model_type"}))
        self._config._attn_implementation, self._config._experts_implementation = "sdpa", "eager"
        self._kinds = text.kinds
        self._rotate = theirs.DiffusionGemmaTextRotaryEmbedding(self._config)

    def run(self, layer: int, encoded: torch.Tensor, denoised: torch.Tensor) -> dict[str, torch.Tensor]:
        """One layer in both modes, the canvas behind what was encoded. `[n, H]` each."""
        from transformers import DynamicCache

        weights = self._weights(f"{DECODER}layers.{layer}.")
        scalar = self._number(f"{ENCODER_LAYERS}{layer}.layer_scalar")
        cache, past = DynamicCache(config=self._config), len(encoded)
        modes = {
            "encode": ("DiffusionGemmaEncoderTextLayer", encoded, 0, {**weights, "layer_scalar": scalar}),
            "denoise": ("DiffusionGemmaDecoderTextLayer", denoised, past, weights),
        }
        results = {}
        for mode, (name, x, start, values) in modes.items():
            with torch.device("meta"):
                module = getattr(self._theirs, name)(self._config, layer)
            module.load_state_dict(values, assign=True)
            positions = torch.arange(start, start + len(x))[None]
            # transformers 5.24 gave the argument another name, and warns of the old one.
            parameters = inspect.signature(module.forward).parameters
            with torch.no_grad():
                result = module.eval()(
                    x[None].clone(),
                    position_embeddings=self._rotate(x[None], positions, self._kinds[layer]),
                    attention_mask=None,
                    position_ids=positions,
                    **{"cache" if "cache" in parameters else "past_key_values": cache},
                )
            results[mode] = result[0]
        return results

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        norm = self._theirs.DiffusionGemmaRMSNorm(x.shape[-1], eps=self._config.rms_norm_eps)
        norm.load_state_dict({"weight": self._number(f"{DECODER}norm.weight")})
        with torch.no_grad():
            result: torch.Tensor = norm(x)
        return result

    def _weights(self, prefix: str) -> dict[str, torch.Tensor]:
        names = [name for name in self._tensors if name.startswith(prefix)]
        return {name.removeprefix(prefix): self._number(name) for name in names}

    def _number(self, name: str) -> torch.Tensor:
        return stored_numbers(self._tensors[name]).float()


def _plain(x: torch.Tensor) -> torch.Tensor:
    return x.detach().float().cpu().clone()
