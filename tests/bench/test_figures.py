"""What is made of measured replies."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llm_diffusiongemma.bench.clock import Sample
from llm_diffusiongemma.bench.figures import figures, spread
from llm_diffusiongemma.bench.measure import Measured


def sample(tokens: int, seconds: float, steps: int = 4, canvases: int = 2) -> Sample:
    return Sample(
        prompt_tokens=10,
        tokens=tokens,
        seconds=seconds,
        first_block_seconds=seconds / 2,
        canvases=canvases,
        converged=canvases,
        steps=steps,
        step_seconds=[0.010, 0.030],
    )


def measured(**samples: list[Sample]) -> Measured:
    parts = dict.fromkeys(samples, Sample(forward_seconds=[0.02], sampler_seconds=[0.004]))
    return Measured(list(samples), parts=parts, samples={name: each for name, each in samples.items() if each})


def test_spread() -> None:
    assert spread([3.0, 1.0, 2.00006]) == {"median": 2.0, "least": 1.0, "most": 3.0}
    assert spread([]) is None


def test_of_a_kind() -> None:
    found = figures(measured(count=[sample(100, 2.0), sample(300, 2.0), sample(200, 2.0)]))["kinds"]["count"]
    assert found["replies"] == 3
    assert found["tokens_per_second"] == {"median": 100, "least": 50, "most": 150}
    assert found["steps_per_canvas"]["median"] == 2
    assert found["step_ms"] == {"median": 20, "least": 10, "most": 30}
    assert (found["forward_ms"]["median"], found["sampler_ms"]["median"]) == (20, 4)
    assert found["reading_ms"] is None
    assert found["peak_memory_bytes"] is None


def test_all_kinds_by_whole_rounds() -> None:
    """Tokens of a round by its seconds: a mean of rates would count a short reply for as much as a long one."""
    both = measured(short=[sample(10, 1.0), sample(10, 1.0)], long=[sample(990, 9.0)])
    assert figures(both)["all"]["tokens_per_second"] == {"median": 100, "least": 100, "most": 100}


def test_of_a_round_that_was_cut_there_is_no_rate_of_all() -> None:
    cut = measured(short=[sample(10, 1.0)], long=[])
    assert figures(cut)["all"]["tokens_per_second"] is None
    cut.problems["long"] = "There is no room for it."  # so none is to come
    assert figures(cut)["all"]["tokens_per_second"]["median"] == 10


def test_a_decision_is_no_text() -> None:
    """It has no rate, and leaves those of all texts as they are."""
    decision = replace(sample(0, 0.5, steps=1, canvases=1), writes=False)
    both = measured(text=[sample(100, 2.0)], decision=[decision])
    both.parts["decision"] = Sample(forward_seconds=[0.5], sampler_seconds=[0.5], writes=False)
    found, alone = figures(both), figures(measured(text=[sample(100, 2.0)]))
    assert found["kinds"]["decision"]["tokens_per_second"] is None
    assert found["kinds"]["decision"]["forward_ms"]["median"] == 500
    assert found["all"] == alone["all"]
    del both.samples["decision"]  # it was cut
    assert figures(both)["all"] == alone["all"]


def test_against() -> None:
    """Round by round: what slows a machine down for a while slows both."""
    found = measured(count=[sample(100, 1.0), sample(100, 10.0), sample(100, 1.0)])
    found.theirs["count"] = [Sample(tokens=100, seconds=2.0), Sample(tokens=100, seconds=30.0)]
    against = figures(found)["against"]["count"]
    assert against["times_faster"] == {"median": pytest.approx(2.5), "least": 2, "most": 3}
    assert against["transformers_tokens_per_second"]["most"] == 50
    assert figures(measured(count=[sample(1, 1.0)]))["against"] is None
