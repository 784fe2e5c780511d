"""The paths of a large automaton through a canvas: what `lattice` does where there are thousands of arcs.

One sweep goes back from the end of the canvas and finds, for each state at each position, the weight of the best
way from there to the end and that of all ways together. From the start, the former is a signpost to the best path.
The latter turns the weights of a state's arcs into the probabilities of going on by each, so the second sweep,
forward, follows probabilities and drops what has next to none: of tens of thousands of arcs a position some
hundreds remain, unless the network is vague about everything.

So it is mostly the first sweep that costs. It works in fp32, on both weights at once, and on arcs laid out in
tables (`_Layout`): numpy's `reduceat` takes ten times as long where states have few arcs. Where a canvas begins,
an automaton that has not been in most of its states yet is laid out without them (`in_stretches`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .automaton import Arcs, Outgoing, Segments
from .log_weights import LOG_ZERO, NEGLIGIBLE_SINGLE, Floats, Integers, Singles

# A state less probable than this at its position is not followed further. In a canvas of 256 positions through
# 65,536 states that can't be more than two canvases in a thousand; of random weights it was one in a million.
IMPROBABLE = 1e-10

# The arcs are laid out anew for an earlier stretch of positions if working there on what can't matter made it more
# than so many times the work, not counting so many arcs a position: numpy's calls outweigh them.
WASTE, FREE_WASTE = 1.25, 2048

# The values of a position are shifted so that the largest is 0 every so many positions: small numbers are exact
# ones. In between they move by little, and to look for the largest costs as much as to add all of them up.
SHIFTED_EVERY = 4

# To pick an arc out costs so many times what it costs to work on it among all others.
COST_OF_PICKING = 8

# A table costs as much as so many arcs, whatever is in it: numpy's calls.
COST_OF_TABLE = 1500

# Lines of tables have so many arcs, or a table has one line.
SHORTEST_LINE = 32


def in_stretches(first: Integers, last: Integers, positions: int) -> Iterator[range]:
    """All positions in stretches: so few that in none of them much is done in vain by working at each position on
    the arcs that matter at any. `first` and `last` `[arcs]` are the positions from and to which each matters."""
    begun = np.bincount(first, minlength=positions).cumsum()  # [positions]: arcs with first <= i
    ended = np.bincount(last + 1, minlength=positions + 1).cumsum()  # ... with last < i
    matter = (begun - ended[:positions]).tolist()
    start, needed = 0, 0
    for i in range(positions):
        length, size = i + 1 - start, int(begun[i] - ended[start])
        if size * length > WASTE * (needed + matter[i]) + FREE_WASTE * length:
            yield range(start, i)
            start, needed = i, 0
        needed += matter[i]
    yield range(start, positions)


class CanvasArcs(NamedTuple):
    """Those that matter in one canvas, sorted by source, and where its paths lead."""

    arcs: Arcs
    first: Integers
    """`[arcs]`: the first position at which each matters"""
    last: Integers
    """`[arcs]`: and the last"""
    start: int
    """the state that paths lead from"""
    positions: int
    may_end: npt.NDArray[np.bool_]
    """`[states]`: those that they may lead to"""


class _Layout:
    """Arcs in tables: those of states with about as many of them stand together, the states side by side, of each
    its arcs one below the other. What is short of the highest is filled up with arcs to nowhere.

    A state's *place* is where its value is found. Those with the most arcs come first, so the states of a table
    are one piece of the places. Then come those without arcs, and the last place is of no state: its value is
    `LOG_ZERO`.
    """

    def __init__(self, arcs: Arcs, num_states: int) -> None:
        """`arcs` are sorted by source."""
        degree = np.bincount(arcs.source, minlength=num_states)
        present = degree > 0
        present[arcs.target] = True
        states = np.flatnonzero(present)
        self.states: Integers = states[np.argsort(-degree[states], kind="stable")]
        """by place"""
        degree = degree[self.states]
        self.num_places = len(self.states) + 1
        nowhere = self.num_places - 1
        self.place = np.full(num_states, nowhere)
        """`[states]`: the place of each; the last one is of those without arcs"""
        self.place[self.states] = np.arange(nowhere)

        # Arcs by place, for sweeps that come to few of them.
        sources = self.place[arcs.source]
        by_place = np.argsort(sources, kind="stable")
        self.outgoing = Outgoing(sources[by_place], self.num_places)
        self.targets_by_place, self.labels_by_place = self.place[arcs.target][by_place], arcs.label[by_place]

        self.shapes: list[_Shape] = []
        which = []
        for places in _of_a_height(degree):
            shape = _Shape.of(places, int(degree[places.start]))
            nth = np.arange(shape.height * shape.folds)[:, None]
            arcs_of_table = np.where(nth < degree[places], self.outgoing.first[places] + nth, len(arcs))
            self.shapes.append(shape)
            which.append(arcs_of_table.ravel())
        in_tables = np.concatenate(which)
        self.targets = np.append(self.targets_by_place, nowhere)[in_tables]
        """of the arcs table by table; a target is a place"""
        self.labels = np.append(self.labels_by_place, 0)[in_tables]


class _Shape(NamedTuple):
    """Of a table. One of few states is folded: below its first arcs of all states stand further ones in the same
    line, for numpy takes as long for a short line as for a longer one."""

    places: slice
    height: int
    """lines"""
    folds: int
    """how many arcs a state has in a line"""

    @classmethod
    def of(cls, places: slice, most_arcs: int) -> _Shape:
        """Of states with up to so many arcs."""
        folds = min(-(-SHORTEST_LINE // (places.stop - places.start)), most_arcs)
        return cls(places, -(-most_arcs // folds), folds)

    @property
    def num_arcs(self) -> int:
        """with those that fill it up"""
        states: int = self.places.stop - self.places.start
        return self.height * self.folds * states


def _of_a_height(degree: Integers) -> list[slice]:
    """The states in pieces, each worth a table of its own: `degree` `[states]`, descending, are their arcs. Those
    without any are left out."""
    alike = Segments.of(degree[degree > 0])
    ends = (alike.starts + alike.sizes).tolist()
    # The least cost up to each change of degree, and where the last table then begins.
    costs, begins = np.zeros(len(ends) + 1), []
    for nth, end in enumerate(ends):
        with_table = costs[: nth + 1] + COST_OF_TABLE + alike.values[: nth + 1] * (end - alike.starts[: nth + 1])
        begins.append(int(with_table.argmin()))
        costs[nth + 1] = with_table[begins[-1]]
    pieces, nth = [], len(ends)
    while nth:
        begin = begins[nth - 1]
        pieces.append(slice(int(alike.starts[begin]), ends[nth - 1]))
        nth = begin
    return pieces[::-1]


class _Table:
    """What the sweeps do with the arcs of a table. They go from one table to the next with all that is to be done
    there: so much is in the processor's cache."""

    def __init__(
        self, shape: _Shape, layout: _Layout, arcs: slice, scratch: Singles, tops: Singles, shares: Floats
    ) -> None:
        """`arcs` are where the layout has its arcs. `scratch` `[5, n]`, n at least as many, is what it works in;
        what it finds is put into `tops` `[places, 2]`, of the best way and of all ways, and `shares` `[arcs]`."""
        self._targets, self._labels, self._places = layout.targets[arcs], layout.labels[arcs], shape.places
        self._folds, num_arcs = shape.folds, shape.num_arcs
        sums, weights = scratch[:2].reshape(-1)[: 2 * num_arcs], scratch[2:4].reshape(-1)[: 2 * num_arcs]
        self._sums, self._weights = sums.reshape(-1, 2), weights.reshape(-1, 2)
        self._scaled = scratch[4, :num_arcs]
        # Two numbers as one, which is taken in the time of one.
        self._pairs, self._weight_pairs = sums.view(np.float64), weights.view(np.float64)
        self._sums_by_line = self._sums.reshape(shape.height, -1, 2)
        self._by_line = self._scaled.reshape(shape.height, -1)
        self._tops, self._shares = tops[shape.places], shares[arcs]
        self._totals = np.empty(len(self._tops), np.float32)
        self._line_tops, self._line_totals = self._tops, self._totals
        if self._folds > 1:
            line = self._by_line.shape[1]
            self._line_tops, self._line_totals = np.empty((line, 2), np.float32), np.empty(line, np.float32)

    def go_back(self, values: Floats, weights: Floats) -> None:
        """Of the states the log-weights of the ways to the end, by those of where the arcs lead and their own."""
        self._sum_up(values, weights)
        sums, tops, totals = self._sums_by_line, self._line_tops, self._line_totals
        np.maximum.reduce(sums, axis=0, out=tops)
        if self._folds > 1:
            folded = tops.reshape(self._folds, -1, 2)
            np.maximum.reduce(folded, axis=0, out=self._tops)
            folded[:] = self._tops
        np.subtract(sums, tops, out=sums)
        np.maximum(self._sums[:, 1], NEGLIGIBLE_SINGLE, out=self._scaled)
        np.exp(self._scaled, out=self._scaled)
        np.add.reduce(self._by_line, axis=0, out=totals)
        if self._folds > 1:
            np.add.reduce(totals.reshape(self._folds, -1), axis=0, out=self._totals)
        self._tops[:, 1] += np.log(self._totals, out=self._totals)

    def go_on(self, values: Floats, weights: Floats, log_share: Singles) -> None:
        """Find the probabilities of going on by the arcs. `log_share` `[places]` is what comes to where they
        begin, less its value."""
        self._sum_up(values, weights)
        of_line = np.tile(log_share[self._places], self._folds)
        np.add(self._sums_by_line[..., 1], of_line, out=self._by_line)
        self._shares[:] = _probabilities(self._scaled)

    def _sum_up(self, values: Floats, weights: Floats) -> None:
        # Any index is in range: that is the mode in which numpy copies nothing twice.
        values.take(self._targets, out=self._pairs, mode="clip")
        weights.take(self._labels, out=self._weight_pairs, mode="clip")
        self._sums += self._weights


def _probabilities(logarithms: Singles) -> Singles:
    """Next to nothing is nothing: what can't be must not come out of it as what hardly is."""
    probabilities: Singles = np.maximum(logarithms, NEGLIGIBLE_SINGLE)
    np.exp(probabilities, out=probabilities)
    probabilities *= logarithms > NEGLIGIBLE_SINGLE
    return probabilities


class Stretch:
    """Some positions in a row, and what the sweeps do there."""

    def __init__(
        self,
        positions: range,
        arcs: Arcs,
        may_end: npt.NDArray[np.bool_],
        behind: Stretch | None,
    ) -> None:
        """`arcs` are those that matter there, sorted by source. Behind these positions come those of `behind`, or
        the end of the canvas, which is in a state that `may_end` `[states]` allows."""
        self.positions, self._behind = positions, behind
        self._layout = layout = _Layout(arcs, len(may_end))
        self.num_arcs = num_arcs = len(layout.targets)
        num_places = layout.num_places
        places = np.arange(len(layout.states))
        self.values: Singles = np.full((len(positions) + 1, num_places, 2), LOG_ZERO, np.float32)
        """`[positions + 1, places, 2]`: log-weights of the best way and of all ways from there to the end of the
        canvas. Both are shifted at each position by numbers of its own."""
        self.shifts = np.zeros((len(positions), 2), np.float32)
        """`[positions, 2]`: by how much those of a position are shifted less than those behind it."""
        # The number of each place in the stretch behind.
        self._places_behind = np.zeros(num_places, np.int64)
        if behind is None:
            self.values[-1, places[may_end[layout.states]]] = 0
        else:
            self._places_behind[:] = behind._layout.num_places - 1
            self._places_behind[places] = behind._layout.place[layout.states]
        self._weights: Singles = np.empty((0, 0, 2), np.float32)  # [positions, labels, 2]
        # What a position is worked out in: to make it each time costs as much as to use it.
        self._tops = np.full((num_places, 2), LOG_ZERO, np.float32)
        self._shares = np.empty(num_arcs)
        stops = np.cumsum([shape.num_arcs for shape in layout.shapes]).tolist()
        scratch = np.empty((5, max(shape.num_arcs for shape in layout.shapes)), np.float32)
        self._tables = []
        for shape, stop in zip(layout.shapes, stops, strict=True):
            in_layout = slice(stop - shape.num_arcs, stop)
            self._tables.append(_Table(shape, layout, in_layout, scratch, self._tops, self._shares))

    def place(self, state: int) -> int:
        """Under which number the sweeps know a state."""
        return int(self._layout.place[state])

    def places(self, states: Integers) -> Integers:
        """The same of several."""
        return self._layout.place[states]

    def log_total(self, place: int) -> float:
        """The log-weight of all ways from a place at the first position, less what `go_back` has shifted it by."""
        return float(self.values[0, place, 1])

    def go_back(self, weights: Singles) -> float:
        """Find the weights of the ways to the end, after this was done behind. Returns by how much those of all
        ways are shifted, nats.

        `weights` `[positions of the canvas, labels, 2]`: what the best path goes by, and what all of them do.
        """
        if self._behind is not None:
            self.values[-1] = self._behind.values[0][self._places_behind]
        self._weights = weights[self.positions.start : self.positions.stop]
        for i in reversed(range(len(self._weights))):
            behind, weights_here = self._pairs_at(i)
            for table in self._tables:
                table.go_back(behind, weights_here)
            if i % SHIFTED_EVERY == 0:
                self.shifts[i] = self._tops[:, 0].max(), self._tops[:, 1].max()
            np.subtract(self._tops, self.shifts[i], out=self.values[i])
        return float(self.shifts[:, 1].sum(dtype=np.float64))

    def _pairs_at(self, i: int) -> tuple[Floats, Floats]:
        """The values behind the i-th position, and the weights at it, two fp32 as one fp64."""
        return self.values[i + 1].view(np.float64)[:, 0], self._weights[i].view(np.float64)[:, 0]

    def walk(self, place: int, path: Integers) -> int:
        """Write the labels of the best path from `place` on into `path`, and return where it comes to behind."""
        layout = self._layout
        first, count = layout.outgoing.first, layout.outgoing.count
        for i, position in enumerate(self.positions):
            arcs = slice(first[place], first[place] + count[place])
            targets, labels = layout.targets_by_place[arcs], layout.labels_by_place[arcs]
            chosen = (self.values[i + 1, targets, 0] + self._weights[i, labels, 0]).argmax()
            path[position], place = labels[chosen], int(targets[chosen])
        return place if self._behind is None else int(self._places_behind[place])

    def go_on(self, places: Integers, probabilities: Floats, shares: Floats) -> tuple[Integers, Floats]:
        """Follow the probabilities of places, and write those of labels into `shares`.

        `shares` `[positions of the canvas, labels]`. Returns the places behind that are probable, and how much.
        """
        outgoing = self._layout.outgoing
        for i, position in enumerate(self.positions):
            few = outgoing.count[places].sum() * COST_OF_PICKING < self.num_arcs
            share_of = self._some_shares if few else self._all_shares
            share, targets, labels = share_of(i, places, probabilities)
            shares[position] = np.bincount(labels, share, shares.shape[1])
            # Only rounding, and what has been dropped, keep them from it.
            total = shares[position].sum()
            shares[position] /= total
            of_places = np.bincount(targets, share, self._layout.num_places) / total
            places = np.flatnonzero(of_places > IMPROBABLE)
            probabilities = of_places[places]
        return (places if self._behind is None else self._places_behind[places]), probabilities

    def _some_shares(self, i: int, places: Integers, probabilities: Floats) -> tuple[Floats, Integers, Integers]:
        """The probabilities of the arcs that lead out of places, their targets and their labels."""
        layout = self._layout
        arcs, nth = layout.outgoing.of(places)
        targets, labels = layout.targets_by_place[arcs], layout.labels_by_place[arcs]
        log_share = self._weights[i, labels, 1] + self.values[i + 1, targets, 1]
        log_share -= (self.values[i, places, 1] + self.shifts[i, 1])[nth]
        return _probabilities(log_share) * probabilities[nth], targets, labels

    def _all_shares(self, i: int, places: Integers, probabilities: Floats) -> tuple[Floats, Integers, Integers]:
        """The same of all arcs."""
        layout = self._layout
        log_share = np.full(layout.num_places, LOG_ZERO, np.float32)
        log_share[places] = np.log(probabilities) - (self.values[i, places, 1] + self.shifts[i, 1])
        behind, weights = self._pairs_at(i)
        for table in self._tables:
            table.go_on(behind, weights, log_share)
        return self._shares, layout.targets, layout.labels


def stretches_of(canvas: CanvasArcs) -> list[Stretch]:
    """All positions of a canvas."""
    first, last = canvas.first, canvas.last
    stretches: list[Stretch] = []
    behind: Stretch | None = None
    for stretch in reversed(list(in_stretches(first, last, canvas.positions))):
        matters = np.flatnonzero((first < stretch.stop) & (last >= stretch.start))
        behind = Stretch(stretch, canvas.arcs.of(matters), canvas.may_end, behind)
        stretches.append(behind)
    return stretches[::-1]
