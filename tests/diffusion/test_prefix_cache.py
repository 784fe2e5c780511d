"""The next turn encodes only what is new, and nothing comes out otherwise than without the cache."""

from __future__ import annotations

import contextlib
import copy
import functools
import random
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import torch

from llm_diffusiongemma.diffusion import kv_cache, network, prefix_cache
from llm_diffusiongemma.diffusion import pipeline as pipeline_module
from llm_diffusiongemma.diffusion.kv_cache import KVCache
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.pipeline import Block, BlockDiffusionPipeline
from llm_diffusiongemma.diffusion.placement import LayerHome
from llm_diffusiongemma.diffusion.prefix_cache import EncodedPrefix
from llm_diffusiongemma.diffusion.request import Prompt, Request
from llm_diffusiongemma.diffusion.sampler import GeneratorRandomness, SamplerSettings

from .pretended import PretendedDevices
from .small_network import network_at
from .tiny_models import IMAGE_TOKEN_ID, network_of, prompt_of, tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from types import FrameType

CANVAS = 16
WINDOW = 16
SOFT_TOKENS = 16
SETTINGS = SamplerSettings(4, 0.1, 0.4, 0.8, 0.005, 1)
INTERRUPTIONS = 24


@functools.cache
def network_of_two_layers() -> Network:
    result = network_of(tiny_model(max_position_embeddings=2048))
    # It must not write the token that stands for an image: a prompt with it would be short of one.
    dict(result.tensors())["model.decoder.embed_tokens.weight"][IMAGE_TOKEN_ID] = 0
    return result


@pytest.fixture(autouse=True)
def _little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sliding layers forget as early as they can."""
    monkeypatch.setattr(kv_cache, "SLIDING_PIECE", 1)


def new_pipeline() -> BlockDiffusionPipeline:
    return BlockDiffusionPipeline(network_of_two_layers(), eos_token_ids=[0], pad_token_id=0)


@pytest.fixture
def pipeline() -> BlockDiffusionPipeline:
    return new_pipeline()


@dataclass(frozen=True)
class Image:
    """Random soft tokens."""

    span: range
    seed: int
    asked: list[int] = field(default_factory=list, compare=False)
    """Receives the seed each time that the soft tokens are asked for."""

    @property
    def digest(self) -> str:
        return f"image {self.seed}"

    def soft_tokens(self) -> torch.Tensor:
        self.asked.append(self.seed)
        hidden = network_of_two_layers().hidden_size
        return torch.randn(len(self.span), hidden, generator=torch.Generator().manual_seed(self.seed))


@dataclass
class Turn:
    """A prompt as the chat side makes it."""

    tokens: list[int] = field(default_factory=list)
    images: tuple[Image, ...] = ()
    stable_length: int = 0

    def __add__(self, tokens: list[int]) -> Turn:
        return Turn(self.tokens + tokens, self.images, self.stable_length)

    def with_image(self, seed: int, soft_tokens: int = SOFT_TOKENS) -> Turn:
        start = len(self.tokens) + 1
        shown = self + [7, *[IMAGE_TOKEN_ID] * soft_tokens, 8]  # noqa: RUF005
        shown.images = (*self.images, Image(range(start, start + soft_tokens), seed))
        return shown

    @property
    def prompt(self) -> Prompt:
        return Prompt(self.tokens, self.images, self.stable_length)


def records_of(
    pipeline: BlockDiffusionPipeline,
    turn: Turn,
    *,
    canvases: int = 1,
    seed: int = 0,
    should_stop: Callable[[], bool] | None = None,
) -> Generator[Any, None, None]:
    return pipeline.generate(
        Request(turn.prompt, SETTINGS, canvases * CANVAS),
        randomness=GeneratorRandomness(torch.Generator().manual_seed(seed)),
        should_stop=should_stop,
    )


def reply(pipeline: BlockDiffusionPipeline, turn: Turn, *, canvases: int = 1, seed: int = 0) -> list[Block]:
    return list(records_of(pipeline, turn, canvases=canvases, seed=seed))


def tokens_of(blocks: list[Block]) -> list[int]:
    return [token for block in blocks for token in block.tokens]


def held_by(cache: KVCache) -> list[torch.Tensor]:
    """Keys and values of each layer, of all positions that a token behind them sees."""
    result = []
    for is_sliding, tensors in zip(cache._is_sliding, cache._tensors, strict=True):
        dropped = cache._dropped if is_sliding else 0
        first = max(0, cache.length - WINDOW + 1) if is_sliding else 0
        assert first >= dropped
        result += [tensor[:, first - dropped : cache.length - dropped] for tensor in tensors]
    return result


def assert_holds(kept: EncodedPrefix, turn: Turn) -> None:
    """Keys and values are those of a fresh encoding, to fp32 rounding."""
    length = len(kept)
    encoder = network_of_two_layers()
    assert kept.cache.length == length
    assert kept.identities == turn.prompt.identities[:length]
    embeddings = encoder.embed(torch.tensor(turn.tokens[:length]))
    spans = [image.span for image in turn.images if image.span.stop <= length]
    for image in turn.images[: len(spans)]:
        embeddings[image.span.start : image.span.stop] = image.soft_tokens()
    fresh = KVCache(encoder.config, encoder.dtype, encoder.device)
    encoder.encode(embeddings, fresh, spans)
    for mine, expected in zip(held_by(kept.cache), held_by(fresh), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def kept_by(pipeline: BlockDiffusionPipeline) -> EncodedPrefix:
    kept = pipeline.prefix_cache._kept
    assert kept is not None
    return kept


# --- what is encoded -------------------------------------------------------------------------------------


def test_a_longer_prompt_costs_what_is_new(pipeline: BlockDiffusionPipeline) -> None:
    first = Turn(prompt_of(50), stable_length=48)
    (block,) = reply(pipeline, first)
    assert block.encoded_tokens == 50
    second = first + block.tokens + prompt_of(9, seed=1)
    (block,) = reply(pipeline, second)
    assert block.encoded_tokens == CANVAS + 9
    assert_holds(kept_by(pipeline), second)


def test_the_same_prompt_again_costs_nothing(pipeline: BlockDiffusionPipeline) -> None:
    asked = Turn(prompt_of(50))
    first = reply(pipeline, asked)
    again = reply(pipeline, asked)
    assert again[0].encoded_tokens == 0
    assert tokens_of(again) == tokens_of(first)


def test_blocks_that_come_back_as_they_were_written_are_not_read_again(pipeline: BlockDiffusionPipeline) -> None:
    first = Turn(prompt_of(50), stable_length=48)
    blocks = reply(pipeline, first, canvases=3)
    assert [block.encoded_tokens for block in blocks] == [50, CANVAS, CANVAS]
    second = first + tokens_of(blocks) + prompt_of(9, seed=1)
    (block,) = reply(pipeline, second)
    assert block.encoded_tokens == CANVAS + 9  # the last block was never encoded
    assert_holds(kept_by(pipeline), second)


@pytest.mark.parametrize(("canvases", "kept"), [(1, 49), (3, 48)])
def test_thoughts_that_are_stripped_cost_no_more_than_the_turn(
    pipeline: BlockDiffusionPipeline, canvases: int, kept: int
) -> None:
    """Past the window the sliding layers have forgotten the turn's beginning: the mark has it."""
    first = Turn(prompt_of(50), stable_length=48)
    reply(pipeline, first, canvases=canvases)
    second = Turn(first.tokens[:49] + prompt_of(20, seed=1), stable_length=60)
    (block,) = reply(pipeline, second)
    assert block.encoded_tokens == 69 - kept
    assert_holds(kept_by(pipeline), second)


def test_the_mark_lives_through_a_tool_loop(pipeline: BlockDiffusionPipeline) -> None:
    """Its later prompts extend the first, and the turn after them strips what the first ended with."""
    first = Turn(prompt_of(50), stable_length=48)
    (block,) = reply(pipeline, first)
    result = first + block.tokens + prompt_of(30, seed=1)
    assert reply(pipeline, result)[0].encoded_tokens == CANVAS + 30
    after = Turn(first.tokens[:48] + prompt_of(20, seed=2), stable_length=60)
    assert reply(pipeline, after)[0].encoded_tokens == 20
    assert_holds(kept_by(pipeline), after)


def test_within_the_window_any_edit_keeps_what_is_before_it(pipeline: BlockDiffusionPipeline) -> None:
    reply(pipeline, Turn(prompt_of(12)))
    edited = Turn(prompt_of(12)[:5] + prompt_of(9, seed=1))
    assert reply(pipeline, edited)[0].encoded_tokens == 9
    assert_holds(kept_by(pipeline), edited)


def test_past_the_window_an_old_edit_starts_over(pipeline: BlockDiffusionPipeline) -> None:
    reply(pipeline, Turn(prompt_of(50), stable_length=48))
    edited = Turn(prompt_of(50)[:30] + prompt_of(20, seed=1), stable_length=48)
    assert reply(pipeline, edited)[0].encoded_tokens == 50
    assert_holds(kept_by(pipeline), edited)


def test_another_image_in_the_same_place_is_read(pipeline: BlockDiffusionPipeline) -> None:
    def with_image(seed: int) -> Turn:
        return Turn(prompt_of(3)).with_image(seed) + prompt_of(5)

    first = with_image(1)
    assert reply(pipeline, first)[0].encoded_tokens == 26
    assert reply(pipeline, with_image(1))[0].encoded_tokens == 0
    other = with_image(2)
    assert reply(pipeline, other)[0].encoded_tokens == 26  # the sliding layer has forgotten the first four
    assert_holds(kept_by(pipeline), other)


def test_a_new_image_behind_a_cached_one(pipeline: BlockDiffusionPipeline) -> None:
    """Their places are those in the whole prompt, not in what is encoded now."""
    first = Turn(prompt_of(3)).with_image(1) + prompt_of(5)
    reply(pipeline, first)
    second = (first + prompt_of(4, seed=1)).with_image(2) + prompt_of(5, seed=2)
    assert reply(pipeline, second)[0].encoded_tokens == 4 + 18 + 5
    assert_holds(kept_by(pipeline), second)


def test_a_conversation_on_two_devices(pipeline: BlockDiffusionPipeline) -> None:
    """Each layer's keys and values stay with the layer; an image's soft tokens may come from a third device."""
    homes = [LayerHome("xpu:0", "files"), LayerHome("xpu:1", "device")]
    first = Turn(prompt_of(3)).with_image(1) + prompt_of(25)
    with PretendedDevices():
        elsewhere, _ = network_at(homes, network_of_two_layers())
        ours = BlockDiffusionPipeline(elsewhere, eos_token_ids=[0], pad_token_id=0)
        for turn in (first, (first + prompt_of(4, seed=1)).with_image(2) + prompt_of(30, seed=2), first):
            with contextlib.closing(records_of(ours, turn, seed=1)) as given_up:
                next(given_up)
            blocks, expected = (reply(each, turn) for each in (ours, pipeline))
            assert tokens_of(blocks) == tokens_of(expected)
        devices = [{str(tensor.device) for tensor in pair} for pair in kept_by(ours).cache._tensors]
    assert devices == [{"xpu:0"}, {"xpu:1"}]


def test_only_images_that_are_new_are_asked_for_their_soft_tokens(pipeline: BlockDiffusionPipeline) -> None:
    first = Turn(prompt_of(3)).with_image(1).with_image(2, soft_tokens=9) + prompt_of(5)
    reply(pipeline, first)
    assert [image.asked for image in first.images] == [[1], [2]]
    last = first.with_image(3) + prompt_of(5)
    reply(pipeline, last)
    assert [image.asked for image in last.images] == [[1], [2], [3]]
    assert_holds(kept_by(pipeline), last)


def test_an_image_that_can_not_be_read_costs_what_is_behind_it(pipeline: BlockDiffusionPipeline) -> None:
    """And the next reply goes on from what is in front of it."""
    first = Turn(prompt_of(20))
    reply(pipeline, first)
    shown = (first + prompt_of(4, seed=1)).with_image(1)

    def fail(_: Image) -> torch.Tensor:
        raise ValueError("damaged")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "soft_tokens", fail)
        with pytest.raises(ValueError, match="damaged"):
            reply(pipeline, shown)
    assert_holds(kept_by(pipeline), first)
    assert reply(pipeline, shown)[0].encoded_tokens == 4 + 18
    assert_holds(kept_by(pipeline), shown)


# --- chunks ----------------------------------------------------------------------------------------------


def encoded_by(pipeline: BlockDiffusionPipeline, patch: pytest.MonkeyPatch) -> list[int]:
    """Receives how many positions are encoded at a time."""
    lengths: list[int] = []
    encode = Network.encode

    def note(encoder: Network, embeddings: torch.Tensor, *arguments: Any) -> None:
        lengths.append(len(embeddings))
        encode(encoder, embeddings, *arguments)

    patch.setattr(Network, "encode", note)
    return lengths


@pytest.mark.parametrize(
    ("chunk", "expected"), [(7, [7] * 5 + [22, 7, 21, 7, 5]), (16, [16, 16, 25, 28, 12]), (33, [33, 33, 31])]
)
def test_chunks_of_a_long_prompt_change_nothing(
    pipeline: BlockDiffusionPipeline, monkeypatch: pytest.MonkeyPatch, chunk: int, expected: list[int]
) -> None:
    turn = (Turn(prompt_of(40)).with_image(1) + prompt_of(10)).with_image(2) + prompt_of(11)
    whole = tokens_of(reply(pipeline, turn))
    pipeline.prefix_cache.clear()
    with monkeypatch.context() as patch:
        patch.setattr(pipeline_module, "MAX_PREFILL_TOKENS", chunk)
        lengths = encoded_by(pipeline, patch)
        in_chunks = tokens_of(reply(pipeline, turn))
    assert lengths == expected
    assert_holds(kept_by(pipeline), turn)
    assert in_chunks == whole


def test_a_long_prompt_can_be_stopped_between_chunks(
    pipeline: BlockDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_module, "MAX_PREFILL_TOKENS", 10)
    answers = iter([False] * 4 + [True] * 100)
    turn = Turn(prompt_of(200))
    assert list(records_of(pipeline, turn, should_stop=lambda: next(answers))) == []
    assert len(kept_by(pipeline)) == 30  # and what was read is not lost
    assert_holds(kept_by(pipeline), turn)


# --- rewinding -------------------------------------------------------------------------------------------


def parting_at(length: int) -> Turn:
    return Turn(prompt_of(60)[:length] + prompt_of(20, seed=1))


@functools.cache
def tokens_without_a_past(length: int, piece: int) -> list[int]:
    """While pieces are of that length."""
    assert piece == kv_cache.SLIDING_PIECE
    return tokens_of(reply(new_pipeline(), parting_at(length), seed=1))


@pytest.mark.parametrize(
    ("stable", "piece"),
    [(0, 1), (WINDOW - 1, 1), (WINDOW, 1), (WINDOW + 1, 1), (60, 1), (40, 20)],
)
def test_a_prompt_may_part_from_the_last_one_anywhere(
    monkeypatch: pytest.MonkeyPatch, stable: int, piece: int
) -> None:
    """Rewound as far as can be, and no further; and then as if nothing had been kept."""
    monkeypatch.setattr(pipeline_module, "MAX_PREFILL_TOKENS", 10)
    monkeypatch.setattr(kv_cache, "SLIDING_PIECE", piece)
    after_first = new_pipeline()
    reply(after_first, Turn(prompt_of(60), stable_length=stable))
    borders = (1, WINDOW, 2 * WINDOW, 60 - CANVAS, 60, stable)
    for length in sorted({max(0, border + offset) for border in borders for offset in (-1, 0, 1)}):
        pipeline = new_pipeline()
        pipeline.prefix_cache = copy.deepcopy(after_first.prefix_cache)
        second = parting_at(length)
        (block,) = reply(pipeline, second, seed=1)
        kept = len(second.tokens) - block.encoded_tokens
        if piece == 1:  # the last canvas made the sliding layers forget all but a window
            assert (length, kept) == (length, 60 if length >= 60 else stable if stable <= length else 0)
        else:
            assert min(length, 60) >= kept >= (stable if stable <= length else 0)
        assert_holds(kept_by(pipeline), second)
        assert block.tokens == tokens_without_a_past(length, piece)


# --- safety ----------------------------------------------------------------------------------------------


def test_two_replies_at_once_do_not_share(pipeline: BlockDiffusionPipeline) -> None:
    asked = Turn(prompt_of(50))
    alone = tokens_of(reply(pipeline, asked, canvases=2))
    mixed: list[list[int]] = [[], []]
    both = records_of(pipeline, asked, canvases=2), records_of(pipeline, asked, canvases=2)
    for pair in zip(*both, strict=True):
        for tokens, block in zip(mixed, pair, strict=True):
            tokens += block.tokens
    assert mixed == [alone, alone]


FILES = {str(module.__file__) for module in (kv_cache, network, pipeline_module, prefix_cache)}


@contextlib.contextmanager
def interrupting(line: int) -> Iterator[list[int]]:
    """A Ctrl-C at the so-and-so-manieth line that is run in `FILES`. Holds how many have been run."""
    lines = [0]

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in FILES:
            return None
        lines[0] += event == "line"
        if lines[0] == line:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


def test_an_interruption_anywhere_leaves_what_is_right_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_module, "MAX_PREFILL_TOKENS", 10)
    first = Turn(prompt_of(40), stable_length=38)
    # Parts from it behind the mark, in front of the end.
    second = Turn(first.tokens[:39] + prompt_of(15, seed=1), stable_length=50)
    third = second + prompt_of(7, seed=2)
    pipeline = new_pipeline()
    reply(pipeline, first)
    after_first = copy.deepcopy(pipeline.prefix_cache)
    with interrupting(-1) as lines:
        answer = tokens_of(reply(pipeline, second, canvases=2))
    expected = tokens_of(reply(new_pipeline(), third, seed=1))

    left = []
    for line in range(1, lines[0], max(1, lines[0] // INTERRUPTIONS)):
        pipeline = new_pipeline()
        pipeline.prefix_cache = copy.deepcopy(after_first)
        with pytest.raises(KeyboardInterrupt), interrupting(line):
            reply(pipeline, second, canvases=2)
        kept = pipeline.prefix_cache._kept
        left.append(0 if kept is None else len(kept))
        if kept is not None:
            begun = first if kept.identities == first.tokens else second + answer
            assert_holds(kept, begun)
        assert tokens_of(reply(pipeline, third, seed=1)) == expected
    assert {0, 38, 48, 50, 54, 54 + CANVAS} <= set(left)


def test_running_out_of_memory_gives_it_back(
    pipeline: BlockDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply(pipeline, Turn(prompt_of(50)))

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Network, "denoise", fail)
    with pytest.raises(MemoryError, match="59 tokens"):
        reply(pipeline, Turn(prompt_of(50) + prompt_of(9, seed=1)))
    assert pipeline.prefix_cache._kept is None


def test_one_conversation_is_kept(pipeline: BlockDiffusionPipeline) -> None:
    reply(pipeline, Turn(prompt_of(50)))
    reply(pipeline, Turn(prompt_of(60, seed=1)))
    assert kept_by(pipeline).identities == prompt_of(60, seed=1)


# --- random conversations --------------------------------------------------------------------------------


def random_conversation(rng: random.Random) -> Iterator[tuple[Turn, list[int]]]:
    """Prompts as a chat makes them; each is to be sent with the reply it gets, put into the second's end."""
    history = Turn(prompt_of(rng.randint(1, 30), seed=rng.randrange(1000)))
    for _ in range(rng.randint(3, 6)):
        if rng.random() < 0.15 and len(history.tokens) > 4:  # somebody edits the history
            cut = rng.randrange(1, len(history.tokens))
            while any(image.span.start - 1 <= cut <= image.span.stop for image in history.images):
                cut -= 1
            kept_images = tuple(image for image in history.images if image.span.start < cut)
            history = Turn(history.tokens[: max(cut, 1)], kept_images)
        if rng.random() < 0.3:
            history = history.with_image(rng.randrange(3))
        history = history + prompt_of(rng.randint(1, 40), seed=rng.randrange(1000))
        stable = len(history.tokens)
        turn = history + prompt_of(2, seed=5)
        turn.stable_length = stable
        for _ in range(rng.choice([1, 1, 1, 2, 3])):  # a tool loop has several prompts
            answer: list[int] = []
            yield turn, answer
            turn = turn + answer + prompt_of(rng.randint(1, 20), seed=rng.randrange(1000))
        # The template strips a thought, or shows the answer as it was written.
        shown = answer[rng.randrange(len(answer)) :] if rng.random() < 0.4 else answer
        history = Turn(turn.tokens[: stable + 2] + shown + prompt_of(1, seed=6), turn.images)


def test_random_conversations_are_as_without_the_cache(pipeline: BlockDiffusionPipeline) -> None:
    """Token for token; where the order of a sum alone flips a near-tie, it is counted, and is rare."""
    turns = flipped = reused = 0
    for number in range(3):
        rng = random.Random(number)
        for turn, answer in random_conversation(rng):
            canvases = rng.randint(1, 2)
            ours = reply(pipeline, turn, canvases=canvases, seed=turns)
            fresh = reply(new_pipeline(), turn, canvases=canvases, seed=turns)
            reused += ours[0].encoded_tokens < fresh[0].encoded_tokens
            flipped += tokens_of(ours) != tokens_of(fresh)
            answer += tokens_of(ours)
            assert len(kept_by(pipeline)) >= len(turn.tokens)
            assert_holds(kept_by(pipeline), turn + answer)
            turns += 1
    assert turns > 15
    assert reused > turns / 2
    assert flipped <= 1, f"{flipped} of {turns}"
