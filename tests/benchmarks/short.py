"""What canvases that are shorter than the checkpoint's save, and what becomes of the answers in them."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.request import Prompt, Request
from llm_diffusiongemma.tiny import data
from llm_diffusiongemma.tiny.evaluate import Examiner, Score

from .contestants import Task, our_pipeline, our_randomness
from .quality import scores

LENGTHS = (256, 128, 64, 32)


def replies(network: Network, task: Task) -> dict[str, Callable[[], object]]:
    """Of one canvas each, by its length. All take the same number of steps."""

    def reply(length: int) -> Callable[[], object]:
        def by_us() -> None:
            request = Request(Prompt(task.prompt_ids), task.settings, length, canvas_length=length)
            (_,) = our_pipeline(network).generate(request, randomness=our_randomness())

        return by_us

    return {str(length): reply(length) for length in LENGTHS}


def scores_by_length(questions: int) -> dict[int, dict[str, Score]]:
    """Of each skill of the embedded checkpoint, by the length of the canvases that it answers in."""
    examiner, found = Examiner(), {}
    for length in LENGTHS:
        # As if it were the checkpoint's.
        with patch.object(examiner._engine.pipeline, "canvas_length", length):
            found[length] = scores(examiner, questions)
        assert found[length].keys() == data.SKILLS.keys()
    return found
