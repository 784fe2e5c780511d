"""The same work by three programs: this plugin, transformers' `generate` and diffusers' pipeline.

Nobody may stop early: a canvas takes exactly `steps` denoising steps (no entropy is below the confidence
threshold, but the test for it runs). So all do the same number of forwards, whatever they draw.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessorList
from transformers.models.diffusion_gemma import generation_diffusion_gemma as upstream

from llm_diffusiongemma.bench.replies import NEVER_CONFIDENT
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.pipeline import BlockDiffusionPipeline
from llm_diffusiongemma.diffusion.request import Prompt, Request
from llm_diffusiongemma.diffusion.sampler import EntropyBoundSampler, GeneratorRandomness, SamplerSettings

from .networks import Twins, hidden_like_a_reply

OURS, TRANSFORMERS, DIFFUSERS = "this plugin", "transformers", "diffusers"


@functools.cache
def diffusers() -> Any | None:
    """The library, if it is there: the `benchmark` extra. Importing it takes seconds."""
    try:
        import diffusers as library
    except ImportError:
        return None
    return library


@dataclass(frozen=True)
class Task:
    """A reply of `canvases` canvases of `steps` denoising steps each to a prompt of token ids."""

    prompt_ids: list[int]
    canvases: int
    steps: int

    @property
    def settings(self) -> SamplerSettings:
        return SamplerSettings(self.steps, 0.1, 0.4, 0.8, NEVER_CONFIDENT, 1)


def our_pipeline(network: Network) -> BlockDiffusionPipeline:
    """A new one: nobody else keeps the prompt's KV cache for the next round. Nothing ends its replies: a random
    network may write a canvas of nothing but padding, and that wouldn't end the others'.
    """
    return BlockDiffusionPipeline(network, eos_token_ids=(), pad_token_id=None)


def our_randomness() -> GeneratorRandomness:
    return GeneratorRandomness(torch.Generator().manual_seed(0))


def replies(twins: Twins, task: Task) -> dict[str, Callable[[], object]]:
    """Whole replies: prefill, every canvas, every commit."""
    model = twins.model
    canvas_length = model.config.canvas_length
    prompt = torch.tensor([task.prompt_ids], device=model.device)

    def by_us() -> None:
        request = Request(Prompt(task.prompt_ids), task.settings, task.canvases * canvas_length)
        blocks = list(our_pipeline(twins.network).generate(request, randomness=our_randomness()))
        assert len(blocks) == task.canvases

    def by_transformers() -> None:
        torch.manual_seed(0)
        settings = task.settings
        model.generate(
            prompt,
            max_new_tokens=task.canvases * canvas_length,
            max_denoising_steps=task.steps,
            sampler_config=upstream.EntropyBoundSamplerConfig(entropy_bound=settings.entropy_bound),
            t_min=settings.t_min,
            t_max=settings.t_max,
            confidence_threshold=settings.confidence_threshold,
            stability_threshold=settings.stability_threshold,
        )

    actions: dict[str, Callable[[], object]] = {OURS: by_us, TRANSFORMERS: by_transformers}
    # diffusers 0.42 gives the decoder's masks a cache by the name that it had before transformers 5.24.
    masks = inspect.signature(model.model.decoder.create_diffusion_decoder_attention_mask).parameters
    if (library := diffusers()) is None or "past_key_values" not in masks:
        return actions
    pipeline = library.DiffusionGemmaPipeline(
        model=model,
        scheduler=library.EntropyBoundScheduler(num_inference_steps=task.steps),
        processor=_PromptInHand(prompt),
    )
    pipeline.set_progress_bar_config(disable=True)

    def by_diffusers() -> None:
        pipeline(
            prompt="",
            gen_length=task.canvases * canvas_length,
            num_inference_steps=task.steps,
            confidence_threshold=NEVER_CONFIDENT,
            generator=torch.Generator(device=model.device).manual_seed(0),
            output_type="seq",
        )

    return {**actions, DIFFUSERS: by_diffusers}


class _PromptInHand:
    """Stands for a processor: the prompt has been tokenised already."""

    eos_token_id = None

    def __init__(self, prompt: torch.Tensor) -> None:
        self._prompt = prompt

    def apply_chat_template(self, messages: object, **how: object) -> dict[str, torch.Tensor]:
        return {"input_ids": self._prompt}


def around_the_layers(twins: Twins, task: Task) -> dict[str, Callable[[], object]]:
    """A denoising step but for the layers: from their output to the next canvas, and what it is conditioned on."""
    model, network, settings = twins.model, twins.network, task.settings
    device, vocab_size, canvas_length = network.device, network.size, network.config.canvas_length
    hidden = hidden_like_a_reply(network)
    canvas = torch.zeros(1, canvas_length, dtype=torch.int64, device=device)
    step = task.steps // 2
    embedding = model.get_input_embeddings()

    ours = EntropyBoundSampler(
        settings,
        vocabulary=network,
        canvas_length=canvas_length,
        device=device,
        softcap=network.config.final_logit_softcapping,
        randomness=our_randomness(),
    )
    ours.start_canvas()

    theirs = upstream.EntropyBoundSampler(
        upstream.EntropyBoundSamplerConfig(entropy_bound=settings.entropy_bound),
        vocab_size=vocab_size,
        canvas_length=canvas_length,
        max_denoising_steps=task.steps,
    )
    stopping = upstream.StableAndConfidentStoppingCriteria(
        settings.stability_threshold, settings.confidence_threshold
    )
    temperature = upstream.LinearTemperatureScheduleLogitsProcessor(
        settings.t_min, settings.t_max, settings.max_denoising_steps
    )

    # transformers 5.24 has renamed it.
    parameters = inspect.signature(model._denoising_step).parameters
    no_cache = {"cache" if "cache" in parameters else "past_key_values": None}

    def logits() -> torch.Tensor:
        """`[1, 256, V]`, as the model's own forward ends"""
        softcap = model.config.text_config.final_logit_softcapping
        capped: torch.Tensor = softcap * torch.tanh(model.lm_head(hidden[None]) / softcap)
        return capped

    def soft_embeddings(logits: torch.Tensor) -> None:
        """As the model's next forward begins, with what was processed in this step."""
        logits.softmax(-1, dtype=torch.float32) @ embedding.weight

    @torch.no_grad()
    def by_us() -> None:
        ours._steps_done.fill_(task.steps - step)
        ours.measure(hidden)
        ours.conclude()

    @torch.no_grad()
    def by_transformers() -> None:
        # Private, but it is the very thing to measure: with a network that has its logits ready.
        result = model._denoising_step(
            decoder_forward=lambda **_: _Output(logits()),
            current_canvas=canvas,
            argmax_canvas=canvas,
            input_ids=canvas,
            decoder_position_ids=canvas,
            self_conditioning_logits=None,
            mask_mapping={},
            finished_denoising=torch.zeros(1, dtype=torch.bool, device=device),
            cur_step=step,
            sampler=theirs,
            logits_processor=LogitsProcessorList([temperature]),
            diffusion_stopping_criteria=stopping,
            **no_cache,
        )
        soft_embeddings(result[2])

    actions: dict[str, Callable[[], object]] = {OURS: by_us, TRANSFORMERS: by_transformers}
    if (library := diffusers()) is None:
        return actions
    scheduler = library.EntropyBoundScheduler(num_inference_steps=task.steps)

    @torch.no_grad()
    def by_diffusers() -> None:
        output = scheduler.step(logits(), task.steps - step, canvas)
        # The test that diffusers' loop makes after each step; it can't be called by itself.
        output.pred_logits.argmax(-1)
        torch.distributions.Categorical(logits=output.pred_logits).entropy().mean(-1)
        soft_embeddings(output.pred_logits)

    return {**actions, DIFFUSERS: by_diffusers}


@dataclass
class _Output:
    logits: torch.Tensor
