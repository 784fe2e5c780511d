"""A server that ends between two moments: this process answers, or a sentence, never the prompt twice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import Any

import llm
import pytest
from llm.parts import StreamEvent

from llm_diffusiongemma.backends import answering, local, remote, worker
from llm_diffusiongemma.backends.address import LOCAL_SERVER, Address
from llm_diffusiongemma.backends.turn import Stop, Turn
from llm_diffusiongemma.errors import RegistryError, ServerError, ServerStoppedError
from llm_diffusiongemma.options import Options
from llm_diffusiongemma.view.records import Watch

from ..conftest import TINY

ADDRESS = Address("http://localhost/v1", None, None, TINY, is_ours=True, name=LOCAL_SERVER)
TURN = Turn([], Options(), watch=Watch(print, "drafts"))


class Scripted:
    """Replies that say who they are, and of a server one that breaks off somewhere."""

    who = "this process"
    breaks = ""
    failure = ServerError("It broke off.")
    has_text, tool_calls = True, ()

    def __init__(self, *asked: Any) -> None:
        assert any(each is TURN for each in asked)  # with who watches it
        self.report = self.who
        if self.breaks == "at once":
            raise self.failure

    def steps(self) -> Iterator[list[StreamEvent]]:
        if self.breaks == "before anything":
            raise self.failure
        yield [StreamEvent("text", f"{self.who} ")]
        if self.breaks == "behind a block":
            raise self.failure
        yield [StreamEvent("text", "to its end")]

    def cut_short(self) -> list[StreamEvent]:
        return [StreamEvent("text", f"what {self.who} held back")]


class ScriptedAsync(Scripted):
    async def steps(self) -> AsyncGenerator[list[StreamEvent], None]:  # type: ignore[override]
        for events in super().steps():
            yield events


@dataclass
class Outcome:
    text: str
    report: object


def asked_sync() -> Outcome:
    reply = answering.answer(llm.get_model(TINY).entry, TURN, Stop())
    text = "".join(event.chunk for events in reply.steps() for event in events)
    assert reply.has_text
    assert not reply.tool_calls
    assert reply.cut_short() == [StreamEvent("text", f"what {reply.report} held back")]
    return Outcome(text, reply.report)


def asked_async() -> Outcome:
    async def ask() -> Outcome:
        entry = llm.get_model(TINY).entry
        reply = answering.answer_async(entry, TURN, owns_process=False, start_thread=threading.Thread.start)
        text = "".join([event.chunk async for events in reply.steps() for event in events])
        return Outcome(text, reply.report)

    return asyncio.run(ask())


@pytest.fixture(params=[asked_sync, asked_async])
def asked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(local, "LocalReply", Scripted)
    monkeypatch.setattr(worker, "AsyncLocalReply", ScriptedAsync)
    return request.param


def found(monkeypatch: pytest.MonkeyPatch, breaks: str, has_gone: bool) -> None:
    parts = {"who": "the server", "breaks": breaks}
    monkeypatch.setattr(remote, "RemoteReply", type("RemoteReply", (Scripted,), parts))
    monkeypatch.setattr(remote, "AsyncRemoteReply", type("AsyncRemoteReply", (ScriptedAsync,), parts))
    monkeypatch.setattr(answering, "find", lambda entry, may_start: ADDRESS)
    monkeypatch.setattr(answering, "has_gone", lambda address: has_gone)


def test_without_a_server(asked: Any) -> None:
    assert asked() == Outcome("this process to its end", "this process")


def test_with_one(asked: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found(monkeypatch, "nowhere", has_gone=False)
    assert asked() == Outcome("the server to its end", "the server")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("breaks", ["at once", "before anything"])
def test_one_that_has_gone(
    asked: Any, breaks: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found(monkeypatch, breaks, has_gone=True)
    assert asked() == Outcome("this process to its end", "this process")
    assert capsys.readouterr().err == "The local server ended before it could answer, so this process does.\n"


@pytest.mark.parametrize(
    ("breaks", "has_gone"), [("behind a block", True), ("at once", False), ("before anything", False)]
)
def test_one_that_breaks_off(asked: Any, breaks: str, has_gone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has come is shown already; and a server that is there has its reasons."""
    found(monkeypatch, breaks, has_gone)
    with pytest.raises(ServerError, match="It broke off"):
        asked()


@pytest.mark.parametrize("breaks", ["at once", "before anything"])
def test_one_that_is_stopped(asked: Any, breaks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who stops it doesn't want all who wait to load the model themselves."""
    monkeypatch.setattr(Scripted, "failure", ServerStoppedError("It was stopped."))
    found(monkeypatch, breaks, has_gone=True)
    with pytest.raises(ServerStoppedError):
        asked()


def test_one_that_is_named_wrongly(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_SERVER", "ftp://x")
    with pytest.raises(RegistryError, match="ftp://x"):
        asked()


async def test_the_loop_goes_on_while_a_server_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a prompt that is given up then waits for nothing."""
    entry = llm.get_model(TINY).entry
    begun, may_end = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def start(entry: object, may_start: bool) -> None:
        assert may_start
        loop.call_soon_threadsafe(begun.set)
        may_end.wait(60)

    monkeypatch.setattr(answering, "find", start)
    threads: list[threading.Thread] = []
    failures: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: failures.append(context))

    def employ(thread: threading.Thread) -> None:
        threads.append(thread)
        thread.start()

    reply = answering.answer_async(entry, TURN, owns_process=True, start_thread=employ)
    asking = asyncio.ensure_future(anext(reply.steps()))
    await asyncio.wait_for(begun.wait(), 60)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    may_end.set()
    await asyncio.to_thread(threads[0].join)
    await asyncio.sleep(0)  # what it hands over is nobody's
    assert failures == []
