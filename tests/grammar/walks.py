"""Whether an automaton keeps `ByteDFA`'s promises."""

from __future__ import annotations

from collections import deque

import numpy as np

from llm_diffusiongemma.grammar.dfa import ByteDFA


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
