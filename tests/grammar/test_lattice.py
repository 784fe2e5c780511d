"""The ways for large automata against the one for small ones, which test_constraint.py holds against all paths."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from llm_diffusiongemma.grammar import coarse, near, stretches
from llm_diffusiongemma.grammar import lattice as lattice_module
from llm_diffusiongemma.grammar.automaton import UNREACHABLE, TokenAutomaton, build
from llm_diffusiongemma.grammar.lattice import Lattice, Paths
from llm_diffusiongemma.grammar.pattern import regex_language
from llm_diffusiongemma.grammar.stretches import in_stretches

from .languages import random_dfa, random_tokens, vocabulary_of

TAIL = -4.0
TOKENS = [b"a", b"b", b"x", b"y", b"ab", b"yx", b"ay"]


def automata(count: int) -> Iterator[tuple[np.random.Generator, TokenAutomaton]]:
    """Of some hundreds of arcs, and states with many."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        tokens = vocabulary_of(random_tokens(rng, b"abc", 40))
        yield rng, build(random_dfa(rng, b"abc", int(rng.integers(8, 30))), tokens)


def label_weights(automaton: TokenAutomaton, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each label, the tail behind them, the log-probability of its best token, and of all its tokens together:
    `[positions, labels]` from `[positions, tokens]`."""
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    columns = [
        log_p[:, np.isin(automaton.token_class, classes)] for classes in automaton.label_classes
    ]  # fmt: skip
    tail = np.full(len(logits), TAIL)
    best = np.stack([*(column.max(1) for column in columns), tail], axis=1)
    return best, np.stack([*(np.logaddexp.reduce(column, axis=1) for column in columns), tail], axis=1)


def all_arcs(
    lattice: Lattice, monkeypatch: pytest.MonkeyPatch, start: int, positions: int, behind: int
) -> tuple[lattice_module._FewArcs, lattice_module._ManyArcs]:
    """The same canvas, laid out both ways."""
    canvases = []
    for few_arcs in (10**9, 0):
        monkeypatch.setattr(lattice_module, "FEW_ARCS", few_arcs)
        canvases.append(lattice.canvas(start, positions, behind))
    few, many = canvases
    assert isinstance(few, lattice_module._FewArcs)
    assert isinstance(many, lattice_module._ManyArcs)
    return few, many


def check_path(automaton: TokenAutomaton, path: np.ndarray, start: int, behind: int, tail: int) -> None:
    """It exists, and from where it ends the end can be reached."""
    arcs, state = automaton.arcs, start
    for label in path.tolist():
        if label == tail:
            assert state == automaton.end
            continue
        (arc,) = np.flatnonzero((arcs.source == state) & (arcs.label == label))
        state = int(arcs.target[arc])
    assert automaton.distance[state] <= behind


def check_same(paths: Paths, exact: Paths, best: np.ndarray, tolerance: float) -> None:
    positions = np.arange(len(best))
    heaviest, found = (best[positions, which.best].sum() for which in (exact, paths))
    assert found == pytest.approx(heaviest, rel=1e-6, abs=1e-5)
    assert paths.log_total == pytest.approx(exact.log_total, rel=1e-6, abs=1e-5)
    np.testing.assert_allclose(paths.shares, exact.shares, atol=tolerance)
    np.testing.assert_allclose(paths.shares.sum(1), 1)


@pytest.mark.parametrize("scale", [0.3, 4.0, 40.0])
@pytest.mark.parametrize("picking", [0.0, 1e9])
def test_many_arcs_are_what_few_are(scale: float, picking: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any state, with any budget, in many stretches, in tables of which some are folded; shares by picking
    arcs and by working on all."""
    monkeypatch.setattr(stretches, "COST_OF_TABLE", 20)
    monkeypatch.setattr(stretches, "SHORTEST_LINE", 3)
    monkeypatch.setattr(stretches, "FREE_WASTE", 0)
    monkeypatch.setattr(stretches, "COST_OF_PICKING", picking)
    most_stretches = 0
    for rng, automaton in automata(2):
        lattice = Lattice(automaton)
        possible = np.flatnonzero(automaton.distance < UNREACHABLE)
        for start in {0, int(rng.choice(possible)), automaton.end}:
            fewest = int(automaton.distance[start])
            for positions, behind in ((12, max(0, fewest - 12)), (9, 50), (1, fewest)):
                few, many = all_arcs(lattice, monkeypatch, start, positions, behind)
                best, totals = label_weights(automaton, rng.normal(size=(positions, 40)) * scale)
                exact, paths = few.weigh(best, totals), many.weigh(best, totals)
                check_path(automaton, paths.best, start, behind, lattice.tail)
                check_same(paths, exact, best, 1e-5 * max(1, scale))
                assert not paths.shares[exact.shares < 1e-250].any(), "what can't be has a share"
                most_stretches = max(most_stretches, len(many._stretches))
    assert most_stretches > 2


def test_near_the_last_best_path_is_all_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step, for a network that is vague at first and then changes its mind about a position or two. Where
    it has made it up nothing is looked at. It is also sure, more or less, of what can't be."""
    helped, alone = 0, []
    monkeypatch.setattr(lattice_module, "COST_OF_LOOKING", 0.5)
    for rng, automaton in automata(4):
        lattice = Lattice(automaton)
        few, many = all_arcs(lattice, monkeypatch, 0, 24, 3)
        logits = rng.normal(size=(24, 40))
        for _ in range(6):
            impossible = rng.random((24, 1)) * 6
            best, totals = (weights - impossible for weights in label_weights(automaton, logits))
            exact, known = few._weigh_all(best, totals), many._known
            looked = None if known is None else many._near.weigh(best, totals, known, many._most_near, 24)
            if looked is not None:
                helped += 1
                check_path(automaton, looked[0], 0, 3, lattice.tail)
                check_same(Paths(*looked), exact, best, 1e-7)
                alone.append(float((looked[2] == 1).any(1).mean()))
            check_same(few.weigh(best, totals), exact, best, 1e-7)
            check_same(many.weigh(best, totals), exact, best, 1e-5)
            logits = logits * 1.7
            logits[rng.integers(24)] = rng.normal(size=40) * 9
            for i, label in enumerate(exact.best.tolist()):
                if label != lattice.tail and rng.random() < 0.9:
                    logits[i, np.isin(automaton.token_class, automaton.label_classes[label])] += 12
    assert helped > 8
    assert min(alone) < 0.2 < 0.7 < max(alone)


@pytest.mark.parametrize("scale", [0.3, 40.0])
def test_what_a_smaller_automaton_leaves_is_all_that_matters(
    scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of whichever states are taken for one: how right its bounds are decides on the work only."""
    monkeypatch.setattr(coarse, "LEAST_GAIN", 0)
    monkeypatch.setattr(stretches, "FREE_WASTE", 0)
    compared = 0
    for rng, automaton in automata(4):
        lattice = Lattice(automaton)
        lattice._kinds = rng.integers(5, size=automaton.num_states)
        for positions, behind in ((24, 3), (9, 50)):
            few, many = all_arcs(lattice, monkeypatch, 0, positions, behind)
            best, totals = label_weights(automaton, rng.normal(size=(positions, 40)) * scale)
            exact = few.weigh(best, totals)
            for hopeless, tolerance in ((0.0, 1e-9), (1e-11, 2 * coarse.MOST_LOST)):
                monkeypatch.setattr(coarse, "HOPELESS", hopeless)
                looked = many._coarse.weigh(best, totals)
                if looked is None:
                    assert hopeless
                    continue
                check_path(automaton, looked[0], 0, behind, lattice.tail)
                check_same(Paths(*looked), exact, best, tolerance)
                compared += 1
    assert compared >= 8


def test_copies_of_the_same_are_taken_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a look at one of them tells what matters in all, and of what that is little is left to look at."""
    monkeypatch.setattr(coarse, "MOST_KINDS", 40)
    automaton = build(regex_language("(x[ab]{1,3}y){1,60}"), vocabulary_of([None, None, None, None, *TOKENS]))
    lattice = Lattice(automaton)
    arcs, kinds = automaton.arcs, lattice._kinds
    assert 5 < kinds.max() + 1 <= 40 < automaton.num_states / 4
    labels: dict[int, set[tuple[int, ...]]] = {}
    for state in range(automaton.num_states):
        labels.setdefault(int(kinds[state]), set()).add(tuple(arcs.label[arcs.source == state].tolist()))
    assert all(len(each) == 1 for each in labels.values())
    rng = np.random.default_rng(0)
    for scale in (0.3, 8.0):
        few, many = all_arcs(lattice, monkeypatch, 0, 64, 30)
        best, totals = label_weights(automaton, rng.normal(size=(64, 4 + len(TOKENS))) * scale)
        assert many._coarse.helps
        looked = many._coarse.weigh(best, totals)
        assert looked is not None
        check_path(automaton, looked[0], 0, 30, lattice.tail)
        check_same(Paths(*looked), few.weigh(best, totals), best, 1e-6)


@pytest.mark.parametrize(
    ("most_arcs", "asked_in"), [(0, [0, lattice_module.PAUSE + 1]), (10**9, list(range(2 * lattice_module.PAUSE)))]
)
def test_a_smaller_automaton_that_is_no_help_is_left_alone_for_a_while(
    most_arcs: int, asked_in: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is helps in every step."""
    monkeypatch.setattr(coarse, "LEAST_GAIN", 0)
    monkeypatch.setattr(coarse, "HOPELESS", 0.0)
    monkeypatch.setattr(coarse, "MOST_ARCS", most_arcs)
    rng, automaton = next(automata(1))
    few, many = all_arcs(Lattice(automaton), monkeypatch, 0, 24, 3)
    many._most_near = 0
    asked: list[int] = []
    weigh = many._coarse.weigh

    def noted(best: np.ndarray, totals: np.ndarray) -> object:
        asked.append(step)
        return weigh(best, totals)

    monkeypatch.setattr(many._coarse, "weigh", noted)
    for step in range(2 * lattice_module.PAUSE):  # noqa: B007
        best, totals = label_weights(automaton, rng.normal(size=(24, 40)))
        check_same(many.weigh(best, totals), few._weigh_all(best, totals), best, 1e-5)
    assert asked == asked_in


def test_the_best_path_may_be_next_to_impossible(monkeypatch: pytest.MonkeyPatch) -> None:
    """All the texts of a thousand tokens outweigh by far a short one that is better than each of them."""
    automaton = build(regex_language("x|a{12}"), vocabulary_of([None, None, None, None, b"x", *[b"a"] * 1000]))
    monkeypatch.setattr(coarse, "LEAST_GAIN", 0)
    lattice = Lattice(automaton)
    lattice._kinds = np.zeros(automaton.num_states, np.int64)
    few, many = all_arcs(lattice, monkeypatch, 0, 13, 0)
    logits = np.zeros((13, 1005))
    logits[0, 4] = -30
    best, totals = label_weights(automaton, logits)
    letters, x, end, tail = range(4)
    near_last = many._near.weigh(best, totals, np.array([*[letters] * 12, end]), 10**6, 13)
    for looked in (near_last, many._coarse.weigh(best, totals)):
        assert looked is not None
        assert looked[0].tolist() == [x, end, *[tail] * 11]
        assert looked[2][0, x] < 1e-20
        check_same(Paths(*looked), few.weigh(best, totals), best, 1e-9)


def test_a_known_path_that_is_no_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has become too light, or that is no better than many others."""
    rng, automaton = next(automata(1))
    _, many = all_arcs(Lattice(automaton), monkeypatch, 0, 24, 3)
    best, totals = label_weights(automaton, rng.normal(size=(24, 40)))
    known = many.weigh(best, totals).best
    assert many._near.weigh(best, totals, known, 10**6, 24) is not None
    assert many._near.weigh(best, totals, known, 100, 24) is None
    assert many._near.weigh(best, totals, known, 10**6, 6) is None
    best, totals = label_weights(automaton, rng.normal(size=(24, 40)) * 200)
    assert totals[np.arange(24), known].sum() < near.LIGHTEST
    assert many._near.weigh(best, totals, known, 10**6, 24) is None


@pytest.mark.parametrize("seed", range(5))
def test_stretches_are_all_positions_and_waste_little(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first = np.sort(rng.integers(0, 60, 9000))
    last = np.minimum(first + rng.integers(0, 60, 9000), 63)
    found = list(in_stretches(first, last, 64))
    assert [i for stretch in found for i in stretch] == list(range(64))
    assert 1 < len(found) < 32
    for stretch in found:
        worked_on = int(((first < stretch.stop) & (last >= stretch.start)).sum()) * len(stretch)
        needed = sum(int(((first <= i) & (last >= i)).sum()) for i in stretch)
        assert worked_on <= stretches.WASTE * needed + stretches.FREE_WASTE * len(stretch) or len(stretch) == 1
