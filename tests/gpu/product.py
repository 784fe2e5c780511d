"""The whole way through: sections on packed checkpoints of random numbers, by `llm` and its engine."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from llm_diffusiongemma.backends import engine as engine_module
from llm_diffusiongemma.backends.choice import described_sizes
from llm_diffusiongemma.backends.engine import get_engine
from llm_diffusiongemma.catalog import DEVICE_VARIABLE, MEMORY_VARIABLE, MODEL_VARIABLE, ModelEntry, Source
from llm_diffusiongemma.diffusion.loading import describe
from llm_diffusiongemma.models import DiffusionGemma

from ..layouts import synthetic
from ..layouts.writer import Layout
from .bench import GIB, Bench, Result
from .packed import CARDS, empty_host_cache, forget, just_too_small
from .rightness import ROOT

QUESTION = "What is a canvas?"
SHARED_MEMORY = Path("/dev/shm")


@contextmanager
def checkpoint(bench: Bench, layout: Layout, *, is_whole: bool = False) -> Iterator[Path]:
    """All layers and the vocabulary of the real network, or four layers and the vocabulary of the embedded
    tokenizer, whose replies are texts. On a CPU of the embedded network's sizes."""
    sizes: dict[str, Any] = {"layer_types": None, "num_hidden_layers": 4}
    memory = None
    if not bench.is_tiny:
        sizes = {**synthetic.REAL_SIZES, **sizes, "sliding_window": 1024, "max_position_embeddings": 262_144}
        if is_whole:
            sizes["num_hidden_layers"] = 30
            # A disk may take a minute for it.
            has_room = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 24 * GIB
            memory = SHARED_MEMORY if has_room else None
        else:
            del sizes["vocab_size"]
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield synthetic.write(Path(name) / layout.replace(" ", "-"), layout, shard_bytes=10**10, **sizes)


def options(bench: Bench) -> dict[str, Any]:
    """Of a reply of two canvases."""
    return {"seed": 1, "max_tokens": 512, "max_denoising_steps": bench.steps}


def entry_of(bench: Bench, folder: Path) -> ModelEntry:
    return ModelEntry(folder.name, (Source(folder),), str(bench.device))


def limit_of(bench: Bench, folder: Path) -> int:
    """In bytes: just too small for all of a checkpoint."""
    return just_too_small(described_sizes(describe(folder), str(bench.device)), bench.device)


def as_set(limit: int) -> str:
    return f"{limit >> 10}KiB"


def ask(
    bench: Bench, folder: Path, limit: int | None = None, host_bytes: int = 0, prompt: str = QUESTION
) -> Result:
    """A real command, and the most that it took of the card, whoever took it in there."""
    environment = {
        **os.environ,
        "LLM_USER_PATH": tempfile.mkdtemp(),
        DEVICE_VARIABLE: str(bench.device),
        MODEL_VARIABLE: str(folder),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        **({} if limit is None else {MEMORY_VARIABLE: as_set(limit)}),
    }
    told = Path(environment["LLM_USER_PATH"]) / "told.json"
    chosen = [word for name, value in options(bench).items() for word in ("-o", name, str(value))]
    line = [sys.executable, "-m", "tests.gpu.watched", str(told), str(host_bytes)]
    line += ["-m", "diffusiongemma", prompt, *chosen]
    before, most, started = bench.taken(), 0, time.perf_counter()
    process = subprocess.Popen(
        line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        while process.poll() is None:
            most = max(most, bench.taken() - before)
            time.sleep(0.01)
        seconds = time.perf_counter() - started
        stdout, stderr = process.communicate()
    finally:
        process.kill()
    if not told.exists():
        return {"exit": process.returncode, "stderr": stderr[-1500:], "is within it": False, "tokens": None}
    found: Result = json.loads(told.read_text())
    shutil.rmtree(environment["LLM_USER_PATH"])
    return {
        "exit": found["exit"],
        "seconds": round(seconds, 1),
        "on the card, gib": round(most / GIB, 3),
        **{f"{name}_gib": round((found.get(name) or 0) / GIB, 3) for name in ("allocated", "reserved", "pinned")},
        "limit_gib": None if limit is None else round(limit / GIB, 3),
        "is within it": limit is None or most <= limit,
        "stdout": stdout[:40],
        "stderr": stderr[:300],
        **brief(found["report"]),
        "tokens": found["tokens"],
    }


def brief(report: Any) -> Result:
    """Of a command's report."""
    if not isinstance(report, dict):
        return {"report": report}
    last = report["blocks"][-1]
    return {
        **{name: report[name] for name in ("load_seconds", "generate_seconds", "dtype", "placement")},
        "tokens read": report["blocks"][0]["encoded_tokens"],
        "ms_a_step, encoding a canvas included": round(last["seconds"] / last["denoising_steps"] * 1e3, 1),
    }


def same_replies(found: Result) -> Result:
    """Whether all commands answered, and as the first did. Their tokens are taken out.

    Tokens that the tokenizer doesn't have are nothing as a text, so a command may end with 1 all the same.
    """
    replies = [each.pop("tokens") for each in found.values()]
    is_same = bool(replies[0]) and all(each == replies[0] for each in replies)
    is_within = all(each["is within it"] for each in found.values())
    return {"ok": is_same and is_within, "same replies": is_same, **found}


def load_packed(bench: Bench) -> Result:
    """A few layers in each packed layout: loaded by the product, then streamed from memory and from the files."""
    loads = bench.begin()
    layouts: list[Layout] = ["redhat fp8", "redhat nvfp4", "nvidia nvfp4"]
    for layout in layouts:
        started = time.perf_counter()
        with checkpoint(bench, layout) as folder:
            loads[layout] = {"write_s": round(time.perf_counter() - started, 1), **loaded(bench, folder)}
            if layout == layouts[-1]:
                few = 1 if bench.on_card else 0  # a CPU is what has to fit
                commands = {
                    "resident": ask(bench, folder),
                    "from memory": ask(bench, folder, limit_of(bench, folder)),
                    "from files": ask(bench, folder, limit_of(bench, folder), few),
                }
    return {**same_replies(commands), **loads}


def loaded(bench: Bench, folder: Path) -> Result:
    found: Result = {}
    for temperature in ("cold", "warm"):
        if temperature == "cold":
            os.sync()
            for file in folder.glob("*.safetensors"):
                handle = os.open(file, os.O_RDONLY)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(handle)
        bench.forget_peak()
        engine = get_engine(entry_of(bench, folder)).engine
        bench.wait()
        size, seconds = engine.loaded.weight_bytes, engine.loaded.load_seconds
        found |= {"gib": round(size / GIB, 2), f"{temperature}_s": round(seconds, 2)}
        found |= {f"{temperature}_gb_s": round(size / seconds / 1e9, 2), **bench.peak()}
        found["dtype"] = str(engine.loaded.dtype)
        del engine
        drop(bench)
    return found


def drop(bench: Bench) -> None:
    """Let go of all engines, and of what torch keeps of their memory."""
    engine_module._engines.clear()
    forget(bench)
    empty_host_cache(bench)


def limit(bench: Bench) -> Result:
    """The whole network in NVFP4, by commands: on all of the card, and under limits as smaller cards have."""
    started = time.perf_counter()
    with checkpoint(bench, "nvidia nvfp4", is_whole=True) as folder:
        written = time.perf_counter() - started
        limits = {name: CARDS[name] << 20 for name in ("12 GB", "8 GB")}
        if bench.is_tiny:
            limits = dict.fromkeys(limits, limit_of(bench, folder))
        found = bench.begin()
        # 14,800 tokens, about the context that is planned for, so that the plan's peak is reached.
        prompt = QUESTION if bench.is_tiny else f"{'What is entropy? ' * 3700}{QUESTION}"
        for name, most in {"all of it": None, **limits}.items():
            found[name] = ask(bench, folder, most, prompt=prompt)
    return {"write_s": round(written, 1), **same_replies(found)}


def unload(bench: Bench) -> Result:
    """What comes back when an engine is dropped, step by step; twice resident, twice streamed."""
    found = bench.begin()
    with checkpoint(bench, "nvidia nvfp4") as folder:
        drop(bench)
        for name in ("resident", "resident again", "streamed", "streamed again"):
            limit = {MEMORY_VARIABLE: as_set(limit_of(bench, folder))} if name.startswith("streamed") else {}
            with patch.dict(os.environ, limit):
                found[name] = unloaded(bench, entry_of(bench, folder))
    return {"ok": all(each["network is gone"] for each in found.values()), **found}


def unloaded(bench: Bench, entry: ModelEntry) -> Result:
    found: Result = {"before": state(bench)}
    text = DiffusionGemma(entry).prompt(QUESTION, **options(bench)).text()
    network = weakref.ref(get_engine(entry).engine.loaded.network)
    found["loaded"] = state(bench)
    engine_module._engines.clear()
    found["network is gone without gc"] = network() is None
    gc.collect()
    found["network is gone"] = network() is None
    found["dropped"] = state(bench)
    if bench.on_card:
        torch.cuda.empty_cache()
        found["empty_cache"] = state(bench)
        empty_host_cache(bench)
        found["host cache emptied"] = state(bench)
    return {**found, "characters": len(text)}


def state(bench: Bench) -> Result:
    """In GiB: of the card, and of the host."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    found = {
        "resident in memory": pages * os.sysconf("SC_PAGE_SIZE"),
        "host available": int(meminfo["MemAvailable"].split()[0]) << 10,
    }
    if bench.on_card:
        found |= {
            "allocated": torch.cuda.memory_allocated(bench.device),
            "reserved": torch.cuda.memory_reserved(bench.device),
            "taken of the card": bench.taken(),
        }
    return {name: round(num_bytes / GIB, 3) for name, num_bytes in found.items()}
