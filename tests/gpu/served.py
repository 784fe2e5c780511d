"""A server in the background, as a user has it: its replies, and what of the card it gives back, and when."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from click.testing import CliRunner
from llm.cli import cli

from llm_diffusiongemma.backends import launch, running
from llm_diffusiongemma.catalog import DEVICE_VARIABLE, MODEL_VARIABLE, SERVER_VARIABLE

from .bench import GIB, Bench, Result
from .product import QUESTION, checkpoint, options
from .rightness import ROOT

KEEP_ALIVE = "8s"
# For weights to go that nobody has asked for in that time, and for a process to be taken away.
PATIENCE_SECONDS = 30.0
# Of a server without weights: CUDA's context, its libraries, and what they hold.
LEFT_GIB = 1.1
STOPPED_GIB = 0.05
# Never sure enough to stop: a canvas takes all of these steps.
LONG = "-o max_denoising_steps 1000 -o confidence_threshold 1e-12 -o seed 1".split()


def serve(bench: Bench) -> Result:
    """The embedded checkpoint, and four layers of random nvfp4: prompts, one of them cut, and an idle server."""
    found = bench.begin()
    with checkpoint(bench, "nvidia nvfp4") as folder:
        for model, variables in (
            ("diffusiongemma-tiny", {}),
            ("diffusiongemma", {MODEL_VARIABLE: str(folder)}),
        ):
            with tempfile.TemporaryDirectory() as user_path, patch.dict(os.environ, variables):
                os.environ |= {"LLM_USER_PATH": user_path, DEVICE_VARIABLE: str(bench.device)}
                paths = [str(ROOT), os.environ.get("PYTHONPATH")]
                os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
                found[model] = each = {}
                try:
                    served(bench, model, each)
                finally:
                    launch.stop()
    return {"ok": all(each["is right"] for each in found.values()), **found}


def served(bench: Bench, model: str, found: Result) -> None:
    """Puts what it finds there as it goes."""
    chosen = [word for name, value in options(bench).items() for word in ("-o", name, str(value))]
    question = ["-m", model, QUESTION, *chosen]

    def ask(**environment: str) -> Result:
        seconds, text = run(*question, **environment)
        return {"seconds": seconds, "text": text, **brief()}

    before = bench.taken()

    def taken() -> float:
        """By the server, in GiB, as seen from here."""
        return round((bench.taken() - before) / GIB, 3)

    found["in this process"] = here = [ask(**{SERVER_VARIABLE: "off"}) for _ in range(2)]
    line = ("serve", model, "--detach", "--keep-alive", KEEP_ALIVE, "--port", "0")
    found["serve, s"], _ = run("diffusiongemma", *line)
    found["loaded, gib"] = taken()
    found["through it"] = there = [ask() for _ in range(2)]
    found["used, gib"] = taken()
    found["free after a cut, ms"] = cut(model)
    found["cut, gib"] = taken()
    wait_until(lambda: status()["loaded"] is None)
    found["weights gone after, s"] = round(time.time() - status()["last_used"], 1)
    wait_until(lambda: taken() <= LEFT_GIB)
    found["idle, gib"] = taken()
    found["the next one"] = again = ask()
    found["loaded again, gib"] = taken()
    found["stop, s"], _ = run("diffusiongemma", "stop")
    wait_until(lambda: taken() <= STOPPED_GIB)
    found["stopped, gib"] = taken()
    replies = [*here, *there, again]
    texts = [each.pop("text") for each in replies]
    found["same"] = [text == texts[0] for text in texts]
    found["text"] = texts[0][:40]
    found["is right"] = (
        # The second one's prompt is in the cache: in bf16 what is read of it may be summed otherwise.
        all(same for same, reply in zip(found["same"], replies, strict=True) if reply is not there[1])
        and all(each["server"] == "local server" for each in (*there, again))
        and [each["load_seconds"] > 0 for each in (*there, again)] == [False, False, True]
        and found["idle, gib"] <= LEFT_GIB
        and found["stopped, gib"] <= STOPPED_GIB
    )


def run(*arguments: str, **environment: str) -> tuple[float, str]:
    """A real command: its seconds and what it says. Raises `RuntimeError` if it fails."""
    started = time.perf_counter()
    line = [sys.executable, "-m", "llm", *arguments]
    done = subprocess.run(
        line, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        raise RuntimeError(f"{arguments[:4]} ended with {done.returncode}: {done.stderr[-400:]}")
    return round(seconds, 2), done.stdout


def brief() -> Result:
    """Of the last reply's report, as llm has logged it."""
    (turn,) = json.loads(CliRunner().invoke(cli, ["logs", "--json", "-n", "1"]).stdout)
    report = turn["response_json"]
    last = report["blocks"][-1]
    return {
        "server": report.get("server"),
        **{name: round(report[name], 3) for name in ("load_seconds", "generate_seconds")},
        "tokens read": report["blocks"][0]["encoded_tokens"],
        "ms_a_step": round(last["seconds"] / last["denoising_steps"] * 1e3, 1),
    }


def cut(model: str) -> float:
    """Milliseconds from a client's sudden death in the middle of a reply until its server is free."""
    line = [sys.executable, "-m", "llm", "-m", model, QUESTION, *LONG]
    with subprocess.Popen(line, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as client:
        wait_until(lambda: status()["running_since"] is not None)
        time.sleep(1)  # by now it denoises
        if status()["running_since"] is None:
            raise RuntimeError("The reply was too short to be cut.")
        killed = time.time()
        client.kill()
    if not wait_until(lambda: status()["running_since"] is None):
        raise RuntimeError("The server goes on with a reply that nobody takes.")
    return round((status()["last_used"] - killed) * 1e3, 1)


def status() -> dict[str, Any]:
    found = running.recorded()
    assert found is not None
    return launch.ask(found, "GET", "/diffusiongemma/status")


def wait_until(holds: Callable[[], bool]) -> bool:
    """Whether something holds in good time."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
