from __future__ import annotations

import torch

from llm_diffusiongemma.diffusion.operations import PLAIN_TORCH
from llm_diffusiongemma.diffusion.sampler import Distributions
from llm_diffusiongemma.diffusion.softmax import Conclusion


class PlainVocabulary:
    """Hidden states that are the logits already, and soft embeddings that are the probabilities.

    Of the first `hidden_size` tokens, that is: of all of a large vocabulary they would take their time.
    """

    product_dtype = torch.float32
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
