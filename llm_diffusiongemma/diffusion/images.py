"""Images to what the encoder reads, by the checkpoint's own image processor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, ImageError
from ..layout import IMAGE_FILES
from ..wording import quoted
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
        processor = self._processor = self._processor or _load_processor(self._folder)
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


def _load_processor(folder: Path) -> Any:
    from transformers import AutoImageProcessor

    try:
        # Without torchvision, whose build has to match torch's.
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    except Exception as error:  # whatever it finds wrong is wrong with the folder
        raise CheckpointError(
            f"{quoted(folder)} has no image processor that can be read ({' or '.join(IMAGE_FILES)}), so it can't "
            f"be shown images: {quoted(error)}"
        ) from error
