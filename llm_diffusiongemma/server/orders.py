"""A turn on its way through the server, and the news of its reply."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace

from llm.parts import StreamEvent

from ..backends.protocol import State
from ..backends.turn import Report, Turn
from ..view.records import Reading, Snapshot, Wants, Watch

# What a client that is slow, or stopped, can have of snapshots with candidates, which take some 200 KB each here.
MAX_UNSENT_CANDIDATES = 100


@dataclass(frozen=True)
class Written:
    """A block of a reply, and the report so far."""

    events: list[StreamEvent]
    report: Report


@dataclass(frozen=True)
class Ended:
    """A reply has come to its end."""

    report: Report


News = State | Reading | Snapshot | Written | Ended


class Order:
    """A turn that waits for its reply, or has it. Belongs to one event loop."""

    def __init__(self, turn: Turn, wants: Wants | None = None) -> None:
        """`wants` is how much its client is told, if that watches the reply."""
        self.turn = turn if wants is None else replace(turn, watch=Watch(self._see, wants))
        self.told: list[str] = []
        """What was said beside the reply."""
        self._loop = asyncio.get_running_loop()
        self._news: deque[News | Exception] = deque()
        self._has_news = asyncio.Event()

    async def next(self) -> News:
        """What happens next: whoever asks slowly keeps nobody waiting. Nothing comes behind `Ended`.

        Raises what the reply does.
        """
        await self._has_news.wait()
        news = self._news.popleft()
        if not self._news:
            self._has_news.clear()
        if isinstance(news, Exception):
            raise news
        return news

    def say(self, news: News | Exception) -> None:
        if isinstance(news, Reading | Snapshot):
            self._make_room(news)
        self._news.append(news)
        self._has_news.set()

    def _see(self, seen: Reading | Snapshot) -> None:
        """Called in the reply's thread. A block takes a longer way into the loop, but the reply goes on only when
        it is there: everything is said in its order."""
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self.say, seen)

    def _make_room(self, seen: Reading | Snapshot) -> None:
        """**Invariant**: what is seen of a reply takes no more memory the longer it isn't asked for.

        A client that shows a canvas needs the newest only. One that keeps each with its candidates has the last
        of them: a reply that waited for it would keep everybody else waiting, too.
        """
        if isinstance(seen, Reading) or seen.likely is None:
            if self._news and type(self._news[-1]) is type(seen):
                self._news.pop()
            return
        kept = [each for each in self._news if isinstance(each, Snapshot)]
        if len(kept) >= MAX_UNSENT_CANDIDATES:
            self._news.remove(kept[0])
