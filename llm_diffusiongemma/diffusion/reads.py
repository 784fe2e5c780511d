"""A denoising step for what it says of a canvas of pure noise, not for the canvas that would come of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..errors import NotANumberError
from ..grammar.exchange import Exchange
from .sampler import Distributions, send

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .sampler import Randomness, Vocabulary


class NoiseReader:
    """Reads canvases of pure noise at temperature 1, one after the other.

    A read begins with `start_canvas`. It is `measure`, which waits for nothing, then `conclude`, which waits for
    the device once. All tensors stay where they are, so `measure` can be captured with the forward before it.

    `softcap` is as `EntropyBoundSampler` has it.
    """

    def __init__(
        self,
        tokens: Sequence[int],
        *,
        vocabulary: Vocabulary,
        canvas_length: int,
        device: torch.device,
        softcap: float | None,
        randomness: Randomness,
    ) -> None:
        """`tokens` are those that it is to tell of."""
        self._vocab_size = vocabulary.size
        self._randomness = randomness
        self._distributions = Distributions(vocabulary, canvas_length, device, softcap, mixes=False)
        self._tokens = torch.tensor(tokens, dtype=torch.int64, device=device)
        self._temperature = torch.ones((), dtype=torch.float32, device=device)
        self.canvas = torch.zeros(canvas_length, dtype=torch.int64, device=device)
        """`[256]`: what is to be denoised."""
        # What the host is told: whether all are numbers, then of each position the log-probabilities.
        self._told = Exchange((1 + canvas_length * len(tokens),), device)

    @property
    def measured(self) -> list[torch.Tensor]:
        """What `measure` leaves to `conclude`."""
        return [self._told.on_device]

    def start_canvas(self) -> None:
        """Begin with fresh noise."""
        numbers = self._randomness.canvas(1, len(self.canvas), self._vocab_size)
        send(numbers.tokens[0], self.canvas)

    def measure(self, hidden: torch.Tensor) -> None:
        """Take in the network's last hidden states, `[256, H]`."""
        self._distributions.measure(hidden, self._temperature)
        told = self._distributions.log_probabilities(self._tokens)
        is_sane = hidden.isfinite().all() & told.isfinite().all()
        torch.cat((is_sane.float()[None], told.flatten()), out=self._told.on_device)

    def conclude(self) -> torch.Tensor:
        """The log-probabilities of the tokens: fp64 `[256, U]` on the host, nats.

        Raises `NotANumberError` if the hidden states or the logits were no numbers.
        """
        told = self._told.fetch()
        if not told[0]:
            raise NotANumberError()
        return told[1:].view(len(self.canvas), len(self._tokens)).double()
