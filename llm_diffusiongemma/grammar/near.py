"""The paths of an automaton through a canvas, by looking only at those near one that is known.

From step to step the network changes its mind about a few positions. So the best path of the last step, weighed
anew, is a good one, and a way that can't come near it with all that follows is not gone on with. What follows is
no more than this: no path does better than the best labels, and all paths together weigh 1 at most from any
position on, for labels that lead out of the same state have no token in common; nor do they weigh more than all
labels there are, which is less where the network is sure of what can't be. That also makes logarithms unnecessary:
of all that matters no part weighs less than the whole.

Where no way that could matter leaves the known path, and none that has is left, there is nothing to look at: that
is nearly everywhere, once a network has made up its mind.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .departures import Departures
from .groups import exponentials
from .log_weights import LOG_ZERO, NEGLIGIBLE, Floats, Integers

# A way is not gone on with if it is by so many nats lighter than the known path. All of them together can't be
# more than half a percent of a canvas of 256 positions with 200,000 arcs each, or a hundredth of that with 1,500;
# with random weights no share of a label moved by a millionth.
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


class _Known(NamedTuple):
    """A path through the canvas, and the arcs that leave it."""

    labels: Integers
    """`[positions]`"""
    states: Integers
    """`[positions + 1]`"""
    position: Integers
    """`[arcs]`: where each of those that leave it does, ascending"""
    label: Integers
    """`[arcs]`"""
    first: Integers
    """`[n]`: the first of each position that has some"""


class _Bounds:
    """What matters in a canvas with such weights. All logarithms, nats, but for `lightest`."""

    def __init__(self, best: Floats, totals: Floats, known: _Known) -> None:
        positions = np.arange(len(best))
        weights = np.stack([totals[positions, known.labels], best[positions, known.labels]])
        self.up_to = np.concatenate([np.zeros((2, 1)), weights.cumsum(1)], axis=1)
        """`[2, positions + 1]`: of the known path up to each position, by `totals` and by `best`"""
        top = totals.max(1)
        all_labels = top + np.log(exponentials(totals - top[:, None]).sum(1, dtype=np.float64))
        at_most = np.stack([np.minimum(all_labels, 0.0), best.max(1)])
        follows = np.concatenate([at_most[:, ::-1].cumsum(1)[:, ::-1], np.zeros((2, 1))], axis=1)
        needed = self.up_to[:, -1:] - [[MARGIN], [SLACK]] - follows
        self.lightest = np.exp(np.minimum(needed[0], -NEGLIGIBLE))
        """`[positions + 1]`: what a way up to there must weigh for the rest to make up for it"""
        self.worst: list[float] = needed[1].tolist()
        """... and the best way"""
        # By how much the heaviest way that leaves the known path at a position weighs more than that: `[2,
        # positions]`. Where it is less than 0 that is so however much has come to the position: all ways that
        # have go on from it alike.
        leaving = np.full((2, len(best)), LOG_ZERO)
        if len(known.first):
            at, arcs = known.position[known.first], (known.position, known.label)
            for each, of_labels in zip(leaving, (totals, best), strict=True):
                each[at] = np.maximum.reduceat(of_labels[arcs], known.first)
            leaving[:, at] += self.up_to[:, at] - needed[:, at + 1]
        self.leaves = np.any(leaving >= 0, axis=0)
        """`[positions]`: whether a way that matters can leave the known path there"""

    def alone(self, position: int) -> int:
        """For how many positions from there on the known path is the only way that matters, where all that do have
        come to it."""
        leaves = self.leaves[position:]
        first = int(leaves.argmax())
        return first if leaves[first] else len(leaves)


class NearPaths:
    """The arcs of one canvas, laid out for going through some of them."""

    def __init__(self, departures: Departures, start: int, may_end: npt.NDArray[np.bool_]) -> None:
        """The paths lead from `start` to a state that `may_end` `[states]` allows."""
        self._departures, self._start, self._may_end = departures, start, may_end
        self._arcs, self._outgoing = departures.arcs, departures.outgoing
        self._targets: dict[tuple[int, int], int] = {}
        self._known: _Known | None = None

    def weigh(
        self, best: Floats, totals: Floats, known: Integers, most_arcs: float, most_positions: int
    ) -> tuple[Integers, float, Floats] | None:
        """What `lattice.Paths` has. `known` `[positions]` are the labels of some path.

        None if that path is no help: it is too light, or it would be more than `most_arcs` arcs to look at, or at
        more than `most_positions`.
        """
        path = self._known_path(known)
        bounds = _Bounds(best, totals, path)
        if bounds.up_to[0, -1] < LIGHTEST or bounds.leaves.sum() > most_positions:
            return None
        steps: list[_Ways | slice] = []
        states, weight, best_up_to = np.array([self._start]), np.ones(1), np.zeros(1)
        i = looked_at = looked_for = 0
        while i < len(known):
            # The known path is always among the ways.
            if len(states) == 1:
                alone = bounds.alone(i)
                if alone:
                    gained, best_gained = (bounds.up_to[:, i + alone] - bounds.up_to[:, i]).tolist()
                    weight, best_up_to = weight * math.exp(gained), best_up_to + best_gained
                    steps.append(slice(i, i + alone))
                    i += alone
                    states = path.states[i : i + 1]
                    continue
            moves = self._departures.of(states)
            source, label = moves.source, moves.label
            looked_at += len(label)
            looked_for += 1
            # Rather early than with all of the work done in vain.
            if looked_at > most_arcs * (1 + 3 * (i + 1) / len(known)) / 4 or looked_for > most_positions:
                return None
            of_arcs = np.exp(np.maximum(totals[i], NEGLIGIBLE)).take(label)
            up_to, reached = weight[source] * of_arcs, best_up_to[source] + best[i].take(label)
            kept = np.flatnonzero((up_to >= bounds.lightest[i + 1]) | (reached >= bounds.worst[i + 1]))
            targets = moves.target[kept]
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
            i += 1
        ends = self._may_end[states]
        state = int(np.where(ends, best_up_to, -np.inf).argmax())
        labels, shares = self._go_back(steps, path, state, ends, totals.shape[1])
        return labels, math.log(float(weight[ends].sum())), shares

    def _go_back(
        self, steps: list[_Ways | slice], known: _Known, state: int, ends: npt.NDArray[np.bool_], num_labels: int
    ) -> tuple[Integers, Floats]:
        """The best path, which comes to `state`, and the shares of labels; ways may end where `ends` says. Both
        are of the last of `steps`, of which a slice is positions in which the known path is alone."""
        i = len(known.labels)
        labels: Integers = np.empty(i, np.int64)
        shares, behind = np.zeros((i, num_labels)), ends.astype(np.float64)
        for step in reversed(steps):
            if isinstance(step, slice):
                i = step.start
                labels[step] = known.labels[step]
                shares[np.arange(i, step.stop), known.labels[step]] = 1
                continue
            i -= 1
            arc = step.first[state] + int(step.best_up_to[step.first[state] : step.first[state + 1]].argmax())
            labels[i], state = step.label[arc], int(step.source[arc])
            shares[i] = np.bincount(step.label, step.weight_up_to * behind[step.target], num_labels)
            of_states = np.bincount(step.source, step.weight * behind[step.target], step.num_states)
            behind = of_states.astype(np.float64, copy=False)
        # Only rounding, and what has been left out, keep them from it.
        shares /= shares.sum(1, keepdims=True)
        return labels, shares

    def _known_path(self, labels: Integers) -> _Known:
        if self._known is not None and np.array_equal(self._known.labels, labels):
            return self._known
        states = [self._start]
        for label in labels.tolist():
            states.append(self._target(states[-1], label))
        path = np.array(states)
        arcs, position = self._outgoing.of(path[:-1])
        leaves = np.flatnonzero(self._arcs.label[arcs] != labels[position])
        position = position[leaves]
        first = np.flatnonzero(np.diff(position, prepend=-1))
        self._known = _Known(labels, path, position, self._arcs.label[arcs[leaves]], first)
        return self._known

    def _target(self, state: int, label: int) -> int:
        """Where a label leads to from a state."""
        target = self._targets.get((state, label))
        if target is None:
            first = int(self._outgoing.first[state])
            arcs = slice(first, first + int(self._outgoing.count[state]))
            nth = int((self._arcs.label[arcs] == label).argmax())
            target = self._targets[state, label] = int(self._arcs.target[arcs][nth])
        return target
