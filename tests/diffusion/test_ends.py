"""Where replies end: a first canvas with nothing in it, and canvases that stop where their text does."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from statistics import mean
from typing import TYPE_CHECKING

import pytest
import torch

from llm_diffusiongemma.diffusion.pipeline import Block, Draft
from llm_diffusiongemma.diffusion.request import ConstrainedText, Part, Prompt, Request, Text, Thought
from llm_diffusiongemma.diffusion.sampler import (
    CanvasNumbers,
    EntropyBoundSampler,
    GeneratorRandomness,
    SamplerSettings,
)
from llm_diffusiongemma.grammar.constraint import TextConstraint
from tests.grammar.languages import BYTE_TOKENS, EOS, PAD

from .plain_vocabulary import PlainVocabulary
from .scripted import Scripted, letters
from .test_constrained import CANVAS, CLOSES, CPU, automaton_of, nonsense, pipeline_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SETTINGS = SamplerSettings(12, 0.1, 0.4, 0.8, 0.005, 1)
VOCAB = len(BYTE_TOKENS)


class CountingRandomness(GeneratorRandomness):
    def __init__(self, seed: int) -> None:
        super().__init__(torch.Generator().manual_seed(seed))
        self.canvases: list[CanvasNumbers] = []

    def canvas(self, steps: int, canvas_length: int, vocab_size: int) -> CanvasNumbers:
        self.canvases.append(super().canvas(steps, canvas_length, vocab_size))
        return self.canvases[-1]


def reply(
    *parts: Part,
    settings: SamplerSettings = SETTINGS,
    max_tokens: int = 2 * CANVAS,
    randomness: GeneratorRandomness | None = None,
) -> tuple[list[Block], list[Draft]]:
    records = list(
        pipeline_of(nonsense()).generate(
            Request(Prompt((20, 30, 40)), settings, max_tokens, parts or (Text(),)),
            randomness=randomness or CountingRandomness(0),
            drafts=True,
        )
    )
    blocks = [record for record in records if isinstance(record, Block)]
    return blocks, [record for record in records if isinstance(record, Draft)]


def held_to(pattern: str) -> Part:
    return ConstrainedText(TextConstraint(automaton_of(pattern), CPU))


# --- nothing in it -----------------------------------------------------------------------------------------


def test_an_empty_first_canvas_is_drawn_again_from_the_same_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    Scripted(monkeypatch, [EOS], [PAD] * CANVAS, letters("a whole canvas, "), [*letters("end"), EOS])
    randomness = CountingRandomness(7)
    (first, second), drafts = reply(randomness=randomness)
    assert (first.tokens, first.redrawn, first.encoded_tokens) == (letters("a whole canvas, "), 2, 3)
    assert (second.tokens, second.redrawn, second.finish_reason) == (letters("end"), 0, "stop")
    # Steps are those of all draws, and each draw begins anew.
    assert first.denoising_steps + second.denoising_steps == len(drafts)
    seen = [(draft.block_index, draft.redrawn) for draft in drafts]
    assert [key for key, _ in itertools.groupby(seen)] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    for key in set(seen):
        steps = [draft.step for draft in drafts if (draft.block_index, draft.redrawn) == key]
        assert steps == list(range(1, len(steps) + 1))
    # As if they were canvases behind each other: nothing else is drawn.
    stream = GeneratorRandomness(torch.Generator().manual_seed(7))
    assert len(randomness.canvases) == 4
    for drawn in randomness.canvases:
        assert torch.equal(drawn.tokens, stream.canvas(12, CANVAS, VOCAB).tokens)


@pytest.mark.parametrize("canvas", [[EOS], [PAD] * CANVAS], ids=["an end", "padding"])
def test_what_stays_empty_ends_the_reply(monkeypatch: pytest.MonkeyPatch, canvas: list[int]) -> None:
    Scripted(monkeypatch, canvas)
    (block,), drafts = reply()
    assert (block.tokens, block.finish_reason, block.redrawn) == ([], "stop", 2)
    assert block.denoising_steps == len(drafts)


def test_a_later_canvas_is_not_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    Scripted(monkeypatch, letters("a whole canvas, "), [EOS], letters("more"))
    blocks, _ = reply()
    assert [(len(block.tokens), block.redrawn) for block in blocks] == [(CANVAS, 0), (0, 0)]


def test_a_text_behind_a_thought_has_a_first_canvas_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    Scripted(monkeypatch, [*letters("hm"), CLOSES], [EOS], [*letters("yes"), EOS])
    blocks, _ = reply(Thought(CLOSES), Text())
    assert [(block.tokens, block.redrawn) for block in blocks] == [
        ([*letters("hm"), CLOSES], 0),
        (letters("yes"), 1),
    ]
    assert blocks[1].encoded_tokens == 3


def test_what_is_held_to_a_form_may_be_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """And so may a thought before it: the answer is still to come."""
    Scripted(monkeypatch, [EOS])
    blocks, _ = reply(Thought(CLOSES), held_to("a*"))
    assert [(block.tokens, block.redrawn) for block in blocks] == [([CLOSES], 0), ([], 0)]
    (block,), _ = reply(held_to("a*"))
    assert (block.tokens, block.redrawn) == ([], 0)


# --- stopping where the text ends --------------------------------------------------------------------------

OTHER_EOS = 44


def hidden_states(generator: torch.Generator, steps: int, end: int | None) -> Iterator[torch.Tensor]:
    """Logits of a canvas whose text ends there. It gets sure of that, and changes its mind now and then; of what
    is behind the end it knows only that it's no text."""
    behind = torch.arange(CANVAS) > (CANVAS if end is None else end)
    letters_of_text = torch.randint(97 + 4, 122 + 4, (steps + 1, CANVAS), generator=generator)
    nothings = torch.tensor([EOS, OTHER_EOS, PAD])[torch.randint(3, (steps, CANVAS), generator=generator)]
    tokens, *others = letters_of_text
    if end is not None:
        tokens[end] = (EOS, OTHER_EOS)[end % 2]
    for step in range(steps):
        changes = torch.rand(CANVAS, generator=generator) < 0.02
        told = torch.where(behind, nothings[step], torch.where(changes, others[step], tokens))
        sharpness = torch.where(behind, 8.0, 11.0 if step > 1 else 6.0) + torch.rand(CANVAS, generator=generator)
        noise = torch.randn(CANVAS, VOCAB, generator=generator)
        yield noise.scatter(1, told[:, None], sharpness[:, None])


def converges(seen: Sequence[tuple[list[int], list[float]]], ends: set[int], settings: SamplerSettings) -> bool:
    """Whether a canvas stops behind these steps, tokens and entropies of each, as the rule has it."""
    stability = settings.stability_threshold
    tokens, entropies = seen[-1]
    before = seen[len(seen) - 1 - stability : -1]

    def is_done(positions: slice) -> bool:
        is_stable = len(seen) > stability and all(each[positions] == tokens[positions] for each, _ in before)
        return is_stable and mean(entropies[positions]) < settings.confidence_threshold

    end = next((at for at, token in enumerate(tokens) if token in ends), CANVAS - 1)
    return is_done(slice(CANVAS)) or (settings.stop_at_end and is_done(slice(end + 1)))


def sampler_of(settings: SamplerSettings, ends: Sequence[int]) -> EntropyBoundSampler:
    return EntropyBoundSampler(
        settings,
        vocabulary=PlainVocabulary(VOCAB, 1),
        canvas_length=CANVAS,
        device=CPU,
        softcap=None,
        randomness=CountingRandomness(0),
        eos_token_ids=ends,
    )


@pytest.mark.parametrize("is_held", [False, True], ids=["free", "constrained"])
@pytest.mark.parametrize("stability", [0, 1, 2])
def test_a_canvas_stops_when_all_up_to_its_end_is_stable_and_sure(stability: int, is_held: bool) -> None:
    """Against the rule written out. A canvas that is stable and sure as a whole stops as ever."""
    generator, stops = torch.Generator().manual_seed(stability), Counter[bool]()
    plain = replace(SETTINGS, confidence_threshold=0.05, stability_threshold=stability)
    for end in (0, 1, 5, 10, CANVAS - 1, None):
        states = list(hidden_states(generator, 8, end))
        for settings in (plain, replace(plain, stop_at_end=True)):
            sampler = sampler_of(settings, (EOS, OTHER_EOS))
            constraint = TextConstraint(automaton_of("[a-z]*"), CPU) if is_held else None
            if constraint is not None:
                constraint.start_canvas(CANVAS, 100)
            sampler.start_canvas(constraint)
            seen = []
            for hidden in states:
                sampler.measure(hidden)
                step = sampler.conclude()
                seen.append((step.tokens, step.entropies))
                assert step.converged == converges(seen, {EOS, OTHER_EOS}, settings)
                stops[settings.stop_at_end] += step.converged
    assert stops[False] < stops[True] < 48


def test_sure_padding_makes_up_for_the_doubt_in_a_text_as_ever() -> None:
    settings = replace(SETTINGS, confidence_threshold=0.05, stability_threshold=1, stop_at_end=True)
    sampler = sampler_of(settings, (EOS,))
    logits = torch.zeros(CANVAS, VOCAB)
    logits[0, 100], logits[1, EOS], logits[2:, PAD] = 7.0, 20.0, 20.0
    sampler.start_canvas()
    for is_done in (False, True):
        sampler.measure(logits)
        step = sampler.conclude()
        assert mean(step.entropies[:2]) > 2 * settings.confidence_threshold > 2 * step.mean_entropy
        assert step.converged == is_done


def test_a_canvas_may_have_an_end_of_its_own() -> None:
    """In the next one the same token is nothing of the kind."""
    sampler = sampler_of(replace(SETTINGS, stability_threshold=0, stop_at_end=True), [EOS])
    hidden = torch.zeros(CANVAS, VOCAB)
    hidden[:3] = hidden[:3].scatter(1, torch.tensor([20, 21, CLOSES])[:, None], 1000.0)
    for closes, converged in ((CLOSES, True), (None, False), (20, True)):
        sampler.start_canvas(closes=closes)
        sampler.measure(hidden)
        step = sampler.conclude()
        assert step.converged == converged


@pytest.mark.parametrize("stop_at_end", [False, True])
def test_a_part_knows_where_its_canvases_end(monkeypatch: pytest.MonkeyPatch, stop_at_end: bool) -> None:
    """Seen of a network that is sure of all but what is behind the end."""
    Scripted(monkeypatch, [*letters("hm"), CLOSES], [*letters("aab"), EOS], unsure_behind=4)
    settings = replace(SETTINGS, stop_at_end=stop_at_end)
    thought, text = (
        block.denoising_steps for block in reply(Thought(CLOSES), held_to("a*b"), settings=settings)[0]
    )
    assert (thought, text) == ((2, 2) if stop_at_end else (12, 12))
