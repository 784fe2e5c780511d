"""Twenty turns of a chat, with the prefix cache and without it, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import llm
import torch

from llm_diffusiongemma.chat.messages import PromptEncoder, read_conversation
from llm_diffusiongemma.chat.output import ReplyReader
from llm_diffusiongemma.diffusion.pipeline import Block
from llm_diffusiongemma.diffusion.sampler import GeneratorRandomness, SamplerSettings

from ..tokenizers import ours
from .contestants import our_pipeline
from .measure import Sizes


@dataclass
class TurnCost:
    """What one turn took: tokens that the encoder read, and medians of seconds."""

    context_tokens: int
    encoded_tokens: int
    prefill: list[float] = field(default_factory=list)
    first_block: list[float] = field(default_factory=list)

    @property
    def prefill_seconds(self) -> float:
        return statistics.median(self.prefill)

    @property
    def first_block_seconds(self) -> float:
        return statistics.median(self.first_block)


def conversation(model: Any, sizes: Sizes, *, repeats: int) -> list[tuple[TurnCost, TurnCost]]:
    """For each turn the cost with the cache and without. A reply is one canvas."""
    model.generation_config.eos_token_id = [model.config.text_config.vocab_size]
    settings = SamplerSettings(sizes.steps, 0.1, 0.4, 0.8, 1e-30, 1)
    costs: list[tuple[TurnCost, TurnCost]] = []
    for repeat in range(repeats):
        pipelines = our_pipeline(model), our_pipeline(model)
        generator = torch.Generator().manual_seed(0)
        history: list[int] = []
        for turn in range(sizes.turns):
            question = torch.randint(200, 2000, (sizes.question_tokens,), generator=generator).tolist()
            history += question
            for cached, pipeline in zip((True, False), pipelines, strict=True):
                if not cached:
                    pipeline.prefix_cache.clear()
                with encoder_seconds(model) as prefill:
                    started = time.perf_counter()
                    (block,) = pipeline.generate(
                        history,
                        settings=settings,
                        max_tokens=model.config.canvas_length,
                        randomness=GeneratorRandomness(torch.Generator().manual_seed(0)),
                        stable_length=len(history) - 2,
                    )
                    first_block = time.perf_counter() - started
                assert isinstance(block, Block)
                if repeat == 0:
                    cost = TurnCost(len(history), block.encoded_tokens)
                    costs = [*costs, (cost, cost)] if cached else [*costs[:-1], (costs[-1][0], cost)]
                costs[turn][not cached].prefill.append(sum(prefill))
                costs[turn][not cached].first_block.append(first_block)
            history += block.tokens
    return costs


@contextmanager
def encoder_seconds(model: Any) -> Iterator[list[float]]:
    """The seconds of each forward of the encoder. On a CPU a forward has ended when it returns."""
    seconds: list[float] = []
    before = model.model.encoder.register_forward_pre_hook(lambda *_: seconds.append(-time.perf_counter()))
    after = model.model.encoder.register_forward_hook(
        lambda *_: seconds.append(seconds.pop() + time.perf_counter())
    )
    try:
        yield seconds
    finally:
        before.remove()
        after.remove()


def chat_seconds(sizes: Sizes, repeats: int) -> tuple[float, float]:
    """Median seconds of templating and tokenising a chat and of reading a reply of 256 tokens."""
    tokenizer = ours()
    encoder = PromptEncoder(tokenizer)
    text = "The canvas is refined step by step until it has converged. " * 8
    messages = [part for _ in range(sizes.turns - 1) for part in (llm.user(text), llm.assistant(text))]
    messages.append(llm.user(text))
    names = tokenizer.control_tokens
    ids = tokenizer.encode(text)[:256]
    writing, reading = [], []
    for _ in range(repeats):
        started = time.perf_counter()
        encoder.encode(read_conversation(messages).messages)
        writing.append(time.perf_counter() - started)
        started = time.perf_counter()
        reader = ReplyReader(tokenizer.decode, names)
        reader.consume(ids)
        reader.finalize()
        reading.append(time.perf_counter() - started)
    return statistics.median(writing), statistics.median(reading)
