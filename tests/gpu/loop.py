"""The project's loop over a network, and its steps watched."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch

from llm_diffusiongemma.bench.replies import NEVER_CONFIDENT
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.pipeline import Block, BlockDiffusionPipeline
from llm_diffusiongemma.diffusion.request import Prompt, Request
from llm_diffusiongemma.diffusion.sampler import EntropyBoundSampler, GeneratorRandomness, SamplerSettings


def settings_of(steps: int) -> SamplerSettings:
    """Each canvas takes exactly so many denoising steps."""
    return SamplerSettings(steps, 0.1, 0.4, 0.8, NEVER_CONFIDENT, 1)


def randomness(seed: int = 0) -> GeneratorRandomness:
    return GeneratorRandomness(torch.Generator().manual_seed(seed))


def sampler_of(network: Network, settings: SamplerSettings) -> EntropyBoundSampler:
    return EntropyBoundSampler(
        settings,
        vocabulary=network,
        canvas_length=network.config.canvas_length,
        device=network.device,
        softcap=network.config.final_logit_softcapping,
        randomness=randomness(),
    )


@dataclass
class StepClock:
    """When each denoising step was over for the host."""

    ends: list[float] = field(default_factory=list)
    after: Callable[[int], None] = lambda _: None
    """Is told how many there have been."""

    @contextmanager
    def watch(self) -> Iterator[None]:
        original = EntropyBoundSampler.conclude

        def conclude(sampler: EntropyBoundSampler) -> Any:
            result = original(sampler)
            self.ends.append(time.perf_counter())
            self.after(len(self.ends))
            return result

        with patch.object(EntropyBoundSampler, "conclude", conclude):
            yield

    def between(self) -> list[float]:
        """Milliseconds from each step's end to the next one's, the first two left out."""
        return [(b - a) * 1e3 for a, b in zip(self.ends[2:], self.ends[3:], strict=False)]


def reply(
    network: Network,
    prompt: list[int],
    steps: int,
    canvases: int = 1,
    clock: StepClock | None = None,
    **watched: Any,
) -> list[float]:
    """Seconds to each block of a reply that nothing ends, by a pipeline that has nothing cached. `watched` is what
    `generate` is asked for besides."""
    pipeline = BlockDiffusionPipeline(network, eos_token_ids=frozenset(), pad_token_id=None)
    request = Request(Prompt(prompt), settings_of(steps), canvases * network.config.canvas_length)
    started = time.perf_counter()
    with (clock or StepClock()).watch():
        records = pipeline.generate(request, randomness=randomness(), **watched)
        return [time.perf_counter() - started for record in records if isinstance(record, Block)]
