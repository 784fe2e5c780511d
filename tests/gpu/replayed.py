"""A step as the product replays it: sections on the loop with its CUDA graph, free and held to a form."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable
from unittest.mock import patch

from llm_diffusiongemma.catalog import GRAPH_VARIABLE
from llm_diffusiongemma.diffusion.graphs import USED, CudaRecorder
from llm_diffusiongemma.diffusion.pipeline import Block, BlockDiffusionPipeline
from llm_diffusiongemma.diffusion.request import Prompt, Request

from .bench import Bench, Result
from .loop import StepClock, randomness, settings_of

CANVASES = 2


def replayed(bench: Bench) -> Result:
    """Two canvases with the product's graph and without: the same tokens, a step's milliseconds, a capture's."""
    found = bench.begin()
    is_right = True
    for length in (300,) if bench.is_tiny else (64, 1024, 8192):
        prompt = bench.tokens(length).tolist()
        eager, eager_tokens, _ = canvases(bench, prompt, graph="off")
        graph, graph_tokens, state = canvases(bench, prompt, graph="on")
        is_right &= graph_tokens == eager_tokens and state == (USED if bench.on_card else None)
        found[f"{length} tokens"] = {
            "same tokens": graph_tokens == eager_tokens,
            "state": state,
            "eager": eager,
            "graph": graph,
        }
    return {"ok": is_right, **found}


def canvases(bench: Bench, prompt: list[int], graph: str) -> tuple[Result, list[int], str | None]:
    """A reply after another one: its figures, its tokens, and what is said of the graph."""
    network, steps = bench.network, max(bench.steps, 4)
    captures: list[float] = []
    record = CudaRecorder.record

    def timed(recorder: CudaRecorder, call: Callable[[], None]) -> Callable[[], None]:
        started = time.perf_counter()
        replay = record(recorder, call)
        captures.append((time.perf_counter() - started) * 1e3)
        return replay

    with patch.dict(os.environ, {GRAPH_VARIABLE: graph}), patch.object(CudaRecorder, "record", timed):
        pipeline = BlockDiffusionPipeline(network, eos_token_ids=(), pad_token_id=None)
        request = Request(Prompt(prompt), settings_of(steps), CANVASES * network.config.canvas_length)
        for _ in range(2):
            pipeline.prefix_cache.clear()
            captures.clear()
            clock = StepClock()
            bench.forget_peak()
            with clock.watch():
                records = list(pipeline.generate(request, randomness=randomness()))
    blocks = [record for record in records if isinstance(record, Block)]
    # Of each canvas from its third step on.
    each_canvas = [clock.ends[i * steps : (i + 1) * steps] for i in range(CANVASES)]
    between = [(b - a) * 1e3 for ends in each_canvas for a, b in itertools.pairwise(ends[1:])]
    found: Result = {
        "ms_a_step": round(statistics.median(between), 3),
        "fastest": round(min(between), 3),
        "capture_ms": [round(ms, 2) for ms in captures],
        **bench.peak(),
    }
    return found, [token for block in blocks for token in block.tokens], pipeline.graph_state


def constrained(bench: Bench) -> Result:
    """Milliseconds a step of a canvas that is held to a form, and of a free one, as tests/benchmarks has them."""
    from ..benchmarks import constrained as forms
    from ..benchmarks.contestants import Task
    from ..benchmarks.measure import Sizes

    network = bench.network
    vocabulary = forms.gemma_like_vocabulary(Sizes(vocabulary=network.size))
    task = Task(bench.tokens(300).tolist(), canvases=1, steps=bench.steps)
    return {
        name: round(bench.ms(run, 3, 1) / bench.steps, 3)
        for name, run in forms.replies(network, vocabulary, task).items()
    }
