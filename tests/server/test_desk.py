"""The queue, what becomes of orders that nobody wants any more, and the weights when nobody comes."""

from __future__ import annotations

import asyncio
import itertools
import sys
import threading
from collections.abc import Callable

import llm
import pytest
from llm.parts import StreamEvent

from llm_diffusiongemma.backends import engine as engines
from llm_diffusiongemma.backends.engine import get_engine, loaded_engines
from llm_diffusiongemma.backends.turn import Turn
from llm_diffusiongemma.errors import DeviceError, PromptError, ServerBusyError, ServerError, ServerStoppedError
from llm_diffusiongemma.options import Options
from llm_diffusiongemma.server.desk import Desk
from llm_diffusiongemma.server.orders import Ended, Order, Written

from ..conftest import PATIENCE_SECONDS, TINY, after_each_forward
from .scripted import Scripted

ENTRY = llm.get_model(TINY).entry


def turn(prompt: str, **options: object) -> Turn:
    return Turn([llm.user(prompt)], Options(seed=1, **options))


async def heard(order: Order) -> list[object]:
    """All that happens, blocks as their texts, up to the end or the error."""
    news: list[object] = []
    while not news or not isinstance(news[-1], Ended | Exception):
        try:
            each = await asyncio.wait_for(order.next(), PATIENCE_SECONDS)
        except Exception as error:
            each = error
        news.append("".join(event.chunk for event in each.events) if isinstance(each, Written) else each)
    return news


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not is_so():
            await asyncio.sleep(0.001)


# --- the queue -----------------------------------------------------------------------------------------------


async def test_one_at_a_time_in_order(scripted: Scripted) -> None:
    desk = Desk(ENTRY)
    orders = [desk.order(turn(name)) for name in "abc"]
    first, *others = await asyncio.gather(*map(heard, orders))
    assert scripted.begun == ["a", "b", "c"]
    assert scripted.most_at_once == 1
    assert [each for each in first if isinstance(each, str)][-1] == "Yes."
    assert all(each[0] == "queued" and each[-2] == "Yes." for each in others)
    status = desk.status()
    assert (status["replies"], status["waiting"], status["running_since"]) == (3, 0, None)


async def test_no_more_wait_than_may(scripted: Scripted) -> None:
    desk = Desk(ENTRY, places=2)
    scripted.let(0)
    orders = [desk.order(turn("a"))]
    await until(lambda: scripted.begun == ["a"])
    orders += [desk.order(turn(name)) for name in "bc"]
    with pytest.raises(ServerBusyError, match=r"2 others wait for their replies\. Try again later"):
        desk.order(turn("d"))
    assert desk.retry_after >= 1
    # There is a place again when one has gone, and when one is through.
    desk.drop(orders[1])
    orders[1] = desk.order(turn("e"))
    scripted.let(100)
    desk.drop(orders[0])
    await until(lambda: len(scripted.begun) > 1)
    desk.order(turn("f"))
    await until(lambda: len(scripted.begun) == 4)
    assert scripted.begun == ["a", "c", "e", "f"]


async def test_who_has_to_come_again_is_told_when(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("llm_diffusiongemma.server.desk.monotonic", lambda: now)
    since_1970 = itertools.cycle([2e9, 1e9])  # somebody sets the clock all the time
    monkeypatch.setattr("llm_diffusiongemma.server.desk.time.time", lambda: next(since_1970))
    desk = Desk(ENTRY)
    scripted.let(0)
    orders = [desk.order(turn(name)) for name in "ab"]
    await until(lambda: scripted.begun == ["a"])
    now = 1030.0
    scripted.writing.release()
    await heard(orders[0])
    await until(lambda: scripted.begun == ["a", "b"])
    now = 1040.0
    assert desk.retry_after == 20  # of the 30 that the last one took
    now = 1090.0
    assert desk.retry_after == 1
    desk._places = 1
    desk.order(turn("c"))
    with pytest.raises(ServerBusyError, match=r"1 other waits for its reply\. Try again in about 1 second\."):
        desk.order(turn("d"))
    await desk.close()


async def test_an_order_dropped_while_it_is_answered_makes_way(scripted: Scripted) -> None:
    desk = Desk(ENTRY)
    scripted.let(0)
    dropped, other = (desk.order(turn(name)) for name in "ab")
    await until(lambda: scripted.begun == ["a"])
    desk.drop(dropped)
    scripted.let(100)
    assert (await heard(other))[-2] == "Yes."
    assert scripted.stopped == ["a"]
    assert scripted.most_at_once == 1
    assert desk.status()["replies"] == 1
    desk.drop(other)  # it is through: nothing
    assert (await heard(desk.order(turn("c"))))[-2] == "Yes."


async def test_who_listens_late_keeps_nobody_waiting(scripted: Scripted) -> None:
    scripted.blocks = [[StreamEvent("text", str(number))] for number in range(50)]
    desk = Desk(ENTRY)
    slow, quick = (desk.order(turn(name)) for name in "ab")
    await heard(quick)
    texts = [each for each in await heard(slow) if isinstance(each, str) and each.isdecimal()]
    assert texts == [str(number) for number in range(50)]


@pytest.mark.parametrize("failure", [PromptError("No."), ValueError("what?")])
async def test_a_reply_that_fails_is_the_last_news(scripted: Scripted, failure: Exception) -> None:
    scripted.failure = failure
    desk = Desk(ENTRY)
    failed = desk.order(turn("a"))
    assert (await heard(failed))[-2:] == ["Yes.", failure]
    scripted.failure = None
    assert (await heard(desk.order(turn("b"))))[-2] == "Yes."


class PanicError(BaseException):
    """As libraries in Rust raise it."""


async def test_a_panic_ends_its_reply_only(scripted: Scripted) -> None:
    scripted.failure = PanicError("index out of bounds")
    desk = Desk(ENTRY)
    assert isinstance((await heard(desk.order(turn("a"))))[-1], RuntimeError)
    scripted.failure = None
    assert (await heard(desk.order(turn("b"))))[-2] == "Yes."


async def test_what_cannot_be_imported_ends_its_reply_only(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the package is replaced under a server that has yet to load."""
    desk = Desk(ENTRY)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, engines.__name__, None)  # type: ignore[arg-type]
        assert isinstance((await heard(desk.order(turn("a"))))[-1], ImportError)
    assert (await heard(desk.order(turn("b"))))[-2] == "Yes."


async def test_what_is_said_beside_a_reply_is_the_orders(
    scripted: Scripted, capfd: pytest.CaptureFixture[str]
) -> None:
    scripted.told = ["Weights were chosen."]
    desk = Desk(ENTRY)
    orders = [desk.order(turn(name)) for name in "ab"]
    await asyncio.gather(*map(heard, orders))
    assert [order.told for order in orders] == [["Weights were chosen."]] * 2
    assert capfd.readouterr() == ("", "")


async def test_the_end_sends_away_who_waits_and_lets_the_one_finish(scripted: Scripted) -> None:
    desk = Desk(ENTRY)
    scripted.let(0)
    orders = [desk.order(turn(name)) for name in "abc"]
    await until(lambda: scripted.begun == ["a"])
    closing = asyncio.create_task(desk.close(PATIENCE_SECONDS))
    for order in orders[1:]:
        assert isinstance((await heard(order))[-1], ServerStoppedError)
    with pytest.raises(ServerStoppedError, match="The server was stopped"):
        desk.order(turn("d"))
    scripted.writing.release()
    await closing
    assert isinstance((await heard(orders[0]))[-1], Ended)
    assert scripted.begun == ["a"]


async def test_the_end_waits_no_longer_than_it_is_told(scripted: Scripted) -> None:
    desk = Desk(ENTRY)
    scripted.let(0)
    order = desk.order(turn("a"))
    await until(lambda: scripted.begun == ["a"])
    await asyncio.wait_for(desk.close(0.01, is_stopped=False), PATIENCE_SECONDS)
    # Nobody wanted that: who waits may do without it.
    assert type((await heard(order))[-1]) is ServerError
    assert scripted.stopped == ["a"]


# --- the model -----------------------------------------------------------------------------------------------


async def test_a_dropped_order_stops_within_a_step() -> None:
    engine = get_engine(ENTRY).engine
    forwards: list[int] = []
    desk = Desk(ENTRY)
    with after_each_forward(engine, lambda: forwards.append(threading.get_ident())):
        dropped = desk.order(turn("Count from 1 to 320", max_tokens=300))
        await until(lambda: len(forwards) > 0)
        seen = len(forwards)
        desk.drop(dropped)
        await until(lambda: desk.status()["running_since"] is None)
        assert len(forwards) <= seen + 2  # the one at work, and one that began in this moment
    threads = [thread for thread in threading.enumerate() if thread.name == "diffusiongemma"]
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert (await heard(desk.order(turn("What is a canvas?"))))[-2].startswith("A canvas is")


async def test_weights_are_let_go_and_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_engines", {})
    desk = Desk(ENTRY, keep_alive_seconds=0.0)
    before = await heard(desk.order(turn("What is a canvas?")))
    assert before[:2] == ["loading", "reading"]
    await until(lambda: not loaded_engines())
    assert desk.status()["loaded"] is None
    after = await heard(desk.order(turn("What is a canvas?")))
    assert after[:2] == ["loading", "reading"]
    assert after[-2] == before[-2] != ""
    assert after[-1].report.load_seconds > 0
    await until(lambda: not loaded_engines())


async def test_weights_stay_while_somebody_comes(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    times_idle = 0

    def when_idle() -> None:
        nonlocal times_idle
        times_idle += 1

    desk = Desk(ENTRY, keep_alive_seconds=0.05, when_idle=when_idle)
    desk.rest()
    scripted.let(0)
    order = desk.order(turn("a"))
    await asyncio.sleep(0.1)
    assert times_idle == 0
    scripted.writing.release()
    await heard(order)
    await until(lambda: times_idle == 1)


async def test_one_that_has_never_loaded_ends_with_the_failure(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that a prompt has started for what can't run here would keep other models from having one."""
    monkeypatch.setattr(engines, "_engines", {})
    ended: list[bool] = []
    desk = Desk(ENTRY, when_idle=lambda: ended.append(True))
    scripted.refusal = DeviceError("There is no GPU.")
    orders = [desk.order(turn(name)) for name in "ab"]
    assert [(await heard(order))[-1] for order in orders] == [scripted.refusal] * 2
    assert ended == [True]
    # What has run once may again.
    desk._has_loaded = True
    await heard(desk.order(turn("c")))
    assert ended == [True]
    desk._stop_timer()


async def test_who_has_nothing_to_do_gives_way(scripted: Scripted) -> None:
    ended: list[bool] = []
    desk = Desk(ENTRY, when_idle=lambda: ended.append(True))
    assert not desk.give_way()  # who has had it started is about to ask
    order = desk.order(turn("a"))
    assert not desk.give_way()
    await heard(order)
    assert not ended
    assert desk.give_way()
    assert ended == [True]
    desk._stop_timer()
    for_good = Desk(ENTRY)
    await heard(for_good.order(turn("a")))
    assert not for_good.give_way()
    for_good._stop_timer()


async def test_a_server_for_good_is_never_idle(scripted: Scripted) -> None:
    desk = Desk(ENTRY, keep_alive_seconds=None, when_idle=lambda: pytest.fail("idle"))
    desk.rest()
    await heard(desk.order(turn("a")))
    await asyncio.sleep(0)
    assert desk._timer is None


async def test_the_model_is_loaded_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_engines", {})
    desk = Desk(ENTRY)
    before = {*threading.enumerate()}
    await desk.load()
    # One that stays keeps its threads of OpenMP, and replies in other threads have half of the cores.
    await until(lambda: {*threading.enumerate()} <= before)
    assert desk.context_tokens == 4096
    loaded = desk.status()["loaded"]
    assert loaded["device"] == "cpu"
    assert loaded["representation"] == "bf16"
    assert (await heard(desk.order(turn("What is a canvas?"))))[0] == "reading"
