"""The regular languages that a reply can be held to, as automata over bytes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Mask = int  # A set of bytes: bit b stands for byte b.

# Where the bytes of a state lead: disjoint sets of them, each with a target. Those in none of them lead nowhere.
Row = Sequence[tuple[Mask, int]]


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
    def rows(self) -> tuple[Row, ...]:
        """Of each state but the dead one: where its bytes lead if not to the dead one, one set a target."""
        states, kinds = np.nonzero(self.moves[:-1] != self.dead)
        targets = self.moves[states, kinds]
        order = np.lexsort((targets, states))
        states, kinds, targets = states[order], kinds[order], targets[order]
        changes = (np.diff(states) != 0) | (np.diff(targets) != 0)
        first = np.flatnonzero(np.concatenate([np.ones(min(len(states), 1), np.bool_), changes]))
        of_kind = np.packbits(self.byte_kind == np.arange(self.moves.shape[1])[:, None], axis=1, bitorder="little")
        sets = np.bitwise_or.reduceat(of_kind[kinds], first) if len(first) else of_kind[:0]
        known: dict[bytes, Mask] = {}
        masks = [
            known[key] if key in known else known.setdefault(key, int.from_bytes(key, "little"))
            for key in map(bytes, sets)
        ]
        arcs = list(zip(masks, targets[first].tolist(), strict=True))
        ends = np.searchsorted(states[first], np.arange(self.dead + 1)).tolist()
        return tuple(tuple(arcs[begin:end]) for begin, end in itertools.pairwise(ends))

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The states behind which nothing follows."""
        return tuple(state for state, row in enumerate(self.rows) if not row)

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
