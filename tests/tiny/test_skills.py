"""What the embedded checkpoint can do, on prompts that it has never seen.

`pytest -n 0 tests/tiny/test_skills.py` shows the scores; so does `python -m llm_diffusiongemma.tiny.evaluate`.
"""

from __future__ import annotations

import random

import pytest

from llm_diffusiongemma.tiny import data
from llm_diffusiongemma.tiny.evaluate import Examiner

QUESTIONS = 4
# The least right of 4, with room below the measured score for the rounding of another processor. A skill that was
# not learned well has a low number here, and docs/tiny.md says so.
LEAST_RIGHT: dict[str, int] = {
    "question": 2,
    "unknown": 3,
    "counting": 1,
    "repeating": 3,
    "capitals": 1,
    "name": 3,
    "greeting": 3,
    "sum_directly": 3,
    "sum_thinking": 2,
    "tool_call": 2,
    "tool_result": 1,
    "json_object": 2,
    "json_list": 1,
    "json_values": 1,
    "choosing": 1,
    "colour": 3,
}


@pytest.fixture(scope="module")
def examiner() -> Examiner:
    return Examiner()


def test_every_skill_has_a_mark() -> None:
    assert set(LEAST_RIGHT) == set(data.SKILLS)


@pytest.mark.parametrize("skill", LEAST_RIGHT)
def test_skill(examiner: Examiner, skill: str, capsys: pytest.CaptureFixture[str]) -> None:
    unseen = examiner.examine(skill, QUESTIONS, held_out=True)
    with capsys.disabled():
        print(f"\n{skill}: {unseen}", end=" ")
    assert unseen.right >= LEAST_RIGHT[skill], unseen.wrong[:3]


@pytest.mark.parametrize("skill", data.SKILLS)
def test_what_was_never_seen_is_never_trained(skill: str) -> None:
    """Otherwise the score would measure memory."""

    def text(lesson: data.Lesson) -> str:
        return " | ".join(str(part) for part in (*(each["content"] for each in lesson.messages), lesson.colour))

    rng = random.Random(0)
    trained = {text(data.SKILLS[skill][0](rng, False)) for _ in range(2_000)}
    held_out = [text(data.SKILLS[skill][0](rng, True)) for _ in range(200)]
    assert not trained.intersection(held_out)
