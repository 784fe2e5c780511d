"""What the product's own `bench` says of random weights of the real sizes, and what was asked for beside it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from llm_diffusiongemma import bench as command
from llm_diffusiongemma.backends import choice
from llm_diffusiongemma.backends.turn import ALWAYS_WANTED
from llm_diffusiongemma.bench import random_weights
from llm_diffusiongemma.catalog import DEVICE_VARIABLE, Representation

from .bench import Bench, Result
from .networks import TINY, network_config

REPRESENTATIONS: tuple[Representation, ...] = ("bf16", "fp8", "nvfp4")


def bench(bench: Bench) -> Result:
    """`llm diffusiongemma bench --random-weights` of each representation, transformers beside bf16."""
    found = bench.begin()
    for representation in REPRESENTATIONS:
        with ExitStack() as patches:
            patches.enter_context(patch.dict("os.environ", {DEVICE_VARIABLE: str(bench.device)}))
            if bench.is_tiny:
                patches.enter_context(patch.object(random_weights, "REAL", TINY))
                small = network_config(is_tiny=True).network()
                patches.enter_context(patch.object(choice, "DIFFUSIONGEMMA_26B_A4B", small))
                patches.enter_context(patch.object(command, "CONTEXT_LENGTHS", (16,)))
            found[representation] = command.of_random_weights(
                representation,
                ALWAYS_WANTED,
                repeats=1 if bench.is_tiny else 2,
                seed=0,
                steps=bench.steps,
                against=representation == "bf16",
            )
        gc.collect()
    return found


@dataclass(frozen=True)
class Target:
    """Of one NVIDIA H100, random weights of the real sizes, 15 steps a canvas, behind 1,024 tokens."""

    asked: float
    found: Callable[[Mapping[str, Result]], float]
    """by what the sections have said, by their names"""
    at_most: bool = False

    def beside(self, records: Mapping[str, Result]) -> Result:
        try:
            found = self.found(records)
        except (KeyError, TypeError) as missing:  # a section that has not run, or said nothing of it
            return {"asked": self.asked, "found": None, "missing": str(missing)}
        return {
            "asked": self.asked,
            "found": round(found, 3),
            "is reached": found <= self.asked if self.at_most else found >= self.asked,
        }


def of_kind(representation: Representation, kind: str, figure: str) -> Callable[[Mapping[str, Result]], float]:
    def median(records: Mapping[str, Result]) -> float:
        return float(records["bench"][representation]["kinds"][kind][figure]["median"])

    return median


def prefill_rate(representation: Representation) -> Callable[[Mapping[str, Result]], float]:
    milliseconds = of_kind(representation, "8,192 tokens", "reading_ms")
    return lambda records: 8192 / milliseconds(records) * 1e3


def times_faster(records: Mapping[str, Result]) -> float:
    against: dict[str, Any] = records["bench"]["bf16"]["against"]["1,024 tokens"]
    return float(against["times_faster"]["median"])


TARGETS = {
    "bf16, ms a step": Target(23, of_kind("bf16", "1,024 tokens", "step_ms"), at_most=True),
    "bf16, times transformers": Target(2, times_faster),
    "fp8, ms a step": Target(14, of_kind("fp8", "1,024 tokens", "step_ms"), at_most=True),
    "nvfp4, ms a step": Target(11, of_kind("nvfp4", "1,024 tokens", "step_ms"), at_most=True),
    "nvfp4, tokens a second": Target(1500, of_kind("nvfp4", "1,024 tokens", "tokens_per_second")),
    "bf16, tokens read a second": Target(20_000, prefill_rate("bf16")),
    "nvfp4, tokens read a second": Target(20_000, prefill_rate("nvfp4")),
    "a third of the experts streamed, share of the bus": Target(
        0.9, lambda records: float(records["streamed"]["nvfp4, a third"]["share of the bus"])
    ),
}


def targets(bench: Bench) -> Result:
    """What is asked for and what was found. What is missed wants the profile that says why."""
    beside = {name: target.beside(bench.records) for name, target in TARGETS.items()}
    return {"reached": sum(each.get("is reached", False) for each in beside.values()), "of": len(beside), **beside}
