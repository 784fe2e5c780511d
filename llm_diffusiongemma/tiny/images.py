"""Plain images for the embedded checkpoint's colour skill."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import torch
from PIL import Image

SOFT_TOKENS = 70


@cache
def image_processor() -> Any:
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    return Gemma4ImageProcessorPil(patch_size=4, pooling_kernel_size=2, max_soft_tokens=SOFT_TOKENS)


def plain(colour: tuple[int, int, int], rng: random.Random) -> Image.Image:
    """An image of one colour, of a random size and shape."""
    return Image.new("RGB", (rng.randint(16, 160), rng.randint(16, 160)), colour)


def preprocess(shown: list[Image.Image]) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Encoder inputs for the images, and how many soft tokens each becomes."""
    features = image_processor()(images=shown, return_tensors="pt")
    counts = [int(count) for count in features.pop("num_soft_tokens_per_image")]
    return {
        "pixel_values": features["pixel_values"],
        "image_position_ids": features["image_position_ids"],
    }, counts


def expand(prompt: list[int], soft_tokens: int, image_token_id: int) -> list[int]:
    """Put `<|image>`, the soft tokens and `<image|>` in the place of the one `<|image|>` of the prompt."""
    at = prompt.index(image_token_id)
    # The three image tokens are neighbours in the tiny vocabulary.
    begin, end = image_token_id - 1, image_token_id + 1
    return [*prompt[:at], begin, *[image_token_id] * soft_tokens, end, *prompt[at + 1 :]]
