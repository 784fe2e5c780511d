"""Ctrl-C, for real: SIGINT to an `llm` process in the middle of a reply."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import llm
import pytest
from llm.logs import LogStore
from llm.parts import Message, ReasoningPart, TextPart, ToolCallPart, ToolResultPart

from llm_diffusiongemma.backends import engine
from llm_diffusiongemma.backends.local import LocalReply
from llm_diffusiongemma.backends.turn import Stop, Turn
from llm_diffusiongemma.chat.messages import without_unanswered
from llm_diffusiongemma.diffusion import pipeline, sampler, weights
from llm_diffusiongemma.errors import ImageError
from llm_diffusiongemma.interrupts import Command
from llm_diffusiongemma.options import Options

from . import tmux
from .conftest import ENVIRONMENT, TINY, Llm, after_each_forward

# Never sure enough to stop: both canvases take all of their steps, long enough to be interrupted.
SLOW = "-o seed 3 -o max_denoising_steps 20 -o confidence_threshold 1e-12 -o max_tokens 512".split()

# Whose first call a SIGINT meets.
LOADING = (weights.Reader, "fill")
PREFILL = (pipeline.BlockDiffusionPipeline, "_prefill")
DENOISING = (sampler.EntropyBoundSampler, "measure")
PRINTING = (click, "echo")

pytestmark = pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")


@contextlib.contextmanager
def interrupting(owner: Any, name: str, call: int = 1) -> Iterator[None]:
    """A SIGINT when a function is called for the first time, or at a later call."""
    original = getattr(owner, name)
    calls = itertools.count(1)

    def interrupted(*arguments: object, **settings: object) -> object:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        yield
    assert next(calls) > call


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
    """In process; a chat's is a real one, and so are those of a server's clients."""
    with interrupting(*DENOISING, call=22):
        result = llm_command("-m", TINY, "Count from 1 to 400", *SLOW)
    assert (result.exit_code, result.stderr.strip()) == (130, "Interrupted: the reply ends here.")
    (turn,) = llm_command.logs()
    assert turn["response"] == result.stdout.rstrip("\n")
    assert turn["response"].startswith("1 2 3 4 5 ")
    assert turn["response_json"]["finish_reason"] == "interrupted"
    assert [block["tokens"] for block in turn["response_json"]["blocks"]] == [256]
    assert turn["output_tokens"] == 256


def test_it_stops_within_a_step() -> None:
    """In process, where the steps can be counted: not one denoiser forward after the signal."""
    model = llm.get_model(TINY)
    loaded = engine.get_engine(model.entry).engine
    forwards = []

    def interrupt_in_step_five() -> None:
        forwards.append(None)
        if len(forwards) == 5:
            signal.raise_signal(signal.SIGINT)

    with after_each_forward(loaded, interrupt_in_step_five):
        response = model.prompt("Count from 1 to 400", max_denoising_steps=400, confidence_threshold=1e-12)
        assert response.text() == ""
    assert response.response_json["finish_reason"] == "interrupted"
    assert len(forwards) <= 6
    assert loaded.lock.acquire(blocking=False)
    loaded.lock.release()


def test_chat_and_its_model_survive(llm_command: Llm) -> None:
    """While it imports, too: a half-imported torch could not be imported again."""
    process = llm_command.process(
        "chat", "-m", TINY, *SLOW, interactive=True, module=("tests.interrupting", "plainly", "torch.nn")
    )
    assert process.stdin is not None
    process.stdin.write("What is entropy?\nCount from 1 to 400\n")
    process.stdin.flush()
    read_into_second_canvas(process)
    process.send_signal(signal.SIGINT)
    process.stdin.write("What is entropy?\nexit\n")
    process.stdin.flush()
    process.stdin.close()
    output, errors = end(process)
    assert process.returncode == 0, errors
    assert errors.count("Interrupted: the reply ends here.") == 2
    unanswered, first, second = llm_command.logs()
    assert (unanswered["response"], unanswered["response_json"]) == ("", {"finish_reason": "interrupted"})
    assert first["response_json"]["finish_reason"] == "interrupted"
    # Whatever it says with these settings: it is a whole reply, of the model that was loaded before.
    assert second["response_json"]["finish_reason"] in ("stop", "length")
    assert second["output_tokens"] > 0
    assert second["response"].strip() in output
    assert second["response_json"]["load_seconds"] == 0
    assert unanswered["conversation_id"] == first["conversation_id"] == second["conversation_id"]


@pytest.mark.skipif(not tmux.is_there(), reason=tmux.REASON)
def test_a_chat_on_a_terminal_that_shows_its_canvas(tmp_path: Path) -> None:
    """Nothing of the canvas stays, nor of what was done to the terminal for it."""
    turn = "> Count from 1 to 400\n^C\nInterrupted: the reply ends here.\n\n"
    terminal = tmux.Tmux(tmp_path)
    try:
        terminal.run(
            *(sys.executable, "-m", "llm", "chat", "-m", TINY, *SLOW),
            **ENVIRONMENT,
            LLM_USER_PATH=os.environ["LLM_USER_PATH"],
        )
        terminal.wait_for("\n>")
        for number in (1, 2):
            terminal.press("Count from 1 to 400", "Enter")
            terminal.wait_for("canvas 1")
            terminal.press("C-c")
            terminal.wait_for(number * turn + ">")
        assert terminal.flag("cursor_flag") == terminal.flag("wrap_flag") == "1"
        terminal.press("exit", "Enter")
        seen = terminal.wait_for("<ended 0>")
    finally:
        terminal.close()
    assert seen.endswith(f"agments\n{turn}{turn}> exit\n<ended 0>")


def test_nothing_after_it_runs(llm_command: Llm) -> None:
    """`llm … && next`, in every phase of the work: the status is a shell's 130, and the turn is in the log."""
    for phase in (PREFILL, DENOISING, PRINTING):
        with interrupting(*phase):
            result = llm_command("-m", TINY, "What is a canvas?")
        assert result.exit_code == 130, phase
        assert result.stderr.strip() == "Interrupted: the reply ends here.", phase
        turn = llm_command.logs()[-1]
        assert turn["response"] == result.stdout.strip()
    # The last one was whole.
    assert turn["response"].startswith("A canvas is")
    assert [turn["response_json"]["finish_reason"] for turn in llm_command.logs()] == [
        "interrupted",
        "interrupted",
        "stop",
    ]
    assert llm_command("-m", TINY, "What is a canvas?").exit_code == 0


def test_as_an_error_of_a_library(llm_command: Llm) -> None:
    """pydantic, for one, makes an error of its own of what a signal raises inside of it."""
    with interrupting(*DENOISING), pytest.MonkeyPatch.context() as patch:
        step = getattr(*DENOISING)

        def wrapped(*arguments: object, **settings: object) -> object:
            try:
                return step(*arguments, **settings)
            except KeyboardInterrupt as error:
                raise ValueError("KeyboardInterrupt") from error

        patch.setattr(*DENOISING, wrapped)
        result = llm_command("-m", TINY, "What is a canvas?")
    assert (result.exit_code, result.stderr.strip()) == (130, "Interrupted: the reply ends here.")
    (turn,) = llm_command.logs()
    assert turn["response_json"]["finish_reason"] == "interrupted"


def test_while_loading(llm_command: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_engines", {})
    with interrupting(*LOADING):
        result = llm_command("-m", TINY, "What is a canvas?")
    # There is nothing to print or to log.
    assert (result.exit_code, result.stdout, result.stderr.strip()) == (130, "", "Interrupted.")
    assert llm_command.logs() == []
    assert not engine._engines
    assert llm_command("-m", TINY, "What is a canvas?").exit_code == 0


def test_async_too(llm_command: Llm) -> None:
    """llm drops such a turn; the status is the same."""
    for phase in (PREFILL, DENOISING):
        with interrupting(*phase):
            result = llm_command("-m", TINY, "--async", "What is a canvas?")
        assert result.exit_code == 130, phase
        assert result.stderr.strip() == "Interrupted.", phase
    assert llm_command.logs() == []
    assert llm_command("-m", TINY, "--async", "What is a canvas?").exit_code == 0


def test_while_importing(llm_command: Llm) -> None:
    """An exception in the middle of it met PyTorch's C++ now and then, which ended the process by an abort; and in
    code made from a text Python ended by the signal instead of the status, also a chat that had gone on."""
    module = ("tests.interrupting", "plainly", "a text")
    process = llm_command.process("-m", TINY, "What is a canvas?", module=module)
    assert (end(process), process.returncode) == (("", "\nInterrupted.\n"), 130)
    assert llm_command.logs() == []
    process = llm_command.process("chat", "-m", TINY, interactive=True, module=module)
    assert process.stdin is not None
    process.stdin.write("What is a canvas?\nexit\n")
    process.stdin.close()
    _, errors = end(process)
    assert (process.returncode, errors.strip()) == (0, "Interrupted: the reply ends here.")


def test_async_does_not_wait_for_what_cant_be_stopped(llm_command: Llm) -> None:
    """An import, loading, a download. It took seconds, and a second Ctrl-C printed an ignored exception."""
    process = llm_command.process(
        "-m", TINY, "What is a canvas?", "--async", module=("tests.interrupting", "stuck", "torch.nn")
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "\n"
    assert process.stderr.readline() == "Interrupted.\n"
    process.send_signal(signal.SIGINT)  # if it is still there
    assert end(process) == ("", "")
    assert process.returncode == 130
    assert llm_command.logs() == []


@pytest.mark.usefixtures("served")  # whoever answers: it is about what llm prints
@pytest.mark.parametrize("mode", [(), ("--async",)])
def test_while_nobody_reads(llm_command: Llm, mode: tuple[str, ...]) -> None:
    """`llm … | sleep 100`. What was held back while llm printed had no end."""
    unread, pipe = os.pipe()
    os.set_blocking(pipe, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(pipe, bytes(1024)):
            pass
    os.set_blocking(pipe, True)
    process = llm_command.process(
        "-m", TINY, "What is a canvas?", *mode, module=("tests.interrupting", "plainly", "printing"), stdout=pipe
    )
    os.close(pipe)
    assert process.stderr is not None
    assert process.stderr.read().strip() == "Interrupted."
    assert process.wait() == 130
    os.close(unread)


@pytest.mark.usefixtures("served")
def test_when_all_is_said_and_logged(llm_command: Llm) -> None:
    """It ends the process as it ends any other, without a word."""
    process = llm_command.process(
        "-m", TINY, "What is a canvas?", module=("tests.interrupting", "plainly", "the end")
    )
    output, errors = end(process)
    assert (process.returncode, errors) == (-signal.SIGINT, "")
    turn = llm_command.logs()[-1]
    assert turn["response"] == output.strip()


def test_while_llm_logs(llm_command: Llm) -> None:
    """The turn is there or it isn't; a chat ends, too, and by a shell's status."""
    with interrupting(LogStore, "log"):
        result = llm_command("-m", TINY, "What is a canvas?")
    assert (result.exit_code, result.stderr.strip()) == (130, "Interrupted.")
    with interrupting(LogStore, "log"):
        result = llm_command("chat", "-m", TINY, input="What is a canvas?\nexit\n")
    assert (result.exit_code, result.stderr.strip()) == (130, "Interrupted.")
    assert llm_command.logs() == []


def test_a_command_in_the_background_ignores_it(llm_command: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a script's shell has it: `llm … &`."""
    monkeypatch.setattr(Command, "owns_process", True)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupting(*DENOISING):
            result = llm_command("-m", TINY, "What is a canvas?")
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert (result.exit_code, result.stderr) == (0, "")


def test_pressed_twice_while_a_chat_imports(llm_command: Llm) -> None:
    """It went on without all of torch, to end by a traceback."""
    process = llm_command.process(
        "chat", "-m", TINY, interactive=True, module=("tests.interrupting", "twice", "torch.nn")
    )
    assert process.stdin is not None
    process.stdin.write("What is entropy?\nWhat is a canvas?\nexit\n")
    process.stdin.close()
    _, errors = end(process)
    assert (process.returncode, errors.strip()) == (130, "Interrupted.")
    assert llm_command.logs() == []


def test_the_video_reader_is_imported_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut in the middle, PyAV can be imported again, but lacks some of its parts."""
    asked_for = []

    class Asked(Stop):
        is_importing = False

        @contextlib.contextmanager
        def importing(self) -> Iterator[None]:
            self.is_importing = True
            yield
            self.is_importing = False

    class Finder:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "av":
                asked_for.append(stop.is_importing)
                raise ImportError

    stop = Asked()
    video = llm.Attachment(type="video/mp4", content=b"....ftyp")
    monkeypatch.delitem(sys.modules, "av", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with pytest.raises(ImageError, match="takes an extra"):
        LocalReply(llm.get_model(TINY).entry, Turn([llm.user("What is this?", video)], Options()), stop)
    assert asked_for[0]


def test_an_abandoned_question_is_not_asked_again(llm_command: Llm) -> None:
    """It was, together with the next one: two turns of the user in a row."""
    prompts = []
    encoder = engine.get_engine(llm.get_model(TINY).entry).engine.prompt_encoder
    encode = encoder.encode

    def encode_and_keep(messages: Sequence[dict], **settings: object) -> list[int]:
        prompts.append([(message["role"], message["content"]) for message in messages])
        return encode(messages, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "encode", encode_and_keep)
        # From Python.
        conversation = llm.get_model(TINY).conversation()
        conversation.prompt("My name is Ada.", system="Be brief.").text()
        with interrupting(*PREFILL):
            assert conversation.prompt("Count from 1 to 400").text() == ""
        assert conversation.prompt("What is my name?").text() == "Your name is Ada."
        # From the log.
        with interrupting(*PREFILL):
            assert llm_command("-m", TINY, "Count from 1 to 400").exit_code == 130
        llm_command.ok("-c", "What is entropy?")
        # In a chat.
        with interrupting(*PREFILL):
            llm_command.ok("chat", "-m", TINY, input="Count from 1 to 400\nWhat is entropy?\nexit\n")
    system, ada, greeting = ("system", "Be brief."), ("user", "My name is Ada."), "assistant"
    assert prompts[2][:2] == [system, ada]
    assert prompts[2][2][0] == greeting
    assert prompts[2][3:] == [("user", "What is my name?")]
    assert prompts[4] == prompts[6] == [("user", "What is entropy?")]


def test_an_abandoned_turn_goes_with_its_calls() -> None:
    """The next turn began with a call without a result, or with a result that was never answered."""
    first, second = llm.user("What is 1 + 1?"), llm.user("What is entropy?")
    call = ToolCallPart(name="add", arguments={}, tool_call_id="tc_1")
    calls = Message(role="assistant", parts=[call, ReasoningPart(text="")])
    result = Message(role="tool", parts=[ToolResultPart(name="add", output="2", tool_call_id="tc_1")])
    nothing = Message(role="assistant", parts=[ReasoningPart(text="Well")])
    answer = Message(role="assistant", parts=[TextPart(text="2")])
    system = llm.system("Be brief.")
    assert without_unanswered([system, first, calls, second]) == [system, second]
    assert without_unanswered([first, calls, result, nothing, second]) == [second]
    # What has an answer stays, and so does a call whose result is on its way.
    whole = [first, calls, result, answer, second]
    assert without_unanswered(whole) == whole
    assert without_unanswered([first, calls, result]) == [first, calls, result]


def test_explicit_messages_keep_two_questions_in_a_row() -> None:
    messages = [llm.user("My name is Ada."), llm.user("What is my name?")]
    assert without_unanswered(messages) == messages


def test_a_program_keeps_its_own_handler() -> None:
    """While it has the word, and afterwards."""
    before = signal.getsignal(signal.SIGINT)
    assert before is signal.default_int_handler
    for _ in llm.get_model(TINY).prompt("What is a canvas?", seed=1):
        assert signal.getsignal(signal.SIGINT) is before
    assert signal.getsignal(signal.SIGINT) is before


def test_at_any_instant() -> None:
    """A short run of `python -m tests.attacks signals`."""
    from .attacks import signals  # needs POSIX, too

    draw = random.Random(3)
    with signals.world() as folder:
        for kind, sent in (("piped", signal.SIGTERM), ("chat in a terminal", signal.SIGHUP)):
            outcome = signals.attack(kind, sent, draw.uniform(0.8, 2.5), folder)
            assert outcome is None or outcome.held, outcome
