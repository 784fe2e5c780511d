"""Random texts of an automaton's language, and whether an automaton keeps `ByteDFA`'s promises."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator

import numpy as np

from llm_diffusiongemma.grammar.dfa import ByteDFA


def random_texts(dfa: ByteDFA, count: int, seed: int = 0, soft_length: int = 60) -> Iterator[bytes]:
    """Texts that the automaton accepts.

    Every reachable way on is as likely as any other, however few bytes lead there. From `soft_length` bytes on a
    walk takes the shortest way out.
    """
    rng = random.Random(seed)
    distance = distances(dfa)
    ways: list[dict[int, list[int]]] = []
    for row in dfa.transitions.tolist():
        targets: dict[int, list[int]] = {}
        for byte, target in enumerate(row):
            if target != dfa.dead:
                targets.setdefault(target, []).append(byte)
        ways.append(targets)
    for _ in range(count):
        state, text = 0, bytearray()
        length = rng.choice((soft_length // 4, soft_length, 3 * soft_length))
        while True:
            if dfa.accepting[state] and (not ways[state] or len(text) >= length or rng.random() < 0.2):
                break
            targets = list(ways[state])
            if len(text) >= length:
                targets = [target for target in targets if distance[target] < distance[state]]
            target = rng.choice(targets)
            text.append(rng.choice(ways[state][target]))
            state = target
        yield bytes(text)


def distances(dfa: ByteDFA) -> list[int]:
    """The bytes of the shortest way from each state to an accepting one; -1 from the dead one."""
    found = [0 if accepting else -1 for accepting in dfa.accepting]
    sources: list[list[int]] = [[] for _ in found]
    for state, row in enumerate(dfa.transitions.tolist()):
        for target in set(row):
            sources[target].append(state)
    queue = deque(state for state, length in enumerate(found) if length == 0)
    while queue:
        state = queue.popleft()
        for source in sources[state]:
            if found[source] < 0:
                found[source] = found[state] + 1
                queue.append(source)
    return found


def check_promises(dfa: ByteDFA) -> None:
    """Fails unless the automaton is complete, reachable, minimal, and its only dead state is the last one."""
    states = len(dfa.accepting)
    assert dfa.transitions.shape == (states, 256)
    assert dfa.transitions.dtype == np.int32
    assert dfa.accepting.dtype == np.bool_
    assert (dfa.transitions[-1] == dfa.dead).all()
    assert [state for state, length in enumerate(distances(dfa)) if length < 0] == [dfa.dead]
    reached = {0}
    stack = [0]
    while stack:
        for target in set(dfa.transitions[stack.pop()].tolist()) - reached:
            reached.add(target)
            stack.append(target)
    assert reached | {dfa.dead} == set(range(states))
    # Moore's refinement once more, as plain as can be: as many classes as states.
    part = dfa.accepting.astype(int)
    classes = 0
    while classes < len(set(part.tolist())):
        classes = len(set(part.tolist()))
        rows = {}
        signatures = zip(part.tolist(), map(bytes, part[dfa.transitions].astype(np.int32)), strict=True)
        part = np.array([rows.setdefault(signature, len(rows)) for signature in signatures])
    assert classes == states
