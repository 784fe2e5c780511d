"""What it saves that a canvas stops earlier, and what it costs in right answers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from llm_diffusiongemma.tiny import data
from llm_diffusiongemma.tiny.evaluate import Examiner, Score

from .quality import total

THRESHOLDS = (0.005, 0.02, 0.05, 0.1)
"""of confidence, nats; the first is the checkpoint's"""


def scores(questions: int, seeds: Sequence[int]) -> dict[tuple[float, bool], Score]:
    """Of all skills, by `confidence_threshold` and `stop_at_end`: for each seed so many questions of each skill as
    in training, and as many never seen."""
    examiner = Examiner()
    usual = examiner.settings
    found = {}
    for stop_at_end, threshold in itertools.product((False, True), THRESHOLDS):
        examiner.settings = replace(usual, confidence_threshold=threshold, stop_at_end=stop_at_end)
        found[threshold, stop_at_end] = total(
            examiner.examine(skill, questions, held_out=held_out, seed=seed)
            for skill, held_out, seed in itertools.product(data.SKILLS, (False, True), seeds)
        )
    return found
