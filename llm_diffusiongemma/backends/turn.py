"""What every backend takes and gives: a turn, and the report of how its reply went. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import llm
from llm.parts import Message

from ..options import Options

if TYPE_CHECKING:
    from ..catalog import Representation
    from ..grammar.constraint import ConstraintReport
    from ..grammar.schema import Lowered

FinishReason = Literal["stop", "tool_calls", "length", "interrupted"]


@dataclass(frozen=True)
class Turn:
    """What one request asks for."""

    messages: Sequence[Message]
    options: Options
    tools: Sequence[llm.Tool] = ()
    schema: dict[str, Any] | None = None


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

    def as_json(self) -> dict[str, Any]:
        plain = {**asdict(self), "seconds": round(self.seconds, 3)}
        if self.constraint is None:
            del plain["constraint"]
        return plain


@dataclass(frozen=True)
class Report:
    """What happened in one reply, as plain values: it becomes `response_json` and the usage."""

    resolved_model: str
    representation: Representation
    repository: str
    """or the name of the weights' folder"""
    revision: str | None
    """the commit of a repository"""
    placement: dict[str, Any]
    peak_memory_bytes: int | None
    """of all devices, or of this process on the CPU, since it began"""
    device: str
    dtype: str
    seed: int
    load_seconds: float
    """0 if the model was loaded already."""
    generate_seconds: float
    input_tokens: int
    cached_tokens: int
    """Tokens of the prompt that the engine still had from the last turn."""
    finish_reason: FinishReason
    blocks: tuple[BlockReport, ...]
    lowered: tuple[Lowered, ...] = ()
    """What the schema allows, and a reply held to it can't have."""

    @property
    def output_tokens(self) -> int:
        return sum(block.tokens for block in self.blocks)

    def as_json(self) -> dict[str, Any]:
        """For `llm logs --json`. Times are seconds; tokens per forward is the speed-up over one a step."""
        steps = sum(block.denoising_steps for block in self.blocks)
        return {
            "finish_reason": self.finish_reason,
            "seed": self.seed,
            "representation": self.representation,
            "repository": self.repository,
            "revision": self.revision,
            "placement": self.placement,
            "peak_memory_bytes": self.peak_memory_bytes,
            "device": self.device,
            "dtype": self.dtype,
            "load_seconds": round(self.load_seconds, 3),
            "generate_seconds": round(self.generate_seconds, 3),
            "tokens_per_forward": round(self.output_tokens / steps, 2) if steps else 0.0,
            "blocks": [block.as_json() for block in self.blocks],
            **({"lowered": [asdict(each) for each in self.lowered]} if self.lowered else {}),
        }
