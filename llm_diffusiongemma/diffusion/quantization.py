"""What a config.json says of how its weights are packed: the ways that are run here, and who runs the others.

Nothing of it says which weights are packed: that is read from the weight files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ..catalog import HUB_SOURCES
from ..documents import Document
from ..errors import CheckpointError
from ..layout import CONFIG_FILE, check_document, read_json
from ..wording import quoted
from .packed import NVFP4_BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Packing = Literal["FP8 by row", "ModelOpt's NVFP4", "compressed-tensors' NVFP4"]

#: What this network can be had as, the smallest first.
_HERE = [f"diffusiongemma-{source.representation}" for source in reversed(HUB_SOURCES)]
HERE = f"{', '.join(_HERE[:-1])} or {_HERE[-1]}"

VLLM = "vLLM"
# What a method is called, and who runs it.
OTHER_METHODS = {
    "awq": ("AWQ", VLLM),
    "gptq": ("GPTQ", VLLM),
    "auto-round": ("AutoRound", VLLM),
    "bitsandbytes": ("bitsandbytes", "transformers"),
    "bitsandbytes_4bit": ("bitsandbytes", "transformers"),
    "bitsandbytes_8bit": ("bitsandbytes", "transformers"),
    "mxfp4": ("MXFP4", VLLM),
    "torchao": ("torchao", VLLM),
    "quanto": ("quanto", "transformers"),
    "fp8": ("FP8 by block", VLLM),
    "finegrained_fp8": ("FP8 by block", VLLM),
    "fbgemm_fp8": ("FBGEMM's FP8", VLLM),
    "quark": ("Quark", VLLM),
    "hqq": ("HQQ", "transformers"),
    "aqlm": ("AQLM", "transformers"),
    "vptq": ("VPTQ", "transformers"),
    "eetq": ("EETQ", "transformers"),
    "higgs": ("HIGGS", "transformers"),
    "spqr": ("SpQR", "transformers"),
    "fp_quant": ("FP-Quant", "transformers"),
    "bitnet": ("BitNet", "transformers"),
}


class _ModelOpt(Document):
    quant_method: Literal["modelopt"]
    quant_algo: str | None = None

    def packings(self, folder: Path) -> Iterator[Packing]:
        """Raises `CheckpointError` for one that is not run here."""
        if self.quant_algo != "NVFP4":
            raise _elsewhere(folder, f"{self.quant_algo or 'something not named'} (ModelOpt)", VLLM)
        yield "ModelOpt's NVFP4"


class _Weights(Document):
    num_bits: int
    type: str
    strategy: str | None = None
    group_size: int | None = None


class _Group(Document):
    weights: _Weights | None = None
    format: str | None = None
    """Where groups differ; else that of all."""


class _Transforms(Document):
    config_groups: dict[str, Any] = Field(default_factory=dict)


class _CompressedTensors(Document):
    quant_method: Literal["compressed-tensors"]
    format: str | None = None
    config_groups: dict[str, _Group] = Field(default_factory=dict)
    transform_config: _Transforms | None = None

    def packings(self, folder: Path) -> Iterator[Packing]:
        """Raises `CheckpointError` for one that is not run here."""
        if self.transform_config is not None and self.transform_config.config_groups:
            raise _elsewhere(folder, "compressed-tensors, with rotated weights", VLLM)
        groups = [group for group in self.config_groups.values() if group.weights is not None]
        if not groups:
            raise _elsewhere(folder, "compressed-tensors, with no group of weights", VLLM)
        for group in groups:
            assert group.weights is not None
            format_, numbers = group.format or self.format, group.weights
            kind = (numbers.type, numbers.num_bits, numbers.strategy)
            if format_ == "float-quantized" and kind == ("float", 8, "channel"):
                yield "FP8 by row"
            elif format_ == "nvfp4-pack-quantized" and numbers.group_size in (None, NVFP4_BLOCK):
                yield "compressed-tensors' NVFP4"
            else:
                what = f"{format_}, {numbers.type} of {numbers.num_bits} bits by {numbers.strategy}"
                raise _elsewhere(folder, f"{what} (compressed-tensors)", VLLM)


class _Config(Document):
    quantization_config: Annotated[_ModelOpt | _CompressedTensors, Field(discriminator="quant_method")]


METHODS = ("modelopt", "compressed-tensors")


def read_packings(folder: Path) -> frozenset[Packing]:
    """In which ways a folder's weights are packed, by its config.json; none if they are plain.

    Raises `CheckpointError` for any that is not run here, with the name of who runs it, and `FileAccessError`.
    """
    config = read_json(folder / CONFIG_FILE)
    packings: set[Packing] = set()
    parts = (config, config.get("text_config"), config.get("vision_config"))
    for part in (part for part in parts if isinstance(part, dict)):
        if "quantization" in part:
            raise _elsewhere(folder, "MLX does", "mlx-vlm")
        quantization = part.get("quantization_config")
        if quantization is None:
            continue
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        if method not in METHODS:
            unknown = (str(method or "something not named"), "the program that made it")
            raise _elsewhere(folder, *OTHER_METHODS.get(str(method), unknown))
        document = check_document(folder / CONFIG_FILE, _Config, {"quantization_config": quantization})
        packings.update(document.quantization_config.packings(folder))
    return frozenset(packings)


def _elsewhere(folder: Path, what: str, engine: str) -> CheckpointError:
    """A checkpoint that another engine runs."""
    return CheckpointError(
        f"{quoted(folder)} is quantised as {quoted(what)}, which is for {engine}. Run it there, or use {HERE} "
        "here."
    )
