"""Packed and streamed experts: sections on random networks, each gone before the next is made."""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from llm_diffusiongemma.bench.networks import random_network
from llm_diffusiongemma.diffusion import streaming
from llm_diffusiongemma.diffusion.experts import Experts
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.operations import PLAIN_TORCH
from llm_diffusiongemma.diffusion.packed import (
    PLAIN,
    CompressedTensorsNvfp4,
    Formats,
    Fp8,
    ModelOptNvfp4,
)
from llm_diffusiongemma.diffusion.pipeline import Block, BlockDiffusionPipeline
from llm_diffusiongemma.diffusion.placement import DeviceMemory, LayerHome, Machine, Placement, place
from llm_diffusiongemma.diffusion.request import Prompt, Request
from llm_diffusiongemma.diffusion.sizes import Sizes, sizes_of

from .bench import GIB, Bench, Result
from .loop import randomness, reply, settings_of
from .networks import network_config, proved, routing_of
from .speed import LAYER_PARTS, Denoiser, encoder_seconds, figures, parts_ms, weight_bytes

# As the repositories are packed.
NVFP4, FP8 = Formats(ModelOptNvfp4), Formats(Fp8, Fp8, Fp8)
# Of cards by what they have, in MiB, as their driver says it.
CARDS = {"8 GB": 8_188, "12 GB": 12_282, "24 GB": 24_564}
# What torch's allocator of pinned memory may take here.
HOST_BYTES = 100 * GIB


def packed(bench: Bench) -> Result:
    """Resident: a step, prefill, memory against the plan, the experts' products against those of their numbers; by
    PyTorch's operations and, where there are any, by kernels."""
    found = bench.begin()
    length = 128 if bench.is_tiny else 1024
    for formats in (NVFP4, FP8):
        outside = bench.taken() - held_by_torch(bench)
        network = random_network(bench.config.network(), bench.device, formats)
        held = weight_bytes(network) / GIB
        found[formats.representation] = each = {"held_gib": round(held, 2)}
        each["kernels"] = proved(network).as_json()
        each |= figures(bench, network, length, bench.steps)
        each |= against_plan(bench, place_on(bench, formats, HOST_BYTES, 2048), outside)
        each |= {**inside(bench, network), **products(bench, network)}
        if network.operations != PLAIN_TORCH:
            network.operations = PLAIN_TORCH
            steps = min(bench.steps, 4)  # they take a third of a second each
            each["by PyTorch"] = {**figures(bench, network, length, steps), **inside(bench, network)}
        del network
        forget(bench)
    errors = [each["relative error of the experts"] for each in found.values()]
    return {"ok": max(errors) < 1e-2, **found}


def inside(bench: Bench, network: Network) -> Result:
    """Where a step's time goes."""
    forward = Denoiser(bench, 128 if bench.is_tiny else 1024, network)
    found: Result = {"forward_ms": bench.ms(forward, 5)}
    queued = []
    for _ in range(3):
        bench.wait()
        started = time.perf_counter()
        forward()
        queued.append((time.perf_counter() - started) * 1e3)
    found |= {"host_ms_to_queue_it": round(statistics.median(queued), 2)}
    return found | {"parts_ms": parts_ms(bench, network, forward, LAYER_PARTS)}


def products(bench: Bench, network: Network) -> Result:
    """A layer's experts against plain ones in bf16 of the same numbers, for a canvas."""
    layer = network._layers[0]
    packed, config = layer.experts, network.config
    assert packed is not None
    plain = Experts(
        config.num_experts, config.hidden_size, config.moe_intermediate_size, network.dtype, bench.device
    )
    for source, target in ((packed.gate_up, plain.gate_up), (packed.down, plain.down)):
        for expert in range(source.stack):
            which = slice(expert, expert + 1)
            source.dequantise(which, slice(0, source.outputs), target.held()[0][which])
    x = torch.randn(config.canvas_length, config.hidden_size, device=bench.device).to(network.dtype)
    routing = routing_of(network, 0, x)
    run = partial(network.operations.through_experts, x, packed, *routing)
    ours, theirs = run().double(), plain(x, *routing).double()
    return {
        "relative error of the experts": float(f"{((ours - theirs).norm() / theirs.norm()).item():.1e}"),
        "size of what they say": round(theirs.square().mean().sqrt().item(), 3),
        "experts_ms": bench.ms(run, 5),
        "plain experts_ms": bench.ms(partial(plain, x, *routing), 5),
    }


def streamed(bench: Bench) -> Result:
    """As on smaller cards: a step, what of it is copying and what computing, memory against the limit."""
    found = bench.begin()
    found["same tokens as resident"] = same_tokens(bench)
    cases = {"nvfp4 as on 8 GB": (NVFP4, "8 GB"), "nvfp4 as on 12 GB": (NVFP4, "12 GB")}
    cases["bf16 as on 24 GB"] = (PLAIN, "24 GB")
    for name, (formats, card) in cases.items():
        limit = just_too_small(sizes(bench, formats), bench.device) if bench.is_tiny else CARDS[card] << 20
        found[name] = streamed_within(bench, formats, limit)
        forget(bench)
    found["nvfp4, a third"] = a_third(bench)
    forget(bench)
    empty_host_cache(bench)
    return {"ok": all(found["same tokens as resident"].values()), **found}


def streamed_within(bench: Bench, formats: Formats, limit: int) -> Result:
    outside = bench.taken() - held_by_torch(bench)
    placement = place_on(bench, formats, limit)
    started = time.perf_counter()
    network = random_network(bench.config.network(), bench.device, formats, placement.layers)
    verdict = proved(network)
    bench.wait()
    built = time.perf_counter() - started
    bench.forget_peak()
    forward = Denoiser(bench, 128 if bench.is_tiny else 1024, network)
    step_ms = bench.ms(forward, 5)
    with patch.object(streaming, "_copy", lambda *_: None):
        computing_ms = bench.ms(forward, 5)
    copying_ms = bench.ms(partial(copy_all, network), 3, 1)
    del forward
    with encoder_seconds(bench) as encoding:
        reply(network, bench.tokens(128 if bench.is_tiny else 1024).tolist(), 3)
    canvas_ms = bench.ms(partial(Denoiser, bench, network.config.canvas_length, network), 1, 1)
    # As long a context as the plan has room for, so that its peak is reached; no longer than there is time.
    room = min(placement.context_tokens or 0, 512 if bench.is_tiny else 16_384) - 2 * network.config.canvas_length
    reply(network, bench.tokens(room).tolist(), 2)
    step_gb = placement.step_bytes / 1e9
    shorter = min(computing_ms, copying_ms)
    return {
        "kernels": verdict.as_json(),
        "layers streamed": placement.num_layers("host"),
        "gb_a_step": round(step_gb, 2),
        "build_seconds": round(built, 1),
        "step_ms": step_ms,
        "computing_ms": computing_ms,
        "copying_ms": copying_ms,
        "copying_gb_s": round(step_gb / copying_ms * 1e3, 1),
        "step_gb_s": round(step_gb / step_ms * 1e3, 1),
        "share of the shorter one that is hidden": round((computing_ms + copying_ms - step_ms) / shorter, 2),
        "prefill_ms": round(sum(encoding) * 1e3, 1),
        "encode_a_canvas_ms": canvas_ms,
        "tokens_s_at_15_steps": round(network.config.canvas_length / (15 * step_ms + canvas_ms) * 1e3, 1),
        "longest context tried": room,
        **against_plan(bench, placement, outside),
        "limit_gib": round(limit / GIB, 2),
    }


def a_third(bench: Bench) -> Result:
    """Every third layer's experts in the host's memory, with room for all: how much of the bus a step uses."""
    config = bench.config.network()
    homes = [LayerHome(str(bench.device), "host" if i % 3 == 1 else "device") for i in range(len(config.layers))]
    network = random_network(config, bench.device, NVFP4, homes)
    found = {"kernels": proved(network).as_json()}
    forward = Denoiser(bench, 128 if bench.is_tiny else 1024, network)
    step_ms = bench.ms(forward, 5)
    with patch.object(streaming, "_copy", lambda *_: None):
        computing_ms = bench.ms(forward, 5)
    copying_ms = bench.ms(partial(copy_all, network), 3, 1)
    gb = len(homes[1::3]) * sizes(bench, NVFP4).experts_bytes / 1e9
    return found | {
        "gb_a_step": round(gb, 2),
        "step_ms": step_ms,
        "computing_ms": computing_ms,
        "copying_ms": copying_ms,
        "copying_gb_s": round(gb / copying_ms * 1e3, 1),
        "share of the bus": round(copying_ms / step_ms, 3),
    }


def copy_all(network: Network) -> None:
    """All that a step streams, into the same buffers, with nothing computed."""
    for stream in network._streams.values():
        stream.give_up()
        for buffer in stream._buffers:
            buffer.leave()
            buffer._layer = None  # what will be in there is no layer's
        for number, source in enumerate(stream._kept.values()):
            assert source is not None
            streaming._copy(source, stream._buffers[number % 2].experts)


def same_tokens(bench: Bench) -> dict[str, bool]:
    """Three canvases of a small network in each format, its experts resident and streamed."""
    config = network_config(is_tiny=True).network()
    prompt = list(range(5, 305))
    found = {}
    for format_ in (ModelOptNvfp4, CompressedTensorsNvfp4, Fp8):
        resident, streamed = (
            tokens(random_network(config, bench.device, Formats(format_), homes), prompt)
            for homes in (None, homes_of(bench, len(config.layers)))
        )
        found[format_.__name__] = resident == streamed
    return found


def homes_of(bench: Bench, layers: int) -> list[LayerHome]:
    """Every other layer's experts streamed."""
    each: Any = itertools.cycle(("host", "device"))
    return [LayerHome(str(bench.device), next(each)) for _ in range(layers)]


def tokens(network: Network, prompt: list[int]) -> list[int]:
    """Of a reply of three canvases that nothing ends."""
    pipeline = BlockDiffusionPipeline(network, eos_token_ids=frozenset(), pad_token_id=None)
    request = Request(Prompt(prompt), settings_of(4), 3 * network.config.canvas_length)
    records = pipeline.generate(request, randomness=randomness())
    return [token for block in records if isinstance(block, Block) for token in block.tokens]


def sizes(bench: Bench, formats: Formats) -> Sizes:
    return sizes_of(bench.config.network(), formats, torch.bfloat16, 0)


def place_on(bench: Bench, formats: Formats, limit: int, *context_tokens: int) -> Placement:
    """As the product plans it on a card of so much memory."""
    machine = Machine((DeviceMemory(str(bench.device), limit),), HOST_BYTES)
    return place(sizes(bench, formats), machine, *context_tokens)


def just_too_small(each: Sizes, device: torch.device) -> int:
    """A limit at which some of the experts have to be streamed."""
    whole = place(each, Machine((DeviceMemory(str(device), 1 << 60),), HOST_BYTES))
    return dict(whole.device_bytes)[str(device)] - each.experts_bytes // 2


def held_by_torch(bench: Bench) -> int:
    return torch.cuda.memory_reserved(bench.device) if bench.on_card else 0


def against_plan(bench: Bench, placement: Placement, outside: int) -> Result:
    """The most memory so far against what was planned. `outside` is what was taken besides before: CUDA's context
    of this process among it, and whatever else is on the card."""
    (planned,) = (num_bytes for _, num_bytes in placement.device_bytes)
    if not bench.on_card:
        return {"planned_gib": round(planned / GIB, 4)}
    allocated, reserved = (
        ask(bench.device) for ask in (torch.cuda.max_memory_allocated, torch.cuda.max_memory_reserved)
    )
    grown = bench.taken() - held_by_torch(bench) - outside
    return {
        "planned_gib": round(planned / GIB, 2),
        "planned without CUDA's own, gib": round(planned / GIB - 0.75, 2),
        "allocated_gib": round(allocated / GIB, 2),
        "reserved_gib": round(reserved / GIB, 2),
        "outside of torch, gib": round(outside / GIB, 2),
        "grown outside meanwhile, gib": round(grown / GIB, 2),
        "context_tokens": placement.context_tokens,
    }


def forget(bench: Bench) -> None:
    """Give back what the last network had on the card; its pinned memory is the next one's."""
    gc.collect()
    if bench.on_card:
        torch.cuda.empty_cache()
        bench.forget_peak()


def empty_host_cache(bench: Bench) -> None:
    """Give back the pinned memory that nobody holds. Public since torch 2.12."""
    if bench.on_card:
        public = getattr(torch.accelerator, "empty_host_cache", None)
        (public or torch._C._host_emptyCache)()
