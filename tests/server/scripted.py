"""Replies that come when a test wants them, in place of those of a model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from llm.parts import StreamEvent

from llm_diffusiongemma.backends.turn import BlockReport, FinishReason, Report, Turn
from llm_diffusiongemma.catalog import ModelEntry
from llm_diffusiongemma.view.records import Reading, Snapshot
from llm_diffusiongemma.wording import tell


def report(finish_reason: FinishReason = "stop", **values: object) -> Report:
    made = Report(
        finish_reason=finish_reason,
        resolved_model="a-model@1",
        input_tokens=7,
        output_tokens=5,
        cached_tokens=3,
        seed=1,
        load_seconds=0.0,
        generate_seconds=0.5,
        blocks=(BlockReport(5, 2, True, 4, 0.5, None),),
    )
    return Report(**{**vars(made), **values})  # type: ignore[arg-type]


class Scripted:
    """What is to happen, and what did."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        """The prompts of the replies that were begun."""
        self.stopped: list[str] = []
        self.at_once = 0
        self.most_at_once = 0
        self.blocks: list[list[StreamEvent]] = [[StreamEvent("text", "Yes.")]]
        self.seen: list[Reading | Snapshot] = []
        """What there is to be seen of a reply before each of its blocks."""
        self.failure: BaseException | None = None
        """In place of the first block, or behind the last if there are any."""
        self.refusal: Exception | None = None
        """In place of the reply."""
        self.told: list[str] = []
        self.accepting = asyncio.Semaphore(0)
        self.writing = asyncio.Semaphore(0)
        self.let(1000)

    def let(self, num_blocks: int) -> None:
        """So many blocks come."""
        self.accepting, self.writing = asyncio.Semaphore(1000), asyncio.Semaphore(num_blocks)

    def reply(self) -> Callable[..., object]:
        return lambda entry, turn: _Reply(self, entry, turn)


class _Reply:
    def __init__(self, scripted: Scripted, entry: ModelEntry, turn: Turn) -> None:
        self._scripted = scripted
        self._watch = turn.watch
        self._name = turn.messages[-1].parts[0].text  # type: ignore[union-attr]
        self._is_over = False
        self.report = report("interrupted")

    async def start(self) -> None:
        scripted = self._scripted
        scripted.begun.append(self._name)
        scripted.at_once += 1
        scripted.most_at_once = max(scripted.most_at_once, scripted.at_once)
        for line in scripted.told:
            tell(line)
        await scripted.accepting.acquire()
        if scripted.refusal is not None:
            raise scripted.refusal

    async def steps(self) -> AsyncGenerator[list[StreamEvent], None]:
        for events in self._scripted.blocks:
            if self._watch is not None:
                for seen in self._scripted.seen:
                    self._watch.see(seen)
            await self._scripted.writing.acquire()
            await asyncio.sleep(0)  # a block is longer on its way than what is seen
            yield events
        if self._scripted.failure is not None:
            raise self._scripted.failure
        self.report = report()
        self._is_over = True

    def stop(self) -> None:
        if not self._is_over:
            self._scripted.stopped.append(self._name)

    async def ended(self) -> None:
        self._scripted.at_once -= 1
