"""Compile all that a reply launches for cards that aren't there, and say what each kernel would take of them.

    python -m tests.gpu.compiling --target sm_80,sm_90,gfx942

A network of the real widths runs on the meta device with every kernel in its place, and what it would launch is
compiled, as Triton would there. It shows what the interpreter can't: registers and spills, shared memory against
what the card has, copies that don't wait, products by matrix units. One line a variant; the exit status is 1 if
one doesn't compile or doesn't fit.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from llm_diffusiongemma.diffusion.config import NetworkConfig
from llm_diffusiongemma.diffusion.kv_cache import KVCache
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.operations import PLAIN_TORCH, Operations
from llm_diffusiongemma.diffusion.packed import PLAIN, CompressedTensorsNvfp4, Formats, Fp8, ModelOptNvfp4
from llm_diffusiongemma.diffusion.pipeline import MAX_PREFILL_TOKENS
from llm_diffusiongemma.diffusion.proving import import_kernels
from llm_diffusiongemma.diffusion.sampler import Distributions
from llm_diffusiongemma.diffusion.sizes import IMAGE_TOKENS, META
from llm_diffusiongemma.diffusion.trial import Trial

from .launches import Launch, pretended, written_down
from .networks import network_config

# As the repositories are packed.
CASES = {
    "bf16": PLAIN,
    "fp8": Formats(Fp8, Fp8, Fp8),
    "nvfp4": Formats(ModelOptNvfp4),
    "nvfp4 of compressed-tensors": Formats(CompressedTensorsNvfp4),
}
KIB = 1024
# What torch would compute between launches of which only the shapes matter.
NO_ATTENTION = patch.object(F, "scaled_dot_product_attention", lambda q, *_, **__: torch.empty_like(q))
# Of shared memory a block of threads may have: CUDA C++ Programming Guide, "Technical Specifications per Compute
# Capability"; AMD's local data share is 64 KiB, on CDNA and RDNA.
SHARED_KIB = {"sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99}
AMD_SHARED_KIB = 64
TARGETS = (*SHARED_KIB, "gfx942", "gfx1100")
# What a kernel is made of, by how its PTX or its AMD assembly names it.
INSTRUCTIONS = {
    "cp.async": r"\bcp\.async\.c[ag]\b",
    "mma": r"\bmma\.sync\b|\bv_(?:mfma|wmma)_",
    "wgmma": r"\bwgmma\.mma_async\b",
    "tcgen05": r"\btcgen05\.mma\b",
}


@dataclass(frozen=True)
class Compiled:
    """What a kernel takes of a card."""

    registers: int
    """of a thread"""
    spilled: int
    """bytes of a thread's stack"""
    shared: int
    """bytes of a block of threads"""
    instructions: dict[str, int]


def of_a_reply(formats: Formats, dtype: torch.dtype, card: torch.device) -> dict[str, list[Launch]]:
    """All that a network of the real widths launches there, by what it does: reading a chunk of a prompt, the
    longest and a short one, and a denoising step."""
    config = of_each_kind(network_config(is_tiny=False).network())
    network = Network(config, dtype, META, formats)
    network.operations = operations_for(config, formats, dtype, card)
    cache = KVCache(config, network.dtype, network.layer_devices)
    found = {}
    for rows in (MAX_PREFILL_TOKENS + IMAGE_TOKENS, 16):
        embeddings = torch.empty(rows, config.hidden_size, dtype=network.dtype, device=META)
        with written_down() as found[f"{rows} read"]:
            network.encode(embeddings, cache)
    soft = torch.empty(config.canvas_length, config.hidden_size, device=META)
    with written_down() as found["a step"]:
        hidden = network.denoise(torch.empty(config.canvas_length, dtype=torch.int64, device=META), soft, cache)
        distributions = Distributions(network, config.canvas_length, META, config.final_logit_softcapping)
        temperature = torch.empty((), device=META)
        distributions.measure(hidden, temperature)
    with written_down() as found["a constrained step"]:
        distributions.write(hidden, temperature)
        distributions.add()
        distributions.conclude(torch.empty(config.canvas_length, dtype=torch.float64, device=META))
    return found


def of_each_kind(config: NetworkConfig) -> NetworkConfig:
    """With one layer of each kind and one more, as the encoder leaves off inside the last."""
    kinds = tuple(dict.fromkeys(config.layers))
    return replace(config, layers=(*kinds, kinds[0]))


def untried(
    config: NetworkConfig, formats: Formats, lengths: Sequence[int], canvas_lengths: Sequence[int], target: str
) -> list[str]:
    """What reading chunks and denoising canvases of some lengths launches and a trial at load doesn't: it would
    be compiled in the middle of a reply. On the CPU, and of whatever happens to be in memory, since no kernel
    runs."""
    goal, cpu, dtype = triton_target(target), torch.device("cpu"), torch.bfloat16

    config = of_each_kind(config)

    def unproved(trial: Trial, name: str, *arguments: Any) -> Any:
        return trial._kernels[name](*arguments)

    with pretended(target) as card:
        operations = operations_for(config, formats, dtype, card)
    kernels = {name: call for name, call in vars(operations).items() if call is not getattr(PLAIN_TORCH, name)}
    with written_down() as tried, patch.object(Trial, "_beside", unproved), NO_ATTENTION:
        Trial(config, formats, dtype, cpu, str).faults(kernels)
    network = Network(config, dtype, cpu, formats)
    network.operations = operations
    cache = KVCache(config, dtype, cpu)
    with written_down() as launched, NO_ATTENTION:
        for length in lengths:
            network.encode(network.embed(torch.zeros(length, dtype=torch.int64)), cache)
        for length in canvas_lengths:
            softcap, temperature = config.final_logit_softcapping, torch.tensor(1.0)
            distributions = Distributions(network, length, cpu, softcap)
            hidden = network.denoise(torch.zeros(length, dtype=torch.int64), distributions.soft, cache)
            distributions.measure(hidden, temperature)
            distributions.write(hidden, temperature)
            distributions.add()
            distributions.conclude(torch.empty(length, dtype=torch.float64))
    known = {source.hash() for source, _ in (variant(launch, goal) for launch in tried)}
    found = {
        source.hash(): described(source, options)
        for source, options in (variant(launch, goal) for launch in launched)
    }
    return [said for key, said in found.items() if key not in known]


def operations_for(config: NetworkConfig, formats: Formats, dtype: torch.dtype, card: torch.device) -> Operations:
    """Every kernel that there is in its place, proved or not."""
    served: dict[str, Any] = {}
    for module in import_kernels():
        served |= module.usable(config, formats, dtype, card)[0]
    return replace(PLAIN_TORCH, **served)


def triton_target(name: str) -> GPUTarget:
    if name.startswith("gfx"):
        return GPUTarget("hip", name, 64 if name.startswith("gfx9") else 32)
    return GPUTarget("cuda", int(name.removeprefix("sm_")), 32)


def variant(launch: Launch, target: GPUTarget) -> tuple[ASTSource, dict[str, Any]]:
    """What Triton would compile for that launch there, and with what options: what it makes of each argument, so
    which numbers it takes for constants and which addresses for multiples of 16, is its own doing."""
    kernel, backend = launch.kernel, make_backend(target)
    constants = {"enable_fp_fusion": True, **launch.constants}  # as `launching.launch` has it
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(*launch.arguments, **constants)
    options, signature, constexprs, attributes = kernel._pack_args(
        backend, constants, bound, specialization, options
    )
    return ASTSource(kernel, signature, constexprs, attributes), dict(options.__dict__)


def compile_for(source: ASTSource, options: dict[str, Any], target: GPUTarget) -> Compiled:
    """Raises what Triton raises."""
    done = triton.compile(source, target=target, options=options)
    text = done.asm["amdgcn" if target.backend == "hip" else "ptx"]
    registers, spilled = (_amd_usage if target.backend == "hip" else _nvidia_usage)(done.asm)
    found = {name: len(re.findall(pattern, text)) for name, pattern in INSTRUCTIONS.items()}
    return Compiled(
        registers, spilled, done.metadata.shared, {name: count for name, count in found.items() if count}
    )


def _nvidia_usage(made: Any) -> tuple[int, int]:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made["cubin"])
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    usage = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", said))
    return int(usage["REG"]), int(usage["STACK"]) + int(usage["LOCAL"])


def _amd_usage(made: Any) -> tuple[int, int]:
    usage = dict(re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)", made["amdgcn"]))
    return int(usage["vgpr_count"]), int(usage["private_segment_fixed_size"])


def described(source: ASTSource, options: dict[str, Any]) -> str:
    """The constants of a variant, in a line."""
    constants = {source.fn.arg_names[path[0]]: value for path, value in source.constants.items()}
    said = [f"{name}={value}" for name, value in constants.items()]
    return " ".join([*said, f"w{options['num_warps']}", f"s{options['num_stages']}"])


def report(launches: list[tuple[str, Launch]], target: str) -> bool:
    """Compile each variant once for a card and print a line. `launches` come with what they are for. Returns
    whether all went well."""
    goal = triton_target(target)
    most = SHARED_KIB.get(target, AMD_SHARED_KIB) * KIB
    variants, cases = {}, defaultdict[str, list[str]](list)
    for case, launch in launches:
        source, options = variant(launch, goal)
        key = source.hash() + repr(sorted(options.items(), key=str))
        variants[key] = (source, options)
        if case not in cases[key]:
            cases[key].append(case)
    is_right = True
    for key, (source, options) in variants.items():
        head = f"{target:7} {source.name:24}"
        where = ", ".join(cases[key])
        try:
            made = compile_for(source, options, goal)
        except Exception as error:
            is_right = False
            why = f"FAILED {type(error).__name__}: {' '.join(str(error).split())[:400]}"
            print(f"{head} {why} | {described(source, options)} | {where}", flush=True)
            continue
        fits = made.shared <= most
        is_right &= fits
        print(
            f"{head} {made.registers:3} registers, {made.spilled:4} spilled, {made.shared / KIB:6.1f} KiB"
            f"{'' if fits else f' OF {most // KIB}: TOO MUCH'} {made.instructions} | "
            f"{described(source, options)} | {where}",
            flush=True,
        )
    return is_right


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default=",".join(TARGETS), help="some of %(default)s")
    parser.add_argument("--case", default="", help=f"one of {', '.join(CASES)}")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--kernel", default="", help="only those whose names have this in them")
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("With TRITON_INTERPRET=1 Triton interprets kernels: unset it.")
    is_right = True
    for target in arguments.target.split(","):
        with pretended(target) as card:
            launches = [
                (f"{case}, {doing}", launch)
                for case, formats in CASES.items()
                if arguments.case in ("", case)
                for doing, found in of_a_reply(formats, getattr(torch, arguments.dtype), card).items()
                for launch in found
                if arguments.kernel in launch.kernel.__name__
            ]
        is_right &= report(launches, target)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
