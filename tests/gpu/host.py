"""What a step makes the host do: sections that find what waits for the device, and how busy that is."""

from __future__ import annotations

import gzip
import json
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .bench import Bench, Result
from .loop import StepClock, reply, sampler_of, settings_of
from .speed import Denoiser

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "is_nonzero", "equal")


class Watch(TorchDispatchMode):
    """Counts operations, and finds those that wait for the device or can't be captured in a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.waiting: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        moves = (name == "_to_copy" and kwargs.get("device") not in (None, args[0].device)) or (
            name == "copy_" and args[0].device != args[1].device
        )
        by_mask = name in ("index", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if moves or by_mask or name in WAITING:
            self.waiting[f"{name}{' by mask' if by_mask else ''} {caller()}"] += 1
        return func(*args, **kwargs)


def caller() -> str:
    """The nearest line that is neither torch's nor of these measurements."""
    own = str(Path(__file__).parent)
    frames = (f for f in traceback.extract_stack() if "/torch/" not in f.filename and own not in f.filename)
    frame = next(reversed(list(frames)), None)
    return f"{Path(frame.filename).name}:{frame.lineno}" if frame else "?"


def waits(bench: Bench) -> Result:
    """What in a step waits for the device, or would break a captured graph; and how many operations there are."""
    forward = Denoiser(bench, 1024)
    sampler = sampler_of(bench.network, settings_of(6))
    sampler.start_canvas()
    hidden = forward()
    calls = {
        "forward": forward,
        "sampler": lambda: sampler.step(hidden, 5),
        "a reply of two steps": lambda: reply(bench.network, [5] * 1100, 2),
    }
    found: Result = {}
    for name, call in calls.items():
        with Watch() as watch:
            call()
        found[name] = {"operations": watch.operations, "would wait": dict(watch.waiting.most_common(12))}
    if bench.on_card:
        for name, call in calls.items():
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    call()
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            waited = (warning for warning in caught if "synchroniz" in str(warning.message))
            found[name]["did wait"] = dict(Counter(f"{Path(w.filename).name}:{w.lineno}" for w in waited))
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
