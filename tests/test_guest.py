"""In somebody else's program: what that has set changes nothing here, what happens here changes nothing there."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import decimal
import gc
import io
import os
import random
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import llm
import numpy as np
import pytest
import torch
from PIL import Image

from llm_diffusiongemma.backends import engine as engine_module
from llm_diffusiongemma.backends import forks
from llm_diffusiongemma.backends.engine import get_engine
from llm_diffusiongemma.errors import DeviceError
from llm_diffusiongemma.grammar import numbers
from llm_diffusiongemma.grammar.numbers import Bounds, bounded_number
from llm_diffusiongemma.interrupts import Command

from .conftest import TINY, after_each_forward, set_environment

# A minimum that few digits would round.
SCHEMA = {"type": "object", "properties": {"w": {"type": "number", "minimum": 1.25}}, "required": ["w"]}


def picture() -> llm.Attachment:
    with io.BytesIO() as file:
        Image.new("RGB", (64, 48), (255, 0, 0)).save(file, "PNG")
        return llm.Attachment(content=file.getvalue())


def reply(model: llm.Model, **asked: Any) -> tuple[str, object]:
    """The text and, where it is held to a form, how probable that was to the last bit."""
    response = model.prompt("What colour is it?", seed=3, max_denoising_steps=2, canvas_length=64, **asked)
    return response.text(), response.response_json["blocks"][0].get("constraint")


def replies() -> list[tuple[str, object]]:
    """A picture, a form and both numbers of a schema, by an engine that is loaded for them."""
    engine_module._engines.clear()
    bounded_number.cache_clear()
    model = llm.get_model(TINY)
    return [reply(model, attachments=[picture()], regex="The [a-z ]{3,20}"), reply(model, schema=SCHEMA)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, object]]:
    # By an engine that has read nothing before: what is cached of a prompt rounds otherwise.
    with pytest.MonkeyPatch.context() as patch:
        set_environment(tmp_path_factory.mktemp("expected"), patch)
        patch.setattr(engine_module, "_engines", {})
        return replies()


@pytest.fixture(autouse=True)
def _engine_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_engines", {})


def state() -> dict[str, object]:
    """What a program may have set, or may count on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            device = str(torch.get_default_device())
        except AttributeError:  # PyTorch 2.9, where it was set to None again
            device = "cpu"
        except (AssertionError, RuntimeError) as error:
            device = str(error)
    return {
        "default device": device,
        "default dtype": torch.get_default_dtype(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "inference mode": torch.is_inference_mode_enabled(),
        "grad mode": torch.is_grad_enabled(),
        "deterministic": torch.get_deterministic_debug_mode(),
        "threads": torch.get_num_threads(),
        "torch's random numbers": torch.default_generator.get_state().tolist(),
        "numpy's random numbers": np.random.get_state()[1].tolist(),
        "Python's random numbers": random.getstate(),
        "numpy's errors": np.geterr(),
        "decimal": repr(decimal.getcontext()).partition("flags")[0],
        "warnings": list(warnings.filters),
        "recursion": sys.getrecursionlimit(),
        "garbage": (gc.isenabled(), gc.get_freeze_count() > 0, gc.get_threshold()),
        "folder": os.getcwd(),
    }


def setting(
    set_it: Callable[[Any], object], value: Any, before: Any
) -> Callable[[], AbstractContextManager[None]]:
    @contextlib.contextmanager
    def host() -> Iterator[None]:
        set_it(value)
        try:
            yield
        finally:
            set_it(before)

    return host


@contextlib.contextmanager
def few_digits() -> Iterator[None]:
    traps = [decimal.Inexact, decimal.Rounded, decimal.FloatOperation]
    with decimal.localcontext(decimal.Context(prec=1, rounding=decimal.ROUND_UP, traps=traps)):
        yield


@contextlib.contextmanager
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@contextlib.contextmanager
def small_recursion_limit() -> Iterator[None]:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(traceback.extract_stack()) + 120)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


@contextlib.contextmanager
def much_at_once() -> Iterator[None]:
    """What has nothing to do with each other."""
    without_collection = setting(lambda on: gc.enable() if on else gc.disable(), False, True)
    deterministic = setting(torch.use_deterministic_algorithms, True, False)
    short_floats = setting(torch.set_default_dtype, torch.bfloat16, torch.float32)
    with few_digits(), warnings_are_errors(), without_collection(), deterministic(), short_floats():
        yield


HOSTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "default device meta": setting(torch.set_default_device, "meta", None),
    "default device that isn't here": setting(torch.set_default_device, "cuda", None),
    "a device's block": lambda: torch.device("meta"),
    "numpy raises": lambda: np.errstate(all="raise"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "small recursion limit": small_recursion_limit,
    "much at once": much_at_once,
}


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_what_the_host_has_set_changes_nothing_and_stays(
    host: Callable[[], AbstractContextManager[Any]], expected: list[tuple[str, object]]
) -> None:
    """A default device broke loading, pictures and forms, and np.seterr(all="raise") the forms."""
    with host():
        before = state()
        found = replies()
        after = state()
    assert found == expected
    assert after == before


def count(model: llm.Model | llm.AsyncModel) -> Any:
    """Two blocks."""
    return model.prompt("Count from 1 to 400", seed=3, canvas_length=64, max_tokens=65)


def test_between_two_blocks_the_host_has_its_own_settings() -> None:
    """What is set for a step must not stay set where the reply waits for its reader."""
    expected = list(count(llm.get_model(TINY)))
    with torch.device("meta"), torch.inference_mode(), torch.autocast("cpu"), np.errstate(all="raise"):
        before = state()
        chunks = []
        for chunk in count(llm.get_model(TINY)):
            chunks.append(chunk)
            assert state() == before
    assert len(chunks) == 2
    assert chunks == expected


def test_the_async_model_in_a_host_of_its_own() -> None:
    """Its thread shares the default dtype with the program, which goes on meanwhile."""
    expected = list(count(llm.get_model(TINY)))
    seen = []
    engine = get_engine(llm.get_model(TINY).entry).engine

    def see() -> None:
        seen.append((torch.get_default_dtype(), torch.get_default_device().type))

    async def run() -> list[str]:
        return [chunk async for chunk in count(llm.get_async_model(TINY))]

    with (
        after_each_forward(engine, see),
        setting(torch.set_default_dtype, torch.float64, torch.float32)(),
        torch.device("meta"),
    ):
        before = state()
        assert asyncio.run(run()) == expected
        assert state() == before
    assert set(seen) == {(torch.float64, "cpu")}


def test_few_digits_move_no_bound() -> None:
    """Where the host's arithmetic had two digits, at most 117 was at most 120."""
    wide = Bounds(minimum=decimal.Decimal("0.125"), maximum=decimal.Decimal(117))

    def language() -> object:
        bounded_number.cache_clear()
        numbers._between.cache_clear()
        return bounded_number(wide)

    expected = language()
    with decimal.localcontext(decimal.Context(prec=2)):
        found = language()
    assert repr(found) == repr(expected)


def test_the_program_may_change_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image processor was looked for in the folder of the first reply, by a relative path."""
    checkpoint = llm.get_model(TINY).entry.sources[0].where
    (tmp_path / "model").symlink_to(checkpoint)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_MODEL", "model")
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_DEVICE", "cpu")
    engine = get_engine(llm.get_model("diffusiongemma").entry).engine
    monkeypatch.chdir("/")
    assert engine.image_reader.cut(Image.new("RGB", (64, 48)), None).soft_tokens > 0


@pytest.mark.skipif(sys.platform == "win32", reason="a folder in use can't be removed there")
def test_a_current_folder_that_is_gone_is_a_sentence(tmp_path: Path) -> None:
    """Importing transformers asks for it, and said FileNotFoundError without a name. MKL asks at its first large
    product, and ended the process."""
    code = (
        "import llm, os, pathlib\n"
        f"model = llm.get_model('{TINY}')\n"
        "gone = pathlib.Path('gone'); gone.mkdir(); os.chdir(gone); os.rmdir('../gone')\n"
        "def ask(**more):\n"
        "    try: return model.prompt('What is a canvas?', seed=1, **more).text()\n"
        "    except Exception as error: return f'{type(error).__name__}: {error}'\n"
        "print(ask())\n"
        f"os.chdir({str(tmp_path)!r}); print(ask())\n"
        "gone.mkdir(); os.chdir(gone); os.rmdir('../gone'); print(ask())\n"
        f"print(ask(attachments=[llm.Attachment(content={picture().content!r})]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    first, second, third, with_image = done.stdout.splitlines()
    assert first.startswith("DiffusionGemmaError: The current folder is gone")
    assert second == third  # what is loaded needs it no more
    assert second.startswith("A canvas is")
    assert with_image.startswith("DiffusionGemmaError: The current folder is gone")


def test_where_llm_can_make_no_folder_a_form_is_held_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise PermissionError(13, "Permission denied")

    model = llm.get_model(TINY)
    monkeypatch.setattr(llm, "user_dir", refuse)
    assert reply(model, regex="(yes|no)")[0] in ("yes", "no")


def test_only_llms_own_command_freezes_what_there_is(
    monkeypatch: pytest.MonkeyPatch, llm_command: Callable[..., object]
) -> None:
    """What is garbage of the program's own by then would stay for ever."""
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(True))
    get_engine(llm.get_model(TINY).entry)
    assert not frozen
    engine_module._engines.clear()
    llm_command("-m", TINY, "Hello", "-o", "max_denoising_steps", "1")
    assert not frozen
    engine_module._engines.clear()
    monkeypatch.setattr(Command, "owns_process", True)
    handler = signal.getsignal(signal.SIGINT)
    try:
        llm_command("-m", TINY, "Hello", "-o", "max_denoising_steps", "1")
    finally:
        signal.signal(signal.SIGINT, handler)
    assert frozen


# --- forks -------------------------------------------------------------------------------------------------


def test_what_a_fork_makes_of_cuda_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says so itself, with RuntimeError; or it finds no GPU, and the CPU would be taken silently."""
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    entry = llm.get_model(TINY).entry
    # The parent had only asked whether there are any, as PyTorch's CUDA builds note on machines without a GPU.
    assert get_engine(entry).engine
    monkeypatch.setattr(forks, "cuda_was_used", True)
    for device in (None, "cuda", " CUDA:1 "):
        with pytest.raises(DeviceError, match=r"forked .*spawn.*LLM_DIFFUSIONGEMMA_DEVICE=cpu"):
            get_engine(dataclasses.replace(entry, device=device))
    assert get_engine(dataclasses.replace(entry, device="cpu")).engine


def test_a_model_on_a_gpu_is_lost_by_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = get_engine(llm.get_model(TINY).entry).engine
    blocks = iter(count(llm.get_model(TINY)))
    next(blocks)
    monkeypatch.setattr(engine, "loaded", SimpleNamespace(**vars(engine.loaded), device=torch.device("mps")))
    engine.check_process()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(DeviceError, match=r"forked .*\(mps\).*spawn"):
        next(blocks)


def test_an_import_that_failed_can_be_cut_again() -> None:
    with pytest.raises(ImportError), forks.importing("what isn't there"):
        raise ImportError
    for is_large in (True, False):
        with forks.importing("what isn't there"):
            assert bool(forks._at_it) == is_large


# Everything in one process, for its imports are what takes long.
FORKS = """
import asyncio, functools, multiprocessing, os, signal, sys, threading, time
import llm
from llm_diffusiongemma.backends import forks

def in_child(work):
    # What work returns in a forked process; no child outlives its patience.
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(40)
        try:
            answer = work()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer = pipe.read().decode()
    os.waitpid(child, 0)
    return answer or "hangs"

def end(thread):
    # Its native thread ends after join(), and MKL gives its buffers back then: a process that is forked in the
    # middle of that waits for their lock for ever. Seen in a debugger; only Linux says when it is over.
    thread.join()
    while os.path.exists(f"/proc/self/task/{thread.native_id}"):
        time.sleep(0.01)

def say(name, answer):
    print(f"{name}: {answer}", flush=True)

model = llm.get_model("diffusiongemma-tiny")
asked = dict(seed=3, max_denoising_steps=2, max_tokens=40, canvas_length=64)

def reply(**more):
    return model.prompt("Count from 1 to 320", **asked, **more).text()

def reply_twice():
    try:
        reply()
    except llm.ModelError:
        return reply()

def is_same():
    return str(reply() == expected)

# While another thread imports.
texts = []
thread = threading.Thread(target=lambda: texts.append(reply()))
thread.start()
while not forks._at_it:
    time.sleep(0.001)
say("importing", in_child(reply_twice))
end(thread)
expected = texts[0]

import torch
from llm_diffusiongemma.backends import engine as engines
from llm_diffusiongemma.backends.engine import Engine, get_engine

# While another thread loads.
from llm_diffusiongemma.diffusion import weights
fill, loads, go_on = weights.Reader.fill, threading.Event(), threading.Event()
def fill_and_wait(*arguments):
    if threading.current_thread() is thread:
        loads.set()
        go_on.wait()
    fill(*arguments)
weights.Reader.fill = fill_and_wait
engines._engines, loaded = {}, engines._engines
thread = threading.Thread(target=reply)
thread.start()
loads.wait()
say("loading", in_child(reply))
engines._engines |= loaded
say("loading another", in_child(is_same))
go_on.set()
end(thread)

say("idle", in_child(is_same))
say("two threads", torch.get_num_threads())

# While another thread is in the middle of a step, and computes a property.
engine = get_engine(model.entry).engine
in_a_step, go_on = threading.Event(), threading.Event()
def wait(*_):
    if threading.current_thread() is thread:
        in_a_step.set()
        go_on.wait()
denoise = engine.loaded.network.denoise
def denoise_and_wait(*arguments):
    wait()
    return denoise(*arguments)
engine.loaded.network.denoise = denoise_and_wait
thread = threading.Thread(target=lambda: texts.append(reply()))
thread.start()
in_a_step.wait()
property_lock = getattr(vars(Engine)["_vocabulary"], "lock", threading.RLock())
held, let_go = threading.Event(), threading.Event()
def hold():
    with property_lock:
        held.set()
        let_go.wait()
holder = threading.Thread(target=hold)
holder.start()
held.wait()

def of_a_form():
    return str(len(reply(regex="[0-9 ]{20}")))

async def as_async():
    return await llm.get_async_model("diffusiongemma-tiny").prompt("Count from 1 to 320", **asked).text()

say("answering", in_child(lambda: f"{is_same()} {torch.get_num_threads()}"))
say("answering, a form", in_child(of_a_form))
say("answering, async", in_child(lambda: str(asyncio.run(as_async()) == expected)))
say("a child's child", in_child(lambda: in_child(is_same)))

def put(queue):
    signal.alarm(40)
    queue.put(is_same())

context = multiprocessing.get_context("fork")
queue = context.SimpleQueue()
process = context.Process(target=put, args=(queue,))
process.start()
process.join(60)
say("multiprocessing", "hangs" if process.exitcode else queue.get())

go_on.set()
let_go.set()
end(thread)
end(holder)
say("the parent", texts[1] == expected and reply() == expected)

# Between two blocks of a reply.
chunks = iter(model.prompt("Count from 1 to 400", seed=3, max_denoising_steps=8, canvas_length=64, max_tokens=65))
first = next(chunks)
rest = in_child(lambda: first + "".join(chunks))
say("between two blocks", (rest == first + "".join(chunks), len(first) < len(rest)))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forks() -> None:
    """A fork while another thread answered, or with torch on two threads, waited in the child for ever."""
    done = subprocess.run(
        [sys.executable, "-c", FORKS],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
    )
    assert done.returncode == 0, done.stderr
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    for moment in ("importing", "loading"):
        refused = said.pop(moment)
        assert refused.startswith("DiffusionGemmaError: This process was forked off one in which another thread")
        assert "spawn" in refused
    assert said == {
        "loading another": "True",
        "idle": "True",
        "two threads": "2",
        "answering": "True 2",
        "answering, a form": "20",
        "answering, async": "True",
        "a child's child": "True",
        "multiprocessing": "True",
        "the parent": "True",
        "between two blocks": "(True, True)",
    }
    assert not done.stderr
