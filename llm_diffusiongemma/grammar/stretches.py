"""The paths of a large automaton through a canvas: what `lattice` does where there are thousands of arcs.

One sweep goes back from the end of the canvas and finds, for each state at each position, the weight of the best
way from there to the end and that of all ways together. From the start, the former is a signpost to the best path.
The latter turns the weights of a state's arcs into the probabilities of going on by each, so the second sweep,
forward, follows probabilities and drops what has next to none: of tens of thousands of arcs a position some
hundreds remain, unless the network is vague about everything.

So it is the first sweep that costs. It works in fp32, on both weights at once, and on arcs laid out in columns
(`_Layout`): numpy's `reduceat` takes ten times as long. Where a canvas begins, an automaton that has not been in
most of its states yet is laid out without them (`in_stretches`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .automaton import Arcs, Outgoing
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
COST_OF_PICKING = 2.5

# A state with more arcs is split into several rows.
WIDEST_ROW = 8


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
    """Arcs in columns. Each row has those of a state, or up to `WIDEST_ROW` of them. The widest rows come first,
    so a column is one piece: the arcs of the first so many rows.

    A state's *place* is where its value is found: that of its row, or one behind all rows if it has several. The
    last place is of no state, and its value is `LOG_ZERO`.
    """

    def __init__(self, arcs: Arcs, num_states: int) -> None:
        """`arcs` are sorted by source."""
        degree = np.bincount(arcs.source, minlength=num_states)
        present = degree > 0
        present[arcs.target] = True
        self.states = np.flatnonzero(present)
        degree = degree[self.states]
        num_rows = np.maximum(-(-degree // WIDEST_ROW), 1)
        state = np.repeat(np.arange(len(degree)), num_rows)  # of each row, as an index of `states`
        nth_row = np.arange(len(state)) - np.repeat(num_rows.cumsum() - num_rows, num_rows)
        width = np.minimum(degree[state] - nth_row * WIDEST_ROW, WIDEST_ROW)
        order = np.argsort(-width, kind="stable")
        state, nth_row, width = state[order], nth_row[order], width[order]

        several = num_rows > 1
        in_part, heavy = several[state], np.flatnonzero(several)
        self.num_rows, self.num_places = len(state), len(state) + len(heavy) + 1
        nowhere = self.num_places - 1
        places = np.empty(len(degree), np.int64)
        places[state[~in_part]] = np.flatnonzero(~in_part)
        places[heavy] = self.num_rows + np.arange(len(heavy))
        self.place = np.full(num_states, nowhere)
        """`[states]`: the place of each; the last one is of those without arcs"""
        self.place[self.states] = places
        self.place_of_row = places[state]
        rows = np.flatnonzero(in_part)
        self.rows_of_heavy = rows[np.argsort(state[rows], kind="stable")]
        """of the states that have several, one state after the other: some have hundreds, most have two"""
        self.num_rows_of_heavy = num_rows[heavy]
        self.first_of_heavy = self.num_rows_of_heavy.cumsum() - self.num_rows_of_heavy

        self.columns: list[int] = [n for n in (width > np.arange(WIDEST_ROW)[:, None]).sum(1).tolist() if n]
        """of each column how many rows it goes through"""
        first_arc = (degree.cumsum() - degree)[state] + nth_row * WIDEST_ROW
        in_columns = np.concatenate([first_arc[:n] + nth for nth, n in enumerate(self.columns)])
        targets = self.place[arcs.target]
        self.targets, self.labels = targets[in_columns], arcs.label[in_columns]
        """of the arcs column by column; a target is a place"""

        # And by place, for sweeps that come to few of them.
        sources = self.place[arcs.source]
        by_place = np.argsort(sources, kind="stable")
        self.outgoing = Outgoing(sources[by_place], self.num_places)
        self.targets_by_place, self.labels_by_place = targets[by_place], arcs.label[by_place]


class _Column(NamedTuple):
    """What belongs to a column of n arcs, or to the rows that it goes through. All are pieces of larger arrays."""

    sums: Singles
    """`[n, 2]`"""
    scaled: Singles
    """`[n]`"""
    shares: Floats
    """`[n]`"""
    row_tops: Singles
    """`[n, 2]`"""
    row_sums: Singles
    """`[n]`"""


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
        places = layout.place[layout.states]
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
        # What a position is worked out in, and pieces of it: to make them each time costs as much as to use them.
        self._weights: Singles = np.empty((0, 0, 2), np.float32)  # [positions, labels, 2]
        self._sums, self._arc_weights = np.empty((2, num_arcs, 2), np.float32)
        self._scaled, self._shares = np.empty(num_arcs, np.float32), np.empty(num_arcs)
        self._tops = np.full((num_places, 2), LOG_ZERO, np.float32)
        self._row_sums = np.empty(layout.columns[0], np.float32)
        self._columns = [
            _Column(
                self._sums[stop - n : stop],
                self._scaled[stop - n : stop],
                self._shares[stop - n : stop],
                self._tops[:n],
                self._row_sums[:n],
            )
            for n, stop in zip(layout.columns, np.cumsum(layout.columns).tolist(), strict=True)
        ]

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
        (first, *others), of_rows = self._columns, self._tops[: len(self._row_sums), 1]
        for i in reversed(range(len(self._weights))):
            self._sum_up(i)
            first.row_tops[:] = first.sums
            for column in others:
                np.maximum(column.row_tops, column.sums, out=column.row_tops)
            for column in self._columns:
                np.subtract(column.sums, column.row_tops, out=column.sums)
            np.maximum(self._sums[:, 1], NEGLIGIBLE_SINGLE, out=self._scaled)
            np.exp(self._scaled, out=self._scaled)
            first.row_sums[:] = first.scaled
            for column in others:
                np.add(column.row_sums, column.scaled, out=column.row_sums)
            np.log(self._row_sums, out=self._row_sums)
            of_rows += self._row_sums
            self._unite_rows()
            if i % SHIFTED_EVERY == 0:
                self.shifts[i] = self._tops[:, 0].max(), self._tops[:, 1].max()
            np.subtract(self._tops, self.shifts[i], out=self.values[i])
        return float(self.shifts[:, 1].sum(dtype=np.float64))

    def _sum_up(self, i: int) -> None:
        """Of each arc at the i-th position its weights and the values behind it together, into `_sums`."""
        # Two numbers as one, which is taken in the time of one. Any index is in range: that is the mode in which
        # numpy copies nothing twice.
        values, weights = self.values[i + 1].view(np.float64), self._weights[i].view(np.float64)
        values[:, 0].take(self._layout.targets, out=self._sums.view(np.float64)[:, 0], mode="clip")
        weights[:, 0].take(self._layout.labels, out=self._arc_weights.view(np.float64)[:, 0], mode="clip")
        self._sums += self._arc_weights

    def _unite_rows(self) -> None:
        """From the rows of states that have several to the states."""
        layout = self._layout
        if layout.rows_of_heavy.size:
            rows = self._tops[layout.rows_of_heavy]
            tops = np.maximum.reduceat(rows, layout.first_of_heavy)
            scaled = np.maximum(rows[:, 1] - tops[:, 1].repeat(layout.num_rows_of_heavy), NEGLIGIBLE_SINGLE)
            tops[:, 1] += np.log(np.add.reduceat(np.exp(scaled), layout.first_of_heavy))
            self._tops[layout.num_rows : -1] = tops

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
            # Only rounding, and what has been dropped, keep them from it.
            share /= share.sum()
            shares[position] = np.bincount(labels, share, shares.shape[1])
            of_places = np.bincount(targets, share, self._layout.num_places).astype(np.float64, copy=False)
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
        return np.exp(np.maximum(log_share, NEGLIGIBLE_SINGLE)) * probabilities[nth], targets, labels

    def _all_shares(self, i: int, places: Integers, probabilities: Floats) -> tuple[Floats, Integers, Integers]:
        """The same of all arcs."""
        layout = self._layout
        of_place = np.zeros(layout.num_places)
        of_place[places] = probabilities
        of_row = of_place[layout.place_of_row]
        values = (self.values[i, :, 1] + self.shifts[i, 1])[layout.place_of_row]
        self._sum_up(i)
        for column in self._columns:
            np.subtract(column.sums[:, 1], values[: len(column.sums)], out=column.scaled)
        np.maximum(self._scaled, NEGLIGIBLE_SINGLE, out=self._scaled)
        np.exp(self._scaled, out=self._scaled)
        for column in self._columns:
            np.multiply(column.scaled, of_row[: len(column.sums)], out=column.shares)
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
