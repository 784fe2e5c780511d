"""The same reply in this process and through a server in a thread of it, by turns."""

from __future__ import annotations

import gc
import itertools
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import llm
import uvicorn

from llm_diffusiongemma.backends.local import LocalReply
from llm_diffusiongemma.backends.protocol import EXTENSION, report_from_wire
from llm_diffusiongemma.backends.turn import ALWAYS_WANTED, Report, Turn
from llm_diffusiongemma.backends.watched import seen_from_wire
from llm_diffusiongemma.catalog import ModelEntry
from llm_diffusiongemma.options import Options
from llm_diffusiongemma.server.app import make_app
from llm_diffusiongemma.server.desk import Desk
from llm_diffusiongemma.server.guard import only
from llm_diffusiongemma.server.listening import listen_on_tcp
from llm_diffusiongemma.view.records import Wants

PROMPT = "Count from 1 to 320"
TOKENS = 512
TOKEN = "a-token"
HERE, THERE = "in this process", "through the server"
WATCHED: dict[str, Wants | None] = {
    THERE: None,
    "the same, each draft seen": "drafts",
    "the same, with candidates": "candidates",
}


@dataclass(frozen=True)
class Way:
    """Medians of seconds: of a reply, of what of it was neither encoding nor denoising, and of the processor's,
    for who asks, too."""

    whole: float
    beside: float
    processor: float


def ways(entry: ModelEntry, repeats: int) -> dict[str, Way]:
    """What a reply of two canvases costs either way. A first round warms up."""
    measured: dict[str, list[tuple[float, ...]]] = {HERE: [], **{name: [] for name in WATCHED}}
    with served(entry) as ask:
        for round_, (name, seen) in itertools.product(range(repeats + 1), measured.items()):
            gc.collect()
            started, processor = time.perf_counter(), time.process_time()
            report = _answer(entry) if name == HERE else ask(WATCHED[name])
            whole, processor = time.perf_counter() - started, time.process_time() - processor
            if round_:
                seen.append((whole, whole - report.generate_seconds, processor))
    return {name: Way(*map(statistics.median, zip(*seen, strict=True))) for name, seen in measured.items()}


def _answer(entry: ModelEntry) -> Report:
    turn = Turn([llm.user(PROMPT)], Options(seed=1, max_tokens=TOKENS))
    reply = LocalReply(entry, turn, ALWAYS_WANTED)
    assert len(list(reply.steps())) == 2
    return reply.report


@contextmanager
def served(entry: ModelEntry) -> Iterator[Callable[[Wants | None], Report]]:
    """Somebody who asks a server, as our own client does."""
    body = {
        "model": entry.model_id,
        "messages": [{"role": "user", "content": PROMPT}],
        "seed": 1,
        "max_tokens": TOKENS,
        "stream": True,
    }
    app = make_app(Desk(entry), only(TOKEN), instance="", stop=lambda: None)
    server = uvicorn.Server(uvicorn.Config(app, http="h11", lifespan="off", log_level="error"))
    with listen_on_tcp("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/chat/completions"
        with httpx2.Client(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=None) as client:
            yield lambda wants: _ask(client, url, {**body, EXTENSION: {"progress": True, "watch": wants}})
        server.should_exit = True
        thread.join()


def _ask(client: httpx2.Client, url: str, body: dict[str, Any]) -> Report:
    with client.stream("POST", url, json=body) as response:
        lines = (line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: "))
        chunks = [_read(line) for line in lines if line != "[DONE]"]
    return report_from_wire(chunks[-1][EXTENSION]["report"])


def _read(line: str) -> Any:
    """A chunk, as soon as it comes."""
    chunk = json.loads(line)
    seen_from_wire(chunk.get(EXTENSION, {}))
    return chunk
