"""How fast, and where the time goes: sections on a random network of the real sizes."""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

from llm_diffusiongemma.bench.networks import random_network
from llm_diffusiongemma.bench.theirs import transformers_of
from llm_diffusiongemma.diffusion import network as network_module
from llm_diffusiongemma.diffusion.config_file import ConfigFile
from llm_diffusiongemma.diffusion.kv_cache import KVCache
from llm_diffusiongemma.diffusion.network import Network

from .bench import GIB, Bench, Result
from .loop import StepClock, reply, sampler_of, settings_of
from .networks import network_config, routing_of

# What a step's time is split into, and where each part is computed; experts are an operation of the network.
# (`mlp` includes self-conditioning's.)
LAYER_PARTS = ("attention", "mlp", "experts")
SAMPLER_PARTS = ("output head", "soft embeddings")
PLACES: dict[str, tuple[Any, str]] = {
    "attention": (network_module, "_attend"),
    "mlp": (network_module._GatedMLP, "__call__"),
    "output head": (Network, "logits"),
    "soft embeddings": (Network, "mix"),
}
# To see what a part costs inside a graph: something of the same shape in its place.
STAND_INS: dict[str, Callable[..., torch.Tensor]] = {
    "attention": lambda queries, keys, values: network_module._in_rows(queries),
    "mlp": lambda mlp, x, operations: x,
    "experts": lambda x, experts, chosen, weights: x[:, None],
}


@contextlib.contextmanager
def computed_otherwise(network: Network, part: str, how: Callable[[Callable[..., Any]], Any]) -> Iterator[None]:
    """With what `how` makes of a part in its place."""
    if part in PLACES:
        owner, attribute = PLACES[part]
        with patch.object(owner, attribute, how(getattr(owner, attribute))):
            yield
        return
    operations = network.operations
    network.operations = replace(operations, through_experts=how(operations.through_experts))
    try:
        yield
    finally:
        network.operations = operations


class Denoiser:
    """A denoising step's forward over a context, everything at its fixed address."""

    def __init__(self, bench: Bench, context: int, network: Network | None = None) -> None:
        """By default of the network in bf16."""
        self.network = network or bench.network
        config = self.network.config
        self.cache = KVCache(config, self.network.dtype, bench.device)
        for tokens in bench.tokens(context).split(1024):
            self.network.encode(self.network.embed(tokens), self.cache)
        self.canvas = bench.tokens(config.canvas_length)
        self.soft_embeddings = torch.randn(config.canvas_length, config.hidden_size, device=bench.device)

    def __call__(self) -> torch.Tensor:
        """`[256, H]`"""
        return self.network.denoise(self.canvas, self.soft_embeddings, self.cache)


def machine(bench: Bench) -> Result:
    """What this is, and its ceilings."""
    found: Result = {"python": platform.python_version(), "torch": torch.__version__, "cpus": os.cpu_count()}
    for name in ("transformers", "triton"):
        with contextlib.suppress(ImportError):
            found[name] = __import__(name).__version__
    if bench.on_card:
        free, total = torch.cuda.mem_get_info()
        card = torch.cuda.get_device_properties(bench.device)
        found |= {"card": card.name, "capability": f"{card.major}.{card.minor}", "free_gib": round(free / GIB, 2)}
        found |= {"total_gib": round(total / GIB, 2), "processors": card.multi_processor_count}
        query = [
            "nvidia-smi",
            "--query-gpu=driver_version,clocks.sm,clocks.mem,power.limit",
            "--format=csv,noheader",
        ]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
            found["nvidia_smi"] = done.stdout.strip()
    source = torch.empty(2 * GIB if bench.on_card else 2**24, dtype=torch.uint8, device=bench.device).random_(256)
    target = torch.empty_like(source)
    bench.copy_rate = 2 * source.nbytes / bench.ms(lambda: target.copy_(source)) * 1e3
    n = 8192 if bench.on_card else 256
    a, b = (torch.randn(n, n, device=bench.device).bfloat16() for _ in range(2))
    matmul_ms = bench.ms(lambda: a @ b)
    small = torch.zeros(16, device=bench.device)
    bench.wait()
    started = time.perf_counter()
    for _ in range(1000):
        small.add_(1)
    launch_seconds = (time.perf_counter() - started) / 1000
    return found | {
        "copy_tb_s": round(bench.copy_rate / 1e12, 3),
        "matmul_tflop_s": round(2 * n**3 / matmul_ms / 1e9, 3),
        "launch_us": round(1e6 * launch_seconds, 2),
    }


def network(bench: Bench) -> Result:
    """Make the network; are its sizes the real ones?"""
    started = time.perf_counter()
    gib = weight_bytes(bench.network) / GIB
    bench.wait()
    return {
        "ok": bench.is_tiny or abs(gib - 47.03) < 0.02,
        "build_seconds": round(time.perf_counter() - started, 1),
        "gib": round(gib, 2),
        "experts": "grouped" if bench.network._layers[0].experts._is_grouped else "loop",
        **bench.peak(),
    }


def weight_bytes(network: Network) -> int:
    return sum(tensor.nbytes for _, tensor in network.tensors())


def parts(bench: Bench) -> Result:
    """Where a step's time goes, without a profiler: forward, sampler, their parts, the host; the roofline."""
    forward = Denoiser(bench, 1024)
    found: Result = {"forward_ms": bench.ms(forward)}
    queued = []
    for _ in range(5):
        bench.wait()
        started = time.perf_counter()
        forward()
        queued.append((time.perf_counter() - started) * 1e3)
    bench.wait()
    found["host_ms_to_queue_it"] = round(statistics.median(queued), 2)
    found["parts_ms"] = parts_ms(bench, forward.network, forward, LAYER_PARTS)
    step, hidden = Step(forward), forward()
    found["sampler_ms"] = bench.ms(lambda: step.sample(hidden))
    sample = partial(step.sample, hidden)
    found["parts_of_the_sampler_ms"] = parts_ms(bench, forward.network, sample, SAMPLER_PARTS)
    # Besides all weights the embedding once more: the head and the soft embeddings both read it whole.
    read = weight_bytes(bench.network) + bench.network._embedding.nbytes
    found |= {"read_gb": round(read / 1e9, 2), "roofline_ms": round(read / bench.copy_rate * 1e3, 2)}
    return found | bench.peak()


def parts_ms(bench: Bench, network: Network, call: Callable[[], object], parts: Sequence[str]) -> Result:
    """Milliseconds in each part of a call, all layers together, with the gaps between launches."""
    marks: list[tuple[str, Any, Any]] = []

    def timed(name: str, part: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            start = bench.mark()
            result = part(*arguments)
            marks.append((name, start, bench.mark()))
            return result

        return run

    with contextlib.ExitStack() as patches:
        for name in parts:
            patches.enter_context(computed_otherwise(network, name, partial(timed, name)))
        start = bench.mark()
        call()
        end = bench.mark()
    spent: Counter[str] = Counter()
    whole = bench.between(start, end)
    for name, *moments in marks:
        spent[name] += bench.between(*moments)
    spent["rest"] = whole - sum(spent.values())
    return {name: round(ms, 2) for name, ms in spent.most_common()}


class Step:
    """A whole denoising step over a context, but for what the host is told at its end: again and again the same
    number of a canvas's steps."""

    def __init__(self, forward: Denoiser) -> None:
        self._forward = forward
        self._sampler = sampler_of(forward.network, settings_of(6))
        self._sampler.start_canvas()

    def __call__(self) -> torch.Tensor:
        """The next canvas, int64 `[256]`"""
        return self.sample(self._forward())

    def sample(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of the step what is the sampler's."""
        self._sampler._steps_done.fill_(1)
        self._sampler.measure(hidden)
        return self._sampler.canvas


def steps(bench: Bench) -> Result:
    """The project's own loop: milliseconds a step, time to the first block, prefill, memory."""
    found: Result = {"first reply of all, 2 steps, s": round(reply(bench.network, [5] * 16, 2)[0], 3)}
    for length in (16, 128) if bench.is_tiny else (64, 1024, 8192):
        found[f"{length} tokens"] = figures(bench, bench.network, length, bench.steps)
    return found


def figures(bench: Bench, network: Network, length: int, steps: int) -> Result:
    """Of two canvases of so many steps behind a prompt of that length, after a first reply to it."""
    prompt = bench.tokens(length).tolist()
    bench.forget_peak()
    with encoder_seconds(bench) as prefill:
        reply(network, prompt, 2)  # kernels for these shapes are chosen here
        first_prefill = sum(prefill)
        prefill.clear()
        clock = StepClock()
        ends = reply(network, prompt, steps, canvases=2, clock=clock)
    # The encoder also reads the first of the two canvases.
    seconds = sum(prefill[:-1])
    inner = [ms for i, ms in enumerate(clock.between()) if i != steps - 3]  # without the one across canvases
    return {
        "ms_a_step": round(statistics.median(inner), 2),
        "fastest": round(min(inner), 2),
        "slowest": round(max(inner), 2),
        "prefill_ms": round(seconds * 1e3, 1),
        "prefill_ms_first": round(first_prefill * 1e3, 1),
        "prefill_tokens_s": round(length / seconds),
        "encode_a_canvas_ms": round(prefill[-1] * 1e3, 1),
        "first_block_s": round(ends[0], 3),
        "next_block_s": round(ends[1] - ends[0], 3),
        f"tokens_s_at_{steps}_steps": round(network.config.canvas_length / (ends[1] - ends[0])),
        **bench.peak(),
    }


@contextlib.contextmanager
def encoder_seconds(bench: Bench) -> Iterator[list[float]]:
    """The seconds of each chunk that the encoder reads meanwhile."""
    found: list[float] = []
    encode = Network.encode

    def timed(*arguments: Any, **keywords: Any) -> None:
        bench.wait()
        started = time.perf_counter()
        encode(*arguments, **keywords)
        bench.wait()
        found.append(time.perf_counter() - started)

    with patch.object(Network, "encode", timed):
        yield found


def graph(bench: Bench) -> Result:
    """A step as one captured graph, what the card needs with the host out of the way; then without a part."""
    found: Result = {}
    for context in (256,) if bench.is_tiny else (256, 1024, 8192):
        forward = Denoiser(bench, context)
        step = Step(forward)
        for name, call in (("forward", forward), ("step", step)):
            expected = call().clone()
            replay, result = captured(bench, call)
            replay()
            found[f"{name}, context {context}"] = {
                "same bits": bool((result == expected).all()),
                "eager_ms": bench.ms(call),
                "replay_ms": bench.ms(replay),
            }
        without = {}
        for name, stand_in in STAND_INS.items():
            with computed_otherwise(forward.network, name, lambda _, stand_in=stand_in: stand_in):
                without[name] = bench.ms(captured(bench, forward)[0])
        found[f"forward without a part, replay_ms, context {context}"] = without
    is_right = all(each.get("same bits", True) for each in found.values())
    return found | {"ok": is_right} | bench.peak()


def captured(bench: Bench, call: Callable[[], torch.Tensor]) -> tuple[Callable[[], object], torch.Tensor]:
    """A call as a CUDA graph to replay, and where its result will be. Without a card the call itself."""
    if not bench.on_card:
        return call, call()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
        call()
    torch.cuda.current_stream().wait_stream(stream)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        result = call()
    return recorded.replay, result


def experts(bench: Bench) -> Result:
    """A layer's experts: the grouped products against the loop, for a canvas and for a chunk of the prompt."""
    layer = bench.network._layers[0]
    found: Result = {}
    for rows in (bench.network.config.canvas_length, 1024):
        x = torch.randn(rows, bench.network.hidden_size, device=bench.device).to(bench.network.dtype)
        run = partial(layer.experts, x, *routing_of(bench.network, 0, x))
        results = {}
        for name, is_grouped in (("grouped", layer.experts._is_grouped), ("loop", False)):
            with patch.object(layer.experts, "_is_grouped", is_grouped):
                results[name] = run()
                found[f"{name}, {rows} tokens, ms"] = bench.ms(run, 5, 1)
                if is_grouped:
                    found[f"{name}, {rows} tokens, replay_ms"] = bench.ms(captured(bench, run)[0])
        error = (results["grouped"] - results["loop"]).norm() / results["loop"].norm()
        found[f"difference, {rows} tokens"] = float(f"{error.item():.1e}")
    return found


def attention(bench: Bench) -> Result:
    """Ways to group queries at the shapes of a step (a canvas's) and of a chunk of the prompt (1,024, masked)."""
    config = bench.network.config
    sliding, full = config.layers[0], config.layers[-1]
    canvas, chunk, long = config.canvas_length, 256 if bench.is_tiny else 1024, 512 if bench.is_tiny else 8192
    assert sliding.window is not None
    shapes = {
        "sliding, step": (sliding, canvas, sliding.window - 1 + canvas, False),
        "full, step, 1k": (full, canvas, 1024 + canvas, False),
        "full, step, 8k": (full, canvas, long + canvas, False),
        "sliding, prefill": (sliding, chunk, sliding.window - 1 + chunk, True),
        "full, prefill, 8k": (full, chunk, long, True),
    }
    found: Result = {}
    for shape, (kind, rows, seen, is_masked) in shapes.items():
        groups, width = kind.num_key_value_heads, kind.head_dim
        q = torch.randn(rows, config.num_attention_heads, width, device=bench.device).bfloat16()
        k, v = (torch.randn(groups, seen, width, device=bench.device).bfloat16() for _ in range(2))
        mask = (
            torch.ones(rows, seen, dtype=torch.bool, device=bench.device).tril(seen - rows) if is_masked else None
        )
        queries = q.transpose(0, 1).contiguous().view(groups, -1, rows, width)
        whole = (
            partial(network_module._attend_causally, queries, k, v, mask)
            if is_masked
            else partial(network_module._attend, queries, k, v)
        )
        found[shape] = {"ours, whole": bench.ms(whole, 5, 1)}
        for name, (tensors, is_grouped) in ways_to_group(q, k, v, mask).items():
            attend = partial(F.scaled_dot_product_attention, *tensors, scale=1.0, enable_gqa=is_grouped)
            kernel = torch._fused_sdp_choice(*tensors, scale=1.0, enable_gqa=is_grouped)
            found[shape][f"{name}: {SDPBackend(kernel).name.removesuffix('_ATTENTION').lower()}"] = bench.ms(
                attend, 5, 1
            )
    return found


def ways_to_group(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
) -> dict[str, tuple[tuple[torch.Tensor | None, ...], bool]]:
    """Arguments of torch's attention, and whether it is to group by itself."""
    (n, heads, width), (groups, seen, _) = q.shape, k.shape
    share = heads // groups
    plain = q.transpose(0, 1)
    folded = q.view(n, groups, share, width).permute(1, 2, 0, 3).reshape(1, groups, share * n, width)
    expanded = [each[:, None].expand(groups, share, seen, width) for each in (k, v)]
    repeated = [each.repeat_interleave(share, 0)[None] for each in (k, v)]
    return {
        "folded into rows": ((folded, k[None], v[None], None if mask is None else mask.repeat(share, 1)), False),
        "expanded by a stride of 0": ((plain.view(groups, share, n, width), *expanded, mask), False),
        "repeated": ((plain[None], *repeated, mask), False),
        "enable_gqa": ((plain[None], k[None], v[None], mask), True),
    }


def load(bench: Bench) -> Result:
    """A sharded checkpoint of the real widths and two layers, written to the disk and loaded by the project."""
    from ..whole import load_whole

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not bench.is_tiny and shutil.disk_usage(folder).free < 16 * GIB:
            return {"skipped": "less than 16 GiB of disk"}
        started = time.perf_counter()
        write_checkpoint(folder, network_config(is_tiny=bench.is_tiny, layers=2), bench.device)
        os.sync()
        found: Result = {"write_s": round(time.perf_counter() - started, 1)}
        files = sorted(folder.glob("*.safetensors"))
        size = sum(file.stat().st_size for file in files)
        found |= {"gib": round(size / GIB, 2), "files": len(files)}
        for temperature in ("cold", "warm"):
            for file in files if temperature == "cold" else ():
                handle = os.open(file, os.O_RDONLY)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(handle)
            loaded = load_whole(folder, bench.device)
            bench.wait()
            found[f"{temperature}_s"] = round(loaded.load_seconds, 2)
            found[f"{temperature}_gb_s"] = round(size / loaded.load_seconds / 1e9, 2)
            del loaded
            gc.collect()
        return found | bench.peak()


def write_checkpoint(folder: Path, config: ConfigFile, device: torch.device) -> None:
    model = transformers_of(random_network(config.network(), device), config)
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta:  # the vision tower's
            owner, _, last = name.rpartition(".")
            drawn = torch.randn(parameter.shape, dtype=torch.bfloat16, device=device)
            model.get_submodule(owner)._parameters[last] = torch.nn.Parameter(drawn, requires_grad=False)
    model.generation_config.eos_token_id = [1]
    model.save_pretrained(folder, max_shard_size="2GB")
