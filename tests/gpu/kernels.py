"""The kernels on a card: sections that prove them at the real widths, time each beside its twin, and test them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch

from llm_diffusiongemma.bench.networks import random_network
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.operations import PLAIN_TORCH, Operations
from llm_diffusiongemma.diffusion.packed import PLAIN, CompressedTensorsNvfp4, Formats, Fp8, ModelOptNvfp4

from .bench import Bench, Result
from .loop import reply
from .networks import proved
from .rightness import ROOT

# As the repositories are packed, and with what else there may be.
FORMATS = {
    "bf16": PLAIN,
    "fp8": Formats(Fp8, Fp8, Fp8),
    "nvfp4": Formats(ModelOptNvfp4),
    "nvfp4 of compressed-tensors": Formats(CompressedTensorsNvfp4, mlp=CompressedTensorsNvfp4),
}


def kernels(bench: Bench) -> Result:
    """Each format: what proving says and takes, the first time and the next, and each kernel's time beside its
    twin's, for a canvas."""
    found = bench.begin()
    whole = bench.config.network()
    kinds = tuple(dict.fromkeys(whole.layers))
    config = replace(whole, layers=(*kinds, kinds[0]))
    for name, formats in FORMATS.items():
        network = random_network(config, bench.device, formats)
        seconds = []
        for _ in range(2):
            started = time.perf_counter()
            verdict = proved(network)
            seconds.append(round(time.perf_counter() - started, 2))
        found[name] = {
            "verdict": verdict.as_json(),
            "seconds": seconds,
            "ms and its twin's": by_operation(bench, network),
        }
        del network
    missing = [name for name, each in found.items() if bench.on_card and not is_complete(each["verdict"])]
    return {"ok": not missing, "missing something": missing, **found}


def is_complete(verdict: Result | None) -> bool:
    """Whether every operation that a kernel can serve is served."""
    return verdict is not None and not verdict["switched_off"]


def by_operation(bench: Bench, network: Network) -> dict[str, list[float | None]]:
    """Of the last call of each operation in a reply of two steps: milliseconds of what the network computes with,
    and of the twin. None if that waits for the host, so that its time says nothing."""
    served = network.operations
    calls: dict[str, tuple[Any, ...]] = {}

    def noted(name: str, operation: Callable[..., Any], *arguments: Any) -> Any:
        calls[name] = arguments
        return operation(*arguments)

    each = {field.name: getattr(served, field.name) for field in fields(Operations)}
    network.operations = replace(served, **{name: partial(noted, name, call) for name, call in each.items()})
    try:
        reply(network, bench.tokens(300).tolist(), 2)
    finally:
        network.operations = served
    return {
        name: [replayed_ms(bench, partial(call, *arguments)) for call in (each[name], getattr(PLAIN_TORCH, name))]
        for name, arguments in calls.items()
    }


def replayed_ms(bench: Bench, call: Callable[[], object]) -> float | None:
    """Milliseconds as a CUDA graph, the host out of the way."""
    from .speed import captured

    if bench.on_card:
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        except RuntimeError:
            return None
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return bench.ms(captured(bench, call)[0])


def kernel_tests(bench: Bench) -> Result:
    """tests/diffusion/kernels, compiled, in several processes, since most of their time is Triton's compiler."""
    line = [sys.executable, "-m", "pytest", "-n", "8", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    folder = str(ROOT / "tests/diffusion/kernels")
    done = subprocess.run([*line, folder], cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)
    return {"ok": done.returncode == 0, "said": done.stdout[-1500:], "stderr": done.stderr[-300:]}
