from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import numpy as np
import pytest

from llm_diffusiongemma.errors import ConstraintError
from llm_diffusiongemma.grammar.choices import MAX_CHOICES, MAX_CHOICES_BYTES, ChoiceTexts

from .languages import BYTE_TOKENS, EOS, OTHER_EOS, PAD

# Three tokens of the same bytes, one of which ends a sequence; a character in halves and whole, and half of it
# with a letter; and a token that no text has.
TOKENS: list[bytes | None] = [
    None,
    b"a",
    None,
    None,
    b"a",
    b"a",
    b"b",
    b"ab",
    b"\xc3",
    b"\xa9",
    b"\xc3\xa9",
    b"b\xc3",
]
CHOICES = ["a", "ab", "aba", "b", "é", "bé", "aé", "abab", "aaaa", "éé"]


def laid_out(choices: Sequence[str], tokens: Sequence[bytes | None] = TOKENS) -> ChoiceTexts:
    return ChoiceTexts(choices, tokens, eos_token_ids=(EOS, OTHER_EOS), pad_token_id=PAD)


def random_log_probabilities(length: int, scale: float, seed: int, tokens: int = len(TOKENS)) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(length, tokens)) * scale
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def by_looking_at_every_canvas(log_p: np.ndarray) -> dict[bytes, float]:
    """The log-probability of each text that a canvas can be: behind its end nothing but such ends and padding."""
    length, vocabulary = log_p.shape
    canvases = np.array(list(itertools.product(range(vocabulary), repeat=length)))
    log_weights = log_p[np.arange(length), canvases].sum(1)
    of_text: dict[bytes, list[float]] = {}
    for canvas, log_weight in zip(canvases.tolist(), log_weights.tolist(), strict=True):
        end = next((i for i, token in enumerate(canvas) if token in (EOS, OTHER_EOS)), None)
        words = [TOKENS[token] for token in canvas[:end]]
        if end is not None and all(words) and {*canvas[end:]} <= {PAD, EOS, OTHER_EOS}:
            of_text.setdefault(b"".join(words), []).append(log_weight)
    return {text: float(np.logaddexp.reduce(log_weights)) for text, log_weights in of_text.items()}


@pytest.mark.parametrize("length", [1, 2, 3, 4])
@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_it_is_exact(length: int, scale: float) -> None:
    """Against all canvases there are: prefixes of each other, several tokenisations, halves of characters.

    At a scale of 60 most of them are e^-100 and less: nothing may underflow.
    """
    texts = laid_out(CHOICES)
    log_p = random_log_probabilities(length, scale, seed=length)
    expected = by_looking_at_every_canvas(log_p)
    found = texts.log_probabilities(log_p[:, texts.tokens])
    np.testing.assert_allclose(found, [expected.get(choice.encode(), -np.inf) for choice in CHOICES], rtol=1e-9)


def test_padding_that_is_an_end_counts_once() -> None:
    log_p = random_log_probabilities(4, 1.0, seed=1)
    texts = [ChoiceTexts(CHOICES, TOKENS, eos_token_ids=(PAD, EOS), pad_token_id=pad) for pad in (PAD, None)]
    once, none = (each.log_probabilities(log_p[:, each.tokens]) for each in texts)
    np.testing.assert_array_equal(once, none)


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_is_as_probable_alone(choice: str) -> None:
    log_p = random_log_probabilities(5, 3.0, seed=5)
    together, alone = laid_out(CHOICES), laid_out([choice])
    (found,) = alone.log_probabilities(log_p[:, alone.tokens])
    assert found == pytest.approx(together.log_probabilities(log_p[:, together.tokens])[CHOICES.index(choice)])


@pytest.mark.parametrize(
    ("choices", "positions"), [(["a"], 2), (["ab"], 2), (["aba"], 3), (["bbb", "a"], 4), (["bé", "éé"], 3)]
)
def test_it_says_how_long_a_canvas_has_to_be(choices: list[str], positions: int) -> None:
    texts = laid_out(choices)
    assert texts.fewest_positions == positions
    for length, is_enough in ((positions, True), (positions - 1, False)):
        log_p = random_log_probabilities(length, 1.0, seed=1)
        assert np.isfinite(texts.log_probabilities(log_p[:, texts.tokens])).all() == is_enough


def plainly(text: bytes, tokens: Sequence[bytes | None], log_p: np.ndarray) -> float:
    """Of one text, position by position and place by place."""
    ways = {0: 0.0}
    found = -np.inf
    for i, row in enumerate(log_p):
        if len(text) in ways:
            behind = np.logaddexp.reduce(log_p[i + 1 :, [PAD, EOS, OTHER_EOS]], axis=1).sum()
            found = np.logaddexp(found, ways[len(text)] + np.logaddexp(row[EOS], row[OTHER_EOS]) + behind)
        following: dict[int, float] = {}
        for place, weight in ways.items():
            for token, word in enumerate(tokens):
                if word and text.startswith(word, place) and token not in (EOS, OTHER_EOS):
                    further = place + len(word)
                    following[further] = np.logaddexp(following.get(further, -np.inf), weight + row[token])
        ways = following
    return float(found)


def test_a_thousand_choices() -> None:
    dice = random.Random(1)
    letters = "abcdeé ß…日本"
    tokens = [*BYTE_TOKENS, *("".join(dice.choices(letters, k=dice.randint(1, 4))).encode() for _ in range(2000))]
    choices = sorted({"".join(dice.choices(letters, k=dice.randint(2, 14))) for _ in range(1200)})[:MAX_CHOICES]
    assert len(choices) == MAX_CHOICES
    texts = laid_out(choices, tokens)
    log_p = random_log_probabilities(24, 4.0, seed=1, tokens=len(tokens))
    found = texts.log_probabilities(log_p[:, texts.tokens])
    for number in range(0, MAX_CHOICES, 83):
        assert found[number] == pytest.approx(plainly(choices[number].encode(), tokens, log_p))


def test_what_cannot_be_spelled_has_no_probability() -> None:
    texts = laid_out(["a", "xyz"])
    log_p = random_log_probabilities(4, 1.0, seed=1)
    found = texts.log_probabilities(log_p[:, texts.tokens])
    assert np.isfinite(found).tolist() == [True, False]
    with pytest.raises(ConstraintError, match="this model's tokenizer"):
        laid_out(["xyz", "x"])


def test_what_is_too_much_is_refused() -> None:
    with pytest.raises(ConstraintError, match=f"1,001 choices, but .* {MAX_CHOICES:,} at most"):
        laid_out([str(number) for number in range(MAX_CHOICES + 1)])
    with pytest.raises(ConstraintError, match="bytes together"):
        laid_out(["é" * (MAX_CHOICES_BYTES // 2), "a"])
