"""What one reply is asked for: a prompt, settings, a budget, and the parts that the reply is made of.

The loop in `pipeline` asks the part at hand how a canvas starts, what of it counts, and whether the part ends
with it. What a reply can be is a matter of parts; the loop knows none of them.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from ..errors import ConstraintError, ContextLengthError, ContextMemoryError, OptionError, PromptError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from ..grammar.constraint import TextConstraint
    from ..grammar.records import ConstraintReport
    from .drafting import DraftedText
    from .prefix_cache import Identity
    from .sampler import EntropyBoundSampler, SamplerSettings

FinishReason = Literal["stop", "length"]


# --- the prompt ------------------------------------------------------------------------------------------


class PromptImage(Protocol):
    """An image in a prompt."""

    @property
    def span(self) -> range:
        """Where in the prompt its soft tokens stand."""

    @property
    def digest(self) -> str:
        """A name that no image has that the encoder would see differently."""

    def soft_tokens(self) -> torch.Tensor:
        """`[len(span), H]`, asked for only if no cache holds them."""


@dataclass(frozen=True)
class Prompt:
    """What the encoder reads first."""

    token_ids: Sequence[int]
    images: tuple[PromptImage, ...] = ()
    """In the order of their spans."""
    stable_length: int = 0
    """How much of it the next turn of the conversation is sure to begin with, even if the end of this one comes
    back otherwise than it was written, as a template that strips thoughts makes it."""

    @cached_property
    def identities(self) -> list[Identity]:
        """What stands at each position; see `prefix_cache`."""
        identities: list[Identity] = list(self.token_ids)
        for image in self.images:
            identities[image.span.start : image.span.stop] = [image.digest] * len(image.span)
        return identities


def _check(prompt: Prompt) -> None:
    if len(prompt.token_ids) == 0:
        raise PromptError("The prompt is empty. Say something.")


# --- how much there may be -------------------------------------------------------------------------------


class Need(NamedTuple):
    """What a part takes at the least."""

    tokens: int
    positions: int
    """of canvases, so an end of sequence counts; each part begins with a canvas of its own"""


def length_of_canvas(asked: int | None, checkpoints: int) -> int:
    """For a checkpoint whose canvases have that length. Raises `OptionError` if a longer one is asked for."""
    if asked is None:
        return checkpoints
    if asked > checkpoints:
        raise OptionError(
            f"canvas_length is {asked:,}, but this checkpoint's canvases have {checkpoints:,} "
            "tokens. Set it to that or less."
        )
    return asked


def canvases_behind(prompt: Prompt, canvas_length: int, context_length: int, memory_for: int | None = None) -> int:
    """How many canvases there is room for in a context of so many tokens, of which there may be memory for fewer.

    Raises `ContextLengthError` if not for one, `ContextMemoryError` if that is for want of memory.
    """
    length = len(prompt.token_ids)
    most = context_length if memory_for is None else min(memory_for, context_length)
    canvases = (most - length) // canvas_length
    if canvases < 1:
        shown = sum(len(image.span) for image in prompt.images)
        lack = ContextLengthError if length + canvas_length > context_length else ContextMemoryError
        raise lack(length, most, canvas_length, shown)
    return canvases


@dataclass(frozen=True)
class Room:
    """What a reply, or a part of one, may still take."""

    tokens: int
    """of text, without its end of sequence"""
    canvases: int
    canvas_length: int

    @property
    def positions(self) -> int:
        """For the tokens of a text and its end of sequence, which may stand right behind the last of them."""
        return min(self.tokens + 1, self.canvases * self.canvas_length)

    def after(self, tokens: int) -> Room:
        """What is left when one more canvas has been committed, with so many tokens."""
        return replace(self, tokens=self.tokens - tokens, canvases=self.canvases - 1)

    def beside(self, parts: Sequence[Part]) -> Room:
        """What other parts leave of it when they are as short as they can be."""
        needs = [part.need for part in parts]
        return replace(
            self,
            tokens=self.tokens - sum(need.tokens for need in needs),
            canvases=self.canvases - sum(-(-need.positions // self.canvas_length) for need in needs),
        )


# --- what it is made of ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Endings:
    """By what a network ends a text."""

    eos_token_ids: frozenset[int]
    pad_token_id: int | None

    def first(self, canvas: Sequence[int]) -> int | None:
        """Where the first end of sequence stands."""
        return next((i for i, token in enumerate(canvas) if token in self.eos_token_ids), None)

    def is_padding(self, canvas: Sequence[int]) -> bool:
        """A network that has forgotten its end of sequence would go on like that to the end of the context."""
        return all(token == self.pad_token_id for token in canvas)


@dataclass(frozen=True)
class Piece:
    """What of a committed canvas counts."""

    tokens: list[int]
    ends: FinishReason | None = None
    """Why the part ends here; None if another canvas of it follows. The end of the last part is the reply's."""
    eos_token_id: int | None = None
    """The end of sequence that ended it, if one did. It is not in `tokens`."""
    constraint: ConstraintReport | None = None
    choices: tuple[float, ...] | None = None
    """See `Block.choices`."""
    is_empty: bool = False
    """Whether the part ends here with nothing said, by no right of its own: another draw may have more to say."""


class Part(Protocol):
    """A stretch of a reply, in canvases of its own. Used once."""

    @property
    def need(self) -> Need:
        """What it takes at the least, from here on."""

    @property
    def draft(self) -> DraftedText | None:
        """What its canvases begin as; None if that is pure noise."""

    def start_canvas(self, sampler: EntropyBoundSampler, room: Room) -> None:
        """Let the sampler begin with its next canvas. `room` is what the parts behind it leave it."""

    def end(self, canvas: list[int], room: Room, endings: Endings) -> int | None:
        """Where the part would end in a canvas as it is now, if it would: what stands there does not count."""

    def commit(self, canvas: list[int], room: Room, endings: Endings) -> Piece:
        """What a denoised canvas comes to, in the room that it was started with."""


class Text:
    """A text that may be anything, up to its end of sequence or the end of its room."""

    need = Need(tokens=1, positions=1)

    def __init__(
        self, draft: DraftedText | None = None, says_nothing: Callable[[Sequence[int]], bool] = operator.not_
    ) -> None:
        """`says_nothing` is asked of the tokens of a canvas that ends it; by default no tokens say nothing."""
        self.draft = draft
        self._says_nothing = says_nothing

    def start_canvas(self, sampler: EntropyBoundSampler, room: Room) -> None:
        """See `Part`."""
        sampler.start_canvas(start=None if self.draft is None else self.draft.start(room.canvas_length))

    def end(self, canvas: list[int], room: Room, endings: Endings) -> int | None:
        """See `Part`."""
        end = 0 if endings.is_padding(canvas) else endings.first(canvas)
        ends = [each for each in (end, room.tokens) if each is not None and each < len(canvas)]
        return min(ends, default=None)

    def commit(self, canvas: list[int], room: Room, endings: Endings) -> Piece:
        """See `Part`. A canvas of nothing but padding ends the text, too."""
        end = endings.first(canvas)
        # Right behind the last token of the budget it still says that the text is complete.
        if end is not None and end <= room.tokens:
            tokens = canvas[:end]
            return Piece(tokens, "stop", canvas[end], is_empty=self._says_nothing(tokens))
        if endings.is_padding(canvas):
            return Piece([], "stop", is_empty=True)
        if self.draft is not None:
            self.draft.commit(canvas)
        left = room.after(len(canvas))
        return Piece(canvas[: room.tokens], "length" if left.tokens <= 0 or left.canvases == 0 else None)


class ConstrainedText:
    """A text that belongs to a language. It ends in time, so always with an end of sequence."""

    def __init__(self, constraint: TextConstraint, draft: DraftedText | None = None) -> None:
        """`constraint` is fresh, and this reply's alone."""
        self._constraint = constraint
        self.draft = draft

    @property
    def need(self) -> Need:
        """See `Part`."""
        return Need(self._constraint.fewest_tokens - 1, self._constraint.fewest_tokens)

    def start_canvas(self, sampler: EntropyBoundSampler, room: Room) -> None:
        """See `Part`."""
        self._constraint.start_canvas(room.canvas_length, room.positions)
        start = None if self.draft is None else self.draft.start(room.canvas_length)
        sampler.start_canvas(self._constraint, start)

    def end(self, canvas: list[int], room: Room, endings: Endings) -> int | None:
        """See `Part`."""
        return endings.first(canvas)

    def commit(self, canvas: list[int], room: Room, endings: Endings) -> Piece:
        """See `Part`."""
        end = endings.first(canvas)
        if end is None:
            if self.draft is not None:
                self.draft.commit(canvas)
            return Piece(canvas, constraint=self._constraint.commit(canvas))
        choices = self._constraint.choices()
        return Piece(canvas[:end], "stop", canvas[end], self._constraint.commit(canvas), choices)


class Thought:
    """What a model thinks before its text: free until it closes, which it is made to in time.

    A prompt should open it, or what is free need not be a thought.
    """

    need = Need(tokens=1, positions=1)  # for what closes it
    draft = None

    def __init__(self, closes: int) -> None:
        """`closes` is the token that closes a thought."""
        self._closes = closes

    def start_canvas(self, sampler: EntropyBoundSampler, room: Room) -> None:
        """See `Part`."""
        sampler.start_canvas(closes=self._closes)

    def end(self, canvas: list[int], room: Room, endings: Endings) -> int | None:
        """See `Part`: where what closes the thought stands, or has to be put."""
        whole = len(canvas)
        ends = (i for i, token in enumerate(canvas) if token == self._closes or token in endings.eos_token_ids)
        end = 0 if endings.is_padding(canvas) else next(ends, whole)
        if end == whole < room.tokens and room.canvases > 1:
            return None
        return min(end, whole - 1, room.tokens - 1)

    def commit(self, canvas: list[int], room: Room, endings: Endings) -> Piece:
        """See `Part`. It also ends where the model ended its reply instead, and with its room."""
        end = self.end(canvas, room, endings)
        return Piece(canvas) if end is None else Piece([*canvas[:end], self._closes], "stop")


# --- all of it -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """What one reply is asked for. Answered once: parts remember how far they have come.

    Raises `PromptError` if the prompt is empty, `OptionError` if `max_tokens` is below 1.
    """

    prompt: Prompt
    settings: SamplerSettings
    max_tokens: int
    """Of what the blocks hold, so without the end of sequence. The last canvas is denoised whole all the same."""
    parts: tuple[Part, ...] = (Text(),)
    """In their order, one at least. Each begins with a canvas of its own."""
    canvas_length: int | None = None
    """None: the checkpoint's."""

    def __post_init__(self) -> None:
        _check(self.prompt)
        if self.max_tokens < 1:
            raise OptionError(f"max_tokens must be at least 1, but it is {self.max_tokens}.")

    def room(self, context_length: int, canvas_length: int, memory_for: int | None = None) -> Room:
        """What the reply may take in a context of so many tokens, of which there may be memory for fewer.

        Raises what `canvases_behind` raises, `ConstraintError` if not even the shortest reply fits, and
        `OptionError` if a draft doesn't.
        """
        canvases = canvases_behind(self.prompt, canvas_length, context_length, memory_for)
        room = Room(self.max_tokens, canvases, canvas_length)
        least = sum(part.need.tokens for part in self.parts)
        if least > room.tokens:
            raise ConstraintError(
                f"Not even the shortest reply of the form asked for fits: it takes {least:,} tokens, but "
                f"max_tokens is {room.tokens:,}. Set max_tokens to {least:,} or more."
            )
        *before, text = self.parts
        left = room.beside(before)
        positions = left.canvases * canvas_length
        if text.need.positions > positions:
            raise ConstraintError(
                f"Not even the shortest reply of the form asked for fits: it takes {text.need.positions:,} "
                f"tokens, but the prompt leaves room for {positions:,} in this model's context. Shorten the "
                "prompt, or start a new conversation."
            )
        drafted = 0 if text.draft is None else text.draft.num_tokens
        # What no max_tokens mends comes first.
        if drafted > positions:
            raise OptionError(
                f"The draft is {drafted:,} tokens long, but the prompt leaves room for {positions:,}. Shorten one "
                "of them, or start a new conversation."
            )
        if drafted > left.tokens:
            least = drafted + room.tokens - left.tokens
            raise OptionError(
                f"The draft is {drafted:,} tokens long, but max_tokens is {room.tokens:,}. Set max_tokens to "
                f"{least:,} or more, or shorten the draft."
            )
        return room


@dataclass(frozen=True)
class Reads:
    """What a network is asked to say of canvases of pure noise, in place of a reply.

    Raises `PromptError` if the prompt is empty.
    """

    prompt: Prompt
    tokens: Sequence[int]
    """Those that it is to tell of: U."""
    canvas_length: int | None = None
    """None: the checkpoint's."""
    count: int = 1
    """Of canvases, each with noise of its own. One at least."""

    def __post_init__(self) -> None:
        _check(self.prompt)
