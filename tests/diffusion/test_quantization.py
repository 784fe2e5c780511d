"""What a config.json says of packed weights: what is run here, and which engine is named for the rest."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from llm_diffusiongemma.diffusion.quantization import read_packings
from llm_diffusiongemma.errors import CheckpointError

from ..layouts.writer import QUANTIZATION

if TYPE_CHECKING:
    from pathlib import Path

    from ..layouts.writer import Layout


def folder_with(config: dict[str, Any], folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def group(**weights: Any) -> dict[str, Any]:
    return {"weights": {"num_bits": 8, "type": "float", "strategy": "channel", **weights}}


def compressed(format_: str | None, *groups: dict[str, Any], **more: Any) -> dict[str, Any]:
    named = {f"group_{i}": each for i, each in enumerate(groups)}
    return {"quant_method": "compressed-tensors", "format": format_, "config_groups": named, **more}


FP4 = group(num_bits=4, strategy="tensor_group", group_size=16)


@pytest.mark.parametrize(
    ("layout", "packings"),
    [
        ("google bf16", set()),
        ("redhat fp8", {"FP8 by row"}),
        ("nvidia nvfp4", {"ModelOpt's NVFP4"}),
        ("redhat nvfp4", {"compressed-tensors' NVFP4"}),
    ],
)
@pytest.mark.parametrize("place", [None, "text_config"])
def test_the_layouts_of_the_hub(layout: Layout, packings: set[str], place: str | None, tmp_path: Path) -> None:
    content: dict[str, Any] = {"quantization_config": QUANTIZATION[layout]}
    assert read_packings(folder_with(content if place is None else {place: content}, tmp_path)) == packings


@pytest.mark.parametrize(
    ("quantization", "packings"),
    [
        (
            {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": [], "config_groups": 3},
            {"ModelOpt's NVFP4"},
        ),
        (
            compressed(
                "mixed-precision",
                {**group(), "format": "float-quantized"},
                {**FP4, "format": "nvfp4-pack-quantized"},
                {"weights": None, "input_activations": {}},
                transform_config={},
                kv_cache_scheme={"num_bits": 8},
            ),
            {"FP8 by row", "compressed-tensors' NVFP4"},
        ),
    ],
)
def test_what_else_is_run_here(quantization: dict[str, Any], packings: set[str], tmp_path: Path) -> None:
    assert read_packings(folder_with({"quantization_config": quantization}, tmp_path)) == packings


@pytest.mark.parametrize(
    ("config", "what", "engine"),
    [
        ({"quantization": {"bits": 4}, "quantization_config": {"bits": 4}}, "MLX does", "mlx-vlm"),
        ({"text_config": {"quantization": {}}}, "MLX does", "mlx-vlm"),
        ({"quantization_config": {"quant_method": "awq"}}, "AWQ", "vLLM"),
        ({"quantization_config": {"quant_method": "gptq"}}, "GPTQ", "vLLM"),
        (
            {"text_config": {"quantization_config": {"quant_method": "bitsandbytes"}}},
            "bitsandbytes",
            "transformers",
        ),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "MXFP4", "vLLM"),
        ({"quantization_config": {"quant_method": "torchao"}}, "torchao", "vLLM"),
        ({"quantization_config": {"quant_method": "quanto"}}, "quanto", "transformers"),
        ({"quantization_config": {"quant_method": "fp8"}}, "FP8 by block", "vLLM"),
        ({"quantization_config": {"quant_method": "finegrained_fp8"}}, "FP8 by block", "vLLM"),
        ({"quantization_config": {"quant_method": "fbgemm_fp8"}}, "FBGEMM's FP8", "vLLM"),
        ({"quantization_config": {"quant_method": "\x1b[2Jx"}}, r"\x1b[2Jx", "the program that made it"),
        ({"quantization_config": {"quant_method": ["x"]}}, "['x']", "the program that made it"),
        ({"quantization_config": 3}, "something not named", "the program that made it"),
        ({"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}}, "FP8 (ModelOpt)", "vLLM"),
        ({"quantization_config": {"quant_method": "modelopt"}}, "something not named (ModelOpt)", "vLLM"),
        (
            {"quantization_config": compressed("float-quantized", group(strategy="tensor"))},
            "float-quantized, float of 8 bits by tensor (compressed-tensors)",
            "vLLM",
        ),
        (
            {"quantization_config": compressed("float-quantized", group(strategy="block"))},
            "float-quantized, float of 8 bits by block (compressed-tensors)",
            "vLLM",
        ),
        (
            {"quantization_config": compressed("int-quantized", group(type="int"))},
            "int-quantized, int of 8 bits by channel (compressed-tensors)",
            "vLLM",
        ),
        (
            {"quantization_config": compressed("mxfp4-pack-quantized", FP4)},
            "mxfp4-pack-quantized, float of 4 bits by tensor_group (compressed-tensors)",
            "vLLM",
        ),
        (
            {"quantization_config": compressed("nvfp4-pack-quantized", group(num_bits=4, group_size=32))},
            "nvfp4-pack-quantized, float of 4 bits by channel (compressed-tensors)",
            "vLLM",
        ),
        (
            {"quantization_config": compressed("float-quantized", group(), {**FP4, "format": "other"})},
            "other, float of 4 bits by tensor_group (compressed-tensors)",
            "vLLM",
        ),
        (
            {
                "quantization_config": compressed(
                    "float-quantized", group(), transform_config={"config_groups": {"u": 1}}
                )
            },
            "compressed-tensors, with rotated weights",
            "vLLM",
        ),
        (
            {"quantization_config": compressed("float-quantized")},
            "compressed-tensors, with no group of weights",
            "vLLM",
        ),
    ],
)
def test_what_another_engine_runs(config: dict[str, Any], what: str, engine: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as raised:
        read_packings(folder_with(config, tmp_path))
    assert str(raised.value) == (
        f"{tmp_path} is quantised as {what}, which is for {engine}. Run it there, or use diffusiongemma-nvfp4, "
        "diffusiongemma-fp8 or diffusiongemma-bf16 here."
    )


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        (
            compressed("float-quantized", {"weights": {"type": "float"}}),
            r"it has no quantization_config.*num_bits",
        ),
        (compressed("float-quantized", group(num_bits="8")), r"num_bits is '8'"),
        ({"quant_method": "compressed-tensors", "config_groups": []}, r"config_groups is \[\]"),
        ({"quant_method": "modelopt", "quant_algo": 4}, r"quant_algo is 4"),
    ],
)
def test_a_config_that_is_broken(quantization: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"config.json can't be right: .*{words}"):
        read_packings(folder_with({"quantization_config": quantization}, tmp_path))
