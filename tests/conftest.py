"""What every test needs: one thread, no network, a log of its own, and `llm` as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click.testing
import huggingface_hub.constants
import hypothesis
import llm.cli
import pytest
import torch

from llm_diffusiongemma.backends.engine import Engine
from llm_diffusiongemma.chat.template import ChatTemplate

TINY = "diffusiongemma-tiny"
PATIENCE_SECONDS = 120
# As `llm models options set` keeps it: a run that fails can be made again, and none fails by an odd draw.
DEFAULT_OPTIONS = {TINY: {"seed": 1}}
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "LLM_LOAD_PLUGINS": "llm-diffusiongemma"}


# Examples that are the same in every run: none fails by an odd draw.
hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("LLM_") or name in ("HF_HOME", "HF_HUB_CACHE", "HF_TOKEN"):
            monkeypatch.delenv(name)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    # It has read its environment when it was imported, maybe before this.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    user_path = tmp_path_factory.mktemp("llm")
    (user_path / "model_options.json").write_text(json.dumps(DEFAULT_OPTIONS))
    monkeypatch.setenv("LLM_USER_PATH", str(user_path))


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

    def __call__(self, *arguments: str, input: str | None = None) -> click.testing.Result:  # noqa: A002
        return click.testing.CliRunner().invoke(llm.cli.cli, arguments, input=input, catch_exceptions=False)

    def ok(self, *arguments: str, input: str | None = None) -> str:  # noqa: A002
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
        if not os.path.exists(os.path.join(os.environ["LLM_USER_PATH"], "logs.db")):
            return []  # llm would make one, which takes a while
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


@pytest.fixture
def llm_command() -> Iterator[Llm]:
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
