"""A text that the canvases of a reply begin as, in place of pure noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .sampler import Start

if TYPE_CHECKING:
    from collections.abc import Sequence

# A canvas that has taken more of a draft than so many times its length has nothing to do with it.
MOST_OF_DRAFT = 4


class DraftedText:
    """What is left of a draft for the canvases to come. For one attempt at a reply.

    It ends with an end of sequence, and what is behind that is noise: with as much padding as its length leaves a
    canvas would keep to that length, and what is damaged or left out has another one.
    """

    def __init__(self, tokens: Sequence[int], noise: float, eos_token_id: int) -> None:
        """`tokens` are those of the text. `noise`, 0 to 1, is the share of it that is noise at first."""
        self.num_tokens = len(tokens)
        """of the text"""
        self._left = [*tokens, eos_token_id]
        self._noise = noise

    def start(self, canvas_length: int) -> Start | None:
        """What the next canvas begins as; None behind the draft's end: pure noise."""
        return Start(self._left[:canvas_length], self._noise) if self._left else None

    def commit(self, canvas: Sequence[int]) -> None:
        """Leave out what a committed canvas has taken, if another one follows it."""
        self._left = self._left[taken(canvas, self._left[: MOST_OF_DRAFT * len(canvas)]) :]


def taken(canvas: Sequence[int], draft: Sequence[int]) -> int:
    """How many of a draft's first tokens a canvas stands for: those to which its edit distance is least.

    Of several such beginnings it is the longest: tokens without a likeness stand in place of as many of the
    draft's, not between them.
    """
    against = np.asarray(draft)
    counts = np.arange(len(draft) + 1)
    distances = counts  # of the canvas's first tokens, none yet, to each beginning of the draft
    for token in canvas:
        without = distances + 1
        without[1:] = np.minimum(without[1:], distances[:-1] + (against != token))
        # A token of the draft may be left out behind any beginning: the least of what stands before, plus the way.
        distances = np.minimum.accumulate(without - counts) + counts
    return int(len(draft) - distances[::-1].argmin())
