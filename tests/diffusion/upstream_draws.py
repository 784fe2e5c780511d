"""transformers' own `generate`, made to draw with our random numbers, and how near it came to another answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch

from llm_diffusiongemma.diffusion.sampler import CanvasNumbers, Randomness, accept_by_entropy_bound

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_diffusiongemma.diffusion.sampler import SamplerSettings

RANDINT = torch.randint

CLOSE = 1e-5
"""Nearer to a border than this, rounding may decide."""


@dataclass
class StepMargins:
    """How far a denoising step was from deciding otherwise."""

    draw: float
    """of an accepted position's uniform number from the ends of its token's share"""
    acceptance: float
    """nats: of the sums of entropies from the bound, and of the last position accepted from the next"""
    argmax: float
    """nats: of the most likely token of any position from the second"""
    mean_entropy: float
    """nats"""


class UpstreamDraws:
    """Stands in for `torch.randint` and `torch.multinomial` while transformers' `generate` runs.

    It draws from `randomness` at each canvas's start what our sampler draws there, and inverts the whole
    cumulative distribution in fp64, in one level. `steps` holds the margins, a list for each canvas.
    """

    def __init__(self, settings: SamplerSettings, randomness: Randomness) -> None:
        self._settings = settings
        self._randomness = randomness
        self._numbers: CanvasNumbers | None = None
        self._drew = False
        self.steps: list[list[StepMargins]] = []

    def run(self, action: Callable[[], Any]) -> Any:
        """What `action` returns, a call of `generate` or of its parts for batches of 1."""
        with patch.object(torch, "randint", self._randint), patch.object(torch, "multinomial", self._multinomial):
            return action()

    @property
    def closest(self) -> float:
        """The smallest margin that mattered: above `CLOSE` the same numbers have to make the same tokens."""
        return min((self._closest_of(canvas) for canvas in self.steps), default=float("inf"))

    def _closest_of(self, steps: list[StepMargins]) -> float:
        margins = [margin for step in steps for margin in (step.draw, step.acceptance)]
        threshold, window = self._settings.confidence_threshold, self._settings.stability_threshold
        for i, step in enumerate(steps):
            margins.append(abs(step.mean_entropy - threshold))
            # Which tokens are the most likely matters where a canvas may stop, in the steps that it is compared
            # with, and in the last.
            if step.mean_entropy < threshold or i == len(steps) - 1:
                margins += [compared.argmax for compared in steps[max(0, i - window) : i + 1]]
        return min(margins)

    def _randint(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if "generator" in kwargs:
            return RANDINT(*args, **kwargs)  # that is ourselves, for `randomness`
        high, size, device = kwargs["high"], kwargs["size"], kwargs["device"]
        if self._drew:
            self._drew = False
        else:  # nothing was drawn since the last one, so a canvas starts
            self._numbers = self._randomness.canvas(self._settings.max_denoising_steps, size[1], high)
            self.steps.append([])
        assert self._numbers is not None
        return self._numbers.tokens[len(self.steps[-1])][None].to(device)

    def _multinomial(self, probabilities: torch.Tensor, num_samples: int) -> torch.Tensor:
        """`[256, V]` to `[256, 1]`"""
        assert self._numbers is not None
        uniforms = self._numbers.uniforms[len(self.steps[-1])]
        shares = probabilities.cpu().double()
        shares /= shares.sum(-1, keepdim=True)
        cdf = shares.cumsum(-1)
        target = uniforms[:, None] * cdf[:, -1:]
        tokens = torch.searchsorted(cdf, target, right=True)
        after = cdf.gather(1, tokens) - target
        draw = torch.minimum(after, shares.gather(1, tokens) - after)[:, 0]

        entropy = torch.special.entr(shares).sum(-1)
        bound = self._settings.entropy_bound
        accepted = accept_by_entropy_bound(entropy, bound)
        ascending = entropy.sort().values
        to_bound = (ascending.cumsum(0) - ascending - bound).abs().min()
        border = ascending.diff()[int(accepted.sum()) - 1 : int(accepted.sum())]  # empty if all are accepted
        top = shares.topk(2, -1).values.log()
        self.steps[-1].append(
            StepMargins(
                draw=draw[accepted].min().item(),
                acceptance=min([to_bound.item(), *border.tolist()]),
                argmax=(top[:, 0] - top[:, 1]).min().item(),
                mean_entropy=entropy.mean().item(),
            )
        )
        self._drew = True
        return tokens.to(probabilities.device)
