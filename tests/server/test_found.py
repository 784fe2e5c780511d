"""`llm` over a server that it finds by itself, as a user has it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from llm_diffusiongemma.backends import launch, running
from llm_diffusiongemma.backends.running import Running
from llm_diffusiongemma.catalog import SERVER_VARIABLE

from ..conftest import PATIENCE_SECONDS, TINY, Llm

pytestmark = [
    pytest.mark.usefixtures("served"),
    pytest.mark.skipif(sys.platform == "win32", reason="no server in the background there"),
]

# Never sure enough to stop: three canvases take all of their steps, long enough to be interrupted.
SLOW = "-o seed 3 -o max_denoising_steps 20 -o confidence_threshold 1e-12 -o max_tokens 768".split()
QUESTION = "Count from 1 to 900"


def server() -> Running:
    found = running.recorded()
    assert found is not None
    return found


@contextmanager
def standing_still() -> Iterator[None]:
    """So that the server can't be done before it hears of an interrupt, however busy the machine is."""
    os.kill(server().pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server().pid, signal.SIGCONT)


def status() -> dict[str, Any]:
    return launch.ask(server(), "GET", "/diffusiongemma/status")


def wait_until_free() -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while status()["running_since"] is not None:
        assert time.monotonic() < deadline, status()
        time.sleep(0.01)


def read_first_canvas(process: subprocess.Popen[str]) -> str:
    """It comes in one piece, and the server is at the next."""
    assert process.stdout is not None
    seen = ""
    while not seen.endswith("1 2 3"):
        character = process.stdout.read(1)  # to its end at the latest when the process is killed
        assert character, seen
        seen += character
    return seen


def end(process: subprocess.Popen[str]) -> tuple[str, str]:
    """The rest of both outputs. `communicate` would lose what is in the reader's buffer."""
    assert process.stdout is not None
    assert process.stderr is not None
    output, errors = process.stdout.read(), process.stderr.read()
    process.wait()
    return output, errors


@pytest.fixture
def llm_command(served: None, llm_command: Llm) -> Llm:
    """With that user's log."""
    return llm_command


def test_prompts_a_conversation_and_their_log(llm_command: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask() -> list[dict[str, Any]]:
        before = len(llm_command.logs())
        llm_command.ok("-m", TINY, "My name is Ada.")
        llm_command.ok("-c", "What is my name?", "-o", "thinking", "true")
        llm_command.ok("chat", "-m", TINY, input="What is a canvas?\nWhat is entropy?\nexit\n")
        return llm_command.logs()[before:]

    served = ask()
    assert [turn["response_json"].pop("server") for turn in served] == ["local server"] * 4
    assert [turn["response_json"]["load_seconds"] for turn in served] == [0.0] * 4
    # The KV cache is the server's, and a chat finds it again.
    assert "cached_tokens" in served[-1]["token_details"]
    assert json.loads(llm_command.ok("diffusiongemma", "last", "--json"))["answered_by"] == "local server"
    monkeypatch.setenv(SERVER_VARIABLE, "off")
    here = ask()
    for there, this in zip(served, here, strict=True):
        assert list(there) == list(this)
        assert list(there["response_json"]) == list(this["response_json"])
        for name in ("response", "reasoning", "input_tokens", "output_tokens", "resolved_model"):
            assert there[name] == this[name]


@pytest.mark.parametrize("mode", [(), ("--async",)])
def test_ctrl_c(llm_command: Llm, mode: tuple[str, ...]) -> None:
    """What has come is kept, and the server is free at once: it doesn't finish what nobody wants."""
    replies = status()["replies"]
    process = llm_command.process("-m", TINY, QUESTION, *SLOW, *mode)
    begun = read_first_canvas(process)
    with standing_still():
        process.send_signal(signal.SIGINT)
        output, errors = end(process)
    assert process.returncode == 130, errors
    wait_until_free()
    assert status()["replies"] == replies
    if mode:  # which llm doesn't keep
        assert errors.strip() == "Interrupted."
        assert llm_command.logs() == []
        return
    assert errors.strip() == "Interrupted: the reply ends here."
    (turn,) = llm_command.logs()
    assert turn["response"] == (begun + output).strip()
    report = turn["response_json"]
    assert (report["finish_reason"], report["server"]) == ("interrupted", "local server")
    assert 1 <= len(report["blocks"]) < 3
    assert turn["output_tokens"] == sum(block["tokens"] for block in report["blocks"])


def test_ctrl_c_in_a_chat(llm_command: Llm) -> None:
    replies = status()["replies"]
    chat = llm_command.process("chat", "-m", TINY, *SLOW, interactive=True)
    assert chat.stdin is not None
    chat.stdin.write(f"{QUESTION}\n")
    chat.stdin.flush()
    read_first_canvas(chat)
    assert chat.stderr is not None
    with standing_still():
        chat.send_signal(signal.SIGINT)
        assert [chat.stderr.readline() for _ in range(2)] == ["\n", "Interrupted: the reply ends here.\n"]
    wait_until_free()
    assert status()["replies"] == replies
    chat.stdin.write("exit\n")
    chat.stdin.close()
    _, errors = end(chat)
    assert chat.returncode == 0, errors
    assert errors == ""
    (turn,) = llm_command.logs()
    assert turn["response_json"]["finish_reason"] == "interrupted"
