"""The regular languages that a reply can be held to, as automata over bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class ByteDFA:
    """A complete deterministic automaton over bytes.

    State 0 is the start. `transitions` int32 `[states, 256]`, `accepting` bool `[states]`. The last state is
    the one dead sink: it does not accept and every byte leads back to it. No other state is dead, all are
    reachable, and no two are equivalent (it is minimal).
    """

    transitions: npt.NDArray[np.int32]
    accepting: npt.NDArray[np.bool_]

    @property
    def dead(self) -> int:
        """The sink's number."""
        return len(self.accepting) - 1

    def accepts(self, text: bytes) -> bool:
        """Whether the text belongs to the language."""
        state = 0
        for byte in text:
            state = int(self.transitions[state, byte])
        return bool(self.accepting[state])
