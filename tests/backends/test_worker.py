"""A reply in a thread, for who has an event loop. tests/test_async.py has what llm's users see of it."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import Any

import llm
import pytest

from llm_diffusiongemma.backends import local
from llm_diffusiongemma.backends.turn import Turn
from llm_diffusiongemma.backends.worker import AsyncLocalReply
from llm_diffusiongemma.options import Options
from llm_diffusiongemma.view.records import Reading, Snapshot, Watch
from llm_diffusiongemma.wording import tell, told_to

from ..conftest import TINY

ENTRY = llm.get_model(TINY).entry
TURN = Turn([llm.user("What is a canvas?")], Options(seed=1))


async def test_what_is_said_in_the_thread_is_said_to_who_listens_outside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = local.read_conversation

    def telling(messages: Any) -> Any:
        tell(threading.current_thread().name)
        return read(messages)

    monkeypatch.setattr(local, "read_conversation", telling)
    heard: list[str] = []
    with told_to(heard.append):
        reply = AsyncLocalReply(ENTRY, TURN)
        assert [events async for events in reply.steps()]
    assert heard == ["diffusiongemma"]


async def test_who_watches_is_told_in_the_thread() -> None:
    seen: list[tuple[type, str]] = []

    def see(what: Reading | Snapshot) -> None:
        seen.append((type(what), threading.current_thread().name))

    reply = AsyncLocalReply(ENTRY, replace(TURN, watch=Watch(see, "drafts")))
    assert [events async for events in reply.steps()]
    assert set(seen) == {(Reading, "diffusiongemma"), (Snapshot, "diffusiongemma")}


@pytest.mark.parametrize("is_wanted", [True, False])
async def test_its_thread_ends(is_wanted: bool) -> None:
    threads: list[threading.Thread] = []

    def start(thread: threading.Thread) -> None:
        threads.append(thread)
        thread.start()

    reply = AsyncLocalReply(ENTRY, TURN, start_thread=start)
    await reply.ended()  # it has none yet
    await reply.start()
    ended = asyncio.ensure_future(reply.ended())
    await asyncio.sleep(0)
    assert not ended.done()
    if is_wanted:
        assert [events async for events in reply.steps()]
    else:
        reply.stop()
    await ended
    threads[0].join(timeout=10)
    assert not threads[0].is_alive()
