"""What a reply is made of, without a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from llm_diffusiongemma.diffusion.request import (
    ConstrainedText,
    Endings,
    Need,
    Part,
    Piece,
    Prompt,
    Request,
    Room,
    Text,
    Thought,
)
from llm_diffusiongemma.diffusion.sampler import SamplerSettings
from llm_diffusiongemma.errors import (
    ConstraintError,
    ContextLengthError,
    ContextMemoryError,
    OptionError,
    PromptError,
)

CANVAS = 8
EOS, CLOSES, PAD = 1, 2, 0
ENDINGS = Endings(frozenset([EOS, 9]), PAD)
SETTINGS = SamplerSettings(4, 0.1, 0.4, 0.8, 0.005, 1)


@dataclass(frozen=True)
class Image:
    span: range
    digest: str

    def soft_tokens(self) -> torch.Tensor:
        raise AssertionError("not before the encoder reads it")


class Held:
    """A constraint whose shortest text is so long, its end of sequence counted."""

    def __init__(self, fewest_tokens: int) -> None:
        self.fewest_tokens = fewest_tokens
        self.calls: list[object] = []

    def start_canvas(self, canvas_length: int, tokens_left: int) -> None:
        self.calls.append((canvas_length, tokens_left))

    def choices(self) -> tuple[float, ...]:
        self.calls.append("choices")
        return (-1.0, -2.0)

    def commit(self, canvas: list[int]) -> str:
        self.calls.append(canvas)
        return "report"


class Sampler:
    def __init__(self) -> None:
        self.constraints: list[object] = []

    def start_canvas(self, constraint: object, start: object) -> None:
        assert start is None
        self.constraints.append(constraint)


def held(fewest_tokens: int) -> Part:
    return ConstrainedText(Held(fewest_tokens))  # type: ignore[arg-type]


def canvas(*tokens: int) -> list[int]:
    return [*tokens, *[PAD] * (CANVAS - len(tokens))]


def room(tokens: int, canvases: int = 10) -> Room:
    return Room(tokens, canvases, CANVAS)


FULL = list(range(20, 20 + CANVAS))


@pytest.mark.parametrize(
    ("committed", "left", "expected"),
    [
        (FULL, room(100), Piece(FULL)),
        (FULL, room(CANVAS + 1), Piece(FULL)),
        (FULL, room(CANVAS), Piece(FULL, "length")),
        (FULL, room(3), Piece(FULL[:3], "length")),
        (FULL, room(100, canvases=1), Piece(FULL, "length")),
        (canvas(20, 21, EOS, 22, 9), room(100), Piece([20, 21], "stop", EOS)),
        (canvas(20, 21, 9, EOS), room(100), Piece([20, 21], "stop", 9)),
        (canvas(EOS), room(100), Piece([], "stop", EOS, is_empty=True)),
        (canvas(20, 21, EOS), room(2), Piece([20, 21], "stop", EOS)),
        (canvas(20, 21, EOS), room(1), Piece([20], "length")),
        (canvas(), room(100), Piece([], "stop", is_empty=True)),
        (canvas(20), room(100), Piece(canvas(20))),
    ],
)
def test_a_text_ends_with_its_end_of_sequence_or_its_room(
    committed: list[int], left: Room, expected: Piece
) -> None:
    assert Text().commit(committed, left, ENDINGS) == expected
    assert committed[: Text().end(committed, left, ENDINGS)] == expected.tokens


def test_who_knows_what_tokens_say_may_find_a_text_empty() -> None:
    part = Text(says_nothing=lambda tokens: set(tokens) <= {30, 31})
    for committed, is_empty in (((30, 31, EOS), True), ((EOS,), True), ((), True), ((30, 20, EOS), False)):
        assert part.commit(canvas(*committed), room(100), ENDINGS).is_empty == is_empty
    # It has not come to its end.
    assert not part.commit([30] * CANVAS, room(100), ENDINGS).is_empty
    assert not part.commit(canvas(30, 31, EOS), room(1), ENDINGS).is_empty


def test_without_a_token_for_padding_nothing_is_padding() -> None:
    endings = Endings(frozenset([EOS]), None)
    assert Text().commit(canvas(), room(100), endings) == Piece(canvas())
    assert Text().end(canvas(), room(100), endings) is None


@pytest.mark.parametrize(
    ("committed", "left", "expected"),
    [
        (FULL, room(100), Piece(FULL)),
        (canvas(20, CLOSES, 21), room(100), Piece([20, CLOSES], "stop")),
        (canvas(CLOSES), room(100), Piece([CLOSES], "stop")),
        (canvas(20, EOS, CLOSES), room(100), Piece([20, CLOSES], "stop")),  # it ended its reply instead
        (canvas(), room(100), Piece([CLOSES], "stop")),
        (FULL, room(CANVAS + 1), Piece(FULL)),  # which leaves room for what closes it
        (FULL, room(CANVAS), Piece([*FULL[:-1], CLOSES], "stop")),
        (FULL, room(3), Piece([*FULL[:2], CLOSES], "stop")),
        (FULL, room(1), Piece([CLOSES], "stop")),
        (FULL, room(100, canvases=1), Piece([*FULL[:-1], CLOSES], "stop")),
        (canvas(20, 21, 22, CLOSES), room(3), Piece([20, 21, CLOSES], "stop")),
    ],
)
def test_a_thought_is_closed_in_its_room(committed: list[int], left: Room, expected: Piece) -> None:
    part = Thought(CLOSES)
    assert part.commit(committed, left, ENDINGS) == expected
    end = part.end(committed, left, ENDINGS)
    assert expected == (Piece(committed) if end is None else Piece([*committed[:end], CLOSES], "stop"))


def test_a_constrained_text_ends_when_its_constraint_says_so() -> None:
    constraint: Any = Held(5)
    part, sampler = ConstrainedText(constraint), Sampler()
    assert part.end(FULL, room(3), ENDINGS) is None
    assert part.end(canvas(20, 21, 9), room(3), ENDINGS) == 2
    part.start_canvas(sampler, room(100))  # type: ignore[arg-type]
    assert sampler.constraints == [constraint]
    assert part.commit(FULL, room(100), ENDINGS) == Piece(FULL, constraint="report")  # type: ignore[arg-type]
    part.start_canvas(sampler, room(3))  # type: ignore[arg-type]
    ended = Piece([20, 21], "stop", 9, "report", (-1.0, -2.0))  # type: ignore[arg-type]
    assert part.commit(canvas(20, 21, 9), room(3), ENDINGS) == ended
    # Its end of sequence may stand right behind the last token of the budget.
    assert constraint.calls == [(CANVAS, 10 * CANVAS), FULL, (CANVAS, 4), "choices", canvas(20, 21, 9)]
    constraint.fewest_tokens = 3
    assert part.need == Need(tokens=2, positions=3)


def test_parts_that_follow_are_left_their_room() -> None:
    assert room(100).beside([]) == room(100)
    assert room(100).beside([held(CANVAS + 1), Thought(CLOSES)]) == room(100 - CANVAS - 1, canvases=10 - 2 - 1)
    assert room(100).after(5) == room(95, canvases=9)


def test_an_image_is_one_identity_over_its_span() -> None:
    tokens = list(range(10))
    prompt = Prompt(tokens, (Image(range(1, 3), "a"), Image(range(5, 8), "b")))
    assert prompt.identities == [0, "a", "a", 3, 4, "b", "b", "b", 8, 9]
    assert tokens == list(range(10))


# --- what is refused -------------------------------------------------------------------------------------


def test_senseless_requests_are_refused_when_they_are_made() -> None:
    with pytest.raises(PromptError, match="empty"):
        Request(Prompt([]), SETTINGS, 10)
    with pytest.raises(OptionError, match="max_tokens must be at least 1, but it is 0"):
        Request(Prompt([5]), SETTINGS, 0)


def asked(length: int, max_tokens: int, *parts: Part, images: tuple[Image, ...] = ()) -> Room:
    return Request(Prompt([5] * length, images), SETTINGS, max_tokens, parts or (Text(),)).room(64, CANVAS)


def test_a_prompt_leaves_whole_canvases() -> None:
    assert asked(10, 100) == room(100, canvases=6)
    assert asked(64 - CANVAS, 100) == room(100, canvases=1)
    with pytest.raises(ContextLengthError, match=r"57 tokens long.*new conversation"):
        asked(64 - CANVAS + 1, 100)
    with pytest.raises(ContextLengthError, match="Pictures take 30: attach fewer"):
        asked(57, 100, images=(Image(range(1, 31), "a"),))


def test_a_prompt_that_there_is_no_memory_for() -> None:
    """With the number that would fit. More than the model's context is never to be had."""
    prompt = Request(Prompt(list(range(17))), SETTINGS, 100)
    assert prompt.room(64, CANVAS, memory_for=25) == room(100, canvases=1)
    assert prompt.room(64, CANVAS, memory_for=500) == prompt.room(64, CANVAS)
    with pytest.raises(
        ContextMemoryError, match=r"17 tokens long, but beside the weights there is memory for 24 and"
    ):
        prompt.room(64, CANVAS, memory_for=24)
    with pytest.raises(ContextLengthError, match="this model's context holds 24") as raised:
        prompt.room(24, CANVAS, memory_for=24)
    assert not isinstance(raised.value, ContextMemoryError)


@pytest.mark.parametrize(
    ("fewest", "thought", "least"), [(12, (), 11), (12, (Thought(CLOSES),), 12), (12, (Thought(CLOSES),) * 2, 13)]
)
def test_the_least_budget_for_the_shortest_reply_is_named(
    fewest: int, thought: tuple[Part, ...], least: int
) -> None:
    assert asked(5, least, *thought, held(fewest)).tokens == least
    with pytest.raises(ConstraintError, match=rf"takes {least} tokens, but max_tokens is {least - 1}\. .*{least}"):
        asked(5, least - 1, *thought, held(fewest))


@pytest.mark.parametrize(("thought", "canvases"), [((), 3), ((Thought(CLOSES),), 4)])
def test_a_context_too_small_for_the_shortest_reply_is_refused(thought: tuple[Part, ...], canvases: int) -> None:
    fewest = 2 * CANVAS + 1
    assert asked(64 - canvases * CANVAS, 500, *thought, held(fewest)).canvases == canvases
    with pytest.raises(
        ConstraintError, match=f"takes {fewest} tokens, but the prompt leaves room for {2 * CANVAS}"
    ):
        asked(64 - canvases * CANVAS + 1, 500, *thought, held(fewest))
