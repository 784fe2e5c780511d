"""The block-diffusion loop: encoder, then denoiser, canvas by canvas.

The loop knows no formula, those are the sampler's; no weights, those are the network's; and not what a reply is
made of, which its request says. Batch size is 1; `[256]` in a comment stands for `[canvas_length]`.
"""

from __future__ import annotations

import itertools
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..errors import DeviceMemoryError, NotANumberError
from ..view.records import Reading
from .devices import is_out_of_memory
from .graphs import StepGraphs
from .kv_cache import KVCache
from .prefix_cache import EncodedPrefix, PrefixCache
from .reads import NoiseReader
from .request import Endings, canvases_behind, length_of_canvas
from .sampler import EntropyBoundSampler

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from ..grammar.records import ConstraintReport
    from .network import Network
    from .prefix_cache import Identity
    from .request import FinishReason, Prompt, PromptImage, Reads, Request, Room
    from .sampler import DenoisingStep, Randomness

# The encoder reads so many tokens at a time (more where an image would be cut): its masks have a row for
# each of them and a column for each token of the context, which at once would be gigabytes for a long one.
MAX_PREFILL_TOKENS = 1024

# So often a part's first canvas is drawn again if there is nothing in it. A later one ends what there is.
MAX_REDRAWS = 2


@dataclass(frozen=True)
class Draft:
    """A canvas after one denoising step, for somebody who watches."""

    block_index: int
    step: int
    """Denoising steps done on this canvas, from 1; drawn again it begins anew."""
    max_steps: int
    """of this canvas"""
    tokens: list[int]
    """The most likely token of every position of the canvas, whatever comes after an end of sequence. Of a canvas
    that is held to a constraint: the most likely canvas that is allowed."""
    end: int | None
    """From here on nothing would be part of the reply, were this the last step; None if all of it would be."""
    accepted: list[bool]
    entropies: list[float]
    """nats"""
    mean_entropy: float
    """nats"""
    candidates: list[list[tuple[int, float]]] | None = None
    """Of every position the likeliest tokens with their probabilities, the likeliest first; None if nobody wants
    them. They are what the step has drawn from: behind softcap and temperature, and where a constraint holds the
    canvas, the share of all allowed canvases that have the token there. The most likely of those canvases may have
    another token than the likeliest there."""
    redrawn: int = 0
    """How often this canvas had come out empty before."""


@dataclass(frozen=True)
class Block:
    """A committed canvas."""

    index: int
    tokens: list[int]
    """Cut before the first end of sequence and at the token budget."""
    eos_token_id: int | None
    """The end-of-sequence token that ended the reply here, if one did. It is not in `tokens`."""
    denoising_steps: int
    """of all its draws"""
    converged: bool
    """False if the denoising steps ran out first."""
    finish_reason: FinishReason | None
    """Why the reply ends with this block: the model said so ("stop"), or `max_tokens` or the context is
    used up ("length"). None if another block follows."""
    encoded_tokens: int
    """Tokens that the encoder read before this canvas: of the prompt what no cache held, or the block before."""
    seconds: float
    """Wall time of encoding what stood before the canvas and of denoising it, without what drafts took: to make
    them, and the consumer."""
    constraint: ConstraintReport | None = None
    """What the constraint did here; None if the canvas was free."""
    choices: tuple[float, ...] | None = None
    """nats: how probable it was in the last denoising step that the canvas is this one of the choices, for each of
    them. None unless the canvas is a choice."""
    redrawn: int = 0
    """How often it came out empty, and was drawn again."""


@dataclass(frozen=True, eq=False)
class Read:
    """What the network says of a canvas of pure noise, in a single denoising step at temperature 1."""

    log_probabilities: torch.Tensor
    """nats, of the tokens asked for at each position, by a softmax over the whole vocabulary: fp64 `[256, U]`, on
    the host"""
    encoded_tokens: int
    """As a `Block` has them."""
    seconds: float
    """As a `Block` has them."""


class BlockDiffusionPipeline:
    """Replies from a network, one canvas at a time.

    Between replies it keeps nothing but the KV cache of the last one, in `prefix_cache`.
    """

    def __init__(
        self,
        network: Network,
        *,
        eos_token_ids: Iterable[int],
        pad_token_id: int | None,
        context_tokens: int | None = None,
        graphs: StepGraphs | None = None,
    ) -> None:
        """`context_tokens` is the longest context that there is memory for; None if nobody has counted. `graphs`
        are by default what the network's device has."""
        self._network = network
        self._graphs = StepGraphs.of(network) if graphs is None else graphs
        self.prefix_cache = PrefixCache()
        self.canvas_length = network.config.canvas_length
        """Unless a request asks for a shorter one."""
        self.context_length = network.config.context_length
        self._context_tokens = context_tokens
        self.eos_token_ids = frozenset(eos_token_ids)
        self.pad_token_id = pad_token_id

    @property
    def graph_state(self) -> str | None:
        """Whether steps are replayed as a CUDA graph: "used", or why not. None where there is no CUDA."""
        return self._graphs.state

    def generate(
        self,
        request: Request,
        *,
        randomness: Randomness,
        readings: bool = False,
        drafts: bool = False,
        candidates: int = 0,
        should_stop: Callable[[], bool] | None = None,
    ) -> Generator[Reading | Draft | Block, None, None]:
        """Reply to a request: yields each block when done.

        With `readings` a `Reading` comes before the prompt is read and after each chunk of it. With `drafts` a
        `Draft` comes after every denoising step, before the `Block` it leads to, with so many `candidates`. What
        nobody asks for is not made, and asking changes no reply.

        Closing the generator ends the reply. So does `should_stop`, asked before every denoising step and between
        the chunks of a long prompt: a generator can't be closed from another thread while it runs.

        What the prompt has in common with the last reply's prompt and text is not encoded again.

        Raises at the call, before any work, what `length_of_canvas` and `Request.room` raise. Raises while it
        runs: `DeviceMemoryError`, `NotANumberError`, and what an image's soft tokens raise.
        """
        canvas_length = length_of_canvas(request.canvas_length, self.canvas_length)
        room = request.room(self.context_length, canvas_length, self._context_tokens)
        return self._reply(request, room, randomness, readings, drafts, candidates, should_stop or (lambda: False))

    # As a decorator of a generator `no_grad` lasts while the generator runs, and the consumer has its own
    # grad mode back whenever it is suspended; a `with` around the yields would leak into the consumer.
    @torch.no_grad()
    def _reply(
        self,
        request: Request,
        room: Room,
        randomness: Randomness,
        readings: bool,
        drafts: bool,
        candidates: int,
        should_stop: Callable[[], bool],
    ) -> Generator[Reading | Draft | Block, None, None]:
        network, endings = self._network, Endings(self.eos_token_ids, self.pad_token_id)
        part, *later = request.parts
        is_first = True
        unread: list[int] = []
        with self._prefix_of(request.prompt) as prefix:
            network.start_reply()
            sampler = EntropyBoundSampler(
                request.settings,
                vocabulary=network,
                canvas_length=room.canvas_length,
                device=network.device,
                softcap=network.config.final_logit_softcapping,
                randomness=randomness,
                candidates=candidates if drafts else 0,
                eos_token_ids=self.eos_token_ids,
            )
            for index in itertools.count():
                if should_stop():
                    return
                started = time.perf_counter()
                before = len(prefix)
                if index == 0:
                    started += yield from self._prefill(request.prompt, prefix, readings, should_stop)
                    if len(prefix) < len(request.prompt.token_ids):
                        return
                elif unread:
                    self._encode(unread, unread, prefix)
                encoded_tokens = len(prefix) - before

                own_room = room.beside(later)
                denoising_steps = 0
                for redrawn in itertools.count():
                    part.start_canvas(sampler, own_room)
                    denoising = self._denoise(prefix.cache, sampler)
                    for steps_done, step in enumerate(denoising, start=1):
                        if drafts:
                            suspended = time.perf_counter()
                            tokens = step.tokens
                            yield Draft(
                                block_index=index,
                                step=steps_done,
                                max_steps=sampler.max_steps,
                                tokens=tokens,
                                end=part.end(tokens, own_room, endings),
                                accepted=step.accepted,
                                entropies=step.entropies,
                                mean_entropy=step.mean_entropy,
                                candidates=step.candidates if candidates else None,
                                redrawn=redrawn,
                            )
                            started += time.perf_counter() - suspended
                        if should_stop():
                            return
                    denoising_steps += steps_done
                    piece = part.commit(step.tokens, own_room, endings)
                    if not (piece.is_empty and is_first) or redrawn == MAX_REDRAWS:
                        break

                finish_reason = None if later else piece.ends
                yield Block(
                    index=index,
                    tokens=piece.tokens,
                    eos_token_id=piece.eos_token_id,
                    denoising_steps=denoising_steps,
                    converged=step.converged,
                    finish_reason=finish_reason,
                    encoded_tokens=encoded_tokens,
                    seconds=time.perf_counter() - started,
                    constraint=piece.constraint,
                    choices=piece.choices,
                    redrawn=redrawn,
                )
                if finish_reason is not None:
                    return
                is_first = piece.ends is not None
                if is_first:
                    part, *later = later
                room = room.after(len(piece.tokens))
                unread = piece.tokens

    def read(
        self,
        asked: Reads,
        *,
        randomness: Randomness,
        readings: bool = False,
        should_stop: Callable[[], bool] | None = None,
    ) -> Generator[Reading | Read, None, None]:
        """What the network says of canvases of pure noise: yields each as it has been read, one denoising step.

        Each gets its noise from `randomness`, and all else is as `generate` has it: the readings, how it is ended,
        what is kept for the next turn, and what it raises at the call and while it runs.
        """
        canvas_length = length_of_canvas(asked.canvas_length, self.canvas_length)
        canvases_behind(asked.prompt, canvas_length, self.context_length, self._context_tokens)
        return self._read(asked, canvas_length, randomness, readings, should_stop or (lambda: False))

    @torch.no_grad()
    def _read(
        self,
        asked: Reads,
        canvas_length: int,
        randomness: Randomness,
        readings: bool,
        should_stop: Callable[[], bool],
    ) -> Generator[Reading | Read, None, None]:
        network = self._network
        with self._prefix_of(asked.prompt) as prefix:
            network.start_reply()
            reader = NoiseReader(
                asked.tokens,
                vocabulary=network,
                canvas_length=canvas_length,
                device=network.device,
                softcap=network.config.final_logit_softcapping,
                randomness=randomness,
            )
            started, before = time.perf_counter(), len(prefix)
            started += yield from self._prefill(asked.prompt, prefix, readings, should_stop)
            cache = prefix.cache

            def step() -> None:
                reader.measure(network.denoise(reader.canvas, None, cache))

            again: Callable[[], None] = step
            if should_stop() or len(prefix) < len(asked.prompt.token_ids):
                return
            for index in range(asked.count):
                reader.start_canvas()
                if index == 1 and asked.count > 2:
                    again = self._graphs.run(step, [], [*reader.measured, *cache.written(canvas_length)])
                else:
                    again()
                log_probabilities = reader.conclude()
                if should_stop():
                    return
                yield Read(
                    log_probabilities=log_probabilities,
                    encoded_tokens=len(prefix) - before,
                    seconds=time.perf_counter() - started,
                )
                started, before = time.perf_counter(), len(prefix)

    @contextmanager
    def _prefix_of(self, prompt: Prompt) -> Iterator[EncodedPrefix]:
        """What is to be read behind: in the end it is kept for the next turn, unless there is something wrong with
        it.

        Raises `DeviceMemoryError` for what says in other words that a device's memory was not enough.
        """
        network = self._network
        prefix = self.prefix_cache.take(prompt.identities)
        if prefix is None:
            prefix = EncodedPrefix(KVCache(network.config, network.dtype, network.layer_devices))
        is_sound = True
        try:
            yield prefix
        except NotANumberError:
            is_sound = False  # other replies would begin with what may be in there
            raise
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            is_sound = False  # let the next reply have the memory
            raise DeviceMemoryError(
                f"{network.device} ran out of memory with {len(prefix):,} tokens of context. "
                "Shorten the prompt or ask for fewer tokens, free memory that other programs hold on this "
                "device, or choose another device."
            ) from error
        finally:
            if is_sound:
                self.prefix_cache.keep(prefix)

    def _denoise(self, cache: KVCache, sampler: EntropyBoundSampler) -> Iterator[DenoisingStep]:
        """Denoise the sampler's canvas behind what is in the KV cache: the steps until it has converged."""
        network = self._network

        def begin() -> None:
            sampler.measure(network.denoise(sampler.canvas, None, cache))

        def go_on() -> None:
            sampler.measure(network.denoise(sampler.canvas, sampler.soft_embeddings, cache))

        again: Callable[[], None] = go_on
        for step in range(1, sampler.max_steps + 1):
            if step == 1:
                begin()
            elif step == 2 and sampler.max_steps > 2:
                # The first one that is like those behind it.
                written = [*sampler.measured, *cache.written(len(sampler.canvas))]
                again = self._graphs.run(go_on, sampler.carried, written)
            else:
                again()
            result = sampler.conclude()
            yield result
            if result.converged:
                return

    def _prefill(
        self, prompt: Prompt, prefix: EncodedPrefix, readings: bool, should_stop: Callable[[], bool]
    ) -> Generator[Reading, None, float]:
        """Read what `prefix` does not hold of a prompt, or up to where `should_stop` says so, and tell of it if
        `readings` are wanted. Returns the seconds that the consumer took."""
        length, aside = len(prompt.token_ids), 0.0

        def tell() -> Generator[Reading, None, None]:
            nonlocal aside
            if readings:
                suspended = time.perf_counter()
                yield Reading(len(prefix), length)
                aside += time.perf_counter() - suspended

        yield from tell()
        while (start := len(prefix)) < length and not should_stop():
            stop = min(start + MAX_PREFILL_TOKENS, length)
            if start < prompt.stable_length < stop:
                stop = prompt.stable_length
            for image in prompt.images:
                # Its soft tokens see each other, so they have to come at once.
                if image.span.start < stop < image.span.stop:
                    stop = image.span.stop
            self._encode(prompt.token_ids[start:stop], prompt.identities[start:stop], prefix, prompt.images)
            if stop == prompt.stable_length:
                prefix.cache.mark()
            yield from tell()
        return aside

    def _encode(
        self,
        tokens: Sequence[int],
        identities: Sequence[Identity],
        prefix: EncodedPrefix,
        images: Sequence[PromptImage] = (),
    ) -> None:
        """Append tokens to what is in the KV cache. Of a prompt's `images` those count that stand among them."""
        network, first = self._network, len(prefix)
        embeddings = network.embed(torch.tensor(tokens, device=network.device))  # [n, H]
        here = [image for image in images if first <= image.span.start < first + len(tokens)]
        for image in here:
            embeddings[image.span.start - first : image.span.stop - first] = image.soft_tokens()
        network.encode(embeddings, prefix.cache, [image.span for image in here])
        prefix.identities += identities
