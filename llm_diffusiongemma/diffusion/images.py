"""Images to what the encoder reads, by the checkpoint's own image processor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from ..documents import Document, refuse_unless
from ..errors import CheckpointError, ImageError
from ..layout import IMAGE_FILES, check_document, is_here, read_json
from ..wording import quoted
from .config_file import Positive
from .pipeline import ImageInputs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch
    from PIL import Image
    from transformers import DiffusionGemmaConfig


@dataclass(frozen=True, eq=False)
class Patches:
    """One image as the encoder reads it."""

    pixels: torch.Tensor
    """`[patches, patch pixels]`"""
    positions: torch.Tensor
    """`[patches, 2]`"""
    soft_tokens: int


class ImageReader:
    """Prepares the images of a prompt. The processor is loaded with the first of them."""

    def __init__(self, folder: Path, config: DiffusionGemmaConfig) -> None:
        self._folder = folder
        self._config = config
        self._processor: Any = None

    def place(self, prompt_ids: Sequence[int], images: Sequence[Patches]) -> tuple[list[int], ImageInputs]:
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
        spans: list[range] = []
        counts = iter(image.soft_tokens for image in images)
        for token in prompt_ids:
            if token != config.image_token_id:
                ids.append(token)
                continue
            start = len(ids) + 1
            spans.append(range(start, start + next(counts)))
            ids += [config.boi_token_id, *[token] * len(spans[-1]), config.eoi_token_id]
        return ids, ImageInputs(
            pixel_values=[image.pixels for image in images],
            image_position_ids=[image.positions for image in images],
            spans=tuple(spans),
        )

    def cut(self, image: Image.Image, soft_tokens: int | None) -> Patches:
        """An image as at most so many soft tokens, or what the checkpoint says for None.

        Raises `ImageError` for one that can't be cut into patches, `CheckpointError` if the checkpoint has
        no image processor.
        """
        processor = self._processor = self._processor or _load_processor(self._folder, self._config.vision_config)
        size = f"{image.width} × {image.height}"
        try:
            budget = {} if soft_tokens is None else {"max_soft_tokens": soft_tokens}
            features = processor(images=[image], return_tensors="pt", **budget)
        except ValueError as error:
            raise ImageError(
                f"An image of {size} pixels is too long and narrow for this model. Crop it, or cut it in pieces."
            ) from error
        positions = features["image_position_ids"][0]
        if int(positions.max()) >= self._config.vision_config.position_embedding_size:
            raise ImageError(
                f"An image of {size} pixels is too long and narrow for this model. Crop it, or set image_tokens "
                "lower."
            )
        return Patches(features["pixel_values"][0], positions, int(features["num_soft_tokens_per_image"][0]))


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
