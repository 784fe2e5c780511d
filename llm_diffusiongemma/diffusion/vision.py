"""Images to soft tokens: cut by the checkpoint's own image processor, seen by its vision tower.

Both are transformers' classes for Gemma 4, imported at the first image of a process; so are the tower's weights
read. A prompt of text needs none of it, and answers where the tower is damaged.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator

from ..documents import Document, refuse_unless
from ..errors import CheckpointError, ImageError, NotANumberError
from ..layout import IMAGE_FILES, check_document, is_here, read_json
from ..wording import quoted
from .config_file import Positive, VisionConfig
from .weights import check_layers, read_headers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from PIL import Image

    from .config_file import ConfigFile

TOWER = "model.encoder.vision_tower."
PROJECTION = "model.encoder.embed_vision.embedding_projection.weight"


@dataclass(frozen=True, eq=False)
class Patches:
    """One image as the tower reads it."""

    pixels: torch.Tensor
    """`[patches, patch pixels]`"""
    positions: torch.Tensor
    """`[patches, 2]`, -1 for padding"""
    soft_tokens: int


@dataclass(frozen=True, eq=False)
class PlacedImage:
    """An image of a prompt."""

    span: range
    """Where in the prompt its soft tokens stand."""
    patches: Patches
    reader: ImageReader

    @cached_property
    def digest(self) -> str:
        """A name that no image has that the encoder would see differently."""
        # Without the padding, which depends on the budget and not on what there is to see.
        seen = self.patches.positions[:, 0] >= 0
        pixels, positions = self.patches.pixels[seen], self.patches.positions[seen]
        return hashlib.sha256(pixels.numpy().tobytes() + positions.numpy().tobytes()).hexdigest()

    def soft_tokens(self) -> torch.Tensor:
        """`[len(span), H]`, for the encoder in place of embeddings. Loads the tower if it isn't yet.

        Raises `CheckpointError` if that can't be, and `FileAccessError`.
        """
        return self.reader.see(self.patches)


class ImageReader:
    """Reads the images of prompts for a network of that dtype on that device."""

    def __init__(self, folder: Path, config: ConfigFile, dtype: torch.dtype, device: torch.device) -> None:
        self._folder = folder
        self._config = config
        self._vision = config.vision_config or VisionConfig()
        self._dtype = dtype
        self._device = device
        self._processor: Any = None
        self._tower: _Tower | None = None

    def place(
        self, prompt_ids: Sequence[int], images: Sequence[Patches]
    ) -> tuple[list[int], tuple[PlacedImage, ...]]:
        """The prompt with room for the soft tokens, and what goes there.

        `prompt_ids` has one image token for each image, in their order.

        Raises `CheckpointError` if the checkpoint's template does not show every image.
        """
        config = self._config
        expected = sum(token == config.image_token_id for token in prompt_ids)
        if expected != len(images):
            raise CheckpointError(
                f"The checkpoint's chat template shows {expected} of {len(images)} images. Use another checkpoint."
            )
        ids: list[int] = []
        placed: list[PlacedImage] = []
        left = iter(images)
        for token in prompt_ids:
            if token != config.image_token_id:
                ids.append(token)
                continue
            patches, start = next(left), len(ids) + 1
            placed.append(PlacedImage(range(start, start + patches.soft_tokens), patches, self))
            ids += [config.boi_token_id, *[token] * patches.soft_tokens, config.eoi_token_id]
        return ids, tuple(placed)

    def cut(self, image: Image.Image, soft_tokens: int | None) -> Patches:
        """An image as at most so many soft tokens, or what the checkpoint says for None.

        Raises `ImageError` for one that can't be cut into patches, `CheckpointError` if the checkpoint has
        no image processor.
        """
        processor = self._processor = self._processor or _load_processor(self._folder, self._vision)
        size = f"{image.width} × {image.height}"
        try:
            budget = {} if soft_tokens is None else {"max_soft_tokens": soft_tokens}
            features = processor(images=[image], return_tensors="pt", **budget)
        except ValueError as error:
            raise ImageError(
                f"An image of {size} pixels is too long and narrow for this model. Crop it, or cut it in pieces."
            ) from error
        positions = features["image_position_ids"][0]
        if int(positions.max()) >= self._vision.position_embedding_size:
            raise ImageError(
                f"An image of {size} pixels is too long and narrow for this model. Crop it, or set image_tokens "
                "lower."
            )
        return Patches(features["pixel_values"][0], positions, int(features["num_soft_tokens_per_image"][0]))

    def see(self, image: Patches) -> torch.Tensor:
        """`[soft tokens, H]`. Raises what loading the tower raises."""
        if self._tower is None:
            hidden = self._config.text_config.hidden_size
            self._tower = _load_tower(self._folder, self._vision, hidden, self._dtype, self._device)
        return self._tower(image)


def import_libraries() -> None:
    """What the first image of a process needs, which takes seconds; nothing else here imports it."""
    from transformers import Gemma4ImageProcessorPil, Gemma4VisionConfig, Gemma4VisionModel  # noqa: F401


class _Tower:
    """transformers' vision tower, and the projection of what it sees into the text network's embeddings."""

    def __init__(self, tower: Any, projection: torch.Tensor, eps: float) -> None:
        self._tower = tower
        self._projection = projection  # [H, vision hidden]
        self._eps = eps

    @torch.no_grad()
    def __call__(self, image: Patches) -> torch.Tensor:
        """`[soft tokens, H]`. One image at a time: as a batch all would be padded to the largest.

        Raises `NotANumberError`.
        """
        device = self._projection.device
        pixels, positions = image.pixels[None].to(device), image.positions[None].to(device)
        seen = self._tower(pixel_values=pixels, pixel_position_ids=positions).last_hidden_state
        normed = F.rms_norm(seen, seen.shape[-1:], None, self._eps)
        soft_tokens = F.linear(normed, self._projection)
        if not soft_tokens.isfinite().all():
            raise NotANumberError("What the vision tower makes of an image")
        return soft_tokens


def _load_tower(
    folder: Path, vision: VisionConfig, hidden_size: int, dtype: torch.dtype, device: torch.device
) -> _Tower:
    """A checkpoint's tower, for a text network of that hidden size, dtype and device.

    Raises `CheckpointError` if it is not whole, and `FileAccessError`.
    """
    from transformers import Gemma4VisionConfig, Gemma4VisionModel

    weights = read_headers(folder)
    check_layers(weights, rf"{TOWER}encoder.", vision.num_hidden_layers, "vision tower")
    # The one kind of rotation that it has is called default or axial, depending on transformers' version.
    config = Gemma4VisionConfig(
        **vision.model_dump(exclude_unset=True, exclude={"rope_parameters": {"rope_type"}})
    )
    with torch.device("meta"):  # names and shapes without memory
        tower = Gemma4VisionModel(config)
    expected = {f"{TOWER}{name}": tensor for name, tensor in tower.state_dict().items()}
    expected[PROJECTION] = torch.empty(hidden_size, vision.hidden_size, device="meta")
    found = weights.find(expected)
    places = {name: torch.empty(each.shape, dtype=dtype, device=device) for name, each in expected.items()}
    weights.read(places, found)
    projection = places.pop(PROJECTION)
    tower.load_state_dict({name.removeprefix(TOWER): each for name, each in places.items()}, assign=True)
    # Frequencies are in no file; it computes them when it is made, which on the meta device comes to nothing.
    rotary = tower.encoder.rotary_emb
    tower.encoder.rotary_emb = type(rotary)(config).to(device)
    assert not any(tensor.is_meta for tensor in [*tower.parameters(), *tower.buffers()])
    return _Tower(tower.eval().requires_grad_(False), projection, vision.rms_norm_eps)


class _ProcessorConfig(Document):
    """What is used of a description of Gemma 4's image processor. What it leaves out has transformers' default."""

    image_processor_type: Literal[
        "Gemma4ImageProcessor", "Gemma4ImageProcessorFast", "Gemma4ImageProcessorPil"
    ] = "Gemma4ImageProcessor"
    do_resize: Literal[True] = True
    resample: int = Field(default=3, ge=0, le=5)
    do_rescale: bool = True
    rescale_factor: float = Field(default=1 / 255, gt=0, le=1)
    do_normalize: bool = False
    image_mean: Annotated[list[float], Field(min_length=3, max_length=3)] | None = None
    image_std: Annotated[list[Positive], Field(min_length=3, max_length=3)] | None = None
    patch_size: int = 16
    pooling_kernel_size: int = 3
    max_soft_tokens: Literal[70, 140, 280, 560, 1120] = 280

    @model_validator(mode="after")
    def _is_of_one_piece(self) -> _ProcessorConfig:
        refuse_unless(
            not self.do_normalize or None not in (self.image_mean, self.image_std),
            "do_normalize needs image_mean and image_std",
        )
        return self


def _load_processor(folder: Path, vision: Any) -> Any:
    """Gemma 4's image processor with the values of the checkpoint, for the vision tower of that config.

    No other class, whatever the files name: what they could name besides is code of their own.

    Raises `CheckpointError` and `FileAccessError`.
    """
    from transformers import Gemma4ImageProcessorPil  # without torchvision, whose build has to match torch's

    file, content = _processor_content(folder)
    config = check_document(file, _ProcessorConfig, content)
    for name in ("patch_size", "pooling_kernel_size"):
        if getattr(config, name) != getattr(vision, name):
            raise CheckpointError(
                f"{quoted(file)} can't be right: {name} is {getattr(config, name)}, and the vision tower's is "
                f"{getattr(vision, name)}. Take the file from where the model comes from."
            )
    try:
        return Gemma4ImageProcessorPil(**config.model_dump(exclude={"image_processor_type"}, exclude_unset=True))
    except Exception as error:  # whatever it finds wrong is wrong with the file
        raise CheckpointError(
            f"{quoted(file)} describes no image processor that can be made: {quoted(error)}. Take the file from "
            "where the model comes from."
        ) from error


def _processor_content(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The description and its file. A whole processor's goes first, as with transformers."""
    alone, whole = (folder / name for name in IMAGE_FILES)
    if is_here(whole):
        content = read_json(whole).get("image_processor")
        if isinstance(content, dict):
            return whole, content
    if not is_here(alone):
        raise CheckpointError(
            f"{quoted(folder)} has no image processor ({' or '.join(IMAGE_FILES)}), so it can't be shown images. "
            "Take the file from where the model comes from."
        )
    return alone, read_json(alone)
