"""Small languages and vocabularies to test with, and the slow and plain way to use them."""

from __future__ import annotations

import itertools

import numpy as np

from llm_diffusiongemma.grammar.automaton import TokenAutomaton, Vocabulary
from llm_diffusiongemma.grammar.dfa import ByteDFA

PAD, EOS, OTHER_EOS = 0, 1, 2


def minimal(transitions: np.ndarray, accepting: np.ndarray, start: int) -> ByteDFA:
    """Any complete automaton as a `ByteDFA`. Its language must not be empty, and some text must be outside."""
    group = accepting.astype(np.int64)
    while True:  # Moore: states stay together while no byte tells them apart
        signature = np.concatenate([group[:, None], group[transitions]], axis=1)
        _, refined = np.unique(signature, axis=0, return_inverse=True)
        refined = refined.reshape(-1)
        if refined.max() == group.max():
            break
        group = refined
    one_of = {int(g): state for state, g in enumerate(group)}
    alive = {int(group[state]) for state in np.flatnonzero(accepting)}
    while more := {g for g, state in one_of.items() if g not in alive and alive & set(group[transitions[state]])}:
        alive |= more
    order = [int(group[start])]
    assert order[0] in alive
    for g in order:
        order += [t for t in dict.fromkeys(group[transitions[one_of[g]]].tolist()) if t in alive - set(order)]
    number = np.full(int(group.max()) + 1, len(order))
    number[order] = np.arange(len(order))
    rows = number[group[transitions[[one_of[g] for g in order]]]]
    dead_row = np.full((1, 256), len(order))
    return ByteDFA.of(
        np.concatenate([rows, dead_row]).astype(np.int32),
        np.arange(256),
        np.append(accepting[[one_of[g] for g in order]], False),
    )


def tables_of(automaton: TokenAutomaton) -> list[np.ndarray]:
    """All that a build finds out."""
    moves = automaton.moves
    return [automaton.token_class, moves.counts, moves.source, moves.target, automaton.accepting]


def random_dfa(rng: np.random.Generator, alphabet: bytes, states: int) -> ByteDFA:
    """A random automaton over a few bytes whose language is not empty."""
    while True:
        transitions = np.full((states + 1, 256), states, np.int32)
        transitions[:states, list(alphabet)] = rng.integers(0, states + 1, (states, len(alphabet)))
        accepting = np.append(rng.random(states) < 0.4, False)
        reached = {0}
        for _ in range(states):
            reached |= {int(t) for state in reached for t in transitions[state]}
        if accepting[sorted(reached)].any():
            return minimal(transitions, accepting, 0)


def random_tokens(rng: np.random.Generator, alphabet: bytes, count: int) -> list[bytes | None]:
    """Special tokens, one that is never used, and words of one to three letters, some of them twice."""
    words = [bytes(rng.choice(list(alphabet), rng.integers(1, 4)).tolist()) for _ in range(count - 4)]
    return [None, None, None, None, *words]


def vocabulary_of(
    tokens: list[bytes | None], eos: tuple[int, ...] = (EOS, OTHER_EOS), size: int = 0
) -> Vocabulary:
    return Vocabulary(tokens, size=size or len(tokens), eos_token_ids=eos, pad_token_id=PAD)


# Every byte by itself and some words, as byte-level BPE has it.
WORDS = [b'{"', b'":', b'", "', b'"}', b"true", b"false", b"null", b"name", b"age", b"12", b"  ", b" [", b"]}"]
BYTE_TOKENS: list[bytes | None] = [None, None, None, None, *(bytes([byte]) for byte in range(256)), *WORDS]


def naive_advance(dfa: ByteDFA, tokens: list[bytes | None], eos: tuple[int, ...], state: int, token: int) -> int:
    """One token further, byte by byte. `len(dfa.accepting)` is the end, as in a `TokenAutomaton`."""
    if state == len(dfa.accepting):
        return state
    if token in eos:
        return len(dfa.accepting) if dfa.accepting[state] else dfa.dead
    text = tokens[token] if token < len(tokens) else None
    if not text:
        return dfa.dead
    for byte in text:
        state = int(dfa.transitions[state, byte])
    return state


def text_of(tokens: list[bytes | None], token_ids: list[int]) -> bytes:
    return b"".join(tokens[token] or b"<no text>" for token in token_ids)


def naive_distance(automaton: TokenAutomaton, vocab_size: int) -> list[int | None]:
    """From each state the fewest tokens to the end, by trying all tokens."""
    known: dict[int, int] = {automaton.end: 0}
    for length in itertools.count(1):
        found = [
            state
            for state in range(automaton.num_states)
            if state not in known and any(automaton.advance(state, [t]) in known for t in range(vocab_size))
        ]
        if not found:
            return [known.get(state) for state in range(automaton.num_states)]
        known.update(dict.fromkeys(found, length))
    raise AssertionError
