"""The block-diffusion loop: encoder, then denoiser, canvas by canvas.

The loop knows no formula, those are the sampler's. It calls the model through its public forwards only.
Batch size is 1; `[1, 256]` in a comment stands for `[1, canvas_length]`.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from transformers import DiffusionGemmaModel, DynamicCache

from ..errors import (
    ConstraintError,
    ContextLengthError,
    DeviceMemoryError,
    OptionError,
    PromptError,
)
from .devices import is_out_of_memory
from .prefix_cache import EncodedPrefix, Identity, PrefixCache
from .sampler import (
    DenoisingStep,
    EntropyBoundSampler,
    Randomness,
    SamplerSettings,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from transformers import DiffusionGemmaForBlockDiffusion

    from ..grammar.constraint import ConstraintReport, TextConstraint

FinishReason = Literal["stop", "length"]

# The encoder reads so many tokens at a time (more where an image would be cut): its masks have a row for
# each of them and a column for each token of the context, which at once would be gigabytes for a long one.
MAX_PREFILL_TOKENS = 1024

# transformers 5.24 gave the KV cache's argument another name, and warns of the old one.
CACHE_ARGUMENT = (
    "cache" if "cache" in inspect.signature(DiffusionGemmaModel.forward).parameters else "past_key_values"
)


@dataclass(frozen=True)
class Draft:
    """A canvas after one denoising step, for somebody who watches."""

    block_index: int
    step: int
    """Denoising steps done on this canvas, from 1."""
    tokens: list[int]
    """The most likely token of every position of the canvas, whatever comes after an end of sequence."""
    accepted: list[bool]
    mean_entropy: float
    """nats"""


@dataclass(frozen=True)
class Block:
    """A committed canvas."""

    index: int
    tokens: list[int]
    """Cut before the first end of sequence and at the token budget."""
    eos_token_id: int | None
    """The end-of-sequence token that ended the reply here, if one did. It is not in `tokens`."""
    denoising_steps: int
    converged: bool
    """False if the denoising steps ran out first."""
    finish_reason: FinishReason | None
    """Why the reply ends with this block: the model said so ("stop"), or `max_tokens` or the context is
    used up ("length"). None if another block follows."""
    encoded_tokens: int
    """Tokens that the encoder read before this canvas: of the prompt what no cache held, or the block before."""
    seconds: float
    """Wall time of encoding what stood before the canvas and of denoising it, without the time the
    consumer spent on drafts."""
    constraint: ConstraintReport | None = None
    """What the constraint did here; None if the canvas was free."""


@dataclass(frozen=True, eq=False)
class ImageInputs:
    """What the checkpoint's image processor makes of the images in a prompt."""

    pixel_values: Sequence[torch.Tensor]
    """For each image `[patches, patch pixels]`: as many patches as its own budget of soft tokens allows."""
    image_position_ids: Sequence[torch.Tensor]
    """For each image `[patches, 2]`, -1 for padding."""
    spans: tuple[range, ...]
    """Where in the prompt the soft tokens of each image stand, in their order."""

    @cached_property
    def digests(self) -> list[str]:
        """For each image a name that no image has that the encoder would see differently."""
        return [
            # Without the padding, which depends on the budget and not on what there is to see.
            hashlib.sha256(
                pixels[positions[:, 0] >= 0].numpy().tobytes() + positions[positions[:, 0] >= 0].numpy().tobytes()
            ).hexdigest()
            for pixels, positions in zip(self.pixel_values, self.image_position_ids, strict=True)
        ]

    def token_types(self, length: int) -> torch.Tensor:
        """`[1, length]`, 1 where a soft token stands among the first `length` tokens of the prompt."""
        types = torch.zeros(1, length, dtype=torch.int64)
        for span in self.spans:
            types[:, span.start : span.stop] = 1
        return types


@dataclass(frozen=True, eq=False)
class Prompt:
    """What the encoder reads first. `identities` say what stands at each position (see `prefix_cache`)."""

    tokens: torch.Tensor
    """`[1, prompt tokens]`"""
    identities: list[Identity]
    images: ImageInputs | None
    stable_length: int
    """How much of it the next turn of the conversation is sure to begin with."""


@dataclass(eq=False)
class Room:
    """What a reply may still take."""

    tokens: int
    """of text, without its end of sequence"""
    canvases: int
    canvas_length: int

    @property
    def positions(self) -> int:
        """For the tokens of a text and its end of sequence, which may stand right behind the last of them."""
        return min(self.tokens + 1, self.canvases * self.canvas_length)

    def take(self, tokens: int) -> None:
        """One more canvas has been committed, with so many tokens."""
        self.tokens -= tokens
        self.canvases -= 1


class BlockDiffusionPipeline:
    """Replies from a loaded DiffusionGemma, one canvas at a time.

    Between replies it keeps nothing but the KV cache of the last one, in `prefix_cache`.
    """

    def __init__(self, model: DiffusionGemmaForBlockDiffusion) -> None:
        self._model = model
        self.prefix_cache = PrefixCache()
        self._encoder = model.model.encoder
        self._text_config = model.config.get_text_config(decoder=True)
        self.canvas_length: int = model.config.canvas_length
        self.vocab_size: int = self._text_config.vocab_size
        self.context_length: int = self._text_config.max_position_embeddings
        eos = model.generation_config.eos_token_id
        self.eos_token_ids: frozenset[int] = frozenset(
            () if eos is None else (eos,) if isinstance(eos, int) else eos
        )
        self.pad_token_id: int | None = model.generation_config.pad_token_id

    def generate(
        self,
        prompt_ids: Sequence[int] | torch.Tensor,
        *,
        settings: SamplerSettings,
        max_tokens: int,
        randomness: Randomness,
        drafts: bool = False,
        images: ImageInputs | None = None,
        stable_length: int = 0,
        constraint: TextConstraint | None = None,
        thought_closes: int | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Generator[Draft | Block, None, None]:
        """Reply to a prompt of token ids (a list, or int `[prompt tokens]`): yields each block when done.

        With `drafts` a `Draft` comes after every denoising step, before the `Block` it leads to. Closing
        the generator ends the reply. So does `should_stop`, asked before every denoising step and between
        the chunks of a long prompt: a generator can't be closed from another thread while it runs.

        What the prompt has in common with the last reply's prompt and text is not encoded again. Its first
        `stable_length` tokens are what the next turn will begin with even if the end of this one comes
        back otherwise than it was written, as a template that strips thoughts does.

        `max_tokens` counts what the blocks hold, so without the end of sequence; the last canvas is always
        denoised whole. A canvas of nothing but padding ends the reply, too: a network that has forgotten its
        end of sequence would go on like that, unseen, to the end of the context.

        A fresh `constraint` holds the reply to a language: it ends with "stop", and its text belongs to it.
        With `thought_closes` the reply begins with a thought, which is free: the constraint holds from the
        canvas behind the one that this token closes the thought in. A thought that does not close itself in
        time is closed; a prompt should open it, or what is free need not be one.

        Raises at the call, before any work: `ContextLengthError` if the prompt leaves no room for a canvas,
        `ConstraintError` if not even the shortest text fits, `PromptError` if the prompt is empty,
        `OptionError` if `max_tokens` is below 1. Raises while it runs: `DeviceMemoryError`.
        """
        tokens = torch.as_tensor(prompt_ids, dtype=torch.int64, device=self._model.device)
        if len(tokens) == 0:
            raise PromptError("The prompt is empty. Say something.")
        if max_tokens < 1:
            raise OptionError(f"max_tokens must be at least 1, but it is {max_tokens}.")
        room = Room(max_tokens, (self.context_length - len(tokens)) // self.canvas_length, self.canvas_length)
        if room.canvases < 1:
            shown = sum(map(len, images.spans)) if images else 0
            raise ContextLengthError(len(tokens), self.context_length, self.canvas_length, shown)
        if constraint is not None:
            _check_shortest_fits(constraint.fewest_tokens, room, with_thought=thought_closes is not None)
        identities: list[Identity] = tokens.tolist()
        if images is not None:
            for span, digest in zip(images.spans, images.digests, strict=True):
                identities[span.start : span.stop] = [digest] * len(span)
        return self._reply(
            Prompt(tokens[None], identities, images, stable_length),
            settings,
            room,
            randomness,
            drafts,
            constraint,
            thought_closes,
            should_stop or (lambda: False),
        )

    # As a decorator of a generator `no_grad` lasts while the generator runs, and the consumer has its own
    # grad mode back whenever it is suspended; a `with` around the yields would leak into the consumer.
    @torch.no_grad()
    def _reply(
        self,
        prompt: Prompt,
        settings: SamplerSettings,
        room: Room,
        randomness: Randomness,
        drafts: bool,
        constraint: TextConstraint | None,
        thought_closes: int | None,
        should_stop: Callable[[], bool],
    ) -> Generator[Draft | Block, None, None]:
        prefix = self.prefix_cache.take(prompt.identities)
        if prefix is None:
            prefix = EncodedPrefix(DynamicCache(config=self._text_config))
        committed: list[int] = []
        try:
            sampler = EntropyBoundSampler(
                settings,
                canvas_length=self.canvas_length,
                vocab_size=self.vocab_size,
                device=self._model.device,
                softcap=self._text_config.final_logit_softcapping,
                self_conditioning_dtype=self._model.get_input_embeddings().weight.dtype,
                randomness=randomness,
            )
            for index in itertools.count():
                if should_stop():
                    return
                started = time.perf_counter()
                before = len(prefix)
                if index == 0:
                    self._prefill(prompt, prefix, should_stop)
                    if len(prefix) < len(prompt.identities):
                        return
                else:
                    self._encode(torch.tensor([committed], device=prompt.tokens.device), committed, prefix)
                encoded_tokens = len(prefix) - before
                held_to = constraint if thought_closes is None else None
                if held_to is not None:
                    held_to.start_canvas(self.canvas_length, room.positions)
                denoising = self._denoise(prefix.cache, sampler, settings.max_denoising_steps, held_to)
                for steps_done, step in enumerate(denoising, start=1):
                    if drafts:
                        draft = Draft(
                            block_index=index,
                            step=steps_done,
                            tokens=step.argmax.tolist(),
                            accepted=step.accepted.tolist(),
                            mean_entropy=step.entropy.mean().item(),
                        )
                        suspended = time.perf_counter()
                        yield draft
                        started += time.perf_counter() - suspended
                    if should_stop():
                        return

                committed = step.argmax.tolist()
                eos_token_id: int | None = None
                finish_reason: FinishReason | None = None
                if constraint is not None and thought_closes is not None:
                    tokens, closed = self._cut_thought(committed, thought_closes, room, constraint.fewest_tokens)
                    committed = tokens
                    thought_closes = None if closed else thought_closes
                else:
                    tokens, eos_token_id = self._cut(committed, room.tokens)
                room.take(len(tokens))
                if eos_token_id is not None or not tokens:
                    finish_reason = "stop"
                # A constraint sees to it that it ends in time. It may have its last word right behind the budget.
                elif constraint is None and (room.tokens == 0 or room.canvases == 0):
                    finish_reason = "length"
                yield Block(
                    index=index,
                    tokens=tokens,
                    eos_token_id=eos_token_id,
                    denoising_steps=steps_done,
                    converged=step.converged,
                    finish_reason=finish_reason,
                    encoded_tokens=encoded_tokens,
                    seconds=time.perf_counter() - started,
                    constraint=None if held_to is None else held_to.commit(committed),
                )
                if finish_reason is not None:
                    return
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            length = len(prefix)
            prefix = EncodedPrefix(DynamicCache())  # let the next reply have the memory
            raise DeviceMemoryError(
                f"{self._model.device} ran out of memory with {length:,} tokens of context. "
                "Shorten the prompt or ask for fewer tokens, free memory that other programs hold on this "
                "device, or choose another device."
            ) from error
        finally:
            self.prefix_cache.keep(prefix)

    def _denoise(
        self,
        cache: DynamicCache,
        sampler: EntropyBoundSampler,
        max_denoising_steps: int,
        constraint: TextConstraint | None,
    ) -> Iterator[DenoisingStep]:
        """Denoise one canvas behind what is in the KV cache: the steps until it has converged, or all."""
        canvas = sampler.start_canvas(constraint)
        self_conditioning_logits = None
        first = cache.get_seq_length()
        positions = torch.arange(first, first + self.canvas_length, device=canvas.device)[None]
        for steps_left in range(max_denoising_steps, 0, -1):
            # What the model's own forward does, but for the softcap, which the sampler's pass includes.
            output = self._model.model(
                decoder_input_ids=canvas[None],
                **{CACHE_ARGUMENT: cache},
                self_conditioning_logits=self_conditioning_logits,
                decoder_position_ids=positions,
            )
            logits = self._model.lm_head(output.last_hidden_state)[0].float()
            step = sampler.step(logits, steps_left)
            del logits  # a quarter of a gigabyte, which would live through the next forward
            yield step
            if step.converged:
                return
            canvas = step.canvas
            self_conditioning_logits = step.self_conditioning_logits[None]

    def _prefill(self, prompt: Prompt, prefix: EncodedPrefix, should_stop: Callable[[], bool]) -> None:
        """Read what `prefix` does not hold of a prompt, or up to where `should_stop` says so."""
        length = len(prompt.identities)
        while (start := len(prefix)) < length and not should_stop():
            stop = min(start + MAX_PREFILL_TOKENS, length)
            if start < prompt.stable_length < stop:
                stop = prompt.stable_length
            for span in prompt.images.spans if prompt.images else ():
                # The soft tokens of an image see each other, so they have to come at once.
                if span.start < stop < span.stop:
                    stop = span.stop
            self._encode(prompt.tokens[:, start:stop], prompt.identities[start:stop], prefix, prompt.images)
            if stop == prompt.stable_length:
                prefix.mark()

    def _encode(
        self,
        tokens: torch.Tensor,  # [1, n]
        identities: Sequence[Identity],
        prefix: EncodedPrefix,
        images: ImageInputs | None = None,
    ) -> None:
        """Append tokens to the KV cache; what is in it already stands before them."""
        past = len(prefix)
        length, device = tokens.shape[1], tokens.device
        positions = torch.arange(past, past + length, device=device)[None]
        # Of the images of a prompt those that stand here.
        here = [i for i, span in enumerate(images.spans) if past <= span.start < past + length] if images else []
        # The encoder makes masks of its own if it gets none, but forgets the ones for images: without
        # these an image would be read causally.
        masks = self._encoder.create_masks_for_generate(
            config=self._model.config,
            # Read for its shape, dtype and device only.
            inputs_embeds=torch.empty(1, length, 0, dtype=self._model.dtype, device=device),
            attention_mask=torch.ones(1, past + length, dtype=torch.bool, device=device),
            **{CACHE_ARGUMENT: prefix.cache},
            position_ids=positions,
            # From the very first token on: the masks look them up by position.
            mm_token_type_ids=images.token_types(past + length).to(device) if images and here else None,
        )
        embeddings = self._encoder.get_input_embeddings()(tokens)
        # One at a time: as a batch all would be padded to the largest.
        for i in here:
            assert images is not None
            soft_tokens = self._encoder.get_image_features(
                images.pixel_values[i][None].to(device),
                images.image_position_ids[i][None].to(device),
                return_dict=True,
            ).pooler_output
            span = images.spans[i]
            embeddings[0, span.start - past : span.stop - past] = soft_tokens
        self._encoder(
            inputs_embeds=embeddings,
            attention_mask=masks,
            **{CACHE_ARGUMENT: prefix.cache},
            position_ids=positions,
        )
        prefix.identities += identities

    def _cut(self, committed: list[int], budget: int) -> tuple[list[int], int | None]:
        """The part of a committed canvas that belongs to the reply, and the end of sequence that ended it.

        Nothing but padding is no part of it, and no end of sequence either.
        """
        end = next((i for i, token in enumerate(committed) if token in self.eos_token_ids), None)
        # Right behind the last token of the budget it still says that the reply is complete.
        if end is not None and end <= budget:
            return committed[:end], committed[end]
        return [] if self._is_padding(committed) else committed[:budget], None

    def _is_padding(self, committed: list[int]) -> bool:
        return all(token == self.pad_token_id for token in committed)

    def _cut_thought(
        self, committed: list[int], closes: int, room: Room, fewest_tokens: int
    ) -> tuple[list[int], bool]:
        """The part of a committed canvas that belongs to a thought, `closes` included, and whether it ends there.

        It ends with `closes`; where the model ended its reply instead; or where another canvas of it would
        leave too little room for a text of `fewest_tokens`, its end of sequence counted.
        """
        ends = (i for i, token in enumerate(committed) if token == closes or token in self.eos_token_ids)
        end = 0 if self._is_padding(committed) else next(ends, self.canvas_length)
        left_over = room.tokens - (fewest_tokens - 1)
        canvases_left_over = room.canvases - -(-fewest_tokens // self.canvas_length)
        if end == self.canvas_length < left_over and canvases_left_over > 1:
            return committed, False
        return [*committed[: min(end, self.canvas_length - 1, left_over - 1)], closes], True


def _check_shortest_fits(fewest_tokens: int, room: Room, *, with_thought: bool) -> None:
    """Raises `ConstraintError` unless a text of `fewest_tokens`, its end of sequence counted, has room."""
    # A thought takes its canvas, and of the tokens the one that closes it.
    least = fewest_tokens - 1 + with_thought
    if least > room.tokens:
        raise ConstraintError(
            f"Not even the shortest reply of the form asked for fits: it takes {least:,} tokens, but max_tokens "
            f"is {room.tokens:,}. Set max_tokens to {least:,} or more."
        )
    positions = (room.canvases - with_thought) * room.canvas_length
    if fewest_tokens > positions:
        raise ConstraintError(
            f"Not even the shortest reply of the form asked for fits: it takes {fewest_tokens:,} tokens, but the "
            f"prompt leaves room for {positions:,} in this model's context. Shorten the prompt, or start a new "
            "conversation."
        )
