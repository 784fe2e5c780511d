"""Random texts of an automaton's language."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from .dfa import ByteDFA
from .minimal import shortest_ways


def random_texts(dfa: ByteDFA, count: int, seed: int = 0, soft_length: int = 60) -> Iterator[bytes]:
    """Texts that the automaton accepts; some text must be.

    Every reachable way on is as likely as any other, however few bytes lead there. From `soft_length` bytes on a
    walk takes the shortest way out.
    """
    rng = random.Random(seed)
    distance = shortest_ways(*_arcs(dfa), dfa.accepting.tolist()).tolist()
    known: dict[int, dict[int, list[int]]] = {}
    for _ in range(count):
        state, text = 0, bytearray()
        length = rng.choice((soft_length // 4, soft_length, 3 * soft_length))
        while True:
            if state not in known:
                known[state] = _ways(dfa, state)
            ways = known[state]
            if dfa.accepting[state] and (not ways or len(text) >= length or rng.random() < 0.2):
                break
            targets = list(ways)
            if len(text) >= length:
                targets = [target for target in targets if distance[target] < distance[state]]
            target = rng.choice(targets)
            text.append(rng.choice(ways[target]))
            state = target
        yield bytes(text)


def _arcs(dfa: ByteDFA) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where moves come from and lead that are not to the dead state; not all that lead alike."""
    wanted = dfa.moves != dfa.dead
    wanted[:, 1:] &= dfa.moves[:, 1:] != dfa.moves[:, :-1]
    states, kinds = np.nonzero(wanted)
    return states, dfa.moves[states, kinds].astype(np.int64)


def _ways(dfa: ByteDFA, state: int) -> dict[int, list[int]]:
    """The bytes that lead from a state to each other one that isn't dead."""
    row = dfa.moves[state, dfa.byte_kind]
    ways: dict[int, list[int]] = {}
    for byte in np.flatnonzero(row != dfa.dead).tolist():
        ways.setdefault(int(row[byte]), []).append(byte)
    return ways
