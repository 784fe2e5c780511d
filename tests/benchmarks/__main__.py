"""Prints the tables of docs/speed.md, docs/quality.md and docs/canvas.md: `python -m tests.benchmarks`.

diffusers takes part with the `benchmark` extra. Everything in a table ran in one process, side by side; read
the ratios, and have nothing else run on the machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import llm
import torch
import transformers

from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.grammar.automaton import Vocabulary
from llm_diffusiongemma.tiny.evaluate import Examiner, Score

from . import constrained, contestants, drafts, ends, networks, quality, server, short, warm, watched
from .contestants import OURS, Task
from .conversation import chat_seconds, conversation
from .measure import MIB, Action, Cost, Sizes, compare
from .profile import context_costs, profile

TINY = "diffusiongemma-tiny"
ROOT = Path(__file__).parents[2]
EARLIER = "b62c9e6"
"""The network was transformers' class then."""

OUR_TOKENIZER = """
from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.chat.checkpoint import NetworkTokens, load_tokenizer
load_tokenizer(EMBEDDED_CHECKPOINT, NetworkTokens(3072, 2, (107, 108, 109), (1, 106, 50)))
"""
THEIR_TOKENIZER = """
from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from transformers import AutoTokenizer
AutoTokenizer.from_pretrained(EMBEDDED_CHECKPOINT)
"""


def print_costs(title: str, costs: dict[str, Cost]) -> None:
    ours = costs[OURS]
    print(f"\n{title}\n")
    print("| | Seconds | Against us | Peak memory |\n| --- | --- | --- | --- |")
    for name, cost in costs.items():
        against = "" if name == OURS else f"{cost.seconds / ours.seconds:.2f}×"
        print(f"| {name} | {cost.seconds:.3f} | {against} | {cost.peak_bytes / MIB:,.0f} MiB |")


def around(device: torch.device, repeats: int, sizes: Sizes) -> None:
    twins = networks.small_body(device, sizes)
    costs = compare(contestants.around_the_layers(twins, Task([], 1, 48)), repeats, device)
    print_costs(
        f"(a) One denoising step but for the layers, 256 × {sizes.vocabulary:,} logits: output head, sampler, "
        "soft embeddings",
        costs,
    )


def reply(device: torch.device, repeats: int, sizes: Sizes) -> None:
    twins = networks.small_body(device, sizes)
    task = Task(list(range(200, 200 + sizes.prompt_tokens)), canvases=2, steps=sizes.steps)
    costs = compare(contestants.replies(twins, task), repeats, device)
    print_costs(
        f"(b) A reply of 2 canvases, {sizes.steps} steps each: small random body, vocabulary {sizes.vocabulary:,}",
        costs,
    )
    if device.type == "cpu":
        print_profile(profile(twins.network, task))


def tiny(device: torch.device, repeats: int, sizes: Sizes) -> None:
    twins = networks.embedded_checkpoint(device)
    task = Task(list(range(200, 220)), sizes.canvases, sizes.steps)
    costs = compare(contestants.replies(twins, task), repeats, device)
    print_costs(
        f"(c) A reply of {sizes.canvases} canvases, {sizes.steps} steps each: the embedded checkpoint", costs
    )
    if device.type == "cpu":
        print_profile(profile(twins.network, task))


def print_profile(parts: dict[str, float]) -> None:
    whole = sum(parts.values())
    print(f"\nOne of our steps there, {whole * 1000:.1f} ms:\n\n| Part | ms | Share |\n| --- | --- | --- |")
    for name, seconds in parts.items():
        print(f"| {name} | {seconds * 1000:.1f} | {seconds / whole:.0%} |")


def startup(device: torch.device, repeats: int, sizes: Sizes) -> None:
    def run(*arguments: str, plugins: str = "llm-diffusiongemma", tree: Path = ROOT) -> Action:
        environment = {**os.environ, "LLM_LOAD_PLUGINS": plugins, "PYTHONPATH": str(tree)}
        command = [sys.executable, *arguments]
        return lambda: subprocess.run(command, cwd=tree, env=environment, check=True, capture_output=True)

    prompt = ("-m", "llm", "-n", "-m", TINY, "What is a canvas?")
    actions = {
        "`llm --version` without the plugin": run("-m", "llm", "--version", plugins=""),
        "`llm --version` with the plugin": run("-m", "llm", "--version"),
        "a prompt to the embedded checkpoint": run(*prompt),
        "Python reading the embedded tokenizer": run("-c", OUR_TOKENIZER),
        "... by transformers": run("-c", THEIR_TOKENIZER),
        "Python importing torch": run("-c", "import torch"),
        "... and transformers' class": run(
            "-c", "import torch; from transformers import DiffusionGemmaForBlockDiffusion"
        ),
    }
    with earlier_tree() as tree:
        if tree is not None:
            actions[f"a prompt, at commit {EARLIER}"] = run(*prompt, tree=tree)
        times: dict[str, list[float]] = {name: [] for name in actions}
        for _ in range(4 * repeats + 1):
            for name, action in actions.items():
                started = time.perf_counter()
                action()
                times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(seconds[1:]) for name, seconds in times.items()}  # the first warms up
    print("\n(d) Whole commands\n\n| | Seconds |\n| --- | --- |")
    for name, seconds in medians.items():
        print(f"| {name} | {seconds:.3f} |")
    without, with_it, *_ = medians.values()
    print(f"\nThe plugin makes `llm --version` take {with_it / without:.3f}×.")


def warm_commands(device: torch.device, repeats: int, sizes: Sizes) -> None:
    costs = warm.costs(4 * repeats)
    echo = costs[warm.ECHO].seconds
    print("\n(e) Whole commands, with a server that runs\n")
    print("| | Seconds | The reply in it | The rest against the echo |\n| --- | --- | --- | --- |")
    for name, cost in costs.items():
        against = (cost.seconds - cost.reply_seconds) / echo
        print(f"| {name} | {cost.seconds:.3f} | {cost.reply_seconds:.3f} | {against:.2f}× |")


@contextmanager
def earlier_tree() -> Iterator[Path | None]:
    """The project as it was at `EARLIER`; None where git doesn't know it."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "tree.tar"
        try:
            line = ["git", "archive", "-o", str(archive), EARLIER, "llm_diffusiongemma"]
            subprocess.run(line, cwd=ROOT, check=True, capture_output=True)
            shutil.unpack_archive(archive, folder)
        except (OSError, ValueError, subprocess.CalledProcessError):
            yield None
        else:
            yield Path(folder)


def context(device: torch.device, repeats: int, sizes: Sizes) -> None:
    network = networks.wide_body(device, sizes).network
    costs = context_costs(network, (256, sizes.long_context), 2 * repeats)
    print("\n(i) The layers of one of our denoising steps: wide random body\n")
    print("| Context | ms | Its attention | Everything else |\n| --- | --- | --- | --- |")
    for length, cost in costs.items():
        whole, attention = cost.seconds * 1000, cost.attention_seconds * 1000
        print(f"| {length:,} | {whole:.1f} | {attention:.1f} | {whole - attention:.1f} |")


def chat(device: torch.device, repeats: int, sizes: Sizes) -> None:
    costs = conversation(networks.wide_body(device, sizes).network, sizes, repeats=min(repeats, 3))
    print(f"\n(g) {sizes.turns} turns of a chat, replies of 1 canvas, {sizes.steps} steps: wide random body\n")
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
    print(f"\n(h) From a byte automaton to the classes of {sizes.vocabulary:,} tokens\n")
    print("| | States | Classes | Arcs | First | Cached |\n| --- | --- | --- | --- | --- | --- |")
    for name, cost in constrained.build_costs(vocabulary, repeats).items():
        print(
            f"| {name} | {cost.states:,} | {cost.classes} | {cost.arcs:,} "
            f"| {cost.first_seconds * 1000:.0f} ms | {cost.cached_seconds * 1000:.1f} ms |"
        )
    print("\nWhat of a step the host works\n\n| | Vague about all | Sure of 93 in 100 |\n| --- | --- | --- |")
    for name, seconds in constrained.host_costs(vocabulary, repeats).items():
        print(f"| {name} | {seconds[0] * 1000:.1f} ms | {seconds[1] * 1000:.1f} ms |")
    print_constrained(
        f"small random body, vocabulary {sizes.vocabulary:,}, {sizes.steps} steps",
        networks.small_body(device, sizes).network,
        vocabulary,
        repeats,
        sizes,
    )
    print_constrained(
        f"all but the layers as large as the real network's, {sizes.steps} steps",
        networks.real_surroundings(device, sizes).network,
        vocabulary,
        repeats,
        sizes,
        constrained.FEW,
    )
    tiny = networks.embedded_checkpoint(device).network
    print_constrained(
        f"the embedded checkpoint, {sizes.steps} steps",
        tiny,
        constrained.tiny_vocabulary(tiny),
        repeats,
        sizes,
    )


def print_constrained(
    title: str,
    network: Network,
    vocabulary: Vocabulary,
    repeats: int,
    sizes: Sizes,
    names: Collection[str] | None = None,
) -> None:
    task = Task(list(range(200, 200 + sizes.prompt_tokens)), canvases=1, steps=sizes.steps)
    costs = compare(constrained.replies(network, vocabulary, task, names), repeats, network.device)
    free = costs[constrained.FREE]
    print(
        f"\nA canvas held to it: {title}\n\n| | Seconds | Against free | Peak memory |\n| --- | --- | --- | --- |"
    )
    for name, cost in costs.items():
        against = "" if cost is free else f"{cost.seconds / free.seconds:.2f}×"
        print(f"| {name} | {cost.seconds:.3f} | {against} | {cost.peak_bytes / MIB:,.0f} MiB |")


def costs_in_quality(device: torch.device, repeats: int, sizes: Sizes) -> None:
    settings = Task([], 1, sizes.steps).settings
    prompt = list(range(200, 200 + sizes.prompt_tokens))
    wide = networks.wide_body(device, sizes).network
    print_deviations(
        "wide random body, against fp32",
        wide,
        quality.packed_twins(wide),
        quality.states(wide, [prompt], settings),
    )
    with tempfile.TemporaryDirectory() as folder:
        examiners = quality.examiners(Path(folder))
        tiny = {layout: examiner._engine.loaded.network for layout, examiner in examiners.items()}
        reference = examiners[quality.REFERENCE]
        encode = reference._engine.prompt_encoder.encode
        prompts = [
            encode(lesson.messages, tools=lesson.tools, thinking=lesson.thinking) for lesson in quality.lessons()
        ]
        plain = tiny[quality.REFERENCE]
        steps = quality.states(plain, prompts, reference.settings)
        print_deviations("the embedded checkpoint, against bf16", plain, tiny, steps)
        scores = {layout: quality.scores(examiner, sizes.questions) for layout, examiner in examiners.items()}
    print("\n(j) Right answers of the embedded checkpoint\n")
    print(f"| | {' | '.join(scores)} |\n| --- |{' --- |' * len(scores)}")
    for skill, score in scores[quality.REFERENCE].items():
        print(f"| {skill}, of {score.asked} | {' | '.join(str(each[skill].right) for each in scores.values())} |")
    totals = [quality.total(each.values()) for each in scores.values()]
    print(f"| all, of {totals[0].asked} | {' | '.join(f'{each.right} ({each.share:.1%})' for each in totals)} |")
    print(f"| steps a canvas | {' | '.join(f'{each.denoising_steps / each.blocks:.2f}' for each in totals)} |")


def print_deviations(
    title: str,
    reference: Network,
    twins: dict[quality.Layout, Network],
    steps: Sequence[quality.State],
) -> None:
    print(f"\n(j) Logits of {len(steps)} denoising steps: {title}\n")
    print("| | Relative error | KL, nats a position | Most likely token kept |\n| --- | --- | --- | --- |")
    for layout, each in quality.deviations(reference, twins, steps).items():
        print(f"| {layout} | {each.relative_error:.4f} | {each.divergence:.2g} | {each.kept:.2%} |")


def through_server(device: torch.device, repeats: int, sizes: Sizes) -> None:
    ways = server.ways(llm.get_model(TINY).entry, repeats)
    print(f"\n(f) A reply of {server.TOKENS} tokens, by turns: the embedded checkpoint\n")
    print("| | Seconds | Neither encoding nor denoising | Of the processor |\n| --- | --- | --- | --- |")
    for name, way in ways.items():
        print(f"| {name} | {way.whole:.3f} | {way.beside * 1000:.1f} ms | {way.processor:.3f} |")
    here, there, *watched = ways.values()
    print(f"\nThe server adds {(there.beside - here.beside) / here.whole:.1%} to the reply.")
    cost = [f"{each.whole / there.whole - 1:.1%}" for each in watched]
    print(f"Who watches it adds {' and '.join(cost)} to that.")


def watch(device: torch.device, repeats: int, sizes: Sizes) -> None:
    def print_watched(title: str, network: Network, task: Task, tokens: dict[int, str]) -> None:
        costs = watched.costs(network, task, tokens, repeats)
        nobody = costs[watched.NOBODY]
        print(f"\n(k) Who watches a reply of {task.canvases} canvases, {task.steps} steps each: {title}\n")
        print(
            "| | Seconds | Against nobody | Of the processor | Against nobody |\n| --- | --- | --- | --- | --- |"
        )
        for name, cost in costs.items():
            print(
                f"| {name} | {cost.whole:.3f} | {cost.whole / nobody.whole - 1:+.1%} "
                f"| {cost.processor:.3f} | {cost.processor / nobody.processor - 1:+.1%} |"
            )

    task = Task(list(range(200, 220)), canvases=2, steps=sizes.steps)
    print_watched("the embedded checkpoint", networks.embedded_checkpoint(device).network, task, {})
    tokens = enumerate(constrained.gemma_like_tokens(sizes))
    texts = {token: (spelled or b"").decode(errors="replace") for token, spelled in tokens}
    task = Task(list(range(200, 200 + sizes.prompt_tokens)), canvases=2, steps=sizes.steps)
    small = networks.small_body(device, sizes).network
    print_watched(f"small random body, vocabulary {sizes.vocabulary:,}", small, task, texts)


def shorter_canvases(device: torch.device, repeats: int, sizes: Sizes) -> None:
    task = Task(list(range(200, 200 + sizes.prompt_tokens)), canvases=1, steps=sizes.steps)
    bodies = {
        f"vocabulary {sizes.vocabulary:,}": networks.small_body(device, sizes).network,
        f"hidden size {sizes.hidden}": networks.wide_body(device, sizes).network,
    }
    print(f"\n(m) A reply of one canvas of {sizes.steps} steps, by its length: seconds\n")
    print("| | " + " | ".join(map(str, short.LENGTHS)) + " |\n| --- |" + " --- |" * len(short.LENGTHS))
    for body, network in bodies.items():
        costs = compare(short.replies(network, task), repeats, device)
        print(f"| {body} | " + " | ".join(f"{cost.seconds:.3f}" for cost in costs.values()) + " |")
    found = short.scores_by_length(sizes.questions)
    print("\n(m) Right answers of the embedded checkpoint, by the length of its canvases\n")
    print("| | " + " | ".join(map(str, found)) + " |\n| --- |" + " --- |" * len(found))
    for skill, score in found[short.LENGTHS[0]].items():
        right = " | ".join(str(scores[skill].right) for scores in found.values())
        print(f"| {skill}, of {score.asked} | {right} |")
    totals = [quality.total(scores.values()) for scores in found.values()]
    print(f"| all, of {totals[0].asked} | " + " | ".join(str(total.right) for total in totals) + " |")
    print("| steps a canvas | " + " | ".join(f"{t.denoising_steps / t.blocks:.1f}" for t in totals) + " |")
    print("| steps a reply | " + " | ".join(f"{t.denoising_steps / t.asked:.1f}" for t in totals) + " |")


def stopping(device: torch.device, repeats: int, sizes: Sizes) -> None:
    # With half of the questions: there are eight settings, and several seeds.
    scores = ends.scores(-(-sizes.questions // 2), range(1, repeats + 1))
    print(f"\n(l) Stopping where the text ends: the embedded checkpoint, {repeats} seeds\n")
    print("| `confidence_threshold` | `stop_at_end` | Right | Steps a canvas |\n| --- | --- | --- | --- |")
    for (threshold, stop_at_end), score in scores.items():
        print(
            f"| {threshold} | {str(stop_at_end).lower()} | {score.right} of {score.asked} ({score.share:.1%}) "
            f"| {score.denoising_steps / score.blocks:.2f} |"
        )


def damaged_drafts(device: torch.device, repeats: int, sizes: Sizes) -> None:
    examiner = Examiner()

    def shown(score: Score) -> str:
        return f"{score.right}, {score.denoising_steps / score.blocks:.1f}"

    print(f"\n(n) Right answers of {sizes.questions}, and steps a canvas: the embedded checkpoint\n")
    print(f"| | damaged | {' | '.join(f'noise {noise}' for noise in drafts.NOISE)} | without a draft |")
    print(f"| --- | --- |{' --- |' * len(drafts.NOISE)} --- |")
    for skill in drafts.SKILLS:
        without = shown(drafts.score(examiner, skill, sizes.questions, None))
        for share in drafts.DAMAGED:
            scores = [drafts.score(examiner, skill, sizes.questions, share, noise) for noise in drafts.NOISE]
            print(f"| {skill} | {share:.0%} | {' | '.join(map(shown, scores))} | {without} |", flush=True)


BENCHMARKS: dict[str, Callable[[torch.device, int, Sizes], None]] = {
    "around": around,
    "reply": reply,
    "tiny": tiny,
    "startup": startup,
    "chat": chat,
    "constraint": constraint,
    "context": context,
    "quality": costs_in_quality,
    "server": through_server,
    "warm": warm_commands,
    "watch": watch,
    "short": shorter_canvases,
    "ends": stopping,
    "drafts": damaged_drafts,
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
    library = contestants.diffusers()
    theirs = f"diffusers {library.__version__}" if library else "without diffusers"
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, {theirs}, "
        f"{torch.get_num_threads()} threads, {arguments.device}, medians of {arguments.repeats}"
    )
    for name in arguments.names or BENCHMARKS:
        BENCHMARKS[name](arguments.device, arguments.repeats, Sizes())


if __name__ == "__main__":
    main()
