"""Maxima and sums of groups of rows: what numpy's `reduceat` finds as well, in ten times the time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from .log_weights import LOG_ZERO, NEGLIGIBLE, NEGLIGIBLE_SINGLE, Floats, Integers, Singles

Number = TypeVar("Number", np.float32, np.float64)

# So many members of a group are worked on together with those of others, the rest by itself.
TOGETHER = 16

# Which rows are members of which groups may be a matrix of so many numbers, 32 MiB, and of so many for each
# member: to multiply by one takes a hundredth of the time that the work on a member takes.
LARGEST_MATRIX, NUMBERS_PER_MEMBER = 1 << 22, 100

# nats. Sums of logarithms that differ by less are those of numbers that fp64 can hold beside each other.
RANGE = 600.0


def exponentials(values: npt.NDArray[np.floating[Any]]) -> Singles:
    """exp of numbers up to 0, to seven digits, and of less than `NEGLIGIBLE_SINGLE` as of that. In fp64 it takes
    15 times as long."""
    result = values.astype(np.float32)
    np.maximum(result, NEGLIGIBLE_SINGLE, out=result)
    return np.exp(result, out=result)


class Groups:
    """Groups of the rows of an array `[rows, L]`. A row may be in several.

    Inside, the largest group comes first. So the groups with an n-th member are one piece, and so are these
    members in `members_of`: a column. Behind the columns come the rest of the large groups, one by one.
    """

    def __init__(self, members: Sequence[Integers]) -> None:
        """`members` are the numbers of the rows of each group, one at least."""
        sizes = np.array([len(each) for each in members])
        largest_first = np.argsort(-sizes, kind="stable")
        self._place = np.argsort(largest_first, kind="stable")
        groups = [members[each] for each in largest_first.tolist()]
        columns = [
            np.array([group[nth] for group in groups if len(group) > nth])
            for nth in range(min(TOGETHER, int(sizes.max())))
        ]
        rests = [group[TOGETHER:] for group in groups if len(group) > TOGETHER]
        self._members = np.concatenate([*columns, *rests])
        stops = np.cumsum([len(each) for each in (*columns, *rests)]).tolist()
        pieces = [slice(start, stop) for start, stop in zip([0, *stops], stops, strict=False)]
        self._columns = pieces[: len(columns)]
        self._rests = pieces[len(columns) :]
        self._memberships = np.concatenate(list(members)), np.repeat(np.arange(len(members)), sizes)
        """row and group of each"""
        self._matrix: Floats | None = None

    def members_of(self, rows: npt.NDArray[Number]) -> npt.NDArray[Number]:
        """`[rows, L]` to `[members, L]`, which the other methods take."""
        members: npt.NDArray[Number] = rows[self._members]
        return members

    def maxima(self, members: npt.NDArray[Number]) -> npt.NDArray[Number]:
        """Of each group, the largest group first: `[groups, L]`."""
        first, *others = self._columns
        result = members[first].copy()
        for column in others:
            of_column = members[column]
            np.maximum(result[: len(of_column)], of_column, out=result[: len(of_column)])
        for of_group, rest in zip(result, self._rests, strict=False):
            np.maximum(of_group, members[rest].max(0), out=of_group)
        return result

    def sums(self, members: Singles) -> Floats:
        """The same, added up in fp64."""
        first, *others = self._columns
        result = members[first].astype(np.float64)
        for column in others:
            of_column = members[column]
            result[: len(of_column)] += of_column
        for of_group, rest in zip(result, self._rests, strict=False):
            of_group += members[rest].sum(0, dtype=np.float64)
        return result

    def subtract(self, members: npt.NDArray[Number], of_groups: npt.NDArray[Number]) -> None:
        """What a group has, the largest first, from its members **in place**."""
        for column in self._columns:
            of_column = members[column]
            of_column -= of_groups[: len(of_column)]
        for of_group, rest in zip(of_groups, self._rests, strict=False):
            members[rest] -= of_group

    def in_order(self, of_groups: npt.NDArray[Number]) -> npt.NDArray[Number]:
        """From the largest first to the order in which the groups were given."""
        return of_groups[self._place]

    def log_sums(self, rows: Floats) -> Floats:
        """log sum exp of each group in the order in which they were given: `[rows, L]` to `[groups, L]`."""
        result = self._by_matrix(rows) if self._has_matrix(len(rows)) else None
        return self._one_by_one(rows) if result is None else result

    def _one_by_one(self, rows: Floats) -> Floats:
        members = self.members_of(rows)
        top = self.maxima(members)
        self.subtract(members, top)
        top += np.log(self.sums(exponentials(members)))
        return self.in_order(top)

    def _has_matrix(self, num_rows: int) -> bool:
        size = len(self._place) * num_rows
        return size <= min(LARGEST_MATRIX, NUMBERS_PER_MEMBER * len(self._members))

    def _by_matrix(self, rows: Floats) -> Floats | None:
        """None if numbers are too far from each other. What is `LOG_ZERO` is near none."""
        top = rows.max(0)
        scaled = rows - top
        is_low = scaled < -RANGE
        if (rows[is_low] > LOG_ZERO / 2).any():
            return None
        if self._matrix is None:
            self._matrix = np.zeros((len(rows), len(self._place)))
            np.add.at(self._matrix, self._memberships, 1)
        np.exp(np.maximum(scaled, NEGLIGIBLE, out=scaled), out=scaled)
        sums = (scaled.T @ self._matrix).T
        is_nothing = sums < np.exp(-RANGE) / 2
        result: Floats = np.log(sums, out=sums)
        result += top
        result[is_nothing] = LOG_ZERO
        return result
