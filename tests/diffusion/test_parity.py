"""Token for token what transformers' own `generate` makes of the same random numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from llm_diffusiongemma.diffusion.pipeline import Block, BlockDiffusionPipeline, Draft, ImageInputs
from llm_diffusiongemma.diffusion.sampler import SamplerSettings

from .tiny_models import FULL, IMAGE_TOKEN_ID, NEVER, SLIDING, UpstreamRandomness, prompt_of, tiny_model


@dataclass(frozen=True)
class Case:
    """A model, a prompt and settings, and what the seeds have to show for the case to mean something."""

    prompt_length: int
    num_canvases: int
    converged: set[bool]
    finish_reasons: set[str]
    eos_token_id: int | list[int] = NEVER
    stability_threshold: int = 1
    seeds: range = range(10)
    model: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)


CASES = {
    "one canvas, prompt inside the sliding window": Case(
        prompt_length=5, num_canvases=1, converged={True, False}, finish_reasons={"length"}, seeds=range(50)
    ),
    "three canvases, prompt beyond the sliding window": Case(
        prompt_length=41,
        num_canvases=3,
        converged={True, False},
        finish_reasons={"length"},
        model={"layer_types": (SLIDING, SLIDING, FULL), "sharpness": 16.0},
    ),
    "end of sequence, stable for two steps": Case(
        prompt_length=20,
        num_canvases=3,
        converged={True, False},
        finish_reasons={"stop", "length"},
        eos_token_id=[134, 295],
        stability_threshold=2,
        model={"canvas_length": 24, "vocab_size": 300, "sharpness": 14.0},
    ),
    "stable at once": Case(
        prompt_length=33,
        num_canvases=3,
        converged={True, False},
        finish_reasons={"stop", "length"},
        eos_token_id=23,
        stability_threshold=0,
    ),
    "bfloat16": Case(
        prompt_length=30,
        num_canvases=2,
        converged={True, False},
        finish_reasons={"stop", "length"},
        eos_token_id=[90, 1],
        model={"dtype": torch.bfloat16},
    ),
    "a vocabulary of odd size, never sure": Case(
        prompt_length=17,
        num_canvases=2,
        converged={False},
        finish_reasons={"length"},
        model={"vocab_size": 97, "sharpness": 4.0},
        generation={"max_denoising_steps": 7, "t_min": 0.0, "t_max": 1.3},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_same_tokens_as_generate(case: Case) -> None:
    model = tiny_model(**case.model)
    model.generation_config.eos_token_id = case.eos_token_id
    model.generation_config.stability_threshold = case.stability_threshold
    for name, value in case.generation.items():
        setattr(model.generation_config, name, value)
    prompt = prompt_of(case.prompt_length)

    blocks = []
    for seed in case.seeds:
        blocks += compare_with_generate(model, prompt, case.num_canvases, seed)

    assert {block.converged for block in blocks} == case.converged
    assert {block.finish_reason for block in blocks} - {None} == case.finish_reasons


def test_same_tokens_as_generate_with_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder must get the image's masks, or it reads the soft tokens causally."""
    model = tiny_model()
    # 12x12 patches pool to a 4x4 grid of soft tokens.
    x, y = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="xy")
    images = ImageInputs(
        pixel_values=[
            torch.rand(144, 3 * 4 * 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)
        ],
        image_position_ids=[torch.stack((x.flatten(), y.flatten()), -1)] * 2,
        spans=(range(4, 20), range(26, 42)),
    )
    image = [IMAGE_TOKEN_ID] * 16
    prompt = [*prompt_of(4), *image, *prompt_of(6, seed=1), *image, *prompt_of(3, seed=2)]
    compare_with_generate(model, prompt, 2, seed=0, images=images)

    monkeypatch.setattr(ImageInputs, "token_types", lambda _, length: torch.zeros(1, length, dtype=torch.int64))
    with pytest.raises(AssertionError):
        compare_with_generate(model, prompt, 2, seed=0, images=images)


def compare_with_generate(
    model: Any,
    prompt: list[int],
    num_canvases: int,
    seed: int,
    images: ImageInputs | None = None,
) -> list[Block]:
    """Run both from the same state of the global RNG; returns our blocks, if all is the same."""
    canvas_length, max_tokens = model.config.canvas_length, num_canvases * model.config.canvas_length

    theirs_images = {}
    if images is not None:
        types = torch.zeros(1, len(prompt), dtype=torch.int64)
        for span in images.spans:
            types[0, list(span)] = 1
        theirs_images = {
            "pixel_values": torch.stack(list(images.pixel_values)),
            "image_position_ids": torch.stack(list(images.image_position_ids)),
            "mm_token_type_ids": types,
        }
    torch.manual_seed(seed)
    theirs = model.generate(torch.tensor([prompt]), max_new_tokens=max_tokens, **theirs_images)
    their_tokens = theirs.sequences[0, len(prompt) :].tolist()
    their_rng_state = torch.get_rng_state()

    torch.manual_seed(seed)
    pipeline = BlockDiffusionPipeline(model)
    records = list(
        pipeline.generate(
            prompt,
            settings=SamplerSettings.from_generation_config(model.generation_config),
            max_tokens=max_tokens,
            randomness=UpstreamRandomness(),
            drafts=True,
            images=images,
        )
    )
    blocks = [record for record in records if isinstance(record, Block)]
    last_drafts = {record.block_index: record for record in records if isinstance(record, Draft)}

    committed = [token for block in blocks for token in last_drafts[block.index].tokens]
    assert len(committed) == len(their_tokens) == canvas_length * len(blocks)
    end = next((i for i, token in enumerate(committed) if token in pipeline.eos_token_ids), None)
    # After the end of sequence `generate` writes padding over what it committed.
    shown = len(committed) if end is None else end + 1
    assert committed[:shown] == their_tokens[:shown]
    assert [token for block in blocks for token in block.tokens] == committed[:end]
    # As many random numbers were drawn, so as many denoising steps were made.
    assert torch.equal(torch.get_rng_state(), their_rng_state)
    return blocks
