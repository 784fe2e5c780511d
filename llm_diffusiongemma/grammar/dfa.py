"""The regular languages that a reply can be held to, as automata over bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class ByteDFA:
    """A complete deterministic automaton over bytes.

    State 0 is the start. The last state is the one dead sink: it does not accept and every byte leads back to it.
    No other state is dead, all are reachable, and no two are equivalent (it is minimal). Bytes that move every
    state alike are one *kind*.
    """

    moves: npt.NDArray[np.int32]
    """`[states, kinds]`: where the bytes of a kind lead"""
    byte_kind: npt.NDArray[np.int32]
    """`[256]`: kinds are numbered in the order of their first bytes, and no two move every state alike"""
    accepting: npt.NDArray[np.bool_]
    """`[states]`"""

    @classmethod
    def of(
        cls,
        moves: npt.NDArray[np.int32],
        byte_class: npt.NDArray[np.integer],
        accepting: npt.NDArray[np.bool_],
    ) -> ByteDFA:
        """From `moves` `[states, classes]` whose classes may move states alike, or be of no byte."""
        used, first, of_byte = np.unique(byte_class, return_index=True, return_inverse=True)
        columns = np.ascontiguousarray(moves[:, used].T, np.int32)
        numbers: dict[bytes, int] = {}
        kind_of_class = np.zeros(len(used), np.int32)
        for place in np.argsort(first, kind="stable"):
            kind_of_class[place] = numbers.setdefault(columns[place].tobytes(), len(numbers))
        _, representative = np.unique(kind_of_class, return_index=True)
        return cls(np.ascontiguousarray(columns[representative].T), kind_of_class[of_byte.reshape(-1)], accepting)

    @property
    def dead(self) -> int:
        """The sink's number."""
        return len(self.accepting) - 1

    @cached_property
    def transitions(self) -> npt.NDArray[np.int32]:
        """`[states, 256]`: where each byte leads. A hundred megabytes for a hundred thousand states."""
        return self.moves[:, self.byte_kind]

    def accepts(self, text: bytes) -> bool:
        """Whether the text belongs to the language."""
        state = 0
        kinds = self.byte_kind[np.frombuffer(text, np.uint8)]
        for kind in kinds.tolist():
            state = int(self.moves[state, kind])
        return bool(self.accepting[state])
