"""The async model: the same replies, a free event loop, a queue, and cancellation within a step."""

from __future__ import annotations

import asyncio
import itertools
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import llm
import pytest

from llm_diffusiongemma.backends.engine import get_engine

from .conftest import TINY, after_each_forward


@dataclass
class Forwards:
    """The denoiser's forwards: in which thread each was."""

    threads: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.threads)

    async def reach(self, number: int) -> None:
        while len(self) < number:
            await asyncio.sleep(0.001)


@pytest.fixture
def forwards() -> Iterator[Forwards]:
    engine = get_engine(llm.get_model(TINY).entry).engine
    seen = Forwards()
    with after_each_forward(engine, lambda: seen.threads.append(threading.get_ident())):
        yield seen


async def engine_is_free() -> None:
    """Wait until no reply holds the engine."""
    lock = get_engine(llm.get_model(TINY).entry).engine.lock

    def take() -> None:
        assert lock.acquire(timeout=30)
        lock.release()

    await asyncio.to_thread(take)


async def test_same_reply_as_sync() -> None:
    asked: dict[str, Any] = {"seed": 3, "canvas_length": 64, "max_tokens": 100}
    asynchronous = llm.get_async_model(TINY).prompt("Count from 1 to 400", **asked)
    chunks = [chunk async for chunk in asynchronous]
    synchronous = llm.get_model(TINY).prompt("Count from 1 to 400", **asked)
    assert chunks == list(synchronous)
    assert len(chunks) == 2
    ours, theirs = asynchronous.response_json, synchronous.response_json
    assert ours["finish_reason"] == theirs["finish_reason"] == "length"
    assert [b["denoising_steps"] for b in ours["blocks"]] == [b["denoising_steps"] for b in theirs["blocks"]]
    assert (await asynchronous.usage()).output == 100


async def test_one_engine_for_sync_and_async() -> None:
    synchronous, asynchronous = llm.get_model(TINY), llm.get_async_model(TINY)
    assert get_engine(synchronous.entry).engine is get_engine(asynchronous.entry).engine


async def test_two_prompts_at_once_queue(forwards: Forwards) -> None:
    model = llm.get_async_model(TINY)
    prompts = ["Count from 1 to 300", "Count from 500 to 820"]
    asked = {"seed": 3, "canvas_length": 64, "max_tokens": 100, "max_denoising_steps": 8}
    together = await asyncio.gather(*(model.prompt(prompt, **asked).text() for prompt in prompts))
    # All of one reply, then all of the other.
    assert len(list(itertools.groupby(forwards.threads))) == 2
    alone = [await model.prompt(prompt, **asked).text() for prompt in prompts]
    assert together == alone


async def test_event_loop_stays_free() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    ticker = asyncio.create_task(tick())
    await llm.get_async_model(TINY).prompt(
        "Count from 1 to 200", max_denoising_steps=20, confidence_threshold=1e-12
    )
    ticker.cancel()
    assert ticks > 10


async def test_cancelling_stops_within_a_step(forwards: Forwards) -> None:
    task = asyncio.create_task(_endless().text())
    await forwards.reach(5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    so_far = len(forwards)
    await engine_is_free()
    assert len(forwards) - so_far <= 1
    assert await llm.get_async_model(TINY).prompt("What is a canvas?", seed=1).text()


async def test_a_reply_nobody_reads_on_gives_the_engine_back(forwards: Forwards) -> None:
    response = _endless()
    async for _ in response:
        break  # llm does not close the model's generator here
    so_far = len(forwards)
    await engine_is_free()
    assert len(forwards) == so_far
    rest = "".join([chunk async for chunk in response])
    assert rest  # and it can still be read on


def _endless() -> llm.AsyncResponse:
    """A reply of two canvases that never converge."""
    return llm.get_async_model(TINY).prompt(
        "Count from 1 to 400", seed=3, max_denoising_steps=12, confidence_threshold=1e-12, max_tokens=512
    )


async def test_cancelled_while_it_waits(forwards: Forwards) -> None:
    """A prompt that is cancelled in the queue never starts."""
    engine = get_engine(llm.get_model(TINY).entry).engine
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with engine.lock:
            held.set()
            let_go.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(30)

    async def reply() -> None:
        await llm.get_async_model(TINY).prompt("What is a canvas?").text()

    task = asyncio.create_task(reply())
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    let_go.set()
    holder.join()
    await asyncio.sleep(0.3)
    assert len(forwards) == 0


async def test_an_error_reaches_the_caller() -> None:
    with pytest.raises(llm.ModelError, match="prompt is empty"):
        await llm.get_async_model(TINY).prompt(" ").text()


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_ctrl_c_in_an_async_program_ends_it_cleanly() -> None:
    """A daemon thread inside torch took the interpreter down with it (SIGABRT)."""
    program = """
import asyncio, llm
async def main():
    model = llm.get_async_model("diffusiongemma-tiny")
    slow = {"max_denoising_steps": 10, "confidence_threshold": 1e-12, "max_tokens": 1024}
    async for chunk in model.prompt("Count from 1 to 400", seed=3, **slow):
        print("block", flush=True)
asyncio.run(main())
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    timer = threading.Timer(120, process.kill)
    timer.start()
    assert process.stdout is not None
    assert process.stdout.readline() == "block\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    timer.cancel()
    assert "KeyboardInterrupt" in errors
    assert process.returncode in (1, 130, -signal.SIGINT), errors
