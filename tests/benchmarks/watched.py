"""What it costs that somebody watches a reply."""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

from llm_diffusiongemma.backends.telling import CANDIDATES, Teller
from llm_diffusiongemma.chat.drafts import CanvasReader, Spelling
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.pipeline import Block
from llm_diffusiongemma.diffusion.request import Prompt, Request
from llm_diffusiongemma.view import watching
from llm_diffusiongemma.view.records import Reading, Snapshot, Wants, Watch

from ..terminals import Terminal
from ..tokenizers import ours
from .contestants import Task, our_pipeline, our_randomness

NOBODY, DRAFTS, SHOWN, LIKELY = (
    "nobody",
    "drafts, not shown",
    "the live canvas on a terminal",
    "drafts with candidates",
)
COLUMNS = 100


@dataclass(frozen=True)
class Cost:
    """Median seconds of a reply, and of the processor, all its threads together."""

    whole: float
    processor: float


def costs(network: Network, task: Task, tokens: dict[int, str], repeats: int) -> dict[str, Cost]:
    """Of a reply, by who watches, taking turns; a first round warms up. `tokens` are what tokens stand for, in
    place of the embedded tokenizer's."""
    spelling = Spelling(ours())
    spelling.update(tokens)

    def reply(wants: Wants | None, see: Callable[[Reading | Snapshot], object] = lambda seen: None) -> None:
        reader = CanvasReader(spelling, ours().control_tokens, in_thought=False, has_calls=False)
        teller = Teller(Watch(see, wants or "readings"), reader, attempt=0)
        records = our_pipeline(network).generate(
            Request(Prompt(task.prompt_ids), task.settings, task.canvases * network.config.canvas_length),
            randomness=our_randomness(),
            readings=wants is not None,
            drafts=wants is not None,
            candidates=CANDIDATES if wants == "candidates" else 0,
        )
        began = time.perf_counter()
        for record in records:
            if isinstance(record, Block):
                teller.committed(record)
            elif isinstance(record, Reading):
                teller.read(record)
            else:
                teller.drafted(record, time.perf_counter() - began)

    def shown() -> None:
        terminal = watching.Terminal("canvas", hides_thoughts=False, is_command=True)
        try:
            reply("drafts", terminal.see)
        finally:
            terminal.close()

    actions: dict[str, Callable[[], None]] = {
        NOBODY: lambda: reply(None),
        DRAFTS: lambda: reply("drafts"),
        SHOWN: shown,
        LIKELY: lambda: reply("candidates"),
    }
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    with _terminal():
        for round_ in range(repeats + 1):
            for name, action in actions.items():
                gc.collect()
                started, processor = time.perf_counter(), time.process_time()
                action()
                if round_:
                    found = time.perf_counter() - started, time.process_time() - processor
                    measured[name].append(found)
    return {name: Cost(*map(statistics.median, zip(*found, strict=True))) for name, found in measured.items()}


@contextmanager
def _terminal() -> Iterator[None]:
    """stderr is one."""
    terminal = Terminal()
    terminal.resize(COLUMNS)
    with patch.object(sys, "stderr", terminal.stream), patch.dict("os.environ", TERM="xterm-256color"):
        yield
    terminal.close()
