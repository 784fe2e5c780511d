"""Who is answered when: one reply at a time, the others in a queue, and the weights only while somebody comes."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import aclosing
from time import monotonic
from typing import Any

from ..backends.settings import DEFAULT_KEEP_ALIVE_SECONDS, DEFAULT_QUEUE
from ..backends.threads import in_thread
from ..backends.turn import Stop, Turn
from ..backends.worker import AsyncLocalReply
from ..catalog import ModelEntry
from ..errors import ServerBusyError, ServerError, ServerStoppedError
from ..view.records import Wants
from ..wording import told_to
from .orders import Ended, Order, Written

# By so many replies it is judged how long the next ones will take.
REPLIES_REMEMBERED = 8

_log = logging.getLogger(__name__)


class Desk:
    """Answers orders for one model, in the order in which they come. Belongs to one event loop."""

    def __init__(
        self,
        entry: ModelEntry,
        places: int = DEFAULT_QUEUE,
        keep_alive_seconds: float | None = DEFAULT_KEEP_ALIVE_SECONDS,
        when_idle: Callable[[], object] | None = None,
    ) -> None:
        """So many orders may wait while one is answered. After `keep_alive_seconds` without any (None: never) the
        weights are let go, or `when_idle` is called instead, in the loop."""
        self.entry = entry
        self.context_tokens: int | None = None
        """The longest context, once the model has been loaded."""
        self._places = places
        self._keep_alive_seconds = keep_alive_seconds
        self._when_idle = when_idle
        self._waiting: deque[Order] = deque()
        self._answered: Order | None = None
        self._reply: asyncio.Task[Ended | Exception] | None = None
        self._work: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._letting_go: asyncio.Task[None] | None = None
        self._closed: ServerError | None = None
        """What is said to who comes behind the end."""
        self._started = time.time()
        self._last_used: float | None = None
        self._running_since: float | None = None
        self._begun: float | None = None
        """The same by a clock that nobody sets."""
        self._num_replies = 0
        self._has_loaded = False
        self._lately: deque[float] = deque(maxlen=REPLIES_REMEMBERED)

    def order(self, turn: Turn, wants: Wants | None = None) -> Order:
        """A reply to a turn, when its time has come, with as much of it before as somebody `wants` who watches it;
        `drop` it if it isn't wanted any more.

        Raises `ServerBusyError` if all places are taken, and `ServerError` at the end of the server.
        """
        if self._closed is not None:
            raise self._closed
        # One that has just come is about to be answered.
        if len(self._waiting) >= self._places + (self._answered is None):
            raise ServerBusyError(self._busy())
        order = Order(turn, wants)
        if self._answered is not None or self._waiting:
            order.say("queued")
        self._waiting.append(order)
        self._stop_timer()
        if self._work is None:
            self._work = asyncio.create_task(self._answer_all())
        return order

    def drop(self, order: Order) -> None:
        """Nobody wants it any more. What is written of it stops within a denoising step."""
        if order in self._waiting:
            self._waiting.remove(order)
        elif order is self._answered and self._reply is not None:
            self._answered = None
            self._reply.cancel()

    def _busy(self) -> str:
        number, seconds = len(self._waiting), self.retry_after
        few = {0: "it is writing another reply", 1: "1 other waits for its reply"}
        who = few.get(number, f"{number} others wait for their replies")
        when = f"in about {seconds} {'second' if seconds == 1 else 'seconds'}" if self._lately else "later"
        return f"The server is busy: {who}. Try again {when}."

    @property
    def retry_after(self) -> int:
        """In about so many seconds there is a place, by what replies have taken lately."""
        seconds = sum(self._lately) / len(self._lately) if self._lately else 1.0
        if self._begun is not None:
            seconds = max(seconds - (monotonic() - self._begun), 0.0)
        return max(1, math.ceil(seconds))

    async def load(self) -> None:
        """Loads the model before anybody asks. Raises what that raises."""
        from ..backends.engine import get_engine

        loading = _Loading()
        try:
            # In a thread that ends: one of asyncio's would keep threads of OpenMP, beside which those of a reply's
            # have too few cores, and a step on the CPU takes twice as long.
            await in_thread(threading.Thread.start, lambda: get_engine(self.entry, loading))
        finally:
            loading.stopped.set()
        self._look_at_engine()
        self.rest()

    def rest(self) -> None:
        """Nobody has come yet, or nobody is here any more: the time until the weights are let go begins."""
        self._stop_timer()
        if self._keep_alive_seconds is not None and self._work is None and self._closed is None:
            self._timer = asyncio.get_running_loop().call_later(self._keep_alive_seconds, self._begin_to_let_go)

    def give_way(self) -> bool:
        """To another server, if somebody has used this one, and nobody does now. Whether it does."""
        if self._when_idle is None or self._work is not None or self._last_used is None:
            return False
        self._when_idle()
        return True

    async def close(self, grace_seconds: float = 0.0, is_stopped: bool = True) -> None:
        """Takes no orders any more, and sends away who waits. The reply that is being written has so many seconds
        to end. `is_stopped` if somebody has it so."""
        self._closed = _stopped() if is_stopped else _ending()
        self._stop_timer()
        while self._waiting:
            self._waiting.popleft().say(self._closed)
        if self._reply is not None:
            await asyncio.wait([self._reply], timeout=grace_seconds)
        if (order := self._answered) is not None:
            self.drop(order)
            order.say(self._closed)
        if self._work is not None:
            await asyncio.wait([self._work])

    def status(self) -> dict[str, Any]:
        """How things are, as plain values. Times are seconds since 1970."""
        status: dict[str, Any] = {
            "model": self.entry.model_id,
            "started": self._started,
            "replies": self._num_replies,
            "waiting": len(self._waiting),
            "running_since": self._running_since,
            "last_used": self._last_used,
            "keep_alive_seconds": self._keep_alive_seconds,
            "ends_when_idle": self._when_idle is not None,
            "loaded": None,
        }
        from ..backends.engine import loaded_engines

        if engine := next(iter(loaded_engines()), None):
            status["loaded"] = {
                "since": engine.loaded_at,
                "device": str(engine.loaded.device),
                "representation": engine.loaded.placement.representation,
                "peak_memory_bytes": engine.peak_memory_bytes(),
                "kernels": engine.loaded.verdict.as_json(),
                "graph": engine.pipeline.graph_state,
            }
        return status

    async def _answer_all(self) -> None:
        outcome: Ended | Exception | None = None
        while self._waiting:
            order = self._waiting.popleft()
            begun = monotonic()
            self._answered, self._running_since, self._begun = order, time.time(), begun
            self._reply = asyncio.create_task(self._answer(order))
            await asyncio.wait([self._reply])
            self._answered, self._running_since, self._begun = None, None, None
            self._last_used = time.time()
            outcome = _outcome(self._reply)
            self._reply = None
            if isinstance(outcome, Ended):
                self._num_replies += 1
                self._lately.append(monotonic() - begun)
            if outcome is not None:
                # The last of all: who has heard it finds nothing of it here any more.
                order.say(outcome)
        self._work = None
        if isinstance(outcome, Exception) and self._when_idle is not None and not self._has_loaded:
            # Of what can't be loaded nobody has anything, and it would keep other models from a server.
            self._when_idle()
        else:
            self.rest()

    async def _answer(self, order: Order) -> Ended | Exception:
        from ..backends.engine import loaded_engines

        if not loaded_engines():
            order.say("loading")
        with told_to(order.told.append):
            reply = AsyncLocalReply(self.entry, order.turn)
            try:
                await reply.start()
                order.say("reading")
                # Who breaks the reply off before its first block knows by this what it was.
                order.say(Written([], reply.report))
                async with aclosing(reply.steps()) as steps:
                    async for events in steps:
                        order.say(Written(events, reply.report))
                return Ended(reply.report)
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # a library in Rust may panic
                return error if isinstance(error, Exception) else RuntimeError(repr(error))
            finally:
                # One thread at most: the next one begins when this one's is through.
                reply.stop()
                await reply.ended()
                self._look_at_engine()

    def _look_at_engine(self) -> None:
        from ..backends.engine import loaded_engines

        if engine := next(iter(loaded_engines()), None):
            self.context_tokens = engine.context_tokens
            self._has_loaded = True

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin_to_let_go(self) -> None:
        self._timer = None
        if self._when_idle is not None:
            self._when_idle()
        else:
            self._letting_go = asyncio.create_task(self._let_go())

    async def _let_go(self) -> None:
        from ..backends.engine import let_go

        try:
            await asyncio.to_thread(let_go)
        except Exception:
            _log.exception("The weights could not be let go.")


class _Loading(Stop):
    """Of a model that nobody has asked yet."""

    def __init__(self) -> None:
        self.stopped = threading.Event()

    def is_set(self) -> bool:
        return self.stopped.is_set()


def _outcome(reply: asyncio.Task[Ended | Exception]) -> Ended | Exception | None:
    """None of one that nobody wanted any more."""
    if reply.cancelled():
        return None
    try:
        return reply.result()
    except Exception as error:  # before or behind the reply itself
        return error


def _stopped() -> ServerError:
    return ServerStoppedError(
        "The server was stopped before it had answered. Ask again to have the prompt answered without it, or "
        "start another one: llm diffusiongemma serve"
    )


def _ending() -> ServerError:
    return ServerError("The server is ending, and answers nobody any more.")
