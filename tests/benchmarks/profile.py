"""Where the time of our denoising step goes, in the layers and around them."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch

from llm_diffusiongemma.diffusion import network as network_module
from llm_diffusiongemma.diffusion.experts import Experts
from llm_diffusiongemma.diffusion.kv_cache import KVCache
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.pipeline import Draft
from llm_diffusiongemma.diffusion.request import Prompt, Request
from llm_diffusiongemma.diffusion.sampler import EntropyBoundSampler

from .contestants import Task, our_pipeline, our_randomness

LAYERS, STEP, REST = "layers but for these", "sampler but for these", "rest"
# Of the layers, and of the sampler's step.
WITHIN = {
    "attention": (LAYERS, network_module, "_attend"),
    "experts": (LAYERS, Experts, "__call__"),
    "output head": (STEP, Network, "logits"),
    "soft embeddings": (STEP, Network, "mix"),
}
WHOLE = {LAYERS: (Network, "denoise"), STEP: (EntropyBoundSampler, "measure")}


class Clocks:
    """Adds up the seconds of calls by name. Within `running` they are patched."""

    def __init__(self, calls: Mapping[str, tuple[Any, str]]) -> None:
        self.spent: Counter[str] = Counter()
        self._calls = calls

    @contextmanager
    def running(self) -> Iterator[None]:
        with ExitStack() as patches:
            for name, (owner, attribute) in self._calls.items():
                patches.enter_context(patch.object(owner, attribute, self._timed(name, getattr(owner, attribute))))
            yield

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            started = time.perf_counter()
            result = call(*arguments)
            self.spent[name] += time.perf_counter() - started
            return result

        return run


def profile(network: Network, task: Task) -> dict[str, float]:
    """Mean seconds of each part of a denoising step; together they are the whole step.

    A canvas's first step is left out: it has no self-conditioning. On an accelerator these would be the
    times to queue the work, so this is for CPUs.
    """
    clocks = Clocks(WHOLE | {name: (owner, attribute) for name, (_, owner, attribute) in WITHIN.items()})
    total: Counter[str] = Counter()
    steps = 0
    request = Request(Prompt(task.prompt_ids), task.settings, task.canvases * network.config.canvas_length)
    results = our_pipeline(network).generate(request, randomness=our_randomness(), drafts=True)
    with clocks.running():
        while True:
            clocks.spent.clear()
            started = time.perf_counter()
            result = next(results, None)
            clocks.spent[REST] = time.perf_counter() - started
            if result is None:
                break
            if isinstance(result, Draft) and result.step > 1:
                total.update(clocks.spent)
                steps += 1
    mean = {name: seconds / steps for name, seconds in total.items()}
    mean[REST] -= sum(mean[name] for name in WHOLE)
    for name, (whole, _, _) in WITHIN.items():
        mean[whole] -= mean[name]
    return mean


@dataclass(frozen=True)
class ContextCost:
    """Median seconds of a step's layers behind a context, and of that what its attention took."""

    seconds: float
    attention_seconds: float


def context_costs(network: Network, lengths: Sequence[int], repeats: int) -> dict[int, ContextCost]:
    """What the layers of a denoising step cost behind so many tokens, taking turns."""
    generator = torch.Generator().manual_seed(0)
    caches = {}
    for length in lengths:
        caches[length] = KVCache(network.config, network.dtype, network.device)
        tokens = torch.randint(network.size, (length,), generator=generator)
        for chunk in tokens.split(1024):
            network.encode(network.embed(chunk), caches[length])
    canvas = torch.randint(network.size, (network.config.canvas_length,), generator=generator)
    soft_embeddings = torch.randn(len(canvas), network.hidden_size, generator=generator)
    clocks = Clocks({name: WITHIN[name][1:] for name in ("attention",)})
    found: dict[int, list[tuple[float, float]]] = {length: [] for length in lengths}
    with clocks.running():
        for _ in range(repeats + 1):  # one to warm up
            for length, cache in caches.items():
                clocks.spent.clear()
                started = time.perf_counter()
                network.denoise(canvas, soft_embeddings, cache)
                found[length].append((time.perf_counter() - started, clocks.spent["attention"]))
    return {
        length: ContextCost(*(statistics.median(times) for times in zip(*rounds[1:], strict=True)))
        for length, rounds in found.items()
    }
