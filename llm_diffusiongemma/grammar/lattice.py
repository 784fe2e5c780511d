"""The paths of an automaton through a canvas: the best one, and what all of them together look like.

Works on log-weights of labels (see `automaton`), one row for each position of the canvas, on the host in
fp64: a single forced token can weigh 150 nats against a sharp network, so sums of probabilities themselves
would underflow within a few positions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llm_diffusiongemma.grammar.automaton import Arcs, Segments, TokenAutomaton

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

# Stands for log 0. Finite, so that sums and differences of it stay numbers, and far below all that the
# positions of a canvas can add up to.
LOG_ZERO = -1e30


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
        self._by_source = Arcs(
            np.append(arcs.source, end), np.append(arcs.target, end), np.append(arcs.label, self.tail)
        )
        self._by_target = self._by_source.sorted_by(self._by_source.target)
        self._sources = Segments.of(self._by_source.source)
        self._targets = Segments.of(self._by_target.target)

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
            into = slice(*np.searchsorted(arcs.target, (state, state + 1)))
            arc = into.start + int((best[i, arcs.source[into]] + weights[i, arcs.label[into]]).argmax())
            path[i], state = arcs.label[arc], int(arcs.source[arc])
        assert state == start, "no path"
        return path

    def posterior(self, weights: Floats, start: int, may_end: npt.NDArray[np.bool_]) -> Posterior:
        """The average over all the paths that `best_path` chooses from (forward–backward)."""
        arcs, targets = self._by_target, self._targets
        forward = np.full((len(weights) + 1, self._num_states), LOG_ZERO)
        forward[0, start] = 0
        for row, here, following in zip(weights, forward, forward[1:], strict=False):
            following[targets.values] = log_sums(here[arcs.source] + row[arcs.label], targets)
        backward = np.where(may_end, 0.0, LOG_ZERO)
        last = np.where(may_end)[0]
        log_total = float(np.logaddexp.reduce(forward[-1, last]))
        labels = np.empty_like(weights)
        arcs, sources = self._by_source, self._sources
        for i in reversed(range(len(weights))):
            onwards = weights[i, arcs.label] + backward[arcs.target]
            share = np.exp(forward[i, arcs.source] + onwards - log_total)
            labels[i] = np.bincount(arcs.label, share, self.tail + 1)
            backward = np.full(self._num_states, LOG_ZERO)
            backward[sources.values] = log_sums(onwards, sources)
        # Only rounding keeps them from it.
        labels /= labels.sum(1, keepdims=True)
        return Posterior(log_total, labels)


def log_sums(values: Floats, segments: Segments) -> Floats:
    """log sum exp of each segment along the last axis: `[..., n]` to `[..., segments]`."""
    top = np.maximum.reduceat(values, segments.starts, axis=-1)
    scaled = np.exp(values - np.repeat(top, segments.sizes, axis=-1))
    result: Floats = top + np.log(np.add.reduceat(scaled, segments.starts, axis=-1))
    return result
