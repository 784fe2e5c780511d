"""Where the time of our denoising step goes, in the network and around it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from llm_diffusiongemma.diffusion.pipeline import Draft
from llm_diffusiongemma.diffusion.sampler import EntropyBoundSampler, GeneratorRandomness

from .contestants import Task, our_pipeline

LAYERS = "layers"
JOIN = "joining cached keys and values with the canvas's"
SELF_CONDITIONING = "self-conditioning"
MASKS = "attention masks"
HEAD = "output head"
SAMPLER = "sampler, softcap included"
REST = "rest"


def profile(model: Any, task: Task) -> dict[str, float]:
    """Mean seconds of each part of a denoising step; together they are the whole step.

    A canvas's first step is left out: it has no self-conditioning. On an accelerator these would be the
    times to queue the work, so this is for CPUs.
    """
    spent: Counter[str] = Counter()
    results = our_pipeline(model).generate(
        task.prompt_ids,
        settings=task.settings,
        max_tokens=task.canvases * model.config.canvas_length,
        randomness=GeneratorRandomness(torch.Generator().manual_seed(0)),
        drafts=True,
    )
    total: Counter[str] = Counter()
    steps = 0
    with _clocks(model, spent):
        while True:
            spent.clear()
            started = time.perf_counter()
            result = next(results, None)
            spent["step"] = time.perf_counter() - started
            if result is None:
                break
            if isinstance(result, Draft) and result.step > 1:
                total.update(spent)
                steps += 1
    mean = {name: seconds / steps for name, seconds in total.items()}
    parts = {
        LAYERS: mean["layers"] - mean["cat"],
        JOIN: mean["cat"],
        # Softmax and product with the embedding stand in the decoder itself, before this module.
        SELF_CONDITIONING: mean["before self-conditioning"] - mean["embedding"] + mean["self-conditioning"],
        MASKS: mean["masks"],
        HEAD: mean["head"],
        SAMPLER: mean["sampler"],
    }
    return {**parts, REST: mean["step"] - sum(parts.values())}


@contextmanager
def _clocks(model: Any, spent: Counter[str]) -> Iterator[None]:
    """Adds up the time of the calls that `profile` reads off, while it lasts."""
    decoder = model.model.decoder
    handles = []

    def clock(module: torch.nn.Module, name: str) -> None:
        started: list[float] = []
        handles.append(
            module.register_forward_pre_hook(
                lambda *_, **__: started.append(time.perf_counter()), with_kwargs=True
            )
        )
        handles.append(
            module.register_forward_hook(lambda *_: spent.update({name: time.perf_counter() - started.pop()}))
        )

    def timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments, **keywords)
            spent[name] += time.perf_counter() - started
            return result

        return call

    clock(decoder.embed_tokens, "embedding")
    clock(decoder.self_conditioning, "self-conditioning")
    clock(model.lm_head, "head")
    for layer in decoder.layers:
        clock(layer, "layers")
    # From the start of the decoder to the start of its self-conditioning module.
    decoder_starts: list[float] = []
    handles.append(
        decoder.register_forward_pre_hook(
            lambda *_, **__: decoder_starts.append(time.perf_counter()), with_kwargs=True
        )
    )
    handles.append(
        decoder.self_conditioning.register_forward_pre_hook(
            lambda *_: spent.update({"before self-conditioning": time.perf_counter() - decoder_starts.pop()})
        )
    )
    masks = timed(decoder.create_diffusion_decoder_attention_mask, "masks")
    try:
        with (
            patch.object(decoder, "create_diffusion_decoder_attention_mask", masks),
            patch.object(EntropyBoundSampler, "step", timed(EntropyBoundSampler.step, "sampler")),
            patch.object(torch, "cat", timed(torch.cat, "cat")),
        ):
            yield
    finally:
        for handle in handles:
            handle.remove()
