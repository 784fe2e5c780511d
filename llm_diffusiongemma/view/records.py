"""What somebody who watches a reply is told of it, as plain values: how far its prompt has been read, and each
canvas after every denoising step, as text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Wants = Literal["readings", "drafts", "candidates"]
"""How much a watcher is told: how far the prompt has been read; also each draft; also what else could have stood
there. What nobody wants is not made."""

# One letter for each position of a canvas.
NOISE, ACCEPTED, SETTLED = "nas"
TEXT, THOUGHT, CALL, CONTROL = "trcx"


@dataclass(frozen=True)
class Reading:
    """How far the encoder is."""

    tokens: int
    """of the prompt that it has read, those from the cache included"""
    of: int


@dataclass(frozen=True)
class Likely:
    """What a canvas could have been after one step."""

    entropies: tuple[float, ...]
    """nats `[256]`"""
    candidates: tuple[tuple[tuple[str, float], ...], ...]
    """The likeliest tokens of each position with their probabilities, the likeliest first: what the step has drawn
    from, so at its temperature. Under a constraint it is the share of all allowed canvases that have the token
    there; the most likely of them, which is what `pieces` shows, may have another one. A token that is no whole
    character is its bytes: `<0xC3>`."""


@dataclass(frozen=True)
class Snapshot:
    """A canvas after one denoising step. `[256]` is the canvas's length."""

    attempt: int
    """0; or 1 where a reply held to a form is written after one that might have called a tool, and did not"""
    block: int
    """from 0"""
    step: int
    """Denoising steps done on this canvas, from 1; drawn again it begins anew."""
    max_steps: int
    pieces: tuple[str, ...]
    """The most likely text of each position, `[256]`. A character of several tokens stands at the last of them,
    and the others are empty. A control token is its name. Nothing in here is safe for a terminal or a page."""
    kinds: str
    """What each position is part of, `[256]`: TEXT, THOUGHT, CALL, or a CONTROL token."""
    states: str
    """`[256]`: NOISE; ACCEPTED in this step; or SETTLED: accepted in this step and the one before, with the same
    token."""
    end: int | None
    """From this position on nothing would be part of the reply: there stands its end of sequence, or what closes a
    thought before a form, or as much has been written as may be. None: all of the canvas is part of it."""
    mean_entropy: float
    """nats"""
    tokens_before: int
    """of the reply, in the canvases before this one"""
    seconds: float
    """since the reply was begun, of computing"""
    likely: Likely | None = None
    """only where candidates are wanted"""
    redrawn: int = 0
    """How often this canvas had come out empty before."""


@dataclass(frozen=True)
class Watch:
    """Somebody who watches a reply."""

    see: Callable[[Reading | Snapshot], object]
    """Called in whatever thread makes the reply, between two steps: it returns at once, and raises nothing."""
    wants: Wants
