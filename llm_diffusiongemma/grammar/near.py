"""The paths of a large automaton through a canvas, by looking only at those near one that is known.

From step to step the network changes its mind about a few positions. So the best path of the last step, weighed
anew, is a good one, and a way that can't come near it with all that follows is not gone on with. No more follows
than this: no path does better than the best labels, and all paths together weigh 1 at most behind any position,
for labels that lead out of the same state have no token in common. That also makes logarithms unnecessary: of all
that matters no part weighs less than the whole.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .automaton import Arcs, Outgoing
from .log_weights import NEGLIGIBLE, Floats, Integers

# A way is not gone on with if it is by so many nats lighter than the known path. All of them together can't be
# more than half a percent of a canvas of 256 positions with 200,000 arcs each; with random weights no share of a
# label moved by a millionth.
MARGIN = 23.0

# The known path must weigh more, nats, or what matters is not a number in fp64.
LIGHTEST = -600.0

# What rounding does to a sum of 256 weights, and more.
SLACK = 1e-6


class _Ways(NamedTuple):
    """The arcs that are gone through at a position, sorted by target, all `[arcs]`; and where they lead."""

    source: Integers
    """which of the position's states"""
    target: Integers
    """which of the states behind it"""
    label: Integers
    weight: Floats
    """of the arc"""
    weight_up_to: Floats
    """of all ways that end in it"""
    best_up_to: Floats
    """log-weight of the best way that ends in it, nats"""
    num_states: int
    """of the position"""
    first: list[int]
    """`[states behind it + 1]`: their first arcs, and the number of arcs"""


class NearPaths:
    """The arcs of one canvas, laid out for going through some of them."""

    def __init__(self, arcs: Arcs, start: int, may_end: npt.NDArray[np.bool_]) -> None:
        """`arcs` are sorted by source. The paths lead from `start` to a state that `may_end` `[states]` allows."""
        self._arcs, self._start, self._may_end = arcs, start, may_end
        self._outgoing = Outgoing(arcs.source, len(may_end))

    def weigh(
        self, best: Floats, totals: Floats, known: Integers, most_arcs: int
    ) -> tuple[Integers, float, Floats] | None:
        """What `lattice.Paths` has. `known` `[positions]` are the labels of some path.

        None if that path is no help: it is too light, or it would be more than `most_arcs` arcs to look at.
        """
        positions = np.arange(len(known))
        log_known = float(totals[positions, known].sum())
        if log_known < LIGHTEST:
            return None
        lightest = math.exp(log_known - MARGIN)
        # What the best way up to each position must weigh for the rest to make up for it.
        follows = np.append(best.max(1)[::-1].cumsum()[::-1][1:], 0.0)
        worst = (best[positions, known].sum() - follows - SLACK).tolist()
        weights = np.exp(np.maximum(totals, NEGLIGIBLE))
        looked_at = 0
        steps: list[_Ways] = []
        states, weight, best_up_to = np.array([self._start]), np.ones(1), np.zeros(1)
        for i in range(len(known)):
            arcs, source = self._outgoing.of(states)
            looked_at += len(arcs)
            # Rather early than with all of the work done in vain.
            if looked_at > most_arcs * (1 + 3 * (i + 1) / len(known)) / 4:
                return None
            label = self._arcs.label[arcs]
            of_arcs = weights[i][label]
            up_to, reached = weight[source] * of_arcs, best_up_to[source] + best[i][label]
            kept = np.flatnonzero((up_to >= lightest) | (reached >= worst[i]))
            targets = self._arcs.target[arcs[kept]]
            order = np.argsort(targets, kind="stable")
            kept, targets = kept[order], targets[order]
            is_first = np.append(True, targets[1:] != targets[:-1])
            first = np.flatnonzero(is_first)
            step = _Ways(
                source[kept],
                is_first.cumsum() - 1,
                label[kept],
                of_arcs[kept],
                up_to[kept],
                reached[kept],
                len(states),
                [*first.tolist(), len(kept)],
            )
            steps.append(step)
            states, weight = targets[first], np.add.reduceat(step.weight_up_to, first)
            best_up_to = np.maximum.reduceat(step.best_up_to, first)
        ends = self._may_end[states]
        path = np.empty(len(known), np.int64)
        shares = np.empty_like(totals)
        state = int(np.where(ends, best_up_to, -np.inf).argmax())
        total, behind = float(weight[ends].sum()), ends.astype(np.float64)
        for i in reversed(range(len(known))):
            step = steps[i]
            arc = step.first[state] + int(step.best_up_to[step.first[state] : step.first[state + 1]].argmax())
            path[i], state = step.label[arc], int(step.source[arc])
            shares[i] = np.bincount(step.label, step.weight_up_to * behind[step.target], shares.shape[1])
            behind = np.bincount(step.source, step.weight * behind[step.target], step.num_states)
        # Only rounding, and what has been left out, keep them from it.
        shares /= shares.sum(1, keepdims=True)
        return path, math.log(total), shares
