"""Ctrl-C, for real: SIGINT to an `llm` process in the middle of a reply."""

from __future__ import annotations

import signal
import subprocess
import time

import pytest

from .conftest import TINY, Llm

# Never sure enough to stop: both canvases take all of their steps, long enough to be interrupted.
SLOW = "-o seed 3 -o max_denoising_steps 150 -o confidence_threshold 1e-12 -o max_tokens 512".split()

pytestmark = pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")


def read_into_second_canvas(process: subprocess.Popen[str]) -> str:
    """Read the start of the first block, which comes in one piece, and wait until the next has begun."""
    assert process.stdout is not None
    seen = ""
    while not seen.endswith("1 2 3"):
        character = process.stdout.read(1)  # to its end at the latest when the process is killed
        assert character, (seen, end(process))
        seen += character
    time.sleep(0.3)
    return seen


def end(process: subprocess.Popen[str]) -> tuple[str, str]:
    """The rest of both outputs. `communicate` would lose what is in the reader's buffer."""
    assert process.stdout is not None
    assert process.stderr is not None
    output, errors = process.stdout.read(), process.stderr.read()
    process.wait()
    return output, errors


def test_partial_turn_is_kept(llm_command: Llm) -> None:
    process = llm_command.process("-m", TINY, "Count from 1 to 400", *SLOW)
    first = read_into_second_canvas(process)
    process.send_signal(signal.SIGINT)
    rest, errors = end(process)
    assert process.returncode == 0, errors
    assert "Interrupted" in errors
    assert "Traceback" not in errors
    (turn,) = llm_command.logs()
    assert turn["response"] == (first + rest).rstrip("\n")
    assert turn["response"].startswith("1 2 3 4 5 ")
    assert turn["response_json"]["finish_reason"] == "interrupted"
    assert [block["tokens"] for block in turn["response_json"]["blocks"]] == [256]
    assert turn["output_tokens"] == 256


def test_it_stops_within_a_step() -> None:
    """In process, where the steps can be counted: not one denoiser forward after the signal."""
    import llm

    from llm_diffusiongemma.backends import local

    model = llm.get_model(TINY)
    engine = local.get_engine(model.entry).engine
    forwards = []

    def interrupt_in_step_five(*_: object) -> None:
        forwards.append(None)
        if len(forwards) == 5:
            signal.raise_signal(signal.SIGINT)

    hook = engine.loaded.model.model.decoder.register_forward_hook(interrupt_in_step_five)
    try:
        response = model.prompt("Count from 1 to 400", max_denoising_steps=400, confidence_threshold=1e-12)
        assert response.text() == ""
    finally:
        hook.remove()
    assert response.response_json["finish_reason"] == "interrupted"
    assert len(forwards) <= 6
    assert engine.lock.acquire(blocking=False)
    engine.lock.release()


def test_chat_and_its_model_survive(llm_command: Llm) -> None:
    process = llm_command.process("chat", "-m", TINY, *SLOW, interactive=True)
    assert process.stdin is not None
    process.stdin.write("Count from 1 to 400\n")
    process.stdin.flush()
    read_into_second_canvas(process)
    process.send_signal(signal.SIGINT)
    process.stdin.write("What is entropy?\nexit\n")
    process.stdin.flush()
    process.stdin.close()
    output, errors = end(process)
    assert process.returncode == 0, errors
    first, second = llm_command.logs()
    assert first["response_json"]["finish_reason"] == "interrupted"
    # Whatever it says with these settings: it is a whole reply, of the model that was loaded before.
    assert second["response_json"]["finish_reason"] in ("stop", "length")
    assert second["output_tokens"] > 0
    assert second["response"].strip() in output
    assert second["response_json"]["load_seconds"] == 0
    assert first["conversation_id"] == second["conversation_id"]
