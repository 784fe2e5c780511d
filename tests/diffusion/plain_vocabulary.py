from __future__ import annotations

from typing import NamedTuple

import torch

from llm_diffusiongemma.diffusion.operations import PLAIN_TORCH
from llm_diffusiongemma.diffusion.sampler import Distributions, EntropyBoundSampler
from llm_diffusiongemma.diffusion.softmax import Conclusion


class PlainVocabulary:
    """Hidden states that are the logits already, and soft embeddings that are the probabilities.

    Of the first `hidden_size` tokens, that is: of all of a large vocabulary they would take their time.
    """

    product_dtype = torch.float32
    canvas_length = 256
    operations = PLAIN_TORCH

    def __init__(self, size: int, hidden_size: int | None = None) -> None:
        self.size = size
        self.hidden_size = size if hidden_size is None else hidden_size

    def logits(self, hidden: torch.Tensor, tokens: slice) -> torch.Tensor:
        return hidden[:, tokens].clone()

    def mix(self, weights: torch.Tensor, tokens: slice) -> torch.Tensor:
        mixed = weights.new_zeros(len(weights), self.hidden_size)
        shown = mixed[:, tokens]
        shown.copy_(weights[:, : shown.shape[1]])
        return mixed


def distributions_of(
    logits: torch.Tensor,
    *,
    softcap: float | None = None,
    temperature: float = 1.0,
    hidden_size: int | None = None,
) -> Distributions:
    """What a step makes of fp32 `[rows, V]`."""
    result = Distributions(PlainVocabulary(logits.shape[1], hidden_size), len(logits), logits.device, softcap)
    result.measure(logits, torch.tensor(temperature))
    return result


def concluded(measured: Distributions, uniforms: torch.Tensor | None = None) -> Conclusion:
    """What follows of it, by whatever numbers if it is not about those."""
    positions = len(measured.logits)
    return measured.conclude(torch.zeros(positions, dtype=torch.float64) if uniforms is None else uniforms)


class Step(NamedTuple):
    """What a denoising step has left, copied."""

    canvas: torch.Tensor
    argmax: torch.Tensor
    accepted: torch.Tensor
    entropy: torch.Tensor
    soft_embeddings: torch.Tensor
    converged: bool


def step_of(sampler: EntropyBoundSampler, hidden: torch.Tensor, steps_left: int | None = None) -> Step:
    """The next one, or one with so many left of its canvas, itself counted."""
    if steps_left is not None:
        for counter in sampler._counters:
            counter.fill_(sampler._settings.max_denoising_steps - steps_left)
    sampler.measure(hidden)
    told = sampler.conclude()
    tokens, accepted, entropy = told._positions.clone()
    soft_embeddings = sampler.soft_embeddings.clone()
    return Step(sampler.canvas.clone(), tokens.long(), accepted.bool(), entropy, soft_embeddings, told.converged)
