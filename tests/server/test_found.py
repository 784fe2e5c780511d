"""`llm` over a server that it finds by itself, as a user has it."""

from __future__ import annotations

import signal
import sys
import time
from typing import Any

import pytest

from llm_diffusiongemma.backends import launch, running
from llm_diffusiongemma.catalog import SERVER_VARIABLE

from ..conftest import PATIENCE_SECONDS, TINY, Llm

pytestmark = [
    pytest.mark.usefixtures("served"),
    pytest.mark.skipif(sys.platform == "win32", reason="no server in the background there"),
]

# Many canvases, whatever the network would rather say.
LONG = ("-m", TINY, "-o", "regex", "[a-z ]{8000}", "What is a canvas?")


def status() -> dict[str, Any]:
    found = running.recorded()
    assert found is not None
    return launch.ask(found, "GET", "/diffusiongemma/status")


def wait_until(is_running: bool) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (status()["running_since"] is not None) is not is_running:
        assert time.monotonic() < deadline, status()
        time.sleep(0.01)


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
    monkeypatch.setenv(SERVER_VARIABLE, "off")
    here = ask()
    for there, this in zip(served, here, strict=True):
        assert list(there) == list(this)
        assert list(there["response_json"]) == list(this["response_json"])
        for name in ("response", "reasoning", "input_tokens", "output_tokens", "resolved_model"):
            assert there[name] == this[name]


@pytest.mark.parametrize("mode", [(), ("--async",)])
def test_ctrl_c(llm_command: Llm, mode: tuple[str, ...]) -> None:
    """What has come is kept, and the server is free at once: not some thirty canvases later."""
    process = llm_command.process(*LONG, *mode)
    assert process.stdout is not None
    begun = process.stdout.read(100)
    assert len(begun) == 100
    wait_until(is_running=True)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    wait_until(is_running=False)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    if mode:  # which llm doesn't keep
        assert errors.strip() == "Interrupted."
        assert llm_command.logs() == []
        return
    assert errors.strip() == "Interrupted: the reply ends here."
    (turn,) = llm_command.logs()
    assert turn["response"] == (begun + output).strip()
    report = turn["response_json"]
    assert (report["finish_reason"], report["server"]) == ("interrupted", "local server")
    assert 0 < len(report["blocks"]) < 20
    assert turn["output_tokens"] == sum(block["tokens"] for block in report["blocks"])


def test_ctrl_c_in_a_chat(llm_command: Llm) -> None:
    command = llm_command.process("chat", *LONG[:-1], interactive=True)
    assert command.stdin is not None
    assert command.stdout is not None
    command.stdin.write("Why?\n")
    command.stdin.flush()
    while "> " not in command.stdout.read(1) + command.stdout.read(1):
        pass
    wait_until(is_running=True)
    command.send_signal(signal.SIGINT)
    output, errors = command.communicate("exit\n")
    assert command.returncode == 0, errors
    assert "Interrupted: the reply ends here." in errors
    (turn,) = llm_command.logs()
    assert turn["response_json"]["finish_reason"] == "interrupted"
    wait_until(is_running=False)
