"""Tells who watches a reply of this process how it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..chat.drafts import CanvasReader
from ..view.records import ACCEPTED, NOISE, SETTLED, Likely, Reading, Snapshot, Watch

if TYPE_CHECKING:
    from ..diffusion.pipeline import Block, Draft

# Of each position, at the most. What is less probable than the least nobody would see.
CANDIDATES = 5
LEAST_PROBABILITY = 0.001
DECIMALS = 4


class Teller:
    """What one attempt at a reply is for who watches it.

    The draft before decides what has settled, and the blocks before where a canvas begins.
    """

    def __init__(self, watch: Watch, reader: CanvasReader, attempt: int) -> None:
        """`reader` and `attempt` are those of the attempt; see `Snapshot`."""
        self._watch = watch
        self._reader = reader
        self._attempt = attempt
        self._tokens_before = 0
        # By position the token that was accepted in the step before, of the same draw.
        self._accepted: list[int | None] = []

    def read(self, reading: Reading) -> None:
        """So much of the prompt has been read."""
        self._watch.see(reading)

    def drafted(self, draft: Draft, seconds: float) -> None:
        """A denoising step is done, so long after the reply was begun."""
        pieces, kinds = self._reader.read(draft.tokens)
        accepted = [token if is_in else None for token, is_in in zip(draft.tokens, draft.accepted, strict=True)]
        before = self._accepted if draft.step > 1 else []
        self._accepted = accepted
        snapshot = Snapshot(
            attempt=self._attempt,
            block=draft.block_index,
            step=draft.step,
            max_steps=draft.max_steps,
            pieces=tuple(pieces),
            kinds=kinds,
            states="".join(map(_state, accepted, before or [None] * len(accepted))),
            end=draft.end,
            mean_entropy=draft.mean_entropy,
            tokens_before=self._tokens_before,
            seconds=seconds,
            likely=self._likely(draft),
            redrawn=draft.redrawn,
        )
        self._watch.see(snapshot)

    def committed(self, block: Block) -> None:
        """A canvas is done, and the next one begins behind it."""
        self._reader.commit(block.tokens)
        self._tokens_before += len(block.tokens)

    def _likely(self, draft: Draft) -> Likely | None:
        if draft.candidates is None:
            return None
        text = self._reader.text
        candidates = []
        for of_position in draft.candidates:
            likely = [each for each in of_position if each[1] >= LEAST_PROBABILITY] or of_position[:1]
            candidates.append(tuple([(text(token), round(share, DECIMALS)) for token, share in likely]))
        return Likely(tuple([round(entropy, DECIMALS) for entropy in draft.entropies]), tuple(candidates))


def _state(accepted: int | None, before: int | None) -> str:
    if accepted is None:
        return NOISE
    return SETTLED if accepted == before else ACCEPTED
