"""Rounds of replies, each kind once a round."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from ..diffusion.devices import peak_memory
from ..diffusion.graphs import NOT_YET, StepGraphs
from ..errors import DiffusionGemmaError
from .clock import DeviceClock, ReplyClock, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..backends.turn import Stop
    from ..diffusion.pipeline import BlockDiffusionPipeline
    from .replies import Subject
    from .theirs import Theirs

THEIRS = "transformers"


@dataclass
class Measured:
    """What there is so far, by the kind of reply."""

    names: Sequence[str]
    """Of the kinds that are to be measured."""
    parts: dict[str, Sample] = field(default_factory=dict)
    """Of the first round, which also warms up: there the host waits for each part of a step."""
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    theirs: dict[str, list[Sample]] = field(default_factory=dict)
    """Of transformers."""
    problems: dict[str, str] = field(default_factory=dict)
    """Why there is no reply of a kind, or of transformers to it."""
    peak_memory_bytes: int | None = None
    """Of all devices in any reply of ours; on a CPU of the process since it began, if nobody else was in it."""

    @property
    def is_empty(self) -> bool:
        return not any(self.samples.values())


def measure(
    measured: Measured,
    subject: Subject,
    devices: Sequence[str],
    repeats: int,
    seed: int,
    stop: Stop,
    describe: Callable[[str], object],
    theirs: Theirs | None = None,
) -> None:
    """Make a round of replies to warm up, and `repeats` to be counted, each with a seed of its own from `seed` on.

    Those of `theirs` take turns with ours. `describe` is told what is at work. What can't be answered is noted and
    not asked again. Raises what `stop` raises.
    """
    for number in range(repeats + 1):
        for name in measured.names:
            if name in measured.problems:
                continue
            describe(f"{name}, {f'round {number} of {repeats}' if number else 'to warm up'}")
            of_round = seed + max(0, number - 1)
            try:
                if number == 1 and subject.pipeline.graph_state == NOT_YET:
                    # The first graph of all is compared with what it was captured of, which others aren't.
                    _reply(subject, devices, name, of_round, stop, is_waiting=False)
                sample = _reply(subject, devices, name, of_round, stop, is_waiting=number == 0)
            except DiffusionGemmaError as error:
                measured.problems[name] = str(error)
                continue
            if number == 0:
                measured.parts[name] = sample
            else:
                measured.samples.setdefault(name, []).append(sample)
            peak = sample.peak_memory_bytes if theirs is not None else peak_memory(devices)
            measured.peak_memory_bytes = max(peak or 0, measured.peak_memory_bytes or 0) or None
            who = f"{name}, {THEIRS}"
            if theirs is not None and name in theirs.prompts and who not in measured.problems:
                describe(who)
                try:
                    other = theirs.reply(name, of_round)
                except DiffusionGemmaError as error:
                    measured.problems[who] = str(error)
                    continue
                if number:
                    measured.theirs.setdefault(name, []).append(other)
                stop.check()


def _reply(
    subject: Subject, devices: Sequence[str], name: str, seed: int, stop: Stop, *, is_waiting: bool
) -> Sample:
    cards = [device for device in devices if device.startswith("cuda")]
    for card in cards:
        torch.cuda.reset_peak_memory_stats(card)
    clock = ReplyClock(stop, DeviceClock(devices))
    with ExitStack() as stack:
        if is_waiting:
            stack.enter_context(clock.waiting(subject.network))
            # A graph is one piece, and who waits in the middle of a capture has it fail.
            stack.enter_context(_without_graphs(subject.pipeline))
        subject.reply(name, seed, clock)
    sample = clock.end()
    if len(cards) == len(devices):
        sample.peak_memory_bytes = peak_memory(devices)
    return sample


@contextmanager
def _without_graphs(pipeline: BlockDiffusionPipeline) -> Iterator[None]:
    """In here each step is computed as it comes."""
    usual, pipeline._graphs = pipeline._graphs, StepGraphs(None, None)
    try:
        yield
    finally:
        pipeline._graphs = usual
