"""The paths of an automaton through a canvas: the best one, and what all of them together look like.

Works on log-weights of labels (see `automaton`), one row for each position of the canvas, on the host in
fp64: a single forced token can weigh 150 nats against a sharp network, so sums of probabilities themselves
would underflow within a few positions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .automaton import Arcs, Segments, TokenAutomaton

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

# Stands for log 0. Finite, so that sums and differences of it stay numbers, and far below all that the
# positions of a canvas can add up to.
LOG_ZERO = -1e30

# Nothing to be seen beside one in fp64. The exponential of less takes many times as long, for it underflows.
NEGLIGIBLE = -700.0

# So many positions at a time, where each takes a number for every arc: large automata have thousands.
ROWS_PER_CHUNK = 32


class Posterior(NamedTuple):
    """What the paths look like on average, each weighted by its probability."""

    log_total: float
    """log of the sum of the paths' weights, nats"""
    labels: Floats
    """`[positions, labels]`: the share of the paths that have this label there. Every row adds up to 1."""


class Lattice:
    """The arcs of an automaton with one more, from the end to itself: its label, `tail`, comes last."""

    def __init__(self, automaton: TokenAutomaton) -> None:
        arcs, end = automaton.arcs, automaton.end
        self.tail = len(automaton.label_classes)
        self._num_states = automaton.num_states
        # The end is the last state, so the arcs stay sorted by source.
        by_source = Arcs(
            np.append(arcs.source, end), np.append(arcs.target, end), np.append(arcs.label, self.tail)
        )
        self._by_target = by_target = by_source.sorted_by(by_source.target)
        self._targets = Segments.of(by_target.target)
        bounds = zip(self._targets.values, self._targets.starts, self._targets.sizes, strict=True)
        self._into = {int(state): slice(first, first + size) for state, first, size in bounds}
        self._by_label = by_source.sorted_by(by_source.label)
        self._labels = Segments.of(self._by_label.label)
        # The way there and the way back as one automaton: the states twice, and the arcs, once turned round.
        self._both = Arcs(
            np.concatenate([by_target.source, by_source.target + self._num_states]),
            np.concatenate([by_target.target, by_source.source + self._num_states]),
            np.concatenate([by_target.label, by_source.label + self.tail + 1]),
        )
        self._both_targets = Segments.of(self._both.target)

    def best_path(self, weights: Floats, start: int, may_end: npt.NDArray[np.bool_]) -> Integers:
        """The labels of the heaviest path (Viterbi), `[positions]`.

        `weights` `[positions, labels]`; the path leads from `start` to a state that `may_end` allows, and
        there has to be one.
        """
        arcs, targets = self._by_target, self._targets
        best = np.full((len(weights) + 1, self._num_states), LOG_ZERO)
        best[0, start] = 0
        for row, here, following in zip(weights, best, best[1:], strict=False):
            following[targets.values] = np.maximum.reduceat(here[arcs.source] + row[arcs.label], targets.starts)
        state = int(np.where(may_end, best[-1], -np.inf).argmax())
        path = np.empty(len(weights), np.int64)
        for i in reversed(range(len(weights))):
            into = self._into[state]
            arc = into.start + (best[i, arcs.source[into]] + weights[i, arcs.label[into]]).argmax()
            path[i], state = arcs.label[arc], int(arcs.source[arc])
        assert state == start, "no path"
        return path

    def posterior(self, weights: Floats, start: int, may_end: npt.NDArray[np.bool_]) -> Posterior:
        """The average over all the paths that `best_path` chooses from (forward–backward)."""
        forward, backward = self._sums(weights, start, may_end)
        log_total = float(np.logaddexp.reduce(forward[-1, may_end]))
        arcs = self._by_label
        labels = np.empty_like(weights)
        for chunk in range(0, len(weights), ROWS_PER_CHUNK):
            rows = slice(chunk, min(chunk + ROWS_PER_CHUNK, len(weights)))
            behind = slice(rows.start + 1, rows.stop + 1)
            share = forward[rows][:, arcs.source] + backward[behind][:, arcs.target]
            share += weights[rows][:, arcs.label] - log_total
            np.exp(np.maximum(share, NEGLIGIBLE, out=share), out=share)
            labels[rows] = np.add.reduceat(share, self._labels.starts, axis=1)
        # Only rounding keeps them from it.
        labels /= labels.sum(1, keepdims=True)
        return Posterior(log_total, labels)

    def _sums(self, weights: Floats, start: int, may_end: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """log-sums of all paths from `start` to each state, and from it to where they may end.

        Both `[positions + 1, states]`. The two go side by side from the two ends: an automaton is so small
        that numpy's calls cost more than what they do.
        """
        arcs, targets, states = self._both, self._both_targets, self._num_states
        sums = np.full((len(weights) + 1, 2 * states), LOG_ZERO)
        sums[0, start] = 0
        sums[0, states:][may_end] = 0
        run = np.repeat(np.arange(len(targets.sizes)), targets.sizes)
        for row, here, following in zip(np.hstack([weights, weights[::-1]]), sums, sums[1:], strict=False):
            values = here[arcs.source] + row[arcs.label]
            top = np.maximum.reduceat(values, targets.starts)
            scaled = np.exp(np.maximum(values - top[run], NEGLIGIBLE))
            following[targets.values] = top + np.log(np.add.reduceat(scaled, targets.starts))
        return sums[:, :states], sums[::-1, states:]


def log_sums(values: Floats, segments: Segments) -> Floats:
    """log sum exp of each segment of the columns: `[rows, n]` to `[rows, segments]`."""
    top = np.maximum.reduceat(values, segments.starts, axis=1)
    scaled = np.exp(values - np.repeat(top, segments.sizes, axis=1))
    result: Floats = top + np.log(np.add.reduceat(scaled, segments.starts, axis=1))
    return result
