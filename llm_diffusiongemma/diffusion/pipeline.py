"""The block-diffusion loop: encoder, then denoiser, canvas by canvas.

The loop knows no formula, those are the sampler's. It calls the model through its public forwards only.
Batch size is 1; `[1, 256]` in a comment stands for `[1, canvas_length]`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from transformers import DynamicCache

from llm_diffusiongemma.diffusion.loading import is_out_of_memory
from llm_diffusiongemma.diffusion.sampler import (
    DenoisingStep,
    EntropyBoundSampler,
    Randomness,
    SamplerSettings,
)
from llm_diffusiongemma.errors import ContextLengthError, DeviceMemoryError, OptionError, PromptError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from transformers import DiffusionGemmaForBlockDiffusion

FinishReason = Literal["stop", "length"]


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
    seconds: float
    """Wall time of encoding what stood before the canvas and of denoising it, without the time the
    consumer spent on drafts."""


@dataclass(frozen=True, eq=False)
class ImageInputs:
    """What the checkpoint's image processor makes of the images in a prompt."""

    pixel_values: torch.Tensor
    """`[images, patches, patch pixels]`"""
    image_position_ids: torch.Tensor
    """`[images, patches, 2]`, -1 for padding"""
    mm_token_type_ids: torch.Tensor
    """`[1, prompt tokens]`, 1 where an image's soft token stands"""


class BlockDiffusionPipeline:
    """Replies from a loaded DiffusionGemma, one canvas at a time. Keeps nothing between replies."""

    def __init__(self, model: DiffusionGemmaForBlockDiffusion) -> None:
        self._model = model
        self._encoder = model.model.encoder
        self._text_config = model.config.get_text_config(decoder=True)
        self.canvas_length: int = model.config.canvas_length
        self.vocab_size: int = self._text_config.vocab_size
        self.context_length: int = self._text_config.max_position_embeddings
        eos = model.generation_config.eos_token_id
        self.eos_token_ids: frozenset[int] = frozenset(
            () if eos is None else (eos,) if isinstance(eos, int) else eos
        )

    def generate(
        self,
        prompt_ids: Sequence[int] | torch.Tensor,
        *,
        settings: SamplerSettings,
        max_tokens: int,
        randomness: Randomness,
        drafts: bool = False,
        images: ImageInputs | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Generator[Draft | Block, None, None]:
        """Reply to a prompt of token ids (a list, or int `[prompt tokens]`): yields each block when done.

        With `drafts` a `Draft` comes after every denoising step, before the `Block` it leads to. Closing
        the generator ends the reply. So does `should_stop`, asked before every denoising step: a generator
        can't be closed from another thread while it runs.

        `max_tokens` counts what the blocks hold, so without the end of sequence; the last canvas is always
        denoised whole.

        Raises at the call, before any work: `ContextLengthError` if the prompt leaves no room for a canvas,
        `PromptError` if it is empty, `OptionError` if `max_tokens` is below 1. Raises while it runs:
        `DeviceMemoryError`.
        """
        prompt = torch.as_tensor(prompt_ids, dtype=torch.int64, device=self._model.device)
        if len(prompt) == 0:
            raise PromptError("The prompt is empty. Say something.")
        if max_tokens < 1:
            raise OptionError(f"max_tokens must be at least 1, but it is {max_tokens}.")
        canvases_in_context = (self.context_length - len(prompt)) // self.canvas_length
        if canvases_in_context < 1:
            raise ContextLengthError(len(prompt), self.context_length, self.canvas_length)
        num_canvases = min(canvases_in_context, -(-max_tokens // self.canvas_length))
        return self._reply(
            prompt[None],
            settings,
            num_canvases,
            max_tokens,
            randomness,
            drafts,
            images,
            should_stop or (lambda: False),
        )

    # As a decorator of a generator `no_grad` lasts while the generator runs, and the consumer has its own
    # grad mode back whenever it is suspended; a `with` around the yields would leak into the consumer.
    @torch.no_grad()
    def _reply(
        self,
        prompt: torch.Tensor,  # [1, prompt tokens]
        settings: SamplerSettings,
        num_canvases: int,
        max_tokens: int,
        randomness: Randomness,
        drafts: bool,
        images: ImageInputs | None,
        should_stop: Callable[[], bool],
    ) -> Generator[Draft | Block, None, None]:
        cache = DynamicCache(config=self._text_config)
        uncached = prompt
        budget = max_tokens
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
            for index in range(num_canvases):
                if should_stop():
                    return
                started = time.perf_counter()
                self._encode(uncached, cache, images if index == 0 else None)
                denoising = self._denoise(cache, sampler, settings.max_denoising_steps)
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

                tokens, eos_token_id = self._cut(step.argmax.tolist(), budget)
                finish_reason: FinishReason | None = None
                if eos_token_id is not None:
                    finish_reason = "stop"
                elif index == num_canvases - 1:
                    finish_reason = "length"
                yield Block(
                    index=index,
                    tokens=tokens,
                    eos_token_id=eos_token_id,
                    denoising_steps=steps_done,
                    converged=step.converged,
                    finish_reason=finish_reason,
                    seconds=time.perf_counter() - started,
                )
                if finish_reason is not None:
                    return
                budget -= len(tokens)
                uncached = step.argmax[None]
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise DeviceMemoryError(
                f"{self._model.device} ran out of memory with {cache.get_seq_length():,} tokens of context. "
                "Shorten the prompt or ask for fewer tokens, free memory that other programs hold on this "
                "device, or choose another device."
            ) from error

    def _denoise(
        self, cache: DynamicCache, sampler: EntropyBoundSampler, max_denoising_steps: int
    ) -> Iterator[DenoisingStep]:
        """Denoise one canvas behind what is in the KV cache: the steps until it has converged, or all."""
        canvas = sampler.start_canvas()
        self_conditioning_logits = None
        first = cache.get_seq_length()
        positions = torch.arange(first, first + self.canvas_length, device=canvas.device)[None]
        for steps_left in range(max_denoising_steps, 0, -1):
            # What the model's own forward does, but for the softcap, which the sampler's pass includes.
            output = self._model.model(
                decoder_input_ids=canvas[None],
                past_key_values=cache,
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

    def _encode(self, tokens: torch.Tensor, cache: DynamicCache, images: ImageInputs | None) -> None:
        """Append `tokens` (`[1, n]`) to the KV cache; what is in it already stands before them."""
        past = cache.get_seq_length()
        length, device = tokens.shape[1], tokens.device
        positions = torch.arange(past, past + length, device=device)[None]
        # The encoder makes masks of its own if it gets none, but forgets the ones for images: without
        # these an image would be read causally.
        masks = self._encoder.create_masks_for_generate(
            config=self._model.config,
            # Read for its shape, dtype and device only.
            inputs_embeds=torch.empty(1, length, 0, dtype=self._model.dtype, device=device),
            attention_mask=torch.ones(1, past + length, dtype=torch.bool, device=device),
            past_key_values=cache,
            position_ids=positions,
            mm_token_type_ids=images.mm_token_type_ids.to(device) if images else None,
        )
        self._encoder(
            input_ids=tokens,
            attention_mask=masks,
            past_key_values=cache,
            position_ids=positions,
            pixel_values=images.pixel_values.to(device) if images else None,
            image_position_ids=images.image_position_ids.to(device) if images else None,
        )

    def _cut(self, committed: list[int], budget: int) -> tuple[list[int], int | None]:
        """The part of a committed canvas that belongs to the reply, and the end of sequence that ended it."""
        end = next((i for i, token in enumerate(committed) if token in self.eos_token_ids), None)
        # Right behind the last token of the budget it still says that the reply is complete.
        if end is not None and end <= budget:
            return committed[:end], committed[end]
        return committed[:budget], None
