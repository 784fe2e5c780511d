"""What it means on a card that somebody watches a reply."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import llm
from llm.parts import StreamEvent

from llm_diffusiongemma.backends.engine import get_engine
from llm_diffusiongemma.backends.local import LocalReply
from llm_diffusiongemma.backends.telling import CANDIDATES
from llm_diffusiongemma.backends.turn import ALWAYS_WANTED, BlockReport, Turn
from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT, ModelEntry, Source
from llm_diffusiongemma.options import Options
from llm_diffusiongemma.view.records import Reading, Snapshot, Wants, Watch

from .bench import Bench, Result
from .loop import reply

WAYS: dict[str, dict[str, Any]] = {
    "nobody": {},
    "drafts": {"readings": True, "drafts": True},
    "candidates": {"readings": True, "drafts": True, "candidates": CANDIDATES},
}


def watch(bench: Bench) -> Result:
    """The same replies of the embedded checkpoint whoever watches, and what a step of the large network takes."""
    found = bench.begin()
    entry = ModelEntry("tiny-watched", (Source(EMBEDDED_CHECKPOINT),), str(bench.device))
    # What it takes to be sure of it; few steps show the same.
    few: dict[str, Any] = {"max_denoising_steps": 4, "max_tokens": 300} if bench.is_tiny else {}
    turn = Turn([llm.user("Count from 1 to 150")], Options(seed=3, **few))
    alone, _ = answered(entry, turn, None)
    is_right = bool(alone[0])
    for wants in ("drafts", "candidates"):
        watched, num_seen = answered(entry, turn, wants)
        steps = sum(block.denoising_steps for block in watched[1])
        found[f"same reply, {wants}"] = watched == alone and num_seen == steps
        is_right &= found[f"same reply, {wants}"]

    prompt = bench.tokens(128 if bench.is_tiny else 1024).tolist()
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(2 if bench.is_tiny else 4):
        for name, asked in WAYS.items():
            bench.forget_peak()
            (to_block,) = reply(bench.network, prompt, bench.steps, **asked)
            seconds[name].append(to_block)
            found |= {f"{name}, {key}": value for key, value in bench.peak().items()}
    medians = {name: statistics.median(each[1:]) for name, each in seconds.items()}
    costs = {name: round((each - medians["nobody"]) / bench.steps * 1e3, 3) for name, each in medians.items()}
    return {
        "ok": is_right,
        "ms_a_step, the prompt included": round(medians["nobody"] / bench.steps * 1e3, 3),
        "ms_a_step more": {name: costs[name] for name in costs if name != "nobody"},
        **found,
    }


def answered(
    entry: ModelEntry, turn: Turn, wants: Wants | None
) -> tuple[tuple[list[StreamEvent], list[BlockReport]], int]:
    """A reply without its times, and how many snapshots of it were seen."""
    snapshots: list[Snapshot] = []

    def see(seen: Reading | Snapshot) -> None:
        if isinstance(seen, Snapshot):
            snapshots.append(seen)

    get_engine(entry).engine.pipeline.prefix_cache.clear()
    watch = None if wants is None else Watch(see, wants)
    local = LocalReply(entry, replace(turn, watch=watch), ALWAYS_WANTED)
    events = [event for events in local.steps() for event in events]
    return (events, [replace(block, seconds=0.0) for block in local.report.blocks]), len(snapshots)
