"""How often a damaged answer comes back right that a reply begins as, and in how many steps."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator

from llm_diffusiongemma.tiny import data
from llm_diffusiongemma.tiny.evaluate import Examiner, Score

SKILLS = ("question", "greeting", "sum_directly", "counting")
DAMAGED = (0.0, 0.1, 0.3, 0.6)
NOISE = (0.2, 0.5, 0.8)
KINDS = (string.digits, string.ascii_lowercase, string.ascii_uppercase)
# Of a count in tokens: two canvases.
LONG = range(257, 400)


def damaged(text: str, share: float, rng: random.Random) -> str:
    """With this share of the letters and digits replaced by others of their kind."""

    def letter(character: str) -> str:
        kind = next((kind for kind in KINDS if character in kind), None)
        if kind is None or rng.random() >= share:
            return character
        return rng.choice(kind.replace(character, ""))

    return "".join(map(letter, text))


def lessons(examiner: Examiner, skill: str) -> Iterator[data.Lesson]:
    """Never seen in training; of counting those that take two canvases."""
    rng = random.Random(f"{skill} 1")
    encode = examiner._engine.prompt_encoder.encode_text
    while True:
        lesson = data.SKILLS[skill][0](rng, True)
        if skill != "counting" or len(encode(lesson.reply)) in LONG:
            yield lesson


def score(examiner: Examiner, skill: str, questions: int, share: float | None, noise: float = 0.0) -> Score:
    """Of so many questions with seeds from 0, without a draft where no share of one is damaged."""
    total = Score()
    for seed, lesson in zip(range(questions), lessons(examiner, skill), strict=False):
        draft = None if share is None else damaged(lesson.reply, share, random.Random(seed))
        examiner.mark(total, lesson, seed, draft, noise)
    return total
