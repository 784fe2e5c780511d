"""transformers' own `generate`, on random numbers that it is given, and how close its decisions were.

Ours and theirs compute the same numbers to rounding, so they decide the same unless a number came very near the
border of a decision. `Decision.margin` says how near.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers.models.diffusion_gemma import generation_diffusion_gemma as upstream

from llm_diffusiongemma.diffusion.sampler import CanvasNumbers, GeneratorRandomness, accept_by_entropy_bound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_diffusiongemma.diffusion.sampler import Randomness, SamplerSettings, Start


def numbers_of(seed: int) -> GeneratorRandomness:
    """The same for everybody who asks."""
    return GeneratorRandomness(torch.Generator().manual_seed(seed))


@dataclass(eq=False)
class Decision:
    """One denoising step of `generate`."""

    canvas_index: int
    probabilities: torch.Tensor
    """fp32 `[256, V]`"""
    uniforms: torch.Tensor
    """fp64 `[256]`"""
    canvas: torch.Tensor
    """The next canvas, int64 `[256]`."""

    @property
    def argmax(self) -> torch.Tensor:
        return self.probabilities.argmax(-1)

    def draw(self) -> torch.Tensor:
        """A token for each position, by inverting its cumulative distribution: int64 `[256]`."""
        cdf = self._cdf()
        return torch.searchsorted(cdf, self.uniforms[:, None] * cdf[:, -1:], right=True)[:, 0]

    def margin(self, settings: SamplerSettings) -> float:
        """How far the closest of its decisions was from going the other way.

        In nats for the entropies, as a share of the total for a draw, and for the most likely token how much less
        likely the second one is.
        """
        entropy = torch.special.entr(self.probabilities.double()).sum(-1)
        ascending = entropy.sort().values
        before = ascending.cumsum(0) - ascending
        accepted = accept_by_entropy_bound(entropy, settings.entropy_bound)
        last = int(accepted.sum())  # the first one that is not accepted
        cdf = self._cdf()
        cdf = torch.nn.functional.pad(cdf / cdf[:, -1:], (1, 0))
        drawn = self.draw()[:, None]
        borders = cdf.gather(1, torch.cat((drawn, drawn + 1), 1))  # [256, 2]
        # The ends of the whole are no borders.
        distances = (borders - self.uniforms[:, None]).abs().masked_fill((borders == 0) | (borders == 1), 1)
        first, second = self.probabilities.topk(2).values.log().unbind(-1)
        return min(
            (before - settings.entropy_bound).abs().min().item(),
            (ascending[last] - ascending[last - 1]).item() if last < len(ascending) else 1.0,
            distances[accepted].min().item(),
            (first - second).min().item(),
            abs(entropy.mean().item() - settings.confidence_threshold),
        )

    def _cdf(self) -> torch.Tensor:
        return self.probabilities.double().cumsum(-1)


class _Numbers:
    """What `generate` draws: a canvas, then in each step its tokens and the renoise."""

    def __init__(self, randomness: Randomness, settings: SamplerSettings) -> None:
        self.decisions: list[Decision] = []
        self._randomness = randomness
        self._max_steps = settings.max_denoising_steps
        self._canvas_index = -1
        self._steps = 0
        self._is_in_step = False

    def canvas(self, sampler: upstream.EntropyBoundSampler) -> torch.Tensor:
        """In place of `initialize_canvas`."""
        if not self._is_in_step:
            self._numbers = self._randomness.canvas(self._max_steps, sampler.canvas_length, sampler.vocab_size)
            self._canvas_index += 1
            self._steps = 0
        self._is_in_step = False
        return self._numbers.tokens[self._steps][None]

    def multinomial(self, probabilities: torch.Tensor, num_samples: int) -> torch.Tensor:
        """In place of torch's."""
        uniforms = self._numbers.uniforms[self._steps]
        self._is_in_step = True
        self._steps += 1
        self.decisions.append(Decision(self._canvas_index, probabilities, uniforms, self._numbers.tokens[0]))
        return self.decisions[-1].draw()[:, None]


class DraftedNumbers:
    """What is left of the numbers of a canvas that begins as a text: those of its later steps.

    A schedule begun at step M of N is one of M steps, with what is then left of the temperature's way.
    """

    def __init__(self, seed: int, start: Start, settings: SamplerSettings) -> None:
        self._seed, self._start, self._all = seed, start, settings

    def settings(self, steps: int) -> SamplerSettings:
        """Theirs for what is left, where so many steps are."""
        ours = self._all
        share = steps / ours.max_denoising_steps
        t_max = ours.t_min + (ours.t_max - ours.t_min) * share
        return replace(ours, max_denoising_steps=steps, t_max=t_max)

    def canvas(self, steps: int, canvas_length: int, vocab_size: int) -> CanvasNumbers:
        source = numbers_of(self._seed)
        numbers = source.canvas(self._all.max_denoising_steps, canvas_length, vocab_size)
        is_noise = source.noise(self._start.noise, len(self._start.tokens)).tolist()
        left = numbers.tokens[-steps - 1 :].clone()
        left[0] = numbers.tokens[0]
        for position, (token, noise) in enumerate(zip(self._start.tokens, is_noise, strict=True)):
            if not noise:
                left[0, position] = token
        return CanvasNumbers(left, numbers.uniforms[-steps:])

    def noise(self, share: float, num_tokens: int) -> torch.Tensor:
        raise AssertionError("theirs begins with what it is given")


def generate(
    model: Any,
    prompt: Sequence[int],
    settings: SamplerSettings,
    max_tokens: int,
    randomness: Randomness,
    **images: Any,
) -> tuple[list[int], list[Decision]]:
    """What `generate` writes behind a prompt, and how each of its denoising steps decided."""
    numbers = _Numbers(randomness, settings)
    renoise = upstream.EntropyBoundSampler.renoise_canvas

    def note(*arguments: Any) -> torch.Tensor:
        canvas: torch.Tensor = renoise(*arguments)
        numbers.decisions[-1].canvas = canvas[0]
        return canvas

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            upstream.EntropyBoundSampler, "initialize_canvas", lambda sampler, *_, **__: numbers.canvas(sampler)
        )
        patch.setattr(torch, "multinomial", numbers.multinomial)
        patch.setattr(upstream.EntropyBoundSampler, "renoise_canvas", note)
        result = model.generate(
            torch.tensor([list(prompt)]),
            max_new_tokens=max_tokens,
            max_denoising_steps=settings.max_denoising_steps,
            t_min=settings.t_min,
            t_max=settings.t_max,
            confidence_threshold=settings.confidence_threshold,
            stability_threshold=settings.stability_threshold,
            sampler_config=upstream.EntropyBoundSamplerConfig(entropy_bound=settings.entropy_bound),
            **images,
        )
    return result.sequences[0, len(prompt) :].tolist(), numbers.decisions
