from __future__ import annotations

import numpy as np
import pytest

from llm_diffusiongemma.errors import ConstraintError
from llm_diffusiongemma.grammar import automaton as automaton_module
from llm_diffusiongemma.grammar.automaton import UNREACHABLE, build
from llm_diffusiongemma.grammar.pattern import regex_language

from .languages import (
    BYTE_TOKENS,
    EOS,
    OTHER_EOS,
    PAD,
    naive_advance,
    naive_distance,
    random_dfa,
    random_tokens,
    vocabulary_of,
)

JSON = r'\{"name": "[^"\\\x00-\x1f]*", "age": (0|[1-9][0-9]{0,2})\}'


# --- the helpers that these tests and others lean on -------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        (r"(ab)*c?", [b"", b"ab", b"ababc", b"c"], [b"a", b"cc", b"abca"]),
        (r"[é☃]{2}", ["é☃".encode()], ["é".encode(), "é☃☃".encode(), b"\xc3"]),
        (
            JSON,
            [b'{"name": "Ada", "age": 36}', b'{"name": "", "age": 0}'],
            [b"{}", b'{"name": "Ada", "age": 036}'],
        ),
    ],
)
def test_languages(pattern: str, inside: list[bytes], outside: list[bytes]) -> None:
    dfa = regex_language(pattern)
    assert all(dfa.accepts(text) for text in inside)
    assert not any(dfa.accepts(text) for text in outside)
    assert (dfa.transitions[dfa.dead] == dfa.dead).all()


# --- classes, moves, distances -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_every_token_moves_every_state_as_its_bytes_do(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dfa = random_dfa(rng, b"abc", int(rng.integers(1, 7)))
    tokens = random_tokens(rng, b"abcd", 60)
    eos = (EOS, OTHER_EOS) if seed % 2 else (EOS,)
    size = len(tokens) + seed % 3  # a model may have more tokens than its tokenizer
    try:
        automaton = build(dfa, vocabulary_of(tokens, eos, size))
    except ConstraintError:
        pytest.skip("these tokens can't write it")
    for state in range(automaton.num_states):
        for token in range(size):
            assert automaton.advance(state, [token]) == naive_advance(dfa, tokens, eos, state, token)
    distances = [None if distance >= UNREACHABLE else distance for distance in automaton.distance.tolist()]
    assert distances == naive_distance(automaton, size)


@pytest.mark.parametrize("seed", range(10))
def test_classes_are_as_few_as_can_be_and_arcs_are_all_moves_that_can_end(seed: int) -> None:
    rng = np.random.default_rng(seed)
    automaton = build(random_dfa(rng, b"ab", 5), vocabulary_of(random_tokens(rng, b"ab", 80)))
    places = automaton.moves.starts[1:-1]
    maps = zip(np.split(automaton.moves.source, places), np.split(automaton.moves.target, places), strict=True)
    assert len({(tuple(source), tuple(target)) for source, target in maps}) == len(automaton.moves)
    assert (automaton.moves.counts > 0).all()
    assert (automaton.moves.target != automaton.dead).all()
    arcs = automaton.arcs
    moves = list(zip(arcs.source.tolist(), arcs.target.tolist(), arcs.label.tolist(), strict=True))
    listed = {(source, int(c), target) for source, target, label in moves for c in automaton.label_classes[label]}
    expected = set()
    for token_class in range(automaton.eos_class + 1):
        token = int(np.flatnonzero(automaton.token_class == token_class)[0])
        for source in range(automaton.end):
            target = automaton.advance(source, [token])
            if automaton.distance[target] < UNREACHABLE:
                expected.add((source, token_class, target))
    assert listed == expected
    # One arc for a pair of states, one label for a set of classes.
    assert len({(source, target) for source, target, _ in moves}) == len(moves)
    assert len({tuple(classes.tolist()) for classes in automaton.label_classes}) == len(automaton.label_classes)


def test_a_token_that_changes_nothing_is_text_and_one_without_bytes_is_not() -> None:
    """A map that is the identity once stood for both."""
    tokens = [None, None, None, None, b"a", b"b", b"", b"ab"]
    automaton = build(regex_language("[ab]*"), vocabulary_of(tokens))
    assert [int(c) for c in automaton.token_class[[4, 5, 7]]] == [0, 0, 0]
    assert automaton.token_class[3] == automaton.token_class[6] == automaton.illegal_class
    assert automaton.token_class[PAD] == automaton.pad_class


def test_characters_may_be_split_over_tokens() -> None:
    automaton = build(regex_language("☃+"), vocabulary_of(BYTE_TOKENS))
    snowman = [4 + byte for byte in "☃".encode()]
    assert automaton.advance(0, [*snowman, *snowman, EOS]) == automaton.end
    assert automaton.advance(0, [*snowman, *snowman[:2], EOS]) == automaton.dead
    assert automaton.distance[0] == 4


def test_a_move_from_which_the_tokens_can_not_go_on_is_none() -> None:
    automaton = build(regex_language("ab|cd"), vocabulary_of([None, None, None, None, b"a", b"cd"]))
    stuck = automaton.advance(0, [4])
    assert stuck != automaton.dead
    assert automaton.distance[stuck] == UNREACHABLE
    assert stuck not in automaton.arcs.target
    assert automaton.distance[0] == 2


def test_an_end_of_sequence_token_is_never_text_even_if_it_has_bytes() -> None:
    automaton = build(regex_language("a"), vocabulary_of([None, b"a", None, b"a"], eos=(1,)))
    assert automaton.advance(0, [1]) == automaton.dead
    assert automaton.advance(0, [3, 1]) == automaton.end


def test_the_padding_token_may_be_missing_be_text_or_end_the_text() -> None:
    for tokens, eos in (([b"a", None], (1,)), ([None, b"a"], (0,))):
        automaton = build(regex_language("a"), vocabulary_of(tokens, eos=eos))
        assert automaton.pad_token_id is None
        assert (automaton.token_class != automaton.pad_class).all()


def test_a_vocabulary_that_can_not_write_it_is_refused() -> None:
    with pytest.raises(ConstraintError, match="tokenizer can't write"):
        build(regex_language("b"), vocabulary_of([None, None, None, b"a", b"bb"]))


def test_a_checkpoint_that_names_no_end_is_refused() -> None:
    with pytest.raises(ConstraintError, match=r"generation_config\.json"):
        vocabulary_of([None, b"a"], eos=(7,))


def test_an_automaton_beyond_all_bounds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automaton_module, "MAX_MOVES", 100)
    with pytest.raises(ConstraintError, match="too complicated"):
        build(regex_language(JSON), vocabulary_of(BYTE_TOKENS))
