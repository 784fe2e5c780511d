from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_diffusiongemma.errors import ConstraintError
from llm_diffusiongemma.grammar import automaton as automaton_module
from llm_diffusiongemma.grammar import cache as cache_module
from llm_diffusiongemma.grammar.automaton import UNREACHABLE, TokenAutomaton, build
from llm_diffusiongemma.grammar.cache import load_or_build
from llm_diffusiongemma.grammar.dfa import ByteDFA
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
    assert len(np.unique(automaton.moves, axis=0)) == len(automaton.moves)
    assert (automaton.moves != automaton.dead).any(1).all()
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
    monkeypatch.setattr(automaton_module, "MAX_TABLE_CELLS", 100)
    with pytest.raises(ConstraintError, match="too complicated"):
        build(regex_language(JSON), vocabulary_of(BYTE_TOKENS))


# --- the cache ---------------------------------------------------------------------------------------------


def same(one: TokenAutomaton, other: TokenAutomaton) -> bool:
    arrays = ("token_class", "moves", "accepting", "distance")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays) and (
        (one.eos_token_ids, one.pad_token_id) == (other.eos_token_ids, other.pad_token_id)
    )


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[ByteDFA]:
    """What has really been built."""
    built: list[ByteDFA] = []

    def counting(dfa: ByteDFA, vocabulary: Any) -> TokenAutomaton:
        built.append(dfa)
        return build(dfa, vocabulary)

    monkeypatch.setattr(cache_module, "build", counting)
    return built


def test_the_second_time_it_comes_from_disk(tmp_path: Path, builds: list[ByteDFA]) -> None:
    dfa, vocabulary, folder = regex_language(JSON), vocabulary_of(BYTE_TOKENS), tmp_path / "new" / "folder"
    first = load_or_build(dfa, vocabulary, folder)
    again = load_or_build(dfa, vocabulary, folder)
    assert len(builds) == 1
    assert same(first, again)
    assert same(first, build(dfa, vocabulary))


def test_what_differs_is_never_mixed_up(tmp_path: Path, builds: list[ByteDFA]) -> None:
    dfa, other = regex_language("a+"), regex_language("a*")
    variants = [
        (dfa, vocabulary_of(BYTE_TOKENS)),
        (other, vocabulary_of(BYTE_TOKENS)),
        (dfa, vocabulary_of(BYTE_TOKENS, eos=(EOS,))),
        (dfa, vocabulary_of(BYTE_TOKENS[:-1])),
        (dfa, vocabulary_of(BYTE_TOKENS, size=300)),
        (dfa, vocabulary_of([*BYTE_TOKENS[:-2], b"aa", BYTE_TOKENS[-1]])),
    ]
    for _ in range(2):
        for variant in variants:
            assert same(load_or_build(*variant, tmp_path), build(*variant))
    assert len(builds) == len(variants)


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "flipped", "other arrays", "folder"])
def test_a_damaged_entry_is_built_anew(tmp_path: Path, damage: str, builds: list[ByteDFA]) -> None:
    dfa, vocabulary = regex_language(JSON), vocabulary_of(BYTE_TOKENS)
    expected = load_or_build(dfa, vocabulary, tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(len(content)))
    elif damage == "flipped":
        place = len(content) // 2
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    elif damage == "other arrays":
        np.savez(path, token_class=np.zeros(3, np.int32), moves=np.zeros((2, 2), np.int32))
    else:
        path.unlink()
        path.mkdir()
    assert same(load_or_build(dfa, vocabulary, tmp_path), expected)
    assert len(builds) == 2
    if damage != "folder":
        assert same(load_or_build(dfa, vocabulary, tmp_path), expected)
        assert len(builds) == 2


def test_the_folder_is_bounded_and_keeps_what_was_used_last(tmp_path: Path, builds: list[ByteDFA]) -> None:
    vocabulary = vocabulary_of(BYTE_TOKENS)
    dfas = [regex_language("a" * n) for n in range(1, 7)]
    now = 1_000_000_000
    for i, dfa in enumerate(dfas[:4]):
        load_or_build(dfa, vocabulary, tmp_path, max_entries=4)
        path = max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        os.utime(path, (now + i, now + i))
    (tmp_path / "left-over.tmp").write_bytes(b"half an entry")
    os.utime(tmp_path / "left-over.tmp", (now - 1, now - 1))
    load_or_build(dfas[0], vocabulary, tmp_path, max_entries=4)  # used: not the oldest any more
    load_or_build(dfas[4], vocabulary, tmp_path, max_entries=4)
    assert len(list(tmp_path.iterdir())) == 4
    assert not list(tmp_path.glob("*.tmp"))
    built = len(builds)
    load_or_build(dfas[0], vocabulary, tmp_path, max_entries=4)
    assert len(builds) == built
    load_or_build(dfas[1], vocabulary, tmp_path, max_entries=4)
    assert len(builds) == built + 1


def test_the_folder_is_bounded_in_bytes(tmp_path: Path) -> None:
    vocabulary = vocabulary_of(BYTE_TOKENS)
    load_or_build(regex_language("a"), vocabulary, tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    for n in range(2, 8):
        load_or_build(regex_language("a" * n), vocabulary, tmp_path, max_bytes=4 * size)
    assert 1 <= sum(path.stat().st_size for path in tmp_path.iterdir()) <= 4 * size


def test_without_a_folder_to_write_to_it_is_built(tmp_path: Path) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("")
    dfa, vocabulary = regex_language("a"), vocabulary_of(BYTE_TOKENS)
    assert same(load_or_build(dfa, vocabulary, blocked), build(dfa, vocabulary))
