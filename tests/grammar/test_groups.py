from __future__ import annotations

import numpy as np
import pytest

from llm_diffusiongemma.grammar import groups as groups_module
from llm_diffusiongemma.grammar.groups import TOGETHER, Groups, exponentials
from llm_diffusiongemma.grammar.log_weights import LOG_ZERO


def test_groups_of_any_size_are_what_each_is_by_itself() -> None:
    rng = np.random.default_rng(0)
    members = [rng.integers(50, size=size) for size in rng.permutation([1, 1, 2, 3, TOGETHER, TOGETHER + 1, 40])]
    rows = rng.normal(size=(50, 3)) * [[1, 30, 300]]
    groups = Groups(members)
    taken = groups.members_of(rows)
    largest, totals = groups.maxima(taken), groups.sums(taken.astype(np.float32))
    np.testing.assert_array_equal(groups.in_order(largest), [rows[each].max(0) for each in members])
    np.testing.assert_allclose(
        groups.in_order(totals), [rows[each].sum(0) for each in members], rtol=1e-4, atol=1e-3
    )
    np.testing.assert_allclose(
        groups.log_sums(rows), [np.logaddexp.reduce(rows[each]) for each in members], rtol=1e-12, atol=1e-6
    )
    groups.subtract(taken, largest)
    np.testing.assert_array_equal(groups.maxima(taken), 0)


@pytest.mark.parametrize(("scale", "by_matrix"), [(1.0, True), (190.0, True), (300.0, False)])
def test_sums_by_a_matrix_are_those_one_by_one(
    scale: float, by_matrix: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where numbers are too far from each other for it there is none. What can't be stays so."""
    rng = np.random.default_rng(1)
    rows = rng.uniform(-3, 0, size=(30, 5)) * scale
    rows[rng.random((30, 5)) < 0.2] = LOG_ZERO
    rows[:4], rows[4, 3:] = LOG_ZERO, LOG_ZERO
    rows[5] = -2.9 * scale
    members = [
        np.arange(4),
        np.arange(30),
        np.array([5, 5]),
        *(rng.permutation(30)[:size] for size in rng.integers(1, 12, size=20)),
    ]
    groups = Groups(members)
    found = groups.log_sums(rows)
    assert (groups._matrix is not None) == by_matrix
    monkeypatch.setattr(groups_module, "LARGEST_MATRIX", 0)
    exact = Groups(members).log_sums(rows)
    assert (found[0] <= LOG_ZERO).all()
    is_something = exact > LOG_ZERO / 2
    np.testing.assert_array_equal(found > LOG_ZERO / 2, is_something)
    np.testing.assert_allclose(found[is_something], exact[is_something], rtol=1e-6, atol=1e-6)


def test_exponentials_do_not_underflow() -> None:
    values = np.array([0.0, -1.0, -80.0, -1e30])
    np.testing.assert_allclose(exponentials(values), [*np.exp(values[:3]), np.exp(-85.0)], rtol=1e-6)
