"""Whether it is right on a card: sections on the embedded checkpoint, against the CPU in fp32."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import llm
import torch

from llm_diffusiongemma.backends.engine import get_engine
from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT, ModelEntry, Source
from llm_diffusiongemma.diffusion.kv_cache import KVCache
from llm_diffusiongemma.diffusion.loading import LoadedModel
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.pipeline import Block, BlockDiffusionPipeline, Draft
from llm_diffusiongemma.diffusion.request import Prompt, Request
from llm_diffusiongemma.diffusion.sampler import SamplerSettings
from llm_diffusiongemma.diffusion.vision import ImageReader
from llm_diffusiongemma.models import AsyncDiffusionGemma, DiffusionGemma

from ..whole import load_whole
from .bench import Bench, OutOfTimeError, Result
from .loop import randomness
from .networks import converted, proved

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
QUESTIONS = (
    "What is a canvas?",
    "What is entropy?",
    "Count from 1 to 300",
    "What is the capital of France?",
    "My name is Ada.",
)
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


def engine_on(device: torch.device) -> Any:
    return get_engine(ModelEntry(f"tiny-{device.type}", (Source(EMBEDDED_CHECKPOINT),), str(device))).engine


def question(text: str) -> list[int]:
    """Its prompt."""
    ids: list[int] = engine_on(CPU).prompt_encoder.encode([{"role": "user", "content": text}])
    return ids


def request(loaded: LoadedModel, prompt: list[int]) -> Request:
    return Request(Prompt(prompt), SamplerSettings.from_generation_config(loaded.generation), 1024)


def answer(
    loaded: LoadedModel, network: Network, prompt: list[int], seed: int, canvas_length: int | None = None
) -> tuple[list[int], list[int]]:
    """A reply's tokens and the denoising steps of each of its canvases, by some network of that checkpoint."""
    pipeline = BlockDiffusionPipeline(
        network,
        eos_token_ids=frozenset(loaded.generation.eos_token_id),
        pad_token_id=loaded.generation.pad_token_id,
    )
    asked = replace(request(loaded, prompt), canvas_length=canvas_length)
    records = pipeline.generate(asked, randomness=randomness(seed))
    blocks = [record for record in records if isinstance(record, Block)]
    return [token for block in blocks for token in block.tokens], [block.denoising_steps for block in blocks]


def logits(network: Network, prompt: list[int]) -> torch.Tensor:
    """Those of a random canvas's first two steps, fp64 `[512, V]` on the CPU."""
    config = network.config
    canvas = torch.randint(config.vocab_size, (256,), generator=torch.Generator().manual_seed(0))
    cache = KVCache(config, network.dtype, network.layer_devices)
    network.encode(network.embed(torch.tensor(prompt, device=network.device)), cache)
    found = torch.empty(2, 256, config.vocab_size, device=network.device)
    soft_embeddings = None
    everything = slice(0, config.vocab_size)
    for step in found:
        hidden = network.denoise(canvas.to(network.device), soft_embeddings, cache)
        step.copy_(network.logits(hidden, everything))
        probabilities = (30 * torch.tanh(step / 30)).softmax(-1)
        soft_embeddings = network.mix(probabilities.to(network.product_dtype), everything).float()
    return found.flatten(0, 1).double().cpu()


def soft_tokens(loaded: LoadedModel, network: Network) -> torch.Tensor:
    """Those of an image, by the tower in the place and dtype of a network: fp64 `[n, H]` on the CPU."""
    from PIL import Image

    reader = ImageReader(EMBEDDED_CHECKPOINT, loaded.config, network.dtype, network.device)
    patches = reader.cut(Image.linear_gradient("L").resize((96, 64)).convert("RGB"), None)
    return reader.see(patches).double().cpu()


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def replies(bench: Bench) -> Result:
    """Logits, and replies token for token, in each dtype and place."""
    loaded, reference = load_whole(EMBEDDED_CHECKPOINT, bench.device), load_whole(EMBEDDED_CHECKPOINT)
    networks = {
        "cpu bf16": converted(reference.network, torch.bfloat16, CPU),
        "device fp32": converted(reference.network, torch.float32, bench.device),
        "device as loaded": loaded.network,
    }
    in_use = {}
    for dtype in (torch.float32, torch.bfloat16) if bench.on_card else ():
        name = f"device {dtype}, kernels"
        networks[name] = converted(reference.network, dtype, bench.device)
        in_use[name] = proved(networks[name]).in_use
    cases = {(text, seed): question(text) for text in QUESTIONS for seed in (1, 2)}
    expected = {case: answer(reference, reference.network, cases[case], case[1]) for case in cases}
    found: Result = {"load_seconds": round(loaded.load_seconds, 2), "dtype": str(loaded.network.dtype)}
    prompt = question(QUESTIONS[0])
    right = logits(reference.network, prompt)
    seen = soft_tokens(reference, reference.network)
    for name, network in networks.items():
        ours = logits(network, prompt)
        started, wrong, steps_done = time.perf_counter(), {}, 0
        for case in cases:
            tokens, steps = answer(reference, network, cases[case], case[1])
            steps_done += sum(steps)
            if (tokens, steps) != expected[case]:
                wrong[f"{case[0]} {case[1]}"] = {
                    **differing(tokens, expected[case][0]),
                    "steps": [steps, expected[case][1]],
                }
        found[name] = {
            "logits' relative error": float(f"{relative_error(ours, right):.2e}"),
            "soft tokens' relative error": float(f"{relative_error(soft_tokens(reference, network), seen):.2e}"),
            "same most likely token": round((ours.argmax(-1) == right.argmax(-1)).double().mean().item(), 4),
            "other replies": wrong,
            "ms a step": round((time.perf_counter() - started) * 1e3 / steps_done, 2),
        }
    again = [answer(reference, loaded.network, prompt, 1) for _ in range(2)]
    return found | {"a seed repeats": again[0] == again[1], "kernels in use": in_use}


def differing(ours: list[int], theirs: list[int]) -> Result:
    """How many tokens of a text are others, by position, and the first of them."""
    others = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b]
    others += range(min(len(ours), len(theirs)), max(len(ours), len(theirs)))
    return {"first": others[0] if others else None, "others": len(others), "of": len(theirs)}


def multiply(a: int, b: int) -> int:
    """Multiply two numbers"""
    return a * b


def image(colour: tuple[int, int, int]) -> llm.Attachment:
    from PIL import Image

    png = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(png, "PNG")
    return llm.Attachment(type="image/png", content=png.getvalue())


def features(bench: Bench) -> Result:
    """What a user has: forms, tools, images, conversations, stopping, async; here and on the CPU."""
    os.environ["LLM_USER_PATH"] = tempfile.mkdtemp()
    here, there = (
        DiffusionGemma(ModelEntry(f"tiny-{device.type}", (Source(EMBEDDED_CHECKPOINT),), str(device)))
        for device in (bench.device, CPU)
    )
    found: Result = {}

    def check(what: str, ask: Callable[[Any], Any], right: Callable[[Any], bool]) -> None:
        try:
            ours, theirs = ask(here), ask(there)
            found[what] = "same" if ours == theirs else f"{ours!r} v {theirs!r}"[:300]
            if not right(ours):
                found[what] = f"WRONG {ours!r} v {theirs!r}"[:300]
        except OutOfTimeError:
            raise
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            found[what] = f"FAILED {type(error).__name__}: {error} at {Path(where.filename).name}:{where.lineno}"[
                :400
            ]

    def ask(text: str, **how: Any) -> Callable[[Any], str]:
        return lambda model: str(model.prompt(text, seed=1, **how).text())

    def stopped(model: Any) -> str:
        engine = get_engine(model.entry).engine
        records = engine.pipeline.generate(
            request(engine.loaded, question(QUESTIONS[2])), randomness=randomness(1), drafts=True
        )
        assert isinstance(next(records), Draft)
        records.close()
        return ask(QUESTIONS[0])(model)

    async def asynchronous(model: Any) -> str:
        return str(await AsyncDiffusionGemma(model.entry).prompt(QUESTIONS[0], seed=1).text())

    def is_a_sentence(text: str) -> bool:
        return len(text) > 10

    what_colour = "What colour is this image?"
    check("plain", ask(QUESTIONS[0]), is_a_sentence)
    check("schema", ask("A person", schema=PERSON), lambda text: set(json.loads(text)) == {"name", "age"})
    check("regex", ask("A number", regex="[0-9]{3}-[0-9]{4}"), lambda text: len(text) == 8)
    check("choices", ask("Yes or no?", choices="yes,no"), lambda text: text in ("yes", "no"))
    check("thinking", ask(QUESTIONS[1], thinking=True), is_a_sentence)
    check(
        "tool",
        lambda model: model.chain("What is 6 times 7?", tools=[multiply], options={"seed": 1}).text(),
        lambda text: "42" in text,
    )
    check("image", ask(what_colour, attachments=[image((220, 25, 25))]), lambda text: "red" in text)
    check("two images", ask(what_colour, attachments=[image((30, 60, 215))] * 2), is_a_sentence)
    check("stopped, then asked again", stopped, is_a_sentence)
    check("async", lambda model: asyncio.run(asynchronous(model)), is_a_sentence)
    is_right = not any(said.startswith(("WRONG", "FAILED")) for said in found.values())
    return found | {"ok": is_right, "conversation with the cache v without": conversation(here)}


def conversation(model: Any) -> list[Result]:
    """For each turn how many tokens of its answer are others when nothing was cached.

    In fp32 none. In bf16 some may be: chunks of other lengths are summed otherwise, and a turn reads the last.
    """
    engine = get_engine(model.entry).engine

    def answers(*, cached: bool) -> list[list[int]]:
        talk, found = model.conversation(), []
        for turn, text in enumerate(QUESTIONS):
            if not cached or turn == 0:
                engine.pipeline.prefix_cache.clear()
            response = talk.prompt(text, seed=turn)
            # As a prompt would have them: what is around the text is the same each time.
            found.append(engine.prompt_encoder.encode([{"role": "user", "content": response.text()}]))
        assert bool((response.token_details or {}).get("cached_tokens", 0)) == cached
        return found

    return [differing(*pair) for pair in zip(answers(cached=True), answers(cached=False), strict=True)]


def command(bench: Bench) -> Result:
    """A real command, twice, and what it logged."""
    environment = {
        **os.environ,
        "LLM_USER_PATH": tempfile.mkdtemp(),
        "LLM_DIFFUSIONGEMMA_DEVICE": str(bench.device),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }

    def run(*arguments: str) -> tuple[float, subprocess.CompletedProcess[str]]:
        started = time.perf_counter()
        line = [sys.executable, "-m", "llm", *arguments]
        done = subprocess.run(
            line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        return round(time.perf_counter() - started, 2), done

    question = ("-m", "diffusiongemma-tiny", "What is a canvas?", "-o", "seed", "1")
    first, second = run(*question), run(*question)
    logs = run("logs", "--json", "-n", "1")[1]
    return {
        "ok": first[1].returncode == 0,
        "seconds_each": [first[0], second[0]],
        "stdout": first[1].stdout[-200:],
        "stderr": first[1].stderr[-400:],
        "report": json.loads(logs.stdout)[0]["response_json"] if logs.returncode == 0 else logs.stderr[-300:],
    }


def tests(bench: Bench) -> Result:
    """The project's tests that want a card."""
    # Only the files that have some: to import all would take longer than to run these.
    files = [file for file in ROOT.glob("tests/**/test_*.py") if "mark.gpu" in file.read_text(encoding="utf-8")]
    line = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-q",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        *map(str, files),
    ]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    return {"ok": done.returncode == 0, "exit": done.returncode, "tail": done.stdout.strip()[-1500:]}
