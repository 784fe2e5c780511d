"""The paths of a large automaton through a canvas, by looking only at those that a smaller automaton lets hope.

States from which the next few tokens can be the same are taken for one. What this says of all ways from a state to
the end of the canvas is never too little, and most often it is right: the copies of what a schema repeats differ
in little but how many follow. The smaller automaton is gone through from the end, as `stretches` goes through all
of a large one, and then it is known of each way through the real one, before it is gone, how much it can lead to.
Of tens of thousands of arcs a position some hundreds remain, also where the network is vague about everything.

What is left out is added up, so that it is known how much it can be at most. The bounds cancel out of all that is
found: how right they are decides on the work only, and on whether there is a result.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .automaton import Arcs, Segments
from .departures import Departure, Departures
from .log_weights import LOG_ZERO, NEGLIGIBLE, Floats, Integers
from .stretches import CanvasArcs, stretches_of

# Taken for one are states that are alike for as many tokens as makes at most so many of them.
MOST_KINDS = 1000

# The smaller automaton has to have so many times fewer arcs.
LEAST_GAIN = 3

# A state that can lead to less than this share of what the start can is not gone on from.
HOPELESS = 1e-11

# What is left out may be so much of all paths. With random weights it was less than a millionth.
MOST_LOST = 1e-3

# The best path found is the best there is if none can be better by more than this share of its weight, which is
# what fp32 does to the bounds; else those that can be are looked at, too.
ROUNDING = 4e-6

# Looking at so many arcs a position is still faster than working on all of them.
MOST_ARCS = 4000


def kinds_of(arcs: Arcs, num_states: int, end: int) -> Integers:
    """A number for each state, the same for those that are alike for a few tokens. `arcs` are sorted by source.

    Rounds of Moore's algorithm on random hashes. A collision takes states for one that are not alike, which is
    right as well: the bounds hold for any division of the states.
    """
    rng = np.random.default_rng(0)
    sources = Segments.of(arcs.source)
    kinds = np.zeros(num_states, np.int64)
    kinds[end] = 1
    of_label = rng.integers(1 << 62, size=int(arcs.label.max()) + 1)
    count = 2
    while True:
        hashes = of_label[arcs.label] ^ rng.integers(1 << 62, size=count)[kinds[arcs.target]]
        hashes *= (hashes >> 29) | 1  # wraps
        together = rng.integers(1 << 62, size=count)[kinds]
        together[sources.values] += np.add.reduceat(hashes, sources.starts)
        finer = np.unique(together, return_inverse=True)[1].reshape(-1)
        finer_count = int(finer.max()) + 1
        if finer_count > MOST_KINDS or finer_count <= count:
            return kinds
        kinds, count = finer, finer_count


class _Step(NamedTuple):
    """What was gone through at a position. `[arcs]` are those of `moves`."""

    moves: Departure
    factor: Floats
    """`[arcs]`: how much of what the source can lead to goes this way, at most"""
    up_to: Floats
    """`[arcs]`: how much comes this way, by what it can lead to"""
    best_up_to: Floats | None
    """`[arcs]`: log-weight of the best way that ends in it, nats"""
    kept: Integers
    """which of the targets are gone on from"""


class CoarsePaths:
    """The arcs of one canvas, laid out for going through some of them."""

    def __init__(self, canvas: CanvasArcs, departures: Departures, kinds: Integers) -> None:
        """`departures` are those of its arcs, `kinds` `[states]` those of `kinds_of`."""
        self._departures, self._start, self._may_end = departures, canvas.start, canvas.may_end
        self._arcs, self._outgoing = departures.arcs, departures.outgoing
        arcs = canvas.arcs
        num_kinds, num_labels = int(kinds.max()) + 1, int(arcs.label.max()) + 1
        each = (kinds[arcs.source] * num_labels + arcs.label) * num_kinds + kinds[arcs.target]
        order = np.argsort(each, kind="stable")
        alike = Segments.of(each[order])
        source, target = alike.values // num_kinds // num_labels, alike.values % num_kinds
        self.helps = len(source) * LEAST_GAIN <= len(arcs)
        """Whether it is worth the while."""
        if not self.helps:
            return
        coarse = Arcs(source, target, alike.values // num_kinds % num_labels)
        coarse_end = np.zeros(num_kinds, np.bool_)
        coarse_end[kinds[canvas.may_end]] = True
        self._stretches = stretches_of(
            CanvasArcs(
                coarse,
                np.minimum.reduceat(canvas.first[order], alike.starts),
                np.maximum.reduceat(canvas.last[order], alike.starts),
                int(kinds[canvas.start]),
                canvas.positions,
                coarse_end,
            )
        )
        self._places = [stretch.places(kinds) for stretch in self._stretches]

    def weigh(self, best: Floats, totals: Floats) -> tuple[Integers, float, Floats] | None:
        """What `lattice.Paths` has. None if the bounds are no help."""
        weights = np.stack([best, totals], axis=-1).astype(np.float32)
        for stretch in reversed(self._stretches):
            stretch.go_back(weights)
        bound, bound_of_best = self._bounds_of_all()
        path = self._greedy(best)
        if path is None:
            return None
        heaviest = float(best[np.arange(len(path)), path].sum())
        is_best = heaviest >= bound_of_best - ROUNDING * abs(bound_of_best)
        steps = self._go_on(best, totals, None if is_best else heaviest)
        if steps is None:
            return None
        found = self._go_back(steps, totals)
        if found is None:
            return None
        total, shares = found
        return (path if is_best else self._trace(steps)), math.log(total) + bound, shares

    def _bounds_of_all(self) -> tuple[float, float]:
        """Of all paths: of their sum, and of the best."""
        place = self._places[0][self._start]
        shift = sum((stretch.shifts.sum(0, dtype=np.float64) for stretch in self._stretches), np.zeros(2))
        of_best, of_all = (self._stretches[0].values[0, place].astype(np.float64) + shift).tolist()
        return of_all, of_best

    def _greedy(self, best: Floats) -> Integers | None:
        """The path that goes on by what can become of it. None if that comes to no end."""
        first, count = self._outgoing.first, self._outgoing.count
        path, state = np.empty(len(best), np.int64), self._start
        for stretch, places in zip(self._stretches, self._places, strict=True):
            for i, position in enumerate(stretch.positions):
                arcs = slice(first[state], first[state] + count[state])
                targets, labels = self._arcs.target[arcs], self._arcs.label[arcs]
                if not len(targets):
                    return None
                chosen = int((best[position, labels] + stretch.values[i + 1, places[targets], 0]).argmax())
                path[position], state = labels[chosen], int(targets[chosen])
        return path if self._may_end[state] else None

    def _go_on(self, best: Floats, totals: Floats, heaviest: float | None) -> list[_Step] | None:
        """From the start through all that can matter; also through what can be better than `heaviest`, if that is
        not known to be the best path. None if it is too much."""
        steps: list[_Step] = []
        states, weight, best_up_to = np.array([self._start]), np.ones(1), np.zeros(1)
        lost, looked_at = 0.0, 0
        behind = float(sum(stretch.shifts[:, 0].sum(dtype=np.float64) for stretch in self._stretches))
        for stretch, places in zip(self._stretches, self._places, strict=True):
            for i, position in enumerate(stretch.positions):
                moves = self._departures.of(states)
                looked_at += len(moves.label)
                if looked_at > MOST_ARCS * (position + 16):
                    return None
                there = places[moves.targets]
                before = stretch.values[i, places[states], 1].astype(np.float64) + stretch.shifts[i, 1]
                after = stretch.values[i + 1, there, 1].astype(np.float64)
                factor = totals[position][moves.label] + after[moves.nth_target] - before[moves.source]
                np.exp(np.maximum(factor, NEGLIGIBLE, out=factor), out=factor)
                up_to = weight[moves.source] * factor
                weight = np.bincount(moves.nth_target, up_to, len(there)).astype(np.float64, copy=False)
                hopeful = weight >= HOPELESS
                reached: Floats | None = None
                if heaviest is not None:
                    behind -= float(stretch.shifts[i, 0])
                    reached = best_up_to[moves.source] + best[position][moves.label]
                    best_up_to = np.maximum.reduceat(reached, moves.first)
                    bound = best_up_to + stretch.values[i + 1, there, 0] + behind
                    hopeful |= bound >= heaviest - ROUNDING * abs(heaviest)
                kept = np.flatnonzero(hopeful)
                lost += float(weight.sum())
                weight = weight[kept]
                lost -= float(weight.sum())
                steps.append(_Step(moves, factor, up_to, reached, kept))
                states = moves.targets[kept]
                if heaviest is not None:
                    best_up_to = best_up_to[kept]
                if not len(states):
                    return None
        return steps if lost <= MOST_LOST * float(weight[self._may_end[states]].sum()) else None

    def _go_back(self, steps: list[_Step], totals: Floats) -> tuple[float, Floats] | None:
        """The sum of all paths, relative to its bound, and the shares of labels."""
        shares = np.empty_like(totals)
        last = steps[-1]
        behind = np.zeros(len(last.moves.targets))
        behind[last.kept] = self._may_end[last.moves.targets[last.kept]]
        for i in reversed(range(len(steps))):
            moves, factor, up_to, _, _ = steps[i]
            of_arcs = behind[moves.nth_target]
            shares[i] = np.bincount(moves.label, up_to * of_arcs, totals.shape[1])
            if i:
                before = steps[i - 1]
                behind = np.zeros(len(before.moves.targets))
                behind[before.kept] = np.bincount(moves.source, factor * of_arcs, len(before.kept))
        total = float(shares[-1].sum())
        sums = shares.sum(1, keepdims=True)
        if not sums.min() > 0:
            return None
        # Only rounding, and what has been left out, keep them from it.
        shares /= sums
        return total, shares

    def _trace(self, steps: list[_Step]) -> Integers:
        """The best path, from its end."""
        path = np.empty(len(steps), np.int64)
        last = steps[-1]
        assert last.best_up_to is not None
        of_targets = np.maximum.reduceat(last.best_up_to, last.moves.first)
        ends = np.zeros(len(of_targets), np.bool_)
        ends[last.kept] = self._may_end[last.moves.targets[last.kept]]
        target = int(np.where(ends, of_targets, LOG_ZERO).argmax())
        for i in reversed(range(len(steps))):
            moves, _, _, reached, _ = steps[i]
            assert reached is not None
            first = int(moves.first[target])
            arcs = slice(first, int(moves.first[target + 1]) if target + 1 < len(moves.first) else None)
            arc = first + int(reached[arcs].argmax())
            path[i] = moves.label[arc]
            if i:
                target = int(steps[i - 1].kept[moves.source[arc]])
        return path
