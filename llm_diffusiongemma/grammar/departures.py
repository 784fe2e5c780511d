"""The arcs that lead out of sets of states: the same sets at many positions of a canvas, and in many steps."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .automaton import Arcs, Outgoing, Segments
from .log_weights import Integers

# So many arcs are kept for the next position, and the next step, with the same set: 16 MiB.
MOST_KEPT = 1 << 19


class Departure(NamedTuple):
    """The arcs out of some states, sorted by target, all `[arcs]`; and where they lead."""

    source: Integers
    """which of the states"""
    label: Integers
    target: Integers
    """the state behind it"""
    nth_target: Integers
    """which of `targets` that is"""
    targets: Integers
    """`[n]`: the states that they lead to, ascending"""
    first: Integers
    """`[n]`: the first arc to each"""


class Departures:
    """What has been looked up among arcs that are sorted by source."""

    def __init__(self, arcs: Arcs, num_states: int) -> None:
        self.arcs = arcs
        self.outgoing = Outgoing(arcs.source, num_states)
        self._known: dict[bytes, Departure] = {}
        self._kept_arcs = 0

    def of(self, states: Integers) -> Departure:
        """The arcs out of `states`."""
        key = states.tobytes()
        if (known := self._known.get(key)) is not None:
            return known
        arcs, source = self.outgoing.of(states)
        order = np.argsort(self.arcs.target[arcs], kind="stable")
        arcs = arcs[order]
        target = self.arcs.target[arcs]
        runs = Segments.of(target)
        nth_target = np.repeat(np.arange(len(runs.values)), runs.sizes)
        found = Departure(source[order], self.arcs.label[arcs], target, nth_target, runs.values, runs.starts)
        self._kept_arcs += len(arcs)
        if self._kept_arcs > MOST_KEPT:
            self._known.clear()
            self._kept_arcs = len(arcs)
        self._known[key] = found
        return found
