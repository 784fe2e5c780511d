from __future__ import annotations

import numpy as np

from llm_diffusiongemma.grammar.groups import TOGETHER, Groups, exponentials


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


def test_exponentials_do_not_underflow() -> None:
    values = np.array([0.0, -1.0, -80.0, -1e30])
    np.testing.assert_allclose(exponentials(values), [*np.exp(values[:3]), np.exp(-85.0)], rtol=1e-6)
