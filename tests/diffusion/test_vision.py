"""Images are cut by Gemma 4's processor and seen by its tower, whatever a checkpoint's files name."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import DiffusionGemmaForBlockDiffusion, Gemma4VisionConfig

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.diffusion.config_file import read_config
from llm_diffusiongemma.diffusion.vision import ImageReader, Patches, PlacedImage
from llm_diffusiongemma.errors import CheckpointError

from ..whole import load_whole
from .tiny_models import IMAGE_TOKEN_ID, tiny_config

FILE = "preprocessor_config.json"
WEIGHTS = "model.safetensors"
TOWER = "model.encoder.vision_tower."
PICTURE = Image.new("RGB", (64, 48), (220, 25, 25))
CPU = torch.device("cpu")


def reader(folder: Path, dtype: torch.dtype = torch.float32) -> ImageReader:
    """With the embedded checkpoint's config if the folder has none."""
    config = read_config(folder if (folder / "config.json").exists() else EMBEDDED_CHECKPOINT)
    return ImageReader(folder, config, dtype, CPU)


def cut(folder: Path) -> Patches:
    return reader(folder).cut(PICTURE, None)


# --- the image processor -----------------------------------------------------------------------------------


def described(**changes: Any) -> dict[str, Any]:
    return {**json.loads((EMBEDDED_CHECKPOINT / FILE).read_text()), **changes}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_processor_type": "Evil", "auto_map": {"AutoImageProcessor": "evil.Evil"}}, "type is 'Evil'"),
        ({"image_processor_type": "\x1b[2J"}, r"type is '\\x1b\[2J'"),
        ({"patch_size": 16}, "patch_size is 16, and the vision tower's is 4"),
        ({"patch_size": 10**30}, "patch_size is 1000000000000000000000000000000"),
        ({"patch_size": None}, "patch_size is null"),
        ({"pooling_kernel_size": 0}, "pooling_kernel_size is 0"),
        ({"max_soft_tokens": 10**9}, "max_soft_tokens is 1000000000"),
        ({"resample": 9}, "resample is 9"),
        ({"rescale_factor": 0}, "rescale_factor is 0"),
        ({"rescale_factor": 1e308}, "rescale_factor is 1e.308"),
        ({"do_resize": False}, "do_resize is false"),
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


# --- where images stand in a prompt ------------------------------------------------------------------------


def patches(soft_tokens: int = 1, padding: int = 0, seed: int = 0) -> Patches:
    """A strip of random patches, three by three to a soft token, for the tower of a tiny model."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.meshgrid(torch.arange(3 * soft_tokens), torch.arange(3), indexing="xy")
    positions = torch.stack((x.flatten(), y.flatten()), 1)
    pixels = torch.rand(len(positions), 48, generator=generator)
    return Patches(
        torch.cat((pixels, torch.zeros(9 * padding, 48))),
        torch.cat((positions, torch.full((9 * padding, 2), -1))),
        soft_tokens,
    )


def test_soft_tokens_stand_between_two_marks() -> None:
    own = read_config(EMBEDDED_CHECKPOINT)
    first, second = patches(2), patches(3)
    ids, placed = reader(EMBEDDED_CHECKPOINT).place(
        [2, own.image_token_id, 9, own.image_token_id], [first, second]
    )
    begin, image, end = own.boi_token_id, own.image_token_id, own.eoi_token_id
    assert ids == [2, begin, image, image, end, 9, begin, image, image, image, end]
    assert [(each.span, each.patches) for each in placed] == [(range(2, 4), first), (range(7, 10), second)]


def test_a_template_that_does_not_show_every_image() -> None:
    with pytest.raises(CheckpointError, match="shows 0 of 1 images"):
        reader(EMBEDDED_CHECKPOINT).place([2, 9], [patches()])


def test_an_images_name_is_what_there_is_to_see() -> None:
    def digest(image: Patches) -> str:
        return PlacedImage(range(1), image, reader(EMBEDDED_CHECKPOINT)).digest

    image = patches(2)
    turned = dataclasses.replace(image, positions=image.positions.flip(1))
    assert digest(image) == digest(patches(2, padding=3))
    assert len({digest(image), digest(turned), digest(patches(2, seed=1)), digest(patches(1))}) == 4


# --- the tower ---------------------------------------------------------------------------------------------


def random_checkpoint(folder: Path, **vision: Any) -> DiffusionGemmaForBlockDiffusion:
    """Every weight of its vision is random, those that transformers begins with ones, too."""
    config = tiny_config()
    sizes = {**config.vision_config.to_dict(), "num_hidden_layers": 3, "num_key_value_heads": 1, **vision}
    config.vision_config = Gemma4VisionConfig(**sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DiffusionGemmaForBlockDiffusion(config).eval()
        encoder = model.model.encoder
        with torch.no_grad():
            for name, tensor in [
                *encoder.vision_tower.state_dict().items(),
                *encoder.embed_vision.named_parameters(),
            ]:
                # What is clipped is clipped to something.
                tensor.copy_(torch.rand_like(tensor) * (-2 if name.endswith("_min") else 2))
    model.generation_config.eos_token_id = [1]
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def theirs(model: DiffusionGemmaForBlockDiffusion, image: Patches) -> torch.Tensor:
    seen = model.model.encoder.get_image_features(image.pixels[None], image.positions[None], return_dict=True)
    return seen.pooler_output


def place(read: ImageReader, image: Patches, image_token_id: int = IMAGE_TOKEN_ID) -> PlacedImage:
    (placed,) = read.place([image_token_id], [image])[1]
    return placed


@pytest.mark.parametrize(
    "vision",
    [
        {},
        {"standardize": True},
        {"use_clipped_linears": True},
        {"rope_parameters": {"rope_type": "axial", "rope_theta": 7.0}},
    ],
)
def test_soft_tokens_of_a_random_tower_are_transformers_own(vision: dict[str, Any], tmp_path: Path) -> None:
    model = random_checkpoint(tmp_path, **vision)
    read = reader(tmp_path)
    for image in (patches(), patches(4), patches(2, padding=3)):
        expected = theirs(model, image)
        found = place(read, image).soft_tokens()
        assert found.shape == (image.soft_tokens, 32)
        assert not found.requires_grad
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_soft_tokens_of_the_embedded_tower_are_transformers_own(dtype: torch.dtype, tolerance: float) -> None:
    model = DiffusionGemmaForBlockDiffusion.from_pretrained(EMBEDDED_CHECKPOINT, dtype=dtype)
    read = reader(EMBEDDED_CHECKPOINT, dtype)
    image = read.cut(PICTURE, 140)
    found = place(read, image, read_config(EMBEDDED_CHECKPOINT).image_token_id).soft_tokens()
    expected = theirs(model, image)
    assert found.dtype == dtype
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def test_the_tower_is_read_at_the_first_image_and_once(tmp_path: Path) -> None:
    random_checkpoint(tmp_path)
    read = reader(tmp_path)
    image = place(read, patches())
    expected = image.soft_tokens()
    (tmp_path / WEIGHTS).unlink()
    assert torch.equal(image.soft_tokens(), expected)
    with pytest.raises(CheckpointError, match="has no weights"):
        place(reader(tmp_path), patches()).soft_tokens()


def test_nothing_is_said_at_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    random_checkpoint(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 100.0})
    capfd.readouterr()
    place(reader(tmp_path), patches()).soft_tokens()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        (f"{TOWER}patch_embedder.position_embedding_table", None, "missing weights .*position_embedding_table"),
        (f"{TOWER}encoder.layers.0.mlp.up_proj.linear.weight", None, "missing weights .*up_proj"),
        (f"{TOWER}patch_embedder.input_proj.weight", torch.zeros(3), "weights of another size .*input_proj"),
        (f"{TOWER}encoder.layers.1.mlp.up_proj.linear.weight", torch.zeros(3), "1 layers of the vision tower.* 2"),
        (
            f"{TOWER}patch_embedder.input_proj.weight",
            torch.zeros(32, 48, dtype=torch.int8),
            "no plain floating-point numbers .*input_proj.weight is I8",
        ),
        ("model.encoder.embed_vision.embedding_projection.weight", None, "missing weights .*embedding_projection"),
    ],
)
def test_a_damaged_tower_is_a_sentence_and_text_works(
    name: str, tensor: torch.Tensor | None, words: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(EMBEDDED_CHECKPOINT, tmp_path / "checkpoint")
    tensors = load_file(folder / WEIGHTS)
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    save_file(tensors, folder / WEIGHTS)
    assert load_whole(folder).weight_bytes > 0
    image = place(reader(folder), cut(folder), read_config(folder).image_token_id)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=words) as raised:
            image.soft_tokens()
        assert str(folder) in str(raised.value)
