"""What a reply is measured by: being asked whether it is still wanted, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from llm_diffusiongemma.backends.turn import Stop
from llm_diffusiongemma.bench.clock import DeviceClock, ReplyClock
from llm_diffusiongemma.bench.measure import Measured, measure
from llm_diffusiongemma.bench.replies import RandomReplies
from llm_diffusiongemma.diffusion.graphs import USED, StepGraphs
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.placement import whole
from llm_diffusiongemma.view.records import Reading

from ..diffusion.small_network import NUM_LAYERS, resident_network

PLACEMENT = whole("bf16", NUM_LAYERS, "cpu")


class Time:
    """Stands still until it is put forward."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock_time(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock_time = Time()
    monkeypatch.setattr(time, "perf_counter", clock_time)
    return clock_time


def asked_at(clock: ReplyClock, clock_time: Time, *moments: float) -> None:
    for moment in moments:
        clock_time.now = moment
        clock.is_set()


def test_a_reply(clock_time: Time) -> None:
    clock = ReplyClock(Stop(), DeviceClock(["cpu"]))
    asked_at(clock, clock_time, 1)
    clock.read(Reading(0, 9))
    asked_at(clock, clock_time, 3)
    clock.read(Reading(9, 9))
    asked_at(clock, clock_time, 10, 11, 13)
    clock.block(tokens=7, steps=3, converged=True)
    asked_at(clock, clock_time, 20, 30)
    clock.block(tokens=5, steps=1, converged=False)
    sample = clock.end()
    # Not from before the first step, where the prompt is read, nor from one canvas to the next.
    assert sample.step_seconds == [1, 2]
    assert (sample.prompt_tokens, sample.reading_seconds) == (9, 2)
    assert (sample.tokens, sample.canvases, sample.converged, sample.steps) == (12, 2, 1, 4)
    assert (sample.first_block_seconds, sample.seconds) == (13, 30)


def test_who_is_asked_decides(clock_time: Time) -> None:
    class Unwanted(Stop):
        owns_process = True

        def is_set(self) -> bool:
            return True

    clock = ReplyClock(Unwanted(), DeviceClock(["cpu"]))
    assert clock.is_set()
    assert clock.owns_process


@pytest.fixture
def network() -> Network:
    return resident_network()


def timed_reply(network: Network, *, is_waiting: bool) -> ReplyClock:
    subject = RandomReplies(network, PLACEMENT, [5], steps=3)
    clock = ReplyClock(Stop(), DeviceClock(["cpu"]))
    if is_waiting:
        with clock.waiting(network):
            subject.reply(subject.names[0], 1, clock)
    else:
        subject.reply(subject.names[0], 1, clock)
    return clock


def test_the_pipeline_asks_once_a_step(network: Network) -> None:
    """Whatever else it asks for, it is after each step of a canvas that it asks the last times."""
    sample = timed_reply(network, is_waiting=False).end()
    assert (sample.canvases, sample.steps, sample.converged) == (2, 6, 0)
    assert len(sample.step_seconds) == 2 * (3 - 1)
    assert sample.tokens == 2 * network.config.canvas_length
    assert sample.reading_seconds is not None
    assert sample.forward_seconds == []


def test_the_parts_of_each_step(network: Network) -> None:
    sample = timed_reply(network, is_waiting=True).end()
    assert len(sample.forward_seconds) == len(sample.sampler_seconds) == sample.steps
    assert all(seconds > 0 for seconds in sample.forward_seconds + sample.sampler_seconds)


def test_parts_are_told_apart_of_steps_that_are_computed_as_they_come(network: Network) -> None:
    """A graph is one piece. Those of the counted rounds are neither used nor spoilt."""

    class Recorder:
        recorded = 0

        def record(self, call: Callable[[], None]) -> Callable[[], None]:
            self.recorded += 1
            return call

    subject = RandomReplies(network, PLACEMENT, [5], steps=4)
    recorder = Recorder()
    subject.pipeline._graphs = graphs = StepGraphs(recorder)
    measured = Measured(subject.names)
    counts = []
    measure(measured, subject, ["cpu"], 1, 1, Stop(), lambda what: counts.append(recorder.recorded))
    # Neither while warming up, nor by a decision, which is a single step.
    assert counts == [0, 0, 0, 2 + 2]
    # The first of all is compared with what it was captured of: a reply of two canvases that isn't counted.
    assert recorder.recorded == 2 + 2
    assert subject.pipeline._graphs is graphs
    assert [len(parts.forward_seconds) for parts in measured.parts.values()] == [2 * 4, 1]
    assert [len(parts.sampler_seconds) for parts in measured.parts.values()] == [2 * 4, 1]
    assert [len(each.forward_seconds) for samples in measured.samples.values() for each in samples] == [0, 0]
    assert subject.pipeline.graph_state == USED


def test_the_network_is_left_as_it_was(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> torch.Tensor:
        raise RuntimeError("as a device does")

    monkeypatch.setattr(network, "denoise", fail)
    with pytest.raises(RuntimeError, match="as a device does"):
        timed_reply(network, is_waiting=True)
    assert network.denoise is fail
