"""What is told of a reply, in which order, and how much of it is kept for who takes it slowly."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import llm
from llm.parts import StreamEvent

from llm_diffusiongemma.backends.turn import Turn
from llm_diffusiongemma.options import Options
from llm_diffusiongemma.server.orders import MAX_UNSENT_CANDIDATES, Ended, News, Order, Written
from llm_diffusiongemma.view.records import Likely, Reading, Snapshot, Watch

from .scripted import report

TURN = Turn([llm.user("Hi")], Options())
DRAFT = Snapshot(0, 0, 1, 48, ("a",), "t", "n", None, 1.0, 0, 0.5)
WRITTEN = Written([StreamEvent("text", "a")], report())


def draft(step: int, likely: Likely | None = None) -> Snapshot:
    return replace(DRAFT, step=step, likely=likely)


def watch_of(order: Order) -> Watch:
    assert order.turn.watch is not None
    return order.turn.watch


async def all_of(order: Order) -> list[News]:
    """Up to its end, which is said here."""
    await asyncio.sleep(0)  # what other threads have said is called in the loop
    order.say(Ended(report()))
    news = [await order.next()]
    while not isinstance(news[-1], Ended):
        news.append(await order.next())
    return news[:-1]


async def test_nobody_watches_unless_it_is_asked_for() -> None:
    assert Order(TURN).turn is TURN
    order = Order(TURN, "readings")
    assert watch_of(order).wants == "readings"
    assert replace(order.turn, watch=None) == TURN


async def test_of_drafts_that_nobody_has_taken_the_newest_stays() -> None:
    order = Order(TURN, "drafts")
    see = watch_of(order).see

    def answer() -> None:
        for seen in (Reading(1, 3), Reading(3, 3), *map(draft, range(1, 49))):
            see(seen)

    order.say("reading")
    await asyncio.to_thread(answer)
    await asyncio.sleep(0)
    order.say(WRITTEN)
    await asyncio.to_thread(answer)
    one = [Reading(3, 3), draft(48)]
    assert await all_of(order) == ["reading", *one, WRITTEN, *one]


async def test_of_drafts_with_candidates_the_last_stay() -> None:
    order = Order(TURN, "candidates")
    likely = Likely((1.0,), ((("a", 0.5),),))
    steps = range(1, MAX_UNSENT_CANDIDATES + 3)
    order.say(WRITTEN)
    for step in steps:
        watch_of(order).see(draft(step, likely))
    assert await all_of(order) == [WRITTEN, *(draft(step, likely) for step in steps[2:])]


async def test_who_takes_each_at_once_has_all() -> None:
    order = Order(TURN, "drafts")
    for step in range(1, 4):
        watch_of(order).see(draft(step))
        assert await order.next() == draft(step)


def test_a_reply_may_outlive_the_loop_that_it_was_for() -> None:
    async def begin() -> Order:
        return Order(TURN, "drafts")

    watch_of(asyncio.run(begin())).see(DRAFT)
