"""Whatever a checkpoint's files name, images are cut by Gemma 4's processor, with values that fit its tower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import DiffusionGemmaConfig

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.diffusion.config_file import read_config
from llm_diffusiongemma.diffusion.images import ImageReader
from llm_diffusiongemma.errors import CheckpointError

FILE = "preprocessor_config.json"
PICTURE = Image.new("RGB", (64, 48), (220, 25, 25))


def cut(folder: Path) -> Any:
    config = DiffusionGemmaConfig(**read_config(EMBEDDED_CHECKPOINT).to_dict())
    return ImageReader(folder, config).cut(PICTURE, None)


def described(**changes: Any) -> dict[str, Any]:
    return {**json.loads((EMBEDDED_CHECKPOINT / FILE).read_text()), **changes}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_processor_type": "Evil", "auto_map": {"AutoImageProcessor": "evil.Evil"}}, "type is 'Evil'"),
        ({"image_processor_type": "\x1b[2J"}, r"type is '\\x1b\[2J'"),
        ({"patch_size": 16}, "patch_size is 16, and the vision tower's is 4"),
        ({"patch_size": 10**30}, "patch_size is 1000000000000000000000000000000"),
        ({"patch_size": None}, "patch_size is None"),
        ({"pooling_kernel_size": 0}, "pooling_kernel_size is 0"),
        ({"max_soft_tokens": 10**9}, "max_soft_tokens is 1000000000"),
        ({"resample": 9}, "resample is 9"),
        ({"rescale_factor": 0}, "rescale_factor is 0"),
        ({"rescale_factor": 1e308}, "rescale_factor is 1e.308"),
        ({"do_resize": False}, "do_resize is False"),
        ({"do_normalize": True, "image_mean": None}, "do_normalize needs image_mean and image_std"),
        ({"image_std": [0, 0, 0]}, r"image_std\.0 is 0"),
        ({"image_mean": [0.5]}, "image_mean is"),
        ({"image_mean": "x"}, "image_mean is 'x'"),
    ],
)
def test_a_description_that_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(described(**changes)))
    with pytest.raises(CheckpointError, match=words) as raised:
        cut(tmp_path)
    assert str(tmp_path / FILE) in str(raised.value)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_map": {"AutoImageProcessor": "evil.Evil"}, "processor_class": "Evil"},
        {"size": {"height": 10**9, "width": 10**9}, "image_seq_length": 280},
        {"image_processor_type": "Gemma4ImageProcessorFast", "image_mean": None, "image_std": None},
    ],
)
def test_a_description_that_is_taken(changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(described(**changes)))
    assert cut(tmp_path).pixels.equal(cut(EMBEDDED_CHECKPOINT).pixels)


def test_a_whole_processors_description_goes_first(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": described()}))
    assert cut(tmp_path).soft_tokens == cut(EMBEDDED_CHECKPOINT).soft_tokens
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "Gemma4Processor"}))
    with pytest.raises(CheckpointError, match=f"{FILE} can't be read as JSON"):
        cut(tmp_path)


def test_no_description(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no image processor .* can't be shown images"):
        cut(tmp_path)
