"""The paths of an automaton through a canvas: the best one, and what all of them together look like.

Works on log-weights of labels (see `automaton`), one row for each position of the canvas, on the host. Up to some
hundreds of arcs it is done here, in fp64. Where there are more, `stretches` takes a fifth of the time. From the
second step of a canvas on `near` mostly takes a tenth of that.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from .automaton import UNREACHABLE, Arcs, Outgoing, Segments, TokenAutomaton
from .coarse import CoarsePaths, kinds_of
from .departures import Departures
from .log_weights import LOG_ZERO, NEGLIGIBLE, Floats, Integers
from .near import NearPaths
from .stretches import CanvasArcs, Stretch, stretches_of

# So many positions at a time, where each takes a number for every arc.
ROWS_PER_CHUNK = 32

# Up to so many arcs numpy's calls cost more than what they do, and the way with the fewest calls is the fastest.
FEW_ARCS = 1500

# To look at an arc near a known path takes up to so many times as long as to work on it among all others.
COST_OF_LOOKING = 16

# To look at the few arcs near a known path at a position takes so many times as long as to work on all of few.
COST_OF_LOOKING_CLOSE = 2

# Where a smaller automaton was no help it isn't asked again for so many steps: the network is still as vague.
PAUSE = 4

# So many of them a position take as long as a look at what a smaller automaton lets hope.
MOST_NEAR = 2000


class Paths(NamedTuple):
    """What the paths through a canvas are, by what the network says."""

    best: Integers
    """`[positions]`: the labels of the heaviest path"""
    log_total: float
    """log of the sum of the paths' weights, nats"""
    shares: Floats
    """`[positions, labels]`: the share of the paths that have this label there, each path weighted by its
    probability. Every row adds up to 1."""


class Canvas(Protocol):
    """All paths through one canvas."""

    def weigh(self, best: Floats, totals: Floats) -> Paths:
        """Find out about them from the log-weights of labels, both `[positions, labels]`: by `best` one path is
        better than another, and by `totals` it is averaged over all."""


class Lattice:
    """The arcs of an automaton with one more, from the end to itself: its label, `tail`, comes last."""

    def __init__(self, automaton: TokenAutomaton) -> None:
        arcs, end = automaton.arcs, automaton.end
        self.tail = len(automaton.label_classes)
        # The end is the last state, so the arcs stay sorted by source.
        self._arcs = Arcs(
            np.append(arcs.source, end), np.append(arcs.target, end), np.append(arcs.label, self.tail)
        )
        self._outgoing = Outgoing(self._arcs.source, automaton.num_states)
        self._distance = automaton.distance.astype(np.int64)

    def canvas(self, start: int, positions: int, tokens_behind: int) -> Canvas:
        """The paths of so many arcs from `start` to a state from where the end can be reached with `tokens_behind`
        tokens. There has to be one."""
        arcs, may_end = self._arcs, self._distance <= tokens_behind
        # An arc matters from when its source can be reached to when the end still can be from its target.
        first = self._arrivals(start, positions)[arcs.source]
        last = np.minimum(tokens_behind + positions - 1 - self._distance[arcs.target], positions - 1)
        matters = np.flatnonzero(first <= last)
        if len(matters) <= FEW_ARCS:
            return _FewArcs(arcs.of(matters), self.tail + 1, start, may_end)
        canvas = CanvasArcs(arcs.of(matters), first[matters], last[matters], start, positions, may_end)
        return _ManyArcs(canvas, self._kinds)

    @cached_property
    def _kinds(self) -> Integers:
        """`[states]`: see `coarse`."""
        return kinds_of(self._arcs, len(self._distance), len(self._distance) - 1)

    def _arrivals(self, start: int, positions: int) -> Integers:
        """`[states]`: the fewest arcs from `start` to there. `UNREACHABLE` if `positions` don't suffice."""
        arrival = np.full(len(self._distance), int(UNREACHABLE))
        states = np.array([start])
        for i in range(positions):
            arrival[states] = i
            targets = self._arcs.target[self._outgoing.of(states)[0]]
            states = np.unique(targets[arrival[targets] == UNREACHABLE])
            if not len(states):
                break
        return arrival


class _FewArcs:
    """Works on the arcs near the best path of the last step, if that is known and they are at few positions, else
    on all arcs at all positions. In fp64."""

    def __init__(self, arcs: Arcs, num_labels: int, start: int, may_end: npt.NDArray[np.bool_]) -> None:
        """`arcs` are sorted by source."""
        self._near = NearPaths(Departures(arcs, len(may_end)), start, may_end)
        self._known: Integers | None = None
        states = np.unique(np.r_[arcs.source, arcs.target, start])
        number = np.zeros(len(may_end), np.int64)
        number[states] = np.arange(len(states))
        self._start, self._may_end, self._num_states = int(number[start]), may_end[states], len(states)
        by_source = Arcs(number[arcs.source], number[arcs.target], arcs.label)
        self._by_target = by_target = by_source.sorted_by(by_source.target)
        self._targets = Segments.of(by_target.target)
        bounds = zip(self._targets.values, self._targets.starts, self._targets.sizes, strict=True)
        self._into = {int(state): slice(first, first + size) for state, first, size in bounds}
        self._by_label = by_source.sorted_by(by_source.label)
        self._labels = Segments.of(self._by_label.label)
        # The way there and the way back as one automaton: the states twice, and the arcs, once turned round.
        self._both = Arcs(
            np.concatenate([by_target.source, by_source.target + len(states)]),
            np.concatenate([by_target.target, by_source.source + len(states)]),
            np.concatenate([by_target.label, by_source.label + num_labels]),
        )
        self._both_targets = Segments.of(self._both.target)

    def weigh(self, best: Floats, totals: Floats) -> Paths:
        most = len(best) // COST_OF_LOOKING_CLOSE
        near = None if self._known is None else self._near.weigh(best, totals, self._known, math.inf, most)
        paths = self._weigh_all(best, totals) if near is None else Paths(*near)
        self._known = paths.best
        return paths

    def _weigh_all(self, best: Floats, totals: Floats) -> Paths:
        path = self._best_path(best)
        forward, backward = self._sums(totals)
        log_total = float(np.logaddexp.reduce(forward[-1, self._may_end]))
        arcs = self._by_label
        shares = np.zeros_like(totals)
        for chunk in range(0, len(totals), ROWS_PER_CHUNK):
            rows = slice(chunk, min(chunk + ROWS_PER_CHUNK, len(totals)))
            behind = slice(rows.start + 1, rows.stop + 1)
            share = forward[rows][:, arcs.source] + backward[behind][:, arcs.target]
            share += totals[rows][:, arcs.label] - log_total
            np.exp(np.maximum(share, NEGLIGIBLE, out=share), out=share)
            shares[rows, self._labels.values] = np.add.reduceat(share, self._labels.starts, axis=1)
        # Only rounding keeps them from it.
        shares /= shares.sum(1, keepdims=True)
        return Paths(path, log_total, shares)

    def _best_path(self, weights: Floats) -> Integers:
        """Viterbi's."""
        arcs, targets = self._by_target, self._targets
        best = np.full((len(weights) + 1, self._num_states), LOG_ZERO)
        best[0, self._start] = 0
        of_arcs = weights.take(arcs.label, axis=1)
        for row, here, following in zip(of_arcs, best, best[1:], strict=False):
            values = here.take(arcs.source)
            values += row
            following[targets.values] = np.maximum.reduceat(values, targets.starts)
        state = int(np.where(self._may_end, best[-1], -np.inf).argmax())
        path = np.empty(len(weights), np.int64)
        for i in reversed(range(len(weights))):
            into = self._into[state]
            arc = into.start + (best[i].take(arcs.source[into]) + of_arcs[i, into]).argmax()
            path[i], state = arcs.label[arc], int(arcs.source[arc])
        assert state == self._start, "no path"
        return path

    def _sums(self, weights: Floats) -> tuple[Floats, Floats]:
        """log-sums of all paths from the start to each state, and from it to where they may end.

        Both `[positions + 1, states]`. The two go side by side from the two ends: there are so few arcs that
        numpy's calls cost more than what they do.
        """
        arcs, targets, states = self._both, self._both_targets, self._num_states
        sums = np.full((len(weights) + 1, 2 * states), LOG_ZERO)
        sums[0, self._start] = 0
        sums[0, states:][self._may_end] = 0
        run = np.repeat(np.arange(len(targets.sizes)), targets.sizes)
        of_arcs = np.hstack([weights, weights[::-1]]).take(arcs.label, axis=1)
        for row, here, following in zip(of_arcs, sums, sums[1:], strict=False):
            values = here.take(arcs.source)
            values += row
            top = np.maximum.reduceat(values, targets.starts)
            values -= top.take(run)
            np.exp(np.maximum(values, NEGLIGIBLE, out=values), out=values)
            total = np.add.reduceat(values, targets.starts)
            top += np.log(total, out=total)
            following[targets.values] = top
        return sums[:, :states], sums[::-1, states:]


class _ManyArcs:
    """Works at each position on the arcs near the best path of the last step, or if that is no help, or there is
    none, on those that a smaller automaton lets hope, or if that is none either on all that matter thereabouts."""

    def __init__(self, canvas: CanvasArcs, kinds: Integers) -> None:
        """`kinds` `[states]` are `coarse`'s."""
        self._canvas = canvas
        departures = Departures(canvas.arcs, len(canvas.may_end))
        self._near = NearPaths(departures, canvas.start, canvas.may_end)
        self._coarse = CoarsePaths(canvas, departures, kinds)
        self._most_near = int((canvas.last + 1 - canvas.first).sum() // COST_OF_LOOKING)
        if self._coarse.helps:
            self._most_near = min(self._most_near, MOST_NEAR * canvas.positions)
        self._known: Integers | None = None
        self._steps_to_pause = 0

    def weigh(self, best: Floats, totals: Floats) -> Paths:
        near = (
            None
            if self._known is None
            else self._near.weigh(best, totals, self._known, self._most_near, len(best))
        )
        if self._steps_to_pause:
            self._steps_to_pause -= 1
        elif near is None and self._coarse.helps:
            near = self._coarse.weigh(best, totals)
            if near is None:
                self._steps_to_pause = PAUSE
        paths = self._weigh_all(best, totals) if near is None else Paths(*near)
        self._known = paths.best
        return paths

    @cached_property
    def _stretches(self) -> list[Stretch]:
        """For all arcs: most canvases do without."""
        return stretches_of(self._canvas)

    def _weigh_all(self, best: Floats, totals: Floats) -> Paths:
        weights = np.stack([best, totals], axis=-1).astype(np.float32)
        shift = sum(stretch.go_back(weights) for stretch in reversed(self._stretches))
        place = self._stretches[0].place(self._canvas.start)
        log_total = self._stretches[0].log_total(place) + shift
        assert log_total > LOG_ZERO / 2, "no path"
        path, shares = np.empty(len(best), np.int64), np.empty_like(totals)
        places, probabilities = np.array([place]), np.ones(1)
        for stretch in self._stretches:
            place = stretch.walk(place, path)
            places, probabilities = stretch.go_on(places, probabilities, shares)
        return Paths(path, log_total, shares)
