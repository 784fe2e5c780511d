"""What a step makes the host do: sections that find what waits for the device, and how busy that is."""

from __future__ import annotations

import gzip
import json
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import torch

from .bench import Bench, Result
from .loop import StepClock, reply, sampler_of, settings_of
from .speed import Denoiser


def waits(bench: Bench) -> Result:
    """The lines at which a step makes the host wait for the card, by CUDA's own warnings, and waits for events."""
    if not bench.on_card:
        return {"skipped": "needs a card"}
    forward = Denoiser(bench, 1024)
    sampler = sampler_of(bench.network, settings_of(6))
    sampler.start_canvas()
    sampler.measure(forward())
    calls = {
        "forward": forward,
        "step": lambda: sampler.measure(forward()),
        "its end": sampler.conclude,
        "a reply of two steps": lambda: reply(bench.network, [5] * 1100, 2),
        "... with drafts": lambda: reply(bench.network, [5] * 1100, 2, drafts=True),
        "... with candidates": lambda: reply(bench.network, [5] * 1100, 2, drafts=True, candidates=5),
    }
    found: Result = {}
    events, synchronize = [], torch.cuda.Event.synchronize
    for name, call in calls.items():
        events.clear()
        with (
            patch.object(
                torch.cuda.Event, "synchronize", lambda event: events.append(event) or synchronize(event)
            ),
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                call()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waited = [each for each in caught if str(each.message).startswith("called a synchronizing")]
        lines = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in waited)
        found[name] = {**lines, "events": len(events)}
    return found


def profile(bench: Bench) -> Result:
    """A step of the project's loop: kernels by time, launches, waits, idle share. The trace is kept."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if bench.on_card:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    profiler = torch.profiler.profile(activities=activities)

    def after(step: int) -> None:
        if step in (4, 5):
            bench.wait()
            (profiler.start if step == 4 else profiler.stop)()

    reply(bench.network, bench.tokens(1024).tolist(), 6, clock=StepClock(after=after))
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        content = trace.read_bytes()
    events = [event for event in json.loads(content)["traceEvents"] if event.get("ph") == "X"]
    on_device = ("kernel", "gpu_memcpy", "gpu_memset") if bench.on_card else ("cpu_op",)
    ran = sorted((e["ts"], e["ts"] + e["dur"], e["name"]) for e in events if e.get("cat") in on_device)
    busy, until = 0.0, ran[0][0]
    spent: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for start, end, name in ran:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
        spent[name] += end - start
        calls[name] += 1
    span = until - ran[0][0]
    runtime = Counter(e["name"] for e in events if e.get("cat") in ("cuda_runtime", "cuda_driver"))
    if bench.out:
        (bench.out / "trace_of_a_step.json.gz").write_bytes(gzip.compress(content, 6))
        lines = [f"{us / 1e3:9.3f} ms {calls[name]:5} x {name}" for name, us in spent.most_common()]
        (bench.out / "kernels_of_a_step.txt").write_text("\n".join(lines), encoding="utf-8")
    return {
        "span_ms": round(span / 1e3, 2),
        "busy_ms": round(busy / 1e3, 2),
        "idle_share": round(1 - busy / span, 3),
        "kernels": len(ran),
        "launches": sum(count for name, count in runtime.items() if "Launch" in name),
        "copies": sum(count for name, count in runtime.items() if "emcpy" in name),
        "waits": {name: count for name, count in runtime.items() if "Synchronize" in name},
        "top": [[round(us / 1e3, 3), calls[name], name[:70]] for name, us in spent.most_common(12)],
    }
