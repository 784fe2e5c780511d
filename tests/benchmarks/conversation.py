"""Twenty turns of a chat, with the prefix cache and without it, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import llm
import torch

from llm_diffusiongemma.chat.messages import read_conversation
from llm_diffusiongemma.chat.output import ReplyReader
from llm_diffusiongemma.chat.prompt import PromptEncoder
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.pipeline import Block
from llm_diffusiongemma.diffusion.request import Prompt, Request

from ..tokenizers import ours
from .contestants import Task, our_pipeline, our_randomness
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


def conversation(network: Network, sizes: Sizes, *, repeats: int) -> list[tuple[TurnCost, TurnCost]]:
    """For each turn the cost with the cache and without. A reply is one canvas."""
    settings = Task([], 1, sizes.steps).settings
    costs: list[tuple[TurnCost, TurnCost]] = []
    for repeat in range(repeats):
        pipelines = our_pipeline(network), our_pipeline(network)
        generator = torch.Generator().manual_seed(0)
        history: list[int] = []
        for turn in range(sizes.turns):
            question = torch.randint(200, 2000, (sizes.question_tokens,), generator=generator).tolist()
            history += question
            prompt = Prompt(tuple(history), stable_length=len(history) - 2)
            for cached, pipeline in zip((True, False), pipelines, strict=True):
                if not cached:
                    pipeline.prefix_cache.clear()
                request = Request(prompt, settings, network.config.canvas_length)
                with encoder_seconds() as prefill:
                    started = time.perf_counter()
                    (block,) = pipeline.generate(request, randomness=our_randomness())
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
def encoder_seconds() -> Iterator[list[float]]:
    """The seconds of each chunk that the encoder reads meanwhile. On a CPU it has been read on return."""
    found: list[float] = []
    encode = Network.encode

    def timed(*arguments: Any) -> None:
        started = time.perf_counter()
        encode(*arguments)
        found.append(time.perf_counter() - started)

    with patch.object(Network, "encode", timed):
        yield found


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
