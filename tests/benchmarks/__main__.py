"""Prints the tables of the README's "Speed": `python -m tests.benchmarks`.

diffusers takes part with the `benchmark` extra. Everything in a table ran in one process, side by side; read
the ratios, and have nothing else run on the machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

from llm_diffusiongemma.grammar.automaton import Vocabulary

from . import constrained, contestants, networks
from .contestants import OURS, Task
from .conversation import chat_seconds, conversation
from .measure import MIB, Action, Cost, Sizes, compare
from .profile import profile

TINY = "diffusiongemma-tiny"


def print_costs(title: str, costs: dict[str, Cost]) -> None:
    ours = costs[OURS]
    print(f"\n{title}\n")
    print("| | Seconds | Against us | Peak memory |\n| --- | --- | --- | --- |")
    for name, cost in costs.items():
        against = "" if name == OURS else f"{cost.seconds / ours.seconds:.2f}×"
        print(f"| {name} | {cost.seconds:.3f} | {against} | {cost.peak_bytes / MIB:,.0f} MiB |")


def sampler(device: torch.device, repeats: int, sizes: Sizes) -> None:
    model = networks.small_body(device, sizes)
    fresh = networks.logits_like_a_reply(device, sizes)
    logits = fresh.clone()
    actions = contestants.sampler_steps(model, logits, Task([], 1, 48))
    # Ours divides the logits in place, so everybody gets new ones.
    costs = compare(actions, repeats, device, before_each=lambda: logits.copy_(fresh))
    print_costs(f"(a) The sampler's share of one denoising step, 256 × {sizes.vocabulary:,} logits", costs)


def reply(device: torch.device, repeats: int, sizes: Sizes) -> None:
    model = networks.small_body(device, sizes)
    task = Task(list(range(200, 200 + sizes.prompt_tokens)), canvases=2, steps=sizes.steps)
    costs = compare(contestants.replies(model, task), repeats, device)
    print_costs(
        f"(b) A reply of 2 canvases, {sizes.steps} steps each: small random body, vocabulary {sizes.vocabulary:,}",
        costs,
    )
    if device.type == "cpu":
        print_profile(profile(model, task))


def tiny(device: torch.device, repeats: int, sizes: Sizes) -> None:
    model = networks.embedded_checkpoint(device)
    task = Task(list(range(200, 220)), canvases=4, steps=sizes.steps)
    costs = compare(contestants.replies(model, task), repeats, device)
    print_costs(f"(c) A reply of 4 canvases, {sizes.steps} steps each: the embedded checkpoint", costs)
    if device.type == "cpu":
        print_profile(profile(model, task))


def print_profile(parts: dict[str, float]) -> None:
    whole = sum(parts.values())
    print(f"\nOne of our steps there, {whole * 1000:.1f} ms:\n\n| Part | ms | Share |\n| --- | --- | --- |")
    for name, seconds in parts.items():
        print(f"| {name} | {seconds * 1000:.1f} | {seconds / whole:.0%} |")


def startup(device: torch.device, repeats: int, sizes: Sizes) -> None:
    def run(*arguments: str, plugins: str = "llm-diffusiongemma") -> Action:
        environment = {**os.environ, "LLM_LOAD_PLUGINS": plugins}
        command = [sys.executable, *arguments]
        return lambda: subprocess.run(command, env=environment, check=True, capture_output=True)

    actions = {
        "`llm --version` without the plugin": run("-m", "llm", "--version", plugins=""),
        "`llm --version` with the plugin": run("-m", "llm", "--version"),
        "a prompt to the embedded checkpoint": run("-m", "llm", "-n", "-m", TINY, "What is a canvas?"),
        "Python importing torch and the model's class": run(
            "-c", "import torch; from transformers import DiffusionGemmaForBlockDiffusion"
        ),
    }
    costs = compare(actions, 4 * repeats, torch.device("cpu"))
    print("\n(d) Whole commands\n\n| | Seconds |\n| --- | --- |")
    for name, cost in costs.items():
        print(f"| {name} | {cost.seconds:.3f} |")
    without, with_it, *_ = (cost.seconds for cost in costs.values())
    print(f"\nThe plugin makes `llm --version` take {with_it / without:.3f}×.")


def chat(device: torch.device, repeats: int, sizes: Sizes) -> None:
    costs = conversation(networks.wide_body(device, sizes), sizes, repeats=min(repeats, 3))
    print(f"\n(e) {sizes.turns} turns of a chat, replies of 1 canvas, {sizes.steps} steps: wide random body\n")
    print("| Turn | Context | Tokens encoded | Without the cache | Prefill | Without | First block | Without |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for turn in sorted({min(turn, sizes.turns) for turn in (1, 2, 5, 10, 15, 20)}):
        ours, fresh = costs[turn - 1]
        print(
            f"| {turn} | {ours.context_tokens:,} | {ours.encoded_tokens:,} | {fresh.encoded_tokens:,} "
            f"| {ours.prefill_seconds:.2f} s | {fresh.prefill_seconds:.2f} s "
            f"({fresh.prefill_seconds / ours.prefill_seconds:.1f}×) "
            f"| {ours.first_block_seconds:.2f} s | {fresh.first_block_seconds:.2f} s |"
        )
    writing, reading = chat_seconds(sizes, 4 * repeats)
    whole = costs[-1][0].first_block_seconds
    print(
        f"\nTemplating and tokenising {sizes.turns} turns takes {writing * 1000:.1f} ms and reading a block "
        f"{reading * 1000:.1f} ms: {(writing + reading) / whole:.1%} of the last reply."
    )


def constraint(device: torch.device, repeats: int, sizes: Sizes) -> None:
    vocabulary = constrained.gemma_like_vocabulary(sizes)
    print(f"\n(f) From a byte automaton to the classes of {sizes.vocabulary:,} tokens\n")
    print("| | States | Classes | Arcs | First | Cached |\n| --- | --- | --- | --- | --- | --- |")
    for name, cost in constrained.build_costs(vocabulary, repeats).items():
        print(
            f"| {name} | {cost.states} | {cost.classes} | {cost.arcs:,} "
            f"| {cost.first_seconds * 1000:.0f} ms | {cost.cached_seconds * 1000:.1f} ms |"
        )
    small = networks.small_body(device, sizes)
    print_constrained(
        f"small random body, vocabulary {sizes.vocabulary:,}, {sizes.steps} steps",
        small,
        vocabulary,
        device,
        repeats,
        sizes,
    )
    tiny = networks.embedded_checkpoint(device)
    print_constrained(
        f"the embedded checkpoint, {sizes.steps} steps",
        tiny,
        constrained.tiny_vocabulary(tiny),
        device,
        repeats,
        sizes,
    )


def print_constrained(
    title: str, model: Any, vocabulary: Vocabulary, device: torch.device, repeats: int, sizes: Sizes
) -> None:
    task = Task(list(range(200, 200 + sizes.prompt_tokens)), canvases=1, steps=sizes.steps)
    costs = compare(constrained.replies(model, vocabulary, task), repeats, device)
    free = costs[constrained.FREE]
    print(
        f"\nA canvas held to it: {title}\n\n| | Seconds | Against free | Peak memory |\n| --- | --- | --- | --- |"
    )
    for name, cost in costs.items():
        against = "" if cost is free else f"{cost.seconds / free.seconds:.2f}×"
        print(f"| {name} | {cost.seconds:.3f} | {against} | {cost.peak_bytes / MIB:,.0f} MiB |")


BENCHMARKS: dict[str, Callable[[torch.device, int, Sizes], None]] = {
    "sampler": sampler,
    "reply": reply,
    "tiny": tiny,
    "startup": startup,
    "chat": chat,
    "constraint": constraint,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--repeats", type=int, default=5, help="rounds behind each median (default 5)")
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's own choice)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    theirs = f"diffusers {contestants.diffusers.__version__}" if contestants.diffusers else "without diffusers"
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, {theirs}, "
        f"{torch.get_num_threads()} threads, {arguments.device}, medians of {arguments.repeats}"
    )
    for name in arguments.names or BENCHMARKS:
        BENCHMARKS[name](arguments.device, arguments.repeats, Sizes())


if __name__ == "__main__":
    main()
