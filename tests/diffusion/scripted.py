"""A network that says what it is told to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.sampler import EntropyBoundSampler
from tests.grammar.languages import PAD

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest


class Scripted:
    """Any network predicts what it is told to: a canvas of tokens after the other, then the last one again."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *canvases: Sequence[int], unsure_behind: int | None = None
    ) -> None:
        """`unsure_behind`: from which position on it says nothing, if there is one."""
        self._canvases = canvases
        self._index = -1
        start = EntropyBoundSampler.start_canvas

        def next_canvas(sampler: EntropyBoundSampler, *arguments: Any, **named: Any) -> None:
            self._index += 1
            start(sampler, *arguments, **named)

        def predict(network: Network, hidden: torch.Tensor, tokens: slice) -> torch.Tensor:
            canvas = torch.full((len(hidden),), PAD)
            text = self._canvases[min(self._index, len(self._canvases) - 1)]
            canvas[: len(text)] = torch.tensor(text)
            told = torch.zeros(len(hidden), network.size).scatter(1, canvas[:, None], 1000.0)
            if unsure_behind is not None:
                told[unsure_behind:] = 0
            return told[:, tokens]

        monkeypatch.setattr(EntropyBoundSampler, "start_canvas", next_canvas)
        monkeypatch.setattr(Network, "logits", predict)


def letters(text: str) -> list[int]:
    """Of a vocabulary of bytes."""
    return [4 + byte for byte in text.encode()]
