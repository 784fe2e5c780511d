"""What every backend takes and gives: a turn, and the report of how its reply went. No torch."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, Generic, Literal, Protocol, TypeVar

import llm
from llm.parts import Message, StreamEvent

from ..catalog import Representation
from ..grammar.records import ConstraintReport, Lowered
from ..options import Options
from ..view.records import Watch

FinishReason = Literal["stop", "tool_calls", "length", "interrupted"]


@dataclass(frozen=True)
class Turn:
    """What one request asks for."""

    messages: Sequence[Message]
    options: Options
    tools: Sequence[llm.Tool] = ()
    schema: dict[str, Any] | None = None
    watch: Watch | None = None
    """Who is told how it goes, if anybody is."""


class StoppedError(Exception):
    """Nobody wants the reply any more. Never shown to anybody."""


class Stop:
    """Whether a reply is still wanted: asked before every step of the work. This one always is."""

    owns_process = False
    """Whether the reply is for llm's own command, so that nobody else's objects are in the process."""

    def is_set(self) -> bool:
        return False

    def check(self) -> None:
        """Raises `StoppedError` if the reply is not wanted any more."""
        if self.is_set():
            raise StoppedError

    def importing(self) -> AbstractContextManager[None]:
        """Around imports: who cuts one in the middle can't import that module again in the same process."""
        return nullcontext()


ALWAYS_WANTED = Stop()


@dataclass(frozen=True)
class BlockReport:
    """How one canvas went."""

    tokens: int
    denoising_steps: int
    converged: bool
    encoded_tokens: int
    seconds: float
    constraint: ConstraintReport | None
    redrawn: int = 0
    """How often it came out empty, and was drawn again. Steps and seconds are those of all of them."""

    def as_json(self) -> dict[str, Any]:
        plain = {**asdict(self), "seconds": round(self.seconds, 3)}
        if self.constraint is None:
            del plain["constraint"]
        if not self.redrawn:
            del plain["redrawn"]
        return plain


@dataclass(frozen=True)
class ChoicesReport:
    """How probable each of the choices was."""

    probabilities: dict[str, float]
    """of all choices, the most probable first; they add up to 1"""
    log_mass: float
    """nats: how much of what the network would have written fell on the choices, before that was made 1"""
    reads: int | None = None
    """Over so many steps of temperature 1 it is the mean. None: it is of the last denoising step of a reply, at
    the temperature of that."""
    spread: dict[str, float] | None = None
    """the standard deviation of each over several reads"""

    @classmethod
    def of_reads(cls, choices: Sequence[str], reads: Sequence[Sequence[float]]) -> ChoicesReport:
        """From the log-probabilities of all their texts in each read, nats, of which one at least is finite."""
        log_masses = [_log_sum(each) for each in reads]
        shares = [
            [math.exp(of_choice - mass) for of_choice in each]
            for each, mass in zip(reads, log_masses, strict=True)
        ]
        count, by_choice = len(reads), list(zip(*shares, strict=True))
        means = [math.fsum(of_choice) / count for of_choice in by_choice]
        order = sorted(range(len(choices)), key=lambda i: -means[i])  # of equal ones the first stays the first
        spread = None
        if count > 1:
            spread = {
                choices[i]: math.sqrt(math.fsum((share - means[i]) ** 2 for share in by_choice[i]) / (count - 1))
                for i in order
            }
        return cls({choices[i]: means[i] for i in order}, math.fsum(log_masses) / count, count, spread)

    @classmethod
    def of_last_step(cls, choices: Sequence[str], log_probabilities: Sequence[float]) -> ChoicesReport:
        """The same of the last denoising step of a reply."""
        return replace(cls.of_reads(choices, [log_probabilities]), reads=None)

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


def _log_sum(values: Sequence[float]) -> float:
    most = max(values)
    return most + math.log(math.fsum(math.exp(value - most) for value in values))


@dataclass(frozen=True)
class WeightsReport:
    """Which weights answered, and where they lie."""

    representation: Representation
    repository: str
    """or the name of the weights' folder"""
    revision: str | None
    """the commit of a repository"""
    placement: dict[str, Any]
    peak_memory_bytes: int | None
    """of all devices, or of the process on the CPU, since it began"""
    device: str
    dtype: str
    # What not every device, or server, has to tell of.
    kernels: dict[str, Any] | None = None
    """`in_use`, the names of what kernels of ours compute on a card, and `switched_off`: by their names why others
    don't"""
    graph: str | None = None
    """"used", if denoising steps were replayed as a CUDA graph, or why they weren't"""
    streaming: dict[str, Any] | None = None
    """of experts that lie elsewhere: `bytes_a_step` and `bytes_a_second` that came to the devices, and
    `waited_share`, of the time, that was waited for them"""

    def as_json(self) -> dict[str, Any]:
        untold = [name for name in ("kernels", "graph", "streaming") if getattr(self, name) is None]
        return {name: value for name, value in asdict(self).items() if name not in untold}


@dataclass(frozen=True)
class Report:
    """What happened in one reply, as plain values: it becomes `response_json` and the usage, and it is what a
    server of ours sends. What a foreign server doesn't tell is None, or empty."""

    finish_reason: FinishReason
    resolved_model: str
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int
    """Tokens of the prompt that the engine still had from the last turn."""
    seed: int | None
    load_seconds: float | None
    """0 if the model was loaded already."""
    generate_seconds: float
    """Of computing, with what it took to tell who watches. The blocks' seconds are without that."""
    blocks: tuple[BlockReport, ...] = ()
    weights: WeightsReport | None = None
    lowered: tuple[Lowered, ...] = ()
    """What the schema allows, and a reply held to it can't have."""
    choices: ChoicesReport | None = None
    """of a reply that is one of several, or says how probable they are"""
    blanks: dict[str, str] | None = None
    """What was filled into a text, by name."""
    server: str | None = None
    """What answered, if that was not this process."""

    @property
    def usage_details(self) -> dict[str, int]:
        """What `llm --usage` shows beside the tokens. What is 0, or isn't told, is left out."""
        details = {
            "cached_tokens": self.cached_tokens,
            "canvases": len(self.blocks),
            "denoising_steps": sum(block.denoising_steps for block in self.blocks),
        }
        return {name: count for name, count in details.items() if count}

    def as_json(self) -> dict[str, Any]:
        """For `llm logs --json`. Times are seconds; tokens per forward is the speed-up over one a step."""
        steps = sum(block.denoising_steps for block in self.blocks)
        tokens = sum(block.tokens for block in self.blocks)
        values: dict[str, Any] = {"finish_reason": self.finish_reason, "seed": self.seed}
        if self.server is not None:
            values["server"] = self.server
        if self.weights is not None:
            values |= self.weights.as_json()
        if self.load_seconds is not None:
            values["load_seconds"] = round(self.load_seconds, 3)
        values["generate_seconds"] = round(self.generate_seconds, 3)
        if self.blocks:
            values["tokens_per_forward"] = round(tokens / steps, 2) if steps else 0.0
        values["blocks"] = [block.as_json() for block in self.blocks]
        if self.lowered:
            values["lowered"] = [asdict(each) for each in self.lowered]
        if self.choices is not None:
            values["choices"] = self.choices.as_json()
        if self.blanks is not None:
            values["blanks"] = self.blanks
        return values


class Outcome(Protocol):
    """What there is of a reply so far."""

    @property
    def has_begun(self) -> bool:
        """Whether there is anything to be asked about."""

    @property
    def report(self) -> Report: ...

    @property
    def has_text(self) -> bool:
        """Whether anything but blanks and thoughts has been written."""

    @property
    def tool_calls(self) -> Sequence[llm.ToolCall]:
        """What the model wants to have run, with the ids that the events have."""


AnyOutcome = TypeVar("AnyOutcome", bound=Outcome)


class Delegate(Generic[AnyOutcome]):
    """What there is of a reply is what there is of another one, which has begun by the time that anybody asks."""

    _reply: AnyOutcome | None = None

    @property
    def has_begun(self) -> bool:
        return self._reply is not None and self._reply.has_begun

    @property
    def report(self) -> Report:
        return self._begun.report

    @property
    def has_text(self) -> bool:
        return self._begun.has_text

    @property
    def tool_calls(self) -> Sequence[llm.ToolCall]:
        return self._begun.tool_calls

    @property
    def _begun(self) -> AnyOutcome:
        assert self._reply is not None
        return self._reply


class Reply(Outcome, Protocol):
    """One turn being answered: iterate `steps`, then read the rest."""

    def steps(self) -> Iterator[list[StreamEvent]]:
        """The events of each converged block. Closing it ends the reply."""

    def cut_short(self) -> list[StreamEvent]:
        """Ends the reply: its report says that it was interrupted. What was held back of it."""


class AsyncReply(Outcome, Protocol):
    """The same for who has an event loop, which it never keeps from going on."""

    def steps(self) -> AsyncGenerator[list[StreamEvent], None]: ...
