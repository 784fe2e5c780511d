"""Everything that a card has to prove and to measure, in sections: one JSON line each, at once.

    python -m tests.gpu.first_light --out "$OUT"                from the project's root, on a machine with a card
    python -m tests.gpu.first_light --device cpu --scale tiny   the same code anywhere, on a shrunken network

README.md beside this says how to prepare and how to read it. Sections come in the order of their value. Each has a
budget of time and fails alone; what breaks the card's context starts the program again with the sections left.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from . import host, kernels, packed, product, reached, replayed, rightness, served, speed, tuning, watching
from .bench import Bench, OutOfTimeError, Result


@dataclass(frozen=True)
class Section:
    run: Callable[[Bench], Result]
    estimate: float
    """seconds, on an H200"""
    budget: float
    """seconds"""
    is_alone: bool = False
    """Makes its own network, and measures what that takes: the one that others share is gone then."""

    @property
    def name(self) -> str:
        return self.run.__name__


SECTIONS = [
    Section(speed.machine, 5, 40),
    Section(rightness.replies, 35, 100),
    Section(kernels.kernels, 90, 170),
    Section(reached.bench, 110, 200, is_alone=True),
    Section(packed.packed, 60, 120, is_alone=True),
    Section(packed.streamed, 95, 170, is_alone=True),
    Section(reached.targets, 1, 5),
    Section(speed.network, 15, 60),
    Section(replayed.replayed, 20, 60),
    Section(host.waits, 5, 30),
    Section(host.profile, 5, 60),
    Section(speed.parts, 5, 45),
    Section(speed.graph, 15, 60),
    Section(kernels.kernel_tests, 90, 180),
    Section(rightness.tests, 45, 110),
    Section(tuning.tune, 100, 180),
    Section(rightness.features, 20, 90),
    Section(replayed.constrained, 20, 60),
    Section(watching.watch, 15, 60),
    Section(speed.steps, 25, 90),
    Section(speed.experts, 10, 60),
    Section(speed.attention, 3, 30),
    Section(rightness.command, 40, 100),
    Section(product.limit, 90, 170, is_alone=True),
    Section(product.load_packed, 60, 120, is_alone=True),
    Section(product.unload, 25, 70, is_alone=True),
    Section(served.serve, 100, 150, is_alone=True),
    Section(speed.load, 30, 100, is_alone=True),
]


def say(bench: Bench, record: Result) -> None:
    bench.records[record["section"]] = record
    line = json.dumps(record, ensure_ascii=False, default=str)
    print(line, flush=True)
    if bench.out:
        with (bench.out / "first_light.jsonl").open("a", encoding="utf-8") as file:
            print(line, file=file)


def read(file: Path) -> dict[str, Result]:
    """What sections have said, by their names."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return {record["section"]: record for record in map(json.loads, lines)}


def run_section(bench: Bench, section: Section, budget: float, restart: Callable[[], None]) -> None:
    def out_of_time(*_: object) -> None:
        raise OutOfTimeError(f"more than {budget:.0f} s")

    def hung() -> None:
        say(bench, {"section": section.name, "ok": False, "error": f"hung for {budget + 20:.0f} s: started again"})
        restart()

    started = time.perf_counter()
    watchdog = threading.Timer(budget + 20, hung)  # for what no signal interrupts, inside the driver
    watchdog.daemon = True
    watchdog.start()
    signal.signal(signal.SIGALRM, out_of_time)
    signal.setitimer(signal.ITIMER_REAL, budget)
    record: Result = {"section": section.name, "ok": True}
    bench.begin()
    if section.is_alone:
        bench.let_go()
    try:
        record |= section.run(bench)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[-8:]
        where = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
        record |= {"ok": False, "error": f"{type(error).__name__}: {error}"[:600], "where": where, **bench.found}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        watchdog.cancel()
    record["seconds"] = round(time.perf_counter() - started, 1)
    say(bench, record)
    gc.collect()
    try:
        bench.wait()
        if bench.on_card:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    except RuntimeError:  # the context is broken for good
        restart()


def main() -> None:
    names = [section.name for section in SECTIONS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--scale", choices=["full", "tiny"], default="full")
    parser.add_argument("--only", default="", help=f"some of {','.join(names)}")
    parser.add_argument("--skip", default="")
    parser.add_argument("--seconds", type=float, default=840, help="for everything")
    parser.add_argument("--began", type=float, default=time.time(), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    only, skip = ([name for name in text.split(",") if name] for text in (arguments.only, arguments.skip))
    if unknown := {*only, *skip} - {*names}:
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.device == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read where a kernel is defined
        torch.set_num_threads(1)  # networks this small are slower on more
    else:
        torch.cuda.init()  # so that a section may ask for memory before it takes any
    bench = Bench(torch.device(arguments.device), arguments.scale == "tiny", arguments.out)
    if arguments.out and time.time() - arguments.began > 1:  # started again: what was said before is known
        bench.records |= read(arguments.out / "first_light.jsonl")
    done = [*skip]

    def restart() -> None:
        again = [*sys.argv[1:], "--skip", ",".join(done), "--began", str(arguments.began)]
        os.execv(sys.executable, [sys.executable, "-m", "tests.gpu.first_light", *again])

    for section in SECTIONS:
        if (only and section.name not in only) or section.name in skip:
            continue
        left = arguments.seconds - (time.time() - arguments.began)
        done.append(section.name)
        if left < min(section.estimate, 10):
            say(bench, {"section": section.name, "ok": False, "error": "no time left"})
        else:
            run_section(bench, section, min(section.budget, left), restart)
    print(f"# {time.time() - arguments.began:.0f} s in all", flush=True)


if __name__ == "__main__":
    main()
