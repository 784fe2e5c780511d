"""How a checkpoint stores its matrices: told by names and dtypes in its headers, and held against its config."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import CheckpointError
from ..layout import CONFIG_FILE
from ..wording import quoted
from .packed import NVFP4_BLOCK, CompressedTensorsNvfp4, Formats, Fp8, Matrices, ModelOptNvfp4, Nvfp4, Plain
from .quantization import HERE
from .weights import FLOATS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Set

    import torch

    from .config import NetworkConfig
    from .quantization import Packing
    from .weights import StoredTensor, Weights

FORMATS: dict[Packing, type[Matrices]] = {
    "FP8 by row": Fp8,
    "ModelOpt's NVFP4": ModelOptNvfp4,
    "compressed-tensors' NVFP4": CompressedTensorsNvfp4,
}
PACKINGS = {format_: packing for packing, format_ in FORMATS.items()}

MATRIX = re.compile(
    r"model\.(?:decoder|encoder\.language_model)\.layers\.(?P<layer>\d+)\."
    r"(?P<kind>experts|self_attn|mlp)\.(?:(?P<expert>\d+)\.)?[a-z]+_proj\.(?P<end>\w+)"
)
STACKS = re.compile(r"(?P<experts>.*\.experts)\.(?P<which>gate_up|down)_proj")

# Of weights that are packed for kernels which pack activations, too, or of a packed KV cache.
UNUSED = re.compile(r"\.(input_scale|input_global_scale)$|\.self_attn\.([qkv]_proj\.)?[qkv]_scale$")


@dataclass(frozen=True)
class Layout:
    """By which names and in which formats a checkpoint's weights are stored."""

    formats: Formats
    has_expert_stacks: bool
    """Whether plain experts of a layer are two tensors. Some tools write each one's matrices by themselves."""

    def places(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """A network's places by the names that they have in this checkpoint."""
        for name, place in tensors:
            match = None if self.has_expert_stacks else STACKS.fullmatch(name)
            if match is None:
                yield name, place
                continue
            for expert, stacked in enumerate(place):
                names = ("gate", "up") if match["which"] == "gate_up" else ("down",)
                for which, part in zip(names, stacked.chunk(len(names)), strict=True):
                    yield f"{match['experts']}.{expert}.{which}_proj.weight", part


def recognise(weights: Weights, packings: Set[Packing], config: NetworkConfig) -> Layout:
    """How the weights of a folder are stored, which its config says are packed in these ways.

    Raises `CheckpointError` if they are stored in several ways at once, or not as the config says.
    """
    kinds: dict[str, dict[type[Matrices], str]] = {"experts": {}, "self_attn": {}, "mlp": {}}
    ends, experts_there = {}, set()
    for name, stored in weights.tensors.items():
        if match := MATRIX.fullmatch(name):
            ends[match["end"]] = name
            if match["expert"] is not None:
                experts_there.add((match["layer"], match["expert"]))
            if format_ := _format_of(match["end"], stored):
                kinds[match["kind"]].setdefault(format_, name)
    multiplies, divides = (ends.get(each.global_scale_name) for each in (ModelOptNvfp4, CompressedTensorsNvfp4))
    if multiplies and divides:
        raise CheckpointError(
            f"{quoted(weights.folder)} mixes two conventions of NVFP4: by one a scale multiplies "
            f"({quoted(multiplies)}), by the other it divides ({quoted(divides)}). What its numbers are is not "
            f"known. Use another checkpoint, such as {HERE}."
        )
    for found in kinds.values():
        if len(found) > 1:
            first, second = (f"{quoted(name)} is {_called(format_)}" for format_, name in list(found.items())[:2])
            raise CheckpointError(
                f"{quoted(weights.folder)} packs matrices of one kind in several ways: {first}, and {second}. "
                f"This plugin runs checkpoints whose layers are alike. Use one, such as {HERE}."
            )
    experts, attention, mlp = (next(iter(found), Plain) for found in kinds.values())
    formats = Formats(experts, attention, mlp)
    packed = {each for each in (experts, attention, mlp) if each is not Plain}
    if {PACKINGS[each] for each in packed} - packings or (packings and not packed):
        said = f"that weights are {' and '.join(sorted(packings))}" if packings else "nothing of packed weights"
        done = " and ".join(sorted(_called(each) for each in packed or {Plain}))
        raise CheckpointError(
            f"The {CONFIG_FILE} in {quoted(weights.folder)} says {said}, and in its weight files is {done}. "
            "Take them from one place: where the model comes from."
        )
    # Before anything is made that has as many.
    if experts_there and len(experts_there) != (described := config.num_experts * len(config.layers)):
        raise CheckpointError(
            f"The {CONFIG_FILE} in {quoted(weights.folder)} describes {described} experts in all layers, and "
            f"there are weights of {len(experts_there)}. Download the model again, or use another revision of it."
        )
    _check_widths(weights, formats, config)
    return Layout(formats, has_expert_stacks=not (experts is Plain and kinds["experts"]))


def _format_of(end: str, stored: StoredTensor) -> type[Matrices] | None:
    """By the numbers themselves: whether their scales are there and right comes later."""
    if end == CompressedTensorsNvfp4.weight_name:
        return CompressedTensorsNvfp4
    if end != "weight":
        return None
    return Plain if stored.dtype in FLOATS else {"F8_E4M3": Fp8, "U8": ModelOptNvfp4}.get(stored.dtype)


def _called(format_: type[Matrices]) -> str:
    return PACKINGS.get(format_, "plain")


def _check_widths(weights: Weights, formats: Formats, config: NetworkConfig) -> None:
    """A matrix whose rows don't end with a block of NVFP4 has nothing to share a scale with."""
    hidden = config.hidden_size
    heads = (config.num_attention_heads * kind.head_dim for kind in config.layers)
    for format_, widths in (
        (formats.experts, {hidden, config.moe_intermediate_size}),
        (formats.attention, {hidden, *heads}),
        (formats.mlp, {hidden, config.intermediate_size}),
    ):
        if issubclass(format_, Nvfp4) and (odd := [each for each in sorted(widths) if each % NVFP4_BLOCK]):
            raise CheckpointError(
                f"The {CONFIG_FILE} in {quoted(weights.folder)} describes matrices {odd[0]} wide, and NVFP4 has a "
                f"scale for each {NVFP4_BLOCK} numbers of a row. Take it from where the model comes from."
            )
