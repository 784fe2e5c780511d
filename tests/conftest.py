"""What every test needs: one thread, no network, a log of its own, and `llm` as a user calls it."""

from __future__ import annotations

import atexit
import gc
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import click.testing
import huggingface_hub.constants
import hypothesis
import llm.cli
import pytest
import sqlite_utils
import torch
from huggingface_hub.utils import detect_agent
from llm.migrations import migrate
from safetensors.torch import load_file, save_file

from llm_diffusiongemma.backends import engine, launch
from llm_diffusiongemma.backends.engine import Engine
from llm_diffusiongemma.backends.settings import Settings
from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.chat.template import ChatTemplate
from llm_diffusiongemma.diffusion import devices
from llm_diffusiongemma.hub import exchange

if not torch.cuda.is_available():
    # Kernels run in Triton's interpreter, which is chosen when Triton is imported: transformers does that, too.
    os.environ["TRITON_INTERPRET"] = "1"

from .loopback_hub import FIRST_SHARD, INDEX, LAST_SHARD, LoopbackHub

TINY = "diffusiongemma-tiny"
PATIENCE_SECONDS = 120
# As `llm models options set` keeps it: a run that fails can be made again, and none fails by an odd draw.
DEFAULT_OPTIONS = {TINY: {"seed": 1}}
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "LLM_LOAD_PLUGINS": "llm-diffusiongemma"}

# Whatever who runs them has set: or each worker would rewrite the asserts of all tests in each run, four seconds.
sys.dont_write_bytecode = False

# Examples that are the same in every run: none fails by an odd draw.
hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.load_profile("fixed")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Millions of objects that stay to the end, of libraries and of thousands of tests: whoever looks for garbage
    need not go through them each time, which takes a third of a second."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


# Or Triton's bindings tell at the end of everything that is left of them. No sooner: when it is done, pytest looks
# for garbage, too.
atexit.register(gc.unfreeze)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def user_paths(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Names in a folder of their own: `mktemp` would look at all of its folders to name the next of thousands."""
    folder = tmp_path_factory.mktemp("llm")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def _environment(user_paths: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    user_path = next(user_paths)
    user_path.mkdir()
    set_environment(user_path, monkeypatch)


def set_environment(user_path: Path, patch: pytest.MonkeyPatch) -> None:
    """Nothing of who runs the tests; and in a folder of their own they find no server of theirs."""
    for name in list(os.environ):
        if name.startswith("LLM_") or name in ("HF_HOME", "HF_HUB_CACHE", "HF_TOKEN"):
            patch.delenv(name)
    # A process of ours would compile all of the package each time, a quarter of a second of each command.
    patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    for name, value in ENVIRONMENT.items():
        patch.setenv(name, value)
    # It has read its environment when it was imported, maybe before this.
    patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (user_path / "model_options.json").write_text(json.dumps(DEFAULT_OPTIONS))
    patch.setenv("LLM_USER_PATH", str(user_path))


@pytest.fixture(scope="session")
def served_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """llm's folder of a user who has a server running, in a process of its own."""
    if sys.platform == "win32":
        pytest.skip("no server in the background there")
    user_path = tmp_path_factory.mktemp("served")
    # Not in between: what other fixtures of that scope ask for would be answered by it.
    with pytest.MonkeyPatch.context() as patch:
        set_environment(user_path, patch)
        launch.start(llm.get_model(TINY).entry, Settings(port=0))
    yield user_path
    with pytest.MonkeyPatch.context() as patch:
        set_environment(user_path, patch)
        launch.stop()


@pytest.fixture
def served(served_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before `llm_command`: that user's commands."""
    monkeypatch.setenv("LLM_USER_PATH", str(served_path))


@pytest.fixture(autouse=True)
def _prompts_as_transformers_renders_them(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever conversation a test brings before the embedded checkpoint's template."""
    render = ChatTemplate.render
    differing = []

    def compare(self: ChatTemplate, messages: Any, *, tools: Any, enable_thinking: bool, **values: Any) -> str:
        from .tokenizers import rendered_by_transformers, theirs

        rendered = render(self, messages, tools=tools, enable_thinking=enable_thinking, **values)
        if self._source == theirs().chat_template:
            expected = rendered_by_transformers(messages, tools, enable_thinking)
            if rendered != expected:
                differing.append((rendered, expected))
        return rendered

    monkeypatch.setattr(ChatTemplate, "render", compare)
    yield
    assert not differing


class Llm:
    """The `llm` command over one log database: in this process (fast), or in a new one (real)."""

    def __call__(self, *arguments: str, input: str | bytes | None = None) -> click.testing.Result:  # noqa: A002
        return click.testing.CliRunner().invoke(llm.cli.cli, arguments, input=input, catch_exceptions=False)

    def ok(self, *arguments: str, input: str | bytes | None = None) -> str:  # noqa: A002
        """Standard output of a command that has to succeed, without the last newline."""
        result = self(*arguments, input=input)
        assert result.exit_code == 0, result.output
        return result.stdout.removesuffix("\n")

    def fails(self, *arguments: str, input: str | None = None) -> str:  # noqa: A002
        """The message of a command that has to fail: one `Error:`, status 1, no traceback, no new log."""
        before = len(self.logs())
        result = self(*arguments, input=input)
        assert result.exit_code == 1, result.output
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        # Nothing else on stderr, but for what a download says first.
        assert result.stderr.startswith(("Error: ", "The weights of ")), result.stderr
        assert sum(line.startswith("Error: ") for line in result.stderr.splitlines()) == 1
        assert len(self.logs()) == before
        return result.stderr.partition("Error: ")[2].strip()

    def logs(self) -> list[dict]:
        """All logged turns, oldest first."""
        result = self("logs", "list", "-n", "0", "--json")
        return json.loads(result.stdout) if result.exit_code == 0 else []

    def process(
        self,
        *arguments: str,
        interactive: bool = False,
        module: Sequence[str] = ("llm",),
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
    ) -> subprocess.Popen[str]:
        """The command in a process of its own, killed after a while whatever happens.

        `module` runs it, with arguments of its own before those of the command. Not interactive it gets no
        standard input: `llm prompt` would read that to its end first.
        """
        process = subprocess.Popen(
            [sys.executable, "-m", *module, *arguments],
            stdin=subprocess.PIPE if interactive else subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            text=True,
            env=dict(os.environ),
        )
        timer = threading.Timer(PATIENCE_SECONDS, process.kill)
        timer.start()
        self._started.append((process, timer))
        return process

    def __init__(self) -> None:
        self._started: list[tuple[subprocess.Popen[str], threading.Timer]] = []

    def close(self) -> None:
        for process, timer in self._started:
            timer.cancel()
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


@pytest.fixture(scope="session")
def empty_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log database without a turn: llm takes some thirty migrations to make one."""
    path = tmp_path_factory.mktemp("log") / "logs.db"
    with closing(sqlite_utils.Database(path)) as log:
        migrate(log)
    return path


@pytest.fixture
def llm_command(empty_log: Path) -> Iterator[Llm]:
    shutil.copy(empty_log, os.environ["LLM_USER_PATH"])
    command = Llm()
    yield command
    command.close()


@pytest.fixture
def network_says(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[int]]]:
    """Let the network write these texts, one a reply, and return the prompts that it is given.

    For what a network of this size does not do when it is asked: two calls at once, a call cut off.
    """

    def say(*replies: str) -> list[list[int]]:
        from llm_diffusiongemma.backends.engine import get_engine
        from llm_diffusiongemma.diffusion.pipeline import Block
        from llm_diffusiongemma.diffusion.request import Request

        engine = get_engine(llm.get_model(TINY).entry).engine
        left = iter(replies)
        prompts: list[list[int]] = []

        def generate(request: Request, **_: object) -> object:
            prompt_ids = list(request.prompt.token_ids)
            prompts.append(prompt_ids)
            ids = engine._tokenizer.encode(next(left))
            return (block for block in [Block(0, ids, 106, 1, True, "stop", len(prompt_ids), 0.1)])

        monkeypatch.setattr(engine.pipeline, "generate", generate)
        return prompts

    return say


@contextmanager
def after_each_forward(engine: Engine, call: Callable[[], object]) -> Iterator[None]:
    """Have something called behind every denoiser's forward of an engine."""
    network = engine.loaded.network
    original = network.denoise

    def denoise(*arguments: Any) -> Any:
        result = original(*arguments)
        call()
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "denoise", denoise)
        yield


# --- a Hub on loopback ---------------------------------------------------------------------------------------

NOT_NEEDED = {
    "README.md": b"# A model",
    "same.gguf": b"the same again",
    "same.pt": b"the same again",
    "original/model.safetensors": b"the same again",
}


@pytest.fixture(scope="session")
def checkpoint_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The embedded checkpoint in two shards, the last one padded, and files that nobody needs."""
    folder = tmp_path_factory.mktemp("served")
    weights = load_file(EMBEDDED_CHECKPOINT / "model.safetensors")
    names = sorted(weights)
    shards = {
        FIRST_SHARD: {name: weights[name] for name in names[::2]},
        LAST_SHARD: {name: weights[name] for name in names[1::2]}
        | {"unused": torch.zeros(2 * 2**20, dtype=torch.uint8)},
    }
    for shard, tensors in shards.items():
        save_file(tensors, folder / shard, metadata={"format": "pt"})
    weight_map = {name: shard for shard, tensors in shards.items() for name in tensors}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for file in EMBEDDED_CHECKPOINT.iterdir():
        if file.suffix in (".json", ".jinja"):
            shutil.copy(file, folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def hub(checkpoint_files: dict[str, bytes]) -> Iterator[LoopbackHub]:
    hub = LoopbackHub({**checkpoint_files, **NOT_NEEDED})
    hub.start()
    yield hub
    hub.stop()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "hub"


@pytest.fixture
def in_processes(hub: LoopbackHub, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment of commands that run in a process of their own, as a user sets it."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture
def in_process(hub: LoopbackHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for this process, where huggingface_hub has read the environment long ago."""
    # It asks the Hub once a process who may have started it: still offline, not the one that is served here.
    detect_agent()
    point_to(hub.url, monkeypatch)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    # The real weights fit this machine, which nobody must judge by before asking for what is served.
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_DEVICE", "cpu")
    monkeypatch.setattr(devices, "total_memory", lambda device: 2**40)
    # Nothing of what happens here may be found by another test.
    monkeypatch.setattr(engine, "_engines", {})
    monkeypatch.setattr(exchange, "RETRY_SECONDS", (0.01, 0.01, 0.01))


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        url + "/{repo_id}/resolve/{revision}/{filename}",
    )
