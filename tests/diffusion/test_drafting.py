"""Canvases that begin as a text."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from llm_diffusiongemma.diffusion.drafting import DraftedText, taken
from llm_diffusiongemma.diffusion.pipeline import Block, BlockDiffusionPipeline, Draft
from llm_diffusiongemma.diffusion.request import ConstrainedText, Prompt, Request, Room, Text, Thought
from llm_diffusiongemma.diffusion.sampler import (
    GeneratorRandomness,
    SamplerSettings,
    Start,
)
from llm_diffusiongemma.errors import OptionError
from llm_diffusiongemma.grammar.constraint import TextConstraint

from ..grammar.languages import EOS, text_of
from .test_constrained import BYTE_TOKENS, automaton_of, nonsense
from .test_constrained import pipeline_of as constrained_pipeline
from .test_pipeline import CANVAS, PROMPT, SETTINGS, shared_network, tokens_of
from .test_sampler import sampler, with_settings
from .tiny_models import NEVER, prompt_of

if TYPE_CHECKING:
    from collections.abc import Sequence

END = 7
DATE = r"\d{4}-\d{2}-\d{2}"
FEW = replace(SETTINGS, max_denoising_steps=8)
DRAFT = prompt_of(40, seed=3)


# --- what a canvas has taken of a draft ------------------------------------------------------------------


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """By its definition, cell by cell."""
    before = list(range(len(other) + 1))
    for i, token in enumerate(one, start=1):
        row = [i]
        for j, against in enumerate(other, start=1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (token != against)))
        before = row
    return before[-1]


def test_it_is_the_beginning_with_the_least_edit_distance() -> None:
    rng = random.Random(0)
    for _ in range(60):
        canvas, draft = ([rng.randrange(3) for _ in range(rng.randrange(9))] for _ in range(2))
        distances = [edit_distance(canvas, draft[:length]) for length in range(len(draft) + 1)]
        nearest = [length for length, distance in enumerate(distances) if distance == min(distances)]
        assert taken(canvas, draft) == nearest[-1]


@pytest.mark.parametrize(
    ("canvas", "expected"),
    [
        (DRAFT[:16], 16),
        ([*DRAFT[:5], 90, 91, 92, *DRAFT[5:13]], 13),  # three tokens more
        ([*DRAFT[:5], *DRAFT[9:20]], 20),  # four left out
        ([*DRAFT[:6], 90, 91, 92, *DRAFT[9:16]], 16),  # three replaced
        ([*DRAFT[:13], 90, 91, 92], 16),  # at the end, where nothing else can be known
        ([95] * 16, 16),
    ],
)
def test_the_next_canvas_begins_where_the_text_goes_on(canvas: list[int], expected: int) -> None:
    drafted = DraftedText(DRAFT, 0.5, END)
    drafted.commit(canvas)
    assert drafted.start(CANVAS) == Start(DRAFT[expected : expected + CANVAS], 0.5)


def test_it_ends_and_behind_that_is_noise() -> None:
    drafted = DraftedText(DRAFT[:20], 0.5, END)
    assert drafted.num_tokens == 20
    assert drafted.start(CANVAS) == drafted.start(CANVAS) == Start(DRAFT[:CANVAS], 0.5)
    drafted.commit(DRAFT[:CANVAS])
    assert drafted.start(CANVAS) == Start([*DRAFT[CANVAS:20], END], 0.5)
    drafted.commit(DRAFT[CANVAS : 2 * CANVAS])
    assert drafted.start(CANVAS) is None
    drafted.commit(DRAFT[:CANVAS])
    assert drafted.start(CANVAS) is None


# --- how a canvas begins -----------------------------------------------------------------------------------


def test_so_much_of_the_text_is_noise_and_all_behind_it() -> None:
    ordinary, ours = sampler(canvas_length=4000), sampler(canvas_length=4000)
    ordinary.start_canvas()
    tokens = torch.arange(3000) % 90
    ours.start_canvas(start=Start(tokens.tolist(), 0.3))
    kept = ours.canvas[:3000] == tokens
    assert 0.68 < kept.float().mean() < 0.73
    assert torch.equal(ours.canvas[:3000][~kept], ordinary.canvas[:3000][~kept])
    assert torch.equal(ours.canvas[3000:], ordinary.canvas[3000:])


def test_without_noise_it_begins_as_the_text() -> None:
    ours = sampler()
    ours.start_canvas(start=Start(range(16), 0.0))
    assert ours.canvas.tolist() == list(range(16))


@pytest.mark.parametrize(
    ("settings", "tokens", "noise", "steps"),
    [
        ({}, 16, 0.5, 24),
        ({}, 16, 0.75, 36),
        ({}, 16, 0.25, 24),  # half of it at least
        ({}, 8, 0.5, 36),  # of the canvas three quarters are noise
        ({"stability_threshold": 30}, 16, 0.0, 31),
        ({"max_denoising_steps": 1}, 16, 0.0, 1),
    ],
)
def test_the_schedule_begins_where_so_much_is_noise(
    settings: dict[str, Any], tokens: int, noise: float, steps: int
) -> None:
    ours = sampler(with_settings(**settings))
    ours.start_canvas(start=Start([5] * tokens, noise))
    assert ours.max_steps == steps
    temperatures: list[torch.Tensor] = []
    write = ours._distributions.measure
    ours._distributions.measure = lambda hidden, temperature: (  # type: ignore[method-assign]
        temperatures.append(temperature),
        write(hidden, temperature),
    )[1]
    ours.measure(torch.zeros(16, 96))
    most = with_settings(**settings).max_denoising_steps
    assert temperatures[0].item() == pytest.approx(0.4 + 0.4 * steps / most)
    # And the next one is ordinary again.
    ours.start_canvas()
    assert (ours.max_steps, ours._steps_done.item()) == (most, 0)


def test_only_a_drafted_canvas_draws_more() -> None:
    states = []
    for start in (None, Start([5] * 8, 0.5)):
        source = torch.Generator().manual_seed(1)
        ours = sampler(randomness=GeneratorRandomness(source))
        ours.start_canvas(start=start)
        if start is not None:
            expected = torch.Generator().manual_seed(1)
            GeneratorRandomness(expected).canvas(48, 16, 96)
            assert torch.equal(states[0], expected.get_state())
            torch.rand(8, dtype=torch.float64, generator=expected)
            assert torch.equal(source.get_state(), expected.get_state())
        states.append(source.get_state())


# --- a reply -----------------------------------------------------------------------------------------------


def reply(
    noise: float | None,
    *,
    seed: int = 0,
    draft: Sequence[int] = DRAFT,
    settings: SamplerSettings = FEW,
) -> list[Draft | Block]:
    text = Text(None if noise is None else DraftedText(draft, noise, END))
    pipeline = BlockDiffusionPipeline(shared_network(), eos_token_ids=[NEVER], pad_token_id=0)
    records = pipeline.generate(
        Request(Prompt(PROMPT), settings, 3 * CANVAS, (text,)),
        randomness=GeneratorRandomness(torch.Generator().manual_seed(seed)),
        drafts=True,
    )
    return [replace(record, seconds=0.0) if isinstance(record, Block) else record for record in records]  # type: ignore[arg-type]


def blocks_of(records: Sequence[Draft | Block]) -> list[Block]:
    return [record for record in records if isinstance(record, Block)]


def test_the_seed_decides_and_so_does_the_draft() -> None:
    one = reply(0.3)
    assert reply(0.3) == one
    others = [reply(0.3, seed=1), reply(0.3, draft=DRAFT[::-1]), reply(None)]
    assert all(tokens_of(blocks_of(other)) != tokens_of(blocks_of(one)) for other in others)


def test_each_canvas_has_the_steps_that_its_share_of_the_draft_leaves() -> None:
    never_sure = replace(SETTINGS, max_denoising_steps=40, confidence_threshold=1e-9)
    records = reply(0.7, draft=DRAFT[: CANVAS + 4], settings=never_sure)
    drafted, expected = DraftedText(DRAFT[: CANVAS + 4], 0.7, END), []
    for block in blocks_of(records):
        start = drafted.start(CANVAS)
        drafted.commit(block.tokens)
        expected.append(40 if start is None else round(40 * (1 - 0.3 * len(start.tokens) / CANVAS)))
        assert (block.denoising_steps, block.converged) == (expected[-1], False)
    assert expected[0] == 28 < expected[1]
    assert {each.block_index: each.max_steps for each in records if isinstance(each, Draft)} == dict(
        enumerate(expected)
    )


def test_a_form_holds_whatever_the_draft_is() -> None:
    """And goes on in it from canvas to canvas."""
    tokens = [BYTE_TOKENS.index(bytes([byte])) for byte in b"2024-1x-33 or later, " * 3]
    drafted, expected = (DraftedText(tokens, 0.0, EOS) for _ in range(2))
    dates = f"({DATE}, ){{3}}"
    part = ConstrainedText(TextConstraint(automaton_of(dates), torch.device("cpu")), drafted)
    records = constrained_pipeline(nonsense()).generate(
        Request(Prompt((20, 30, 40)), SamplerSettings(4, 0.1, 0.4, 0.8, 0.005, 1), 63, (part,)),
        randomness=GeneratorRandomness(torch.Generator().manual_seed(0)),
    )
    *before, last = (record for record in records if isinstance(record, Block))
    written = text_of(BYTE_TOKENS, tokens_of([*before, last]))
    assert re.fullmatch(dates, written.decode())
    for block in before:
        expected.commit(block.tokens)
    assert drafted.start(99) == expected.start(99) != Start([*tokens, EOS], 0.0)


# --- what is refused ---------------------------------------------------------------------------------------


def test_a_draft_that_does_not_fit_is_refused() -> None:
    def room(tokens: int, max_tokens: int, *before: Thought) -> Room:
        text = Text(DraftedText([9] * tokens, 0.5, END))
        return Request(Prompt([5] * 10), SETTINGS, max_tokens, (*before, text)).room(64, 8)

    assert room(20, 20) == Room(20, 6, 8)
    with pytest.raises(OptionError, match="draft is 21 tokens long, but max_tokens is 20"):
        room(21, 20)
    with pytest.raises(OptionError, match="Set max_tokens to 21 or more"):
        room(20, 20, Thought(2))
    assert room(48, 100)
    with pytest.raises(OptionError, match="draft is 49 tokens long, but the prompt leaves room for 48"):
        room(49, 20)
    with pytest.raises(OptionError, match="draft is 48 tokens long, but the prompt leaves room for 40"):
        room(48, 100, Thought(2))
