"""Replays as a user asks for them: what is in the file, and what becomes of the reply."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import llm
import pytest

from llm_diffusiongemma.backends import engine
from llm_diffusiongemma.backends.engine import get_engine
from llm_diffusiongemma.backends.turn import FinishReason, Report, Turn
from llm_diffusiongemma.errors import CheckpointError, NotANumberError, ReplayError
from llm_diffusiongemma.options import Options
from llm_diffusiongemma.view.records import Reading
from llm_diffusiongemma.view.replay import page, recorder
from llm_diffusiongemma.view.replay.place import place_of, write
from llm_diffusiongemma.view.replay.recorder import Page, Recorder
from llm_diffusiongemma.view.replay.recording import RecordedReply

from ...conftest import TINY, Llm, after_each_forward
from ...test_tools import WEATHER
from .pages import read
from .snapshots import snapshot

COUNT = ("-m", TINY, "Count from 1 to 20")
TWO_CANVASES = ("-m", TINY, "Count from 1 to 400", "-o", "max_tokens", "300")
HARD = {"max_denoising_steps": 30, "confidence_threshold": 1e-12}
"""so that a canvas takes all of its steps"""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.html"


@pytest.fixture
def in_step_five() -> Iterator[list[BaseException]]:
    """Raises what is put in here after the fifth denoising step."""
    errors: list[BaseException] = []
    forwards: list[None] = []

    def count() -> None:
        forwards.append(None)
        if len(forwards) == 5:
            raise errors[0]

    with after_each_forward(get_engine(llm.get_model(TINY).entry).engine, count):
        yield errors


def test_it_shows_the_reply_that_there_is_without_one(llm_command: Llm, out: Path) -> None:
    plain = llm_command.ok(*TWO_CANVASES)
    assert llm_command.ok(*TWO_CANVASES, "-o", "replay", str(out)) == plain
    before, turn = llm_command.logs()
    (reply,) = read(out)
    assert reply["text"] == turn["response"]
    assert reply["prompt"] == [["user", "Count from 1 to 400"]]
    assert reply["settings"] == {"seed": 1, "max_tokens": 300}
    report = turn["response_json"]
    assert {name: reply["figures"][name] for name in report} == report
    assert reply["figures"]["output_tokens"] == turn["output_tokens"] == 300
    steps = [each["denoising_steps"] for each in before["response_json"]["blocks"]]
    assert [each["denoising_steps"] for each in reply["blocks"]] == steps
    assert [each["tokens"] for each in reply["blocks"]] == [256, 44]
    assert [len(canvas["steps"]) for canvas in reply["canvases"]] == steps
    assert all(canvas["ranks"] > 1 for canvas in reply["canvases"])


def test_through_a_server_it_is_the_same(
    llm_command: Llm, out: Path, served_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm_command.ok(*TWO_CANVASES, "-o", "replay", str(out))
    monkeypatch.setenv("LLM_USER_PATH", str(served_path))
    llm_command.ok(*TWO_CANVASES, "-o", "replay", str(out.with_name("served.html")))
    (here,), (served,) = read(out), read(out.with_name("served.html"))
    assert served["figures"]["server"]
    assert [served[name] for name in ("text", "strings")] == [here[name] for name in ("text", "strings")]
    # An entropy may round otherwise: by its last digits it tells what of the prompt was in whose cache.
    other = sum(one != another for one, another in zip(served["columns"], here["columns"], strict=True))
    assert other < len(here["columns"]) / 1000


def test_what_a_tool_is_called_for_and_what_follows_share_it(llm_command: Llm, out: Path) -> None:
    answer = llm_command.ok(
        "-m", TINY, "--functions", WEATHER, "What is the weather in Rome?", "-o", "replay", str(out)
    )
    call, reply = read(out)
    assert call["figures"]["finish_reason"] == "tool_calls"
    assert call["settings"]["tools"] == ["weather"]
    assert reply["prompt"][-1] == ["tool", "weather: sunny"]
    assert reply["text"] == answer


def test_a_chat_has_one(llm_command: Llm, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packing: list[RecordedReply] = []
    packed = page.packed

    def counted(reply: RecordedReply) -> str:
        packing.append(reply)
        return packed(reply)

    monkeypatch.setattr(page, "packed", counted)
    result = llm_command(
        "chat", "-m", TINY, "-o", "replay", str(out), input="Count from 1 to 3\nCount from 1 to 5\nquit\n"
    )
    assert result.exit_code == 0
    replies, turns = read(out), llm_command.logs()
    assert [reply["text"] for reply in replies] == [turn["response"] for turn in turns]
    assert [reply["prompt"][-1][1] for reply in replies] == ["Count from 1 to 3", "Count from 1 to 5"]
    # An answer doesn't take longer with every one before it.
    assert [reply.text for reply in packing] == [reply["text"] for reply in replies]


def test_from_python(out: Path) -> None:
    model = llm.get_model(TINY)
    for _ in range(2):
        model.prompt("Count from 1 to 3", seed=1, replay=out).text()
    assert len(read(out)) == 1
    conversation = model.conversation()
    for number in (3, 5):
        conversation.prompt(f"Count from 1 to {number}", seed=1, replay=out).text()
    assert [reply["prompt"][-1][1] for reply in read(out)] == ["Count from 1 to 3", "Count from 1 to 5"]


async def test_async(out: Path) -> None:
    response = llm.get_async_model(TINY).prompt("Count from 1 to 20", replay=out)
    text = await response.text()
    (reply,) = read(out)
    assert reply["text"] == text
    assert reply["settings"] == {"seed": response.response_json["seed"]}


def test_a_schema_is_told(llm_command: Llm, out: Path) -> None:
    llm_command.ok("-m", TINY, "--schema", "name, age int", "Invent a person", "-o", "replay", str(out))
    (reply,) = read(out)
    assert list(reply["settings"]["schema"]["properties"]) == ["name", "age"]
    assert reply["blocks"][0]["constraint"]["changed_positions"] >= 0


def test_refused_before_anything_is_done(llm_command: Llm, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_engines", {})
    out.write_text("My thesis")
    assert "holds something else" in llm_command.fails(*COUNT, "-o", "replay", str(out))
    assert not engine._engines
    assert out.read_text() == "My thesis"


def test_a_chat_goes_on_without_it(llm_command: Llm, out: Path) -> None:
    out.write_text("My thesis")
    result = llm_command("chat", "-m", TINY, "-o", "replay", str(out), input="Hello\nHello\nquit\n")
    assert result.exit_code == 0
    assert result.stderr.count("Error: The replay can't be written") == 2


def test_a_refused_prompt_leaves_no_file(llm_command: Llm, out: Path) -> None:
    llm_command.fails("-m", TINY, " ", "-o", "replay", str(out))
    assert not out.exists()


def test_a_disk_that_fills_up_does_not_cost_the_reply(
    llm_command: Llm, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(place: Path, page: str) -> None:
        raise ReplayError("No space left")

    monkeypatch.setattr(recorder, "write", fail)
    for mode in ([], ["--async"]):
        result = llm_command(*COUNT, *mode, "-o", "replay", str(out))
        assert result.exit_code == 1
        assert result.stderr == "\nError: No space left\n"
        assert result.stdout.startswith("1 2 3")
    assert len(llm_command.logs()) == 2
    # A program has its reply.
    assert llm.get_model(TINY).prompt("Count from 1 to 3", seed=1, replay=out).text() == "1 2 3"


def test_interrupted_it_shows_what_there_is(
    llm_command: Llm, out: Path, in_step_five: list[BaseException]
) -> None:
    in_step_five.append(KeyboardInterrupt())
    options = [word for name, value in HARD.items() for word in ("-o", name, str(value))]
    result = llm_command(*COUNT, *options, "-o", "replay", str(out))
    assert result.exit_code == 130
    (reply,) = read(out)
    assert reply["figures"]["finish_reason"] == "interrupted"
    assert reply["settings"]["seed"] == 1
    assert reply["blocks"] == []
    assert [len(canvas["steps"]) for canvas in reply["canvases"]] == [4]


def test_an_error_leaves_what_there_is(out: Path, in_step_five: list[BaseException]) -> None:
    in_step_five.append(NotANumberError())
    with pytest.raises(CheckpointError, match="is not a number") as raised:
        llm.get_model(TINY).prompt("Count from 1 to 20", **HARD, replay=out).text()
    (reply,) = read(out)
    assert reply["figures"]["finish_reason"] == "error"
    assert reply["figures"]["error"] == str(raised.value)
    assert reply["blocks"] == []
    assert [len(canvas["steps"]) for canvas in reply["canvases"]] == [4]


def test_a_reply_that_nobody_reads_on(out: Path) -> None:
    events = llm.get_model(TINY).prompt("Count from 1 to 400", seed=1, replay=out).stream_events()
    first = next(events)
    events.close()
    (reply,) = read(out)
    assert reply["figures"]["finish_reason"] == "interrupted"
    assert reply["text"] == first.chunk
    assert [each["tokens"] for each in reply["blocks"]] == [256]


async def test_cancelled_async(out: Path) -> None:
    async def ask() -> str:
        model = llm.get_async_model(TINY)
        return str(await model.prompt("Count from 1 to 20", **HARD, seed=1, replay=out).text())

    asking = asyncio.ensure_future(ask())
    loop = asyncio.get_running_loop()
    forwards: list[None] = []

    def cancel_in_step_five() -> None:
        forwards.append(None)
        if len(forwards) == 5:
            loop.call_soon_threadsafe(asking.cancel)

    loaded = get_engine(llm.get_model(TINY).entry).engine
    with after_each_forward(loaded, cancel_in_step_five), pytest.raises(asyncio.CancelledError):
        await asking
    (reply,) = read(out)
    assert reply["figures"]["finish_reason"] == "interrupted"
    assert reply["canvases"][0]["steps"]


def test_interrupted_while_it_is_written(llm_command: Llm, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(place: Path, page: str) -> None:
        signal.raise_signal(signal.SIGINT)
        write(place, page)

    monkeypatch.setattr(recorder, "write", interrupted)
    result = llm_command(*COUNT, "-o", "replay", str(out))
    assert result.exit_code == 130
    assert "Interrupted: there is no replay." in result.stderr
    assert len(llm_command.logs()) == 1
    assert not out.exists()


def test_a_terminal_is_told_once(llm_command: Llm, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "on_terminal", lambda: True)
    monkeypatch.chdir(out.parent)
    command = ("-m", TINY, "--functions", WEATHER, "What is the weather in Rome?", "-o", "replay", "out.html")
    assert llm_command(*command).stderr == "Replay: out.html\n"
    out.write_text("My thesis")
    assert "Replay: " not in llm_command(*command).stderr


def test_threads_that_begin_together_share_it(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = llm.get_model(TINY).conversation()
    shared: list[Page] = []
    other = threading.Thread(target=lambda: shared.append(Page.shared(str(out), conversation, False)))

    def meanwhile(named: str) -> Path:
        if other.ident is None:
            other.start()
            other.join(0.1)
        return place_of(named)

    monkeypatch.setattr(recorder, "place_of", meanwhile)
    shared.append(Page.shared(str(out), conversation, False))
    other.join()
    assert shared[0] is shared[1]


def test_a_reply_that_begins_anew(out: Path) -> None:
    """By another backend, because the server went before it had said anything."""
    anew = Recorder("m", Page(str(out)))
    for text, step in (("a", 1), ("b", 2), ("c", 1)):
        anew.see(Reading(1, 2))
        anew.see(snapshot(text, step=step))
    assert [each.pieces for each in anew._snapshots] == [("c",)]


class Ended:
    """A reply that has come to an end, or has not begun."""

    has_text, tool_calls = True, ()

    def __init__(self, finish_reason: FinishReason | None) -> None:
        self.has_begun = finish_reason is not None
        self._finish_reason = finish_reason

    @property
    def report(self) -> Report:
        assert self._finish_reason is not None
        return Report(self._finish_reason, "m", 1, 1, 0, 1, 0.0, 0.1)


def recording(out: Path, finish_reason: FinishReason | None) -> Recorder:
    made = Recorder("m", Page(str(out)))
    made.follow(Turn([], Options()), Ended(finish_reason))
    return made


def test_a_reply_of_which_nothing_was_told(out: Path) -> None:
    """As by a server that doesn't know what is wanted."""
    with pytest.raises(ReplayError, match="There is no replay"):
        recording(out, "stop").end()
    recording(out, "interrupted").end()
    recording(out, "interrupted").close(GeneratorExit())
    Recorder("m", Page(str(out))).end()
    assert not out.exists()


def test_a_reply_that_nobody_can_report_yet(out: Path) -> None:
    """Cancelled in the moment in which its first step was done in another thread."""
    begun = recording(out, None)
    begun.see(snapshot("a"))
    begun.close(asyncio.CancelledError())
    assert read(out)[0]["figures"] == {"finish_reason": "interrupted"}
