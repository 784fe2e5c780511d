"""Token for token what transformers' own `generate` makes of the same random numbers.

But for rounding: a step decides otherwise than theirs if one of its numbers comes to lie on the other side of a
border. So where a reply parts from theirs, their step was that close to deciding as ours did, and what comes
behind it is not compared.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoTokenizer, DiffusionGemmaForBlockDiffusion

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.diffusion import pipeline as pipeline_module
from llm_diffusiongemma.diffusion.drafting import DraftedText
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.pipeline import Block, BlockDiffusionPipeline, Draft
from llm_diffusiongemma.diffusion.request import Part, Prompt, Request, Text
from llm_diffusiongemma.diffusion.sampler import DenoisingStep, EntropyBoundSampler, SamplerSettings

from .generate import DraftedNumbers, generate, numbers_of
from .tiny_models import FULL, IMAGE_TOKEN_ID, NEVER, SLIDING, network_of, prompt_of, tiny_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_diffusiongemma.diffusion.request import PromptImage
    from llm_diffusiongemma.diffusion.sampler import Randomness

SETTINGS = SamplerSettings(20, 0.1, 0.4, 0.8, 0.005, 1)
# Of a reply that parts. See `Decision.margin`.
MARGIN = 1e-5


@dataclass(frozen=True)
class Comparison:
    blocks: list[Block]
    """of ours"""
    their_tokens: list[int]
    parted: bool
    """At a step that was as close as the margin."""

    @property
    def tokens(self) -> list[int]:
        return [token for block in self.blocks for token in block.tokens]


def compare_with_generate(
    model: Any,
    prompt: Sequence[int],
    num_canvases: int,
    seed: int,
    settings: SamplerSettings = SETTINGS,
    images: tuple[PromptImage, ...] = (),
    margin: float = MARGIN,
    canvas_length: int | None = None,
    draft: tuple[DraftedText, int] | None = None,
    **their_images: torch.Tensor,
) -> Comparison:
    """Both replies on the same random numbers; fails unless they are the same as far as they have to be.

    Canvases shorter than the model's are an option of ours; theirs are as long as the config says. With a `draft`
    one canvas begins as that, with so many denoising steps left.
    """
    asked_length, canvas_length = canvas_length, canvas_length or model.config.canvas_length
    max_tokens = num_canvases * canvas_length
    parts: tuple[Part, ...] = (Text(),)
    their_randomness: Randomness = numbers_of(seed)
    their_settings = settings
    if draft is not None:
        drafted, steps = draft
        parts, start = (Text(drafted),), drafted.start(canvas_length)
        assert start is not None
        their_randomness = left = DraftedNumbers(seed, start, settings)
        their_settings = left.settings(steps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.config, "canvas_length", canvas_length)
        their_tokens, theirs = generate(
            model, prompt, their_settings, max_tokens, their_randomness, **their_images
        )

    config = model.generation_config
    eos = [config.eos_token_id] if isinstance(config.eos_token_id, int) else config.eos_token_id
    pipeline = BlockDiffusionPipeline(network_of(model), eos_token_ids=eos, pad_token_id=config.pad_token_id)
    ours: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    blocks: list[Block] = []
    committed: list[int] = []
    conclude = EntropyBoundSampler.conclude

    def note(sampler: EntropyBoundSampler) -> DenoisingStep:
        step = conclude(sampler)
        ours.append((len(blocks), torch.tensor(step.tokens), sampler.canvas.clone()))
        return step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EntropyBoundSampler, "conclude", note)
        request = Request(Prompt(prompt, images), settings, max_tokens, parts, asked_length)
        for record in pipeline.generate(request, randomness=numbers_of(seed), drafts=True):
            if isinstance(record, Draft):
                draft = record
            else:
                blocks.append(record)
                committed += draft.tokens

    for i, (canvas_index, argmax, canvas) in enumerate(ours):
        same = (
            i < len(theirs)
            and canvas_index == theirs[i].canvas_index
            and torch.equal(argmax, theirs[i].argmax)
            and torch.equal(canvas, theirs[i].canvas)
        )
        if not same:
            # The step before is the one to ask if it was not agreed whether the canvas ends with it.
            asked = theirs[max(0, i - 1) : i + 1]
            assert min(each.margin(settings) for each in asked) < margin, (i, [e.margin(settings) for e in asked])
            return Comparison(blocks, their_tokens, parted=True)

    assert len(ours) == len(theirs)
    assert len(committed) == len(their_tokens) == canvas_length * len(blocks)
    end = next((i for i, token in enumerate(committed) if token in pipeline.eos_token_ids), None)
    # After the end of sequence `generate` writes padding over what it committed.
    shown = len(committed) if end is None else end + 1
    assert committed[:shown] == their_tokens[:shown]
    assert [token for block in blocks for token in block.tokens] == committed[:end]
    return Comparison(blocks, their_tokens, parted=False)


@dataclass(frozen=True)
class Case:
    """A model, a prompt and settings, and what the seeds have to show for the case to mean something."""

    prompt_length: int
    num_canvases: int
    converged: set[bool]
    finish_reasons: set[str]
    eos_token_id: int | list[int] = NEVER
    settings: SamplerSettings = SETTINGS
    seeds: range = range(2)
    model: dict[str, Any] = field(default_factory=dict)


CASES = {
    "one canvas, prompt inside the sliding window": Case(
        prompt_length=5,
        num_canvases=1,
        converged={True, False},
        finish_reasons={"length"},
    ),
    "three canvases, prompt beyond the sliding window": Case(
        prompt_length=41,
        num_canvases=3,
        converged={True, False},
        finish_reasons={"length"},
        seeds=range(2),
        model={"layer_types": (SLIDING, SLIDING, FULL), "sharpness": 16.0},
    ),
    "end of sequence, stable for two steps": Case(
        prompt_length=20,
        num_canvases=3,
        converged={True, False},
        finish_reasons={"stop", "length"},
        eos_token_id=[295, 299],
        settings=replace(SETTINGS, stability_threshold=2),
        seeds=range(1, 4),
        model={"canvas_length": 24, "vocab_size": 300, "sharpness": 14.0},
    ),
    "stable at once": Case(
        prompt_length=33,
        num_canvases=3,
        converged={True, False},
        finish_reasons={"stop", "length"},
        eos_token_id=23,
        settings=replace(SETTINGS, stability_threshold=0),
        seeds=range(3),
    ),
    "a vocabulary of odd size, never sure": Case(
        prompt_length=17,
        num_canvases=2,
        converged={False},
        finish_reasons={"length"},
        model={"vocab_size": 97, "sharpness": 4.0},
        settings=replace(SETTINGS, max_denoising_steps=7, t_min=0.0, t_max=1.3),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_same_tokens_as_generate(case: Case) -> None:
    model = tiny_model(**case.model)
    model.generation_config.eos_token_id = case.eos_token_id
    prompt = prompt_of(case.prompt_length)
    results = [compare_with_generate(model, prompt, case.num_canvases, seed, case.settings) for seed in case.seeds]
    assert sum(result.parted for result in results) <= 1
    blocks = [block for result in results if not result.parted for block in result.blocks]
    assert {block.converged for block in blocks} == case.converged
    assert {block.finish_reason for block in blocks} - {None} == case.finish_reasons


@pytest.mark.parametrize("chunk", [1, 16, 33])
def test_same_tokens_as_generate_in_chunks(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(pipeline_module, "MAX_PREFILL_TOKENS", chunk)
    assert not compare_with_generate(tiny_model(), prompt_of(41), 2, seed=0).parted


@dataclass(frozen=True)
class Image:
    """Soft tokens as transformers makes them."""

    span: range
    tokens: torch.Tensor
    digest: str = ""

    def soft_tokens(self) -> torch.Tensor:
        return self.tokens


def test_same_tokens_as_generate_with_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not if the encoder reads the soft tokens causally."""
    model = tiny_model()
    # 12x12 patches pool to a 4x4 grid of soft tokens.
    x, y = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="xy")
    positions = torch.stack((x.flatten(), y.flatten()), -1).expand(2, -1, -1)
    pixels = torch.rand(2, 144, 3 * 4 * 4, generator=torch.Generator().manual_seed(0))
    spans = range(4, 20), range(26, 42)
    with torch.no_grad():
        features = model.model.encoder.get_image_features(pixels, positions, return_dict=True).pooler_output
    images = tuple(Image(span, tokens) for span, tokens in zip(spans, features.view(2, 16, -1), strict=True))
    image = [IMAGE_TOKEN_ID] * 16
    prompt = [*prompt_of(4), *image, *prompt_of(6, seed=1), *image, *prompt_of(3, seed=2)]
    types = torch.tensor([[token == IMAGE_TOKEN_ID for token in prompt]]).long()
    theirs = {"pixel_values": pixels, "image_position_ids": positions, "mm_token_type_ids": types}
    assert not compare_with_generate(model, prompt, 2, seed=0, images=images, **theirs).parted

    encode = Network.encode
    monkeypatch.setattr(Network, "encode", lambda *arguments: encode(*arguments[:3]))
    with pytest.raises(AssertionError):
        compare_with_generate(model, prompt, 2, seed=0, images=images, **theirs)


@pytest.mark.parametrize(("noise", "steps"), [(0.0, 10), (0.5, 14)])
def test_a_canvas_that_begins_as_a_draft_goes_on_as_theirs(noise: float, steps: int) -> None:
    """Theirs is given the canvas that ours begins with, and the rest of the schedule."""
    model = tiny_model(sharpness=14.0)
    results = []
    for seed in range(2):
        drafted = DraftedText(prompt_of(9, seed=9), noise, 5)
        settings = replace(SETTINGS, max_denoising_steps=20)
        draft = (drafted, steps)
        results.append(compare_with_generate(model, prompt_of(12), 1, seed, settings, draft=draft))
    assert sum(result.parted for result in results) <= 1


@functools.cache
def embedded(dtype: torch.dtype) -> Any:
    return DiffusionGemmaForBlockDiffusion.from_pretrained(EMBEDDED_CHECKPOINT, dtype=dtype).eval()


def embedded_prompt(question: str) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_CHECKPOINT, local_files_only=True)
    messages = [{"role": "user", "content": question}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    tokens: list[int] = tokenizer.encode(rendered, add_special_tokens=False)
    return tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("question", ["What is a canvas?", "Count from 1 to 120"])
def test_the_embedded_checkpoint_replies_as_generate_does(dtype: torch.dtype, question: str) -> None:
    """In bf16 the text only, of which it is sure: on the way a step may accept other positions than theirs.

    There a product is added up from parts, and rounded in other places than in transformers' network. Of a random
    network, which is sure of nothing, bf16 says nothing at all.
    """
    model = embedded(dtype)
    prompt = embedded_prompt(question)
    settings = SamplerSettings.from_generation_config(model.generation_config)
    margin = MARGIN if dtype == torch.float32 else math.inf
    result = compare_with_generate(model, prompt, 3, 1, settings, margin=margin)
    assert result.parted <= (dtype == torch.bfloat16)
    assert result.blocks[-1].finish_reason == "stop"
    assert result.tokens == result.their_tokens[: len(result.tokens)]
    assert result.their_tokens[len(result.tokens)] == result.blocks[-1].eos_token_id


@pytest.mark.parametrize("canvas_length", [16, 48])
def test_shorter_canvases_are_those_of_generate(canvas_length: int) -> None:
    """Of a random network, then of the trained one, which says in the same words what a canvas is."""
    model = tiny_model(canvas_length=256, sharpness=16.0)
    result = compare_with_generate(model, prompt_of(20), 2, seed=0, canvas_length=canvas_length)
    assert not result.parted
    assert [len(block.tokens) for block in result.blocks] == [canvas_length] * 2

    model = embedded(torch.float32)
    settings = SamplerSettings.from_generation_config(model.generation_config)
    prompt = embedded_prompt("What is a canvas?")
    result = compare_with_generate(model, prompt, 256 // canvas_length, 1, settings, canvas_length=canvas_length)
    assert not result.parted
    assert result.blocks[-1].finish_reason == "stop"
