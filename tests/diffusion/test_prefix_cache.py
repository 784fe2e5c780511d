"""The next turn encodes only what is new, and nothing comes out otherwise than without the cache."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import DynamicCache

from llm_diffusiongemma.diffusion import pipeline as pipeline_module
from llm_diffusiongemma.diffusion.pipeline import Block, BlockDiffusionPipeline, ImageInputs, Prompt
from llm_diffusiongemma.diffusion.prefix_cache import EncodedPrefix
from llm_diffusiongemma.diffusion.sampler import GeneratorRandomness, SamplerSettings

from .tiny_models import IMAGE_TOKEN_ID, prompt_of, tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator

CANVAS = 16
WINDOW = 16
SOFT_TOKENS = 16


@functools.cache
def model() -> Any:
    random_model = tiny_model(max_position_embeddings=2048)
    with torch.no_grad():
        # It must not write the token that stands for an image: a prompt with it would be short of one.
        random_model.get_input_embeddings().weight[IMAGE_TOKEN_ID] = 0
    return random_model


@pytest.fixture
def pipeline() -> BlockDiffusionPipeline:
    return BlockDiffusionPipeline(model())


def image(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """12 × 12 random patches, which pool to a 4 × 4 grid of soft tokens."""
    x, y = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="xy")
    pixels = torch.rand(144, 3 * 4 * 4, generator=torch.Generator().manual_seed(seed))
    return pixels, torch.stack((x.flatten(), y.flatten()), -1)


@dataclass
class Request:
    """A prompt as the chat side hands it over. Images are given by their seed."""

    tokens: list[int] = field(default_factory=list)
    images: list[tuple[int, int]] = field(default_factory=list)  # (where its soft tokens begin, seed)
    stable_length: int = 0

    def __add__(self, tokens: list[int]) -> Request:
        return Request(self.tokens + tokens, list(self.images), self.stable_length)

    def with_image(self, seed: int) -> Request:
        begun = self + [7]  # noqa: RUF005
        begun.images.append((len(begun.tokens), seed))
        return begun + [IMAGE_TOKEN_ID] * SOFT_TOKENS + [8]

    @property
    def inputs(self) -> ImageInputs | None:
        if not self.images:
            return None
        shown = [image(seed) for _, seed in self.images]
        return ImageInputs(
            [pixels for pixels, _ in shown],
            [positions for _, positions in shown],
            tuple(range(start, start + SOFT_TOKENS) for start, _ in self.images),
        )


def reply(pipeline: BlockDiffusionPipeline, request: Request, *, canvases: int = 1, seed: int = 0) -> list[Block]:
    records = pipeline.generate(
        request.tokens,
        settings=SamplerSettings.from_generation_config(model().generation_config),
        max_tokens=canvases * CANVAS,
        randomness=GeneratorRandomness(torch.Generator().manual_seed(seed)),
        images=request.inputs,
        stable_length=request.stable_length,
    )
    return [record for record in records if isinstance(record, Block)]


def tokens_of(blocks: list[Block]) -> list[int]:
    return [token for block in blocks for token in block.tokens]


def layers_of(cache: DynamicCache) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for layer in cache.layers:
        yield layer.keys, layer.values


def assert_holds(kept: EncodedPrefix, request: Request) -> None:
    """Keys and values are those of a fresh encoding, to fp32 rounding."""
    length = len(kept)
    fresh = EncodedPrefix(DynamicCache(config=model().config.get_text_config(decoder=True)))
    inputs = request.inputs
    prompt = Prompt(torch.tensor([request.tokens[:length]]), list(kept.identities), inputs, 0)
    with torch.no_grad():
        BlockDiffusionPipeline(model())._prefill(prompt, fresh, lambda: False)
    for ours, theirs in zip(layers_of(kept.cache), layers_of(fresh.cache), strict=True):
        for mine, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def kept_by(pipeline: BlockDiffusionPipeline) -> EncodedPrefix:
    kept = pipeline.prefix_cache._kept
    assert kept is not None
    return kept


# --- what is encoded -------------------------------------------------------------------------------------


def test_a_longer_prompt_costs_what_is_new(pipeline: BlockDiffusionPipeline) -> None:
    first = Request(prompt_of(50), stable_length=48)
    (block,) = reply(pipeline, first)
    assert block.encoded_tokens == 50
    second = first + block.tokens + prompt_of(9, seed=1)
    (block,) = reply(pipeline, second)
    assert block.encoded_tokens == CANVAS + 9
    assert_holds(kept_by(pipeline), second)


def test_the_same_prompt_again_costs_nothing(pipeline: BlockDiffusionPipeline) -> None:
    asked = Request(prompt_of(50))
    first = reply(pipeline, asked)
    again = reply(pipeline, asked)
    assert again[0].encoded_tokens == 0
    assert tokens_of(again) == tokens_of(first)


def test_blocks_that_come_back_as_they_were_written_are_not_read_again(pipeline: BlockDiffusionPipeline) -> None:
    first = Request(prompt_of(50), stable_length=48)
    blocks = reply(pipeline, first, canvases=3)
    assert [block.encoded_tokens for block in blocks] == [50, CANVAS, CANVAS]
    second = first + tokens_of(blocks) + prompt_of(9, seed=1)
    (block,) = reply(pipeline, second)
    assert block.encoded_tokens == CANVAS + 9  # the last block was never encoded
    assert_holds(kept_by(pipeline), second)


@pytest.mark.parametrize("canvases", [1, 3])
def test_thoughts_that_are_stripped_cost_no_more_than_the_turn(
    pipeline: BlockDiffusionPipeline, canvases: int
) -> None:
    """Past the window the sliding layers have forgotten the turn's beginning: the snapshot has it."""
    first = Request(prompt_of(50), stable_length=48)
    reply(pipeline, first, canvases=canvases)
    second = Request(first.tokens[:49] + prompt_of(20, seed=1), stable_length=60)
    (block,) = reply(pipeline, second)
    assert block.encoded_tokens == 69 - 48
    assert_holds(kept_by(pipeline), second)


def test_the_snapshot_lives_through_a_tool_loop(pipeline: BlockDiffusionPipeline) -> None:
    """Its later prompts extend the first, and the turn after them strips what the first ended with."""
    first = Request(prompt_of(50), stable_length=48)
    (block,) = reply(pipeline, first)
    result = first + block.tokens + prompt_of(30, seed=1)
    assert reply(pipeline, result)[0].encoded_tokens == CANVAS + 30
    after = Request(first.tokens[:48] + prompt_of(20, seed=2), stable_length=60)
    assert reply(pipeline, after)[0].encoded_tokens == 20
    assert_holds(kept_by(pipeline), after)


def test_within_the_window_any_edit_keeps_what_is_before_it(pipeline: BlockDiffusionPipeline) -> None:
    reply(pipeline, Request(prompt_of(12)))
    edited = Request(prompt_of(12)[:5] + prompt_of(9, seed=1))
    assert reply(pipeline, edited)[0].encoded_tokens == 9
    assert_holds(kept_by(pipeline), edited)


def test_past_the_window_an_old_edit_starts_over(pipeline: BlockDiffusionPipeline) -> None:
    reply(pipeline, Request(prompt_of(50), stable_length=48))
    edited = Request(prompt_of(50)[:30] + prompt_of(20, seed=1), stable_length=48)
    assert reply(pipeline, edited)[0].encoded_tokens == 50
    assert_holds(kept_by(pipeline), edited)


def test_another_image_in_the_same_place_is_read(pipeline: BlockDiffusionPipeline) -> None:
    def with_image(seed: int) -> Request:
        return Request(prompt_of(3)).with_image(seed) + prompt_of(5)

    first = with_image(1)
    assert reply(pipeline, first)[0].encoded_tokens == 26
    assert reply(pipeline, with_image(1))[0].encoded_tokens == 0
    other = with_image(2)
    assert reply(pipeline, other)[0].encoded_tokens == 26  # the sliding layer has forgotten the first four
    assert_holds(kept_by(pipeline), other)


def test_a_new_image_behind_a_cached_one(pipeline: BlockDiffusionPipeline) -> None:
    """The masks look images up by their place in the whole prompt, not in what is encoded now."""
    first = Request(prompt_of(3)).with_image(1) + prompt_of(5)
    reply(pipeline, first)
    second = (first + prompt_of(4, seed=1)).with_image(2) + prompt_of(5, seed=2)
    assert reply(pipeline, second)[0].encoded_tokens == 4 + 18 + 5
    assert_holds(kept_by(pipeline), second)


def test_only_what_is_new_goes_through_the_tower_and_each_image_by_itself(
    pipeline: BlockDiffusionPipeline,
) -> None:
    """Images of several budgets: none is padded to the largest, and what the cache holds is not seen again."""
    seen: list[tuple[int, ...]] = []
    hook = model().model.encoder.vision_tower.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(tuple(kwargs["pixel_values"].shape)), with_kwargs=True
    )

    def padded(inputs: ImageInputs, patches: int) -> ImageInputs:
        """The first image as its processor would pad it for a larger budget."""
        pixels = torch.nn.functional.pad(inputs.pixel_values[0], (0, 0, 0, patches - 144))
        positions = torch.nn.functional.pad(inputs.image_position_ids[0], (0, 0, 0, patches - 144), value=-1)
        return ImageInputs(
            [pixels, *inputs.pixel_values[1:]], [positions, *inputs.image_position_ids[1:]], inputs.spans
        )

    def ask(request: Request, patches: int) -> None:
        inputs = request.inputs
        assert inputs is not None
        settings = SamplerSettings.from_generation_config(model().generation_config)
        randomness = GeneratorRandomness(torch.Generator().manual_seed(0))
        images = padded(inputs, patches)
        list(
            pipeline.generate(
                request.tokens, settings=settings, max_tokens=1, randomness=randomness, images=images
            )
        )

    first = Request(prompt_of(3)).with_image(1).with_image(2) + prompt_of(5)
    ask(first, 288)
    last = first.with_image(3) + prompt_of(5)
    ask(last, 576)  # the padding is no part of what an image is
    hook.remove()
    assert_holds(kept_by(pipeline), last)
    assert seen == [(1, 288, 48), (1, 144, 48), (1, 144, 48)]


# --- chunks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [7, 16, 33])
def test_chunks_of_a_long_prompt_change_nothing(
    pipeline: BlockDiffusionPipeline, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    request = (Request(prompt_of(40)).with_image(1) + prompt_of(10)).with_image(2) + prompt_of(11)
    whole = tokens_of(reply(pipeline, request))
    pipeline.prefix_cache.clear()
    with monkeypatch.context() as patch:
        patch.setattr(pipeline_module, "MAX_PREFILL_TOKENS", chunk)
        lengths: list[int] = []
        hook = model().model.encoder.register_forward_pre_hook(
            lambda _, __, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
        )
        in_chunks = tokens_of(reply(pipeline, request))
        hook.remove()
    assert sum(lengths) == len(request.tokens)
    assert len(lengths) > 2
    assert_holds(kept_by(pipeline), request)
    assert in_chunks == whole


def test_a_long_prompt_can_be_stopped_between_chunks(
    pipeline: BlockDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_module, "MAX_PREFILL_TOKENS", 10)
    answers = iter([False] * 4 + [True] * 100)
    records = pipeline.generate(
        prompt_of(200),
        settings=SamplerSettings.from_generation_config(model().generation_config),
        max_tokens=CANVAS,
        randomness=GeneratorRandomness(torch.Generator()),
        should_stop=lambda: next(answers),
    )
    assert list(records) == []
    assert len(kept_by(pipeline)) == 30  # and what was read is not lost


# --- safety ----------------------------------------------------------------------------------------------


def test_two_replies_at_once_do_not_share(pipeline: BlockDiffusionPipeline) -> None:
    asked = Request(prompt_of(50))
    alone = tokens_of(reply(pipeline, asked, canvases=2))
    settings = SamplerSettings.from_generation_config(model().generation_config)

    def start() -> Iterator[Any]:
        randomness = GeneratorRandomness(torch.Generator().manual_seed(0))
        return pipeline.generate(asked.tokens, settings=settings, max_tokens=2 * CANVAS, randomness=randomness)

    mixed: list[list[int]] = [[], []]
    for pair in zip(start(), start(), strict=True):
        for tokens, block in zip(mixed, pair, strict=True):
            tokens += block.tokens
    assert mixed == [alone, alone]


@pytest.mark.parametrize("layer", [0, 1])
def test_a_forward_that_was_broken_off_leaves_nothing_behind(pipeline: BlockDiffusionPipeline, layer: int) -> None:
    """Ctrl-C in the middle of the encoder: some layers have the new tokens and some do not."""
    first = Request(prompt_of(50))
    reply(pipeline, first)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = model().model.encoder.language_model.layers[layer].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        reply(pipeline, first + prompt_of(9, seed=1))
    hook.remove()
    assert pipeline.prefix_cache._kept is None


def test_running_out_of_memory_gives_it_back(pipeline: BlockDiffusionPipeline) -> None:
    reply(pipeline, Request(prompt_of(50)))

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError

    hook = model().model.decoder.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError, match="59 tokens"):
        reply(pipeline, Request(prompt_of(50) + prompt_of(9, seed=1)))
    hook.remove()
    assert pipeline.prefix_cache._kept is None


def test_one_conversation_is_kept(pipeline: BlockDiffusionPipeline) -> None:
    reply(pipeline, Request(prompt_of(50)))
    reply(pipeline, Request(prompt_of(60, seed=1)))
    assert kept_by(pipeline).identities == prompt_of(60, seed=1)


# --- random conversations --------------------------------------------------------------------------------


def random_conversation(rng: random.Random) -> Iterator[tuple[Request, list[int]]]:
    """Prompts as a chat makes them; each is to be sent with the reply it gets, put into the second's end."""
    history = Request(prompt_of(rng.randint(1, 30), seed=rng.randrange(1000)))
    for _ in range(rng.randint(3, 6)):
        if rng.random() < 0.15 and len(history.tokens) > 4:  # somebody edits the history
            cut = rng.randrange(1, len(history.tokens))
            while any(start - 1 <= cut < start + SOFT_TOKENS + 1 for start, _ in history.images):
                cut -= 1
            kept_images = [shown for shown in history.images if shown[0] < cut]
            history = Request(history.tokens[: max(cut, 1)], kept_images)
        if rng.random() < 0.3:
            history = history.with_image(rng.randrange(3))
        history = history + prompt_of(rng.randint(1, 40), seed=rng.randrange(1000))
        stable = len(history.tokens)
        request = history + prompt_of(2, seed=5)
        request.stable_length = stable
        for _ in range(rng.choice([1, 1, 1, 2, 3])):  # a tool loop has several prompts
            answer: list[int] = []
            yield request, answer
            request = request + answer + prompt_of(rng.randint(1, 20), seed=rng.randrange(1000))
        # The template strips a thought, or shows the answer as it was written.
        shown = answer[rng.randrange(len(answer)) :] if rng.random() < 0.4 else answer
        history = Request(request.tokens[: stable + 2] + shown, list(request.images))
        history = Request(history.tokens + prompt_of(1, seed=6), history.images)


def test_random_conversations_are_as_without_the_cache(pipeline: BlockDiffusionPipeline) -> None:
    """Token for token; where the summation order alone flips a near-tie, it is counted, and is rare."""
    turns = flipped = reused = 0
    for number in range(4):
        rng = random.Random(number)
        for request, answer in random_conversation(rng):
            canvases = rng.randint(1, 2)
            ours = reply(pipeline, request, canvases=canvases, seed=turns)
            fresh = reply(BlockDiffusionPipeline(model()), request, canvases=canvases, seed=turns)
            reused += ours[0].encoded_tokens < fresh[0].encoded_tokens
            flipped += tokens_of(ours) != tokens_of(fresh)
            answer += tokens_of(ours)
            kept = kept_by(pipeline)
            assert kept.identities[: len(request.tokens)] == kept_identities(request)
            assert_holds(kept, request + answer)
            turns += 1
    assert turns > 20
    assert reused > turns / 2
    assert flipped <= turns / 50, f"{flipped} of {turns}"


def kept_identities(request: Request) -> list[int | str]:
    identities: list[int | str] = list(request.tokens)
    inputs = request.inputs
    if inputs is not None:
        for span, digest in zip(inputs.spans, inputs.digests, strict=True):
            identities[span.start : span.stop] = [digest] * len(span)
    return identities
