"""One forward whose logits somebody has recorded with the same weights, and how near is near enough.

recorded.json holds softcapped logits of a canvas that is simply 0, 1, … 255 behind a short prompt, at its first
step: the first 10 positions, the first 12 tokens. Those of the real network are figures that transformers' authors
recorded, of the whole network and of its first six layers, which anybody can hold.

No other machine rounds as theirs did, and packed weights are other numbers, so how far apart the same network may
be is not known beforehand. The scale is the network itself, made wrong on purpose: each distance is divided by the
median one of some wrong copies. A network that is wrong already is about as far as they are, whatever is wrong.
"""

from __future__ import annotations

import json
import statistics
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..diffusion.kv_cache import KVCache
from .report import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from ..catalog import Representation
    from ..diffusion.config import NetworkConfig
    from ..diffusion.network import Network

RECORDED_FILE = Path(__file__).with_name("recorded.json")

# So much of the wrong copies' distance the right network may have, by how its experts are stored. The embedded
# checkpoint has at most 0.02, 0.11 and 0.30 of it (two layers of it 0.04, 0.17 and 0.45); with the same mistake in
# all of its layers 0.54 and more, with all experts of a single layer random 0.47, 0.47 and 0.52 and more.
LIMITS: Mapping[Representation, float] = {"bf16": 0.2, "fp8": 0.35, "nvfp4": 0.5}

STRETCH = 1.1

# For whoever needs a prompt of any words.
QUESTION = "What is a canvas?"


@dataclass(frozen=True)
class Recording:
    """What a network of some shape put out."""

    source: str
    """Who has recorded it."""
    prompts: Mapping[str, Sequence[int]]
    """Token ids by what they are. If there are several it is not known which one it was."""
    num_layers: int
    """of the network that it was recorded with, maybe the first few of more"""
    logits: torch.Tensor
    """softcapped `[positions, tokens]`"""


def recordings(config: NetworkConfig) -> list[Recording]:
    """Those of a network of that shape, that of all its layers first; none if nobody has recorded any."""
    shape = [len(config.layers), config.hidden_size, config.vocab_size]
    return [
        Recording(each["source"], each["prompts"], int(layers), torch.tensor(logits))
        for each in json.loads(RECORDED_FILE.read_text(encoding="utf-8"))
        if each["layers, hidden size, vocabulary"] == shape
        for layers, logits in each["logits"].items()
    ]


def compare(network: Network, recording: Recording, *, is_cut: bool = False) -> Finding:
    """A network of as many layers against a recording. `is_cut` says that there are more of them."""
    distances = {
        name: _distance(logits(network, prompt, recording.logits.shape), recording)
        for name, prompt in recording.prompts.items()
    }
    nearest = min(distances, key=lambda name: distances[name])
    found = logits(network, recording.prompts[nearest], recording.logits.shape)
    wrong: dict[str, float] = {}
    for name, mistake in MISTAKES.items():
        with mistake(network) as was_made:
            if was_made:
                copy = logits(network, recording.prompts[nearest], recording.logits.shape)
                wrong[name] = _distance(copy, recording)
    scale = statistics.median(wrong.values())
    share = distances[nearest] / scale if scale else float("inf")
    limit = LIMITS[network.formats.representation]
    is_near = share <= limit  # not if it is no number
    layers = f"{'the first ' if is_cut else ''}{recording.num_layers} layers"
    centred = _centred(recording.logits)
    return Finding(
        "logits",
        "passed" if is_near else "failed",
        f"The logits of {layers} are {'' if is_near else 'not '}those that were recorded with these weights "
        f"({recording.source})."
        + (
            ""
            if is_near
            else " Either they are of another network, a fine-tune for example, or it is computed wrong."
        ),
        [
            *(f"mean absolute difference, prompt {name}: {value:.3f}" for name, value in distances.items()),
            f"correlation: {_correlation(found, recording.logits):.4f}",
            f"correlation from position to position: {_correlation(_centred(found), centred):.4f}",
            *(f"mean absolute difference, made wrong ({name}): {value:.3f}" for name, value in wrong.items()),
            f"of the median of those: {share:.3f}, at most {limit:.2f} for {network.formats.representation}",
            "first position: " + ", ".join(f"{value:.2f}" for value in found[0].tolist()),
        ],
    )


def logits(network: Network, prompt: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """Softcapped, of the first positions and tokens of the canvas 0, 1, … behind a prompt: fp32 on the CPU."""
    positions, tokens = shape
    config = network.config
    with torch.no_grad():
        cache = KVCache(config, network.dtype, network.layer_devices)
        network.encode(network.embed(torch.tensor(prompt, device=network.device)), cache)
        hidden = network.denoise(torch.arange(config.canvas_length, device=network.device), None, cache)
        found = network.logits(hidden[:positions], slice(0, tokens)).float()
    if (cap := config.final_logit_softcapping) is not None:
        found = cap * torch.tanh(found / cap)
    return found.cpu()


@contextmanager
def _attention_exchanged(network: Network) -> Iterator[bool]:
    """Two layers in the middle have each other's attention. False if no two layers are alike."""
    layers, middle = network._layers, len(network._layers) / 2
    alike = [
        pair
        for pair in combinations(range(len(layers)), 2)
        if layers[pair[0]].kind == layers[pair[1]].kind
        and layers[pair[0]].router.device == layers[pair[1]].router.device
    ]
    if not alike:
        yield False
        return
    first, second = (layers[i] for i in min(alike, key=lambda pair: (pair[1] - pair[0], abs(pair[0] - middle))))

    def exchange() -> None:
        first.qkv, second.qkv = second.qkv, first.qkv
        first.output, second.output = second.output, first.output

    exchange()
    try:
        yield True
    finally:
        exchange()


@contextmanager
def _experts_renumbered(network: Network) -> Iterator[bool]:
    """The router of each layer means the expert before."""
    routers = [layer.router for layer in network._layers]
    try:
        for layer in network._layers:
            layer.router = layer.router.roll(1, 0)
        yield True
    finally:
        for layer, router in zip(network._layers, routers, strict=True):
            layer.router = router


@contextmanager
def _positions_stretched(network: Network) -> Iterator[bool]:
    """RoPE turns too fast."""
    frequencies = network._frequencies
    network._frequencies = {kind: each * STRETCH for kind, each in frequencies.items()}
    try:
        yield True
    finally:
        network._frequencies = frequencies


#: What is made wrong for the scale. Each gives whether it could be made, and leaves the network as it was.
MISTAKES: Mapping[str, Callable[[Network], AbstractContextManager[bool]]] = {
    "attention of two layers exchanged": _attention_exchanged,
    "experts in another order": _experts_renumbered,
    "positions stretched": _positions_stretched,
}


def _distance(found: torch.Tensor, recording: Recording) -> float:
    return (found - recording.logits).abs().mean().item()


def _centred(values: torch.Tensor) -> torch.Tensor:
    """What of logits differs from position to position: most of them is the token's own."""
    return values - values.mean(0)


def _correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    both: torch.Tensor = torch.corrcoef(torch.stack((a.flatten(), b.flatten())))
    return both[0, 1].item()
