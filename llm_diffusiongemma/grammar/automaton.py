"""From an automaton over bytes to one over a tokenizer's tokens.

A token moves every state somewhere; tokens that move all states alike form a *class*, of which a vocabulary
of a quarter of a million has a hundred or so. What a constraint has to know of a token is its class.

Moves from state to state are grouped twice more: all classes that lead from one state to another are one
*arc*, and arcs with the same set of classes share a *label*. Work on a canvas is done per label or per arc.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..errors import ConstraintError
from .dfa import ByteDFA

Ints = npt.NDArray[np.int32]

# Farther than any budget: the end can't be reached from there.
UNREACHABLE = np.int32(1 << 30)

# Moves of all kinds of tokens together, and of the beginnings of tokens. Schemas of tens of thousands of states
# have some millions; at this bound they take a quarter of a gigabyte.
MAX_MOVES = 1 << 25


class Vocabulary:
    """What a tokenizer's tokens stand for, laid out for building automata. Make one and keep it.

    `token_bytes` holds each token's bytes, None for one that no text may contain (a shorter list than
    `size`, the model's `vocab_size`, is filled up with None). `eos_token_ids` end a text, and
    `pad_token_id` may stand behind its end; both come from the checkpoint's generation_config.

    Raises `ConstraintError` if no token ends a text.
    """

    def __init__(
        self,
        token_bytes: Sequence[bytes | None],
        *,
        size: int,
        eos_token_ids: Collection[int],
        pad_token_id: int | None,
    ) -> None:
        self.size = size
        self.eos_token_ids = tuple(sorted(token for token in eos_token_ids if 0 <= token < size))
        if not self.eos_token_ids:
            raise ConstraintError(
                "This checkpoint can't be held to a form: its generation_config.json names no end-of-sequence "
                "token. Add its eos_token_id there."
            )
        texts = [token_bytes[token] or b"" if token < len(token_bytes) else b"" for token in range(size)]
        for token in self.eos_token_ids:
            texts[token] = b""
        # A padding token that stands for text is text.
        may_pad = pad_token_id is not None and 0 <= pad_token_id < size and not texts[pad_token_id]
        self.pad_token_id = pad_token_id if may_pad and pad_token_id not in self.eos_token_ids else None

        lengths = np.fromiter(map(len, texts), np.int64, size)
        # Longest first: the tokens that have a byte at some place are the first so many.
        self.tokens: npt.NDArray[np.int64] = np.argsort(-lengths, kind="stable")
        at_least = np.cumsum(np.bincount(lengths)[::-1])[::-1]
        joined = np.frombuffer(b"".join(texts), np.uint8)
        starts = np.cumsum(lengths) - lengths
        self.columns: list[npt.NDArray[np.uint8]] = [
            joined[starts[self.tokens[:count]] + place] for place, count in enumerate(at_least[1:])
        ]
        """For each place in a token its byte there, of those of `tokens` that are long enough."""

        digest = hashlib.sha256(repr((size, self.eos_token_ids, self.pad_token_id)).encode())
        digest.update(lengths.tobytes())
        digest.update(joined.tobytes())
        self.digest = digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Arcs:
    """Single-token moves between states, each kind of it in one array of the same length."""

    source: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.source)

    def of(self, chosen: npt.NDArray[np.int64]) -> Arcs:
        """Those with these numbers, in their order."""
        return Arcs(self.source[chosen], self.target[chosen], self.label[chosen])

    def sorted_by(self, key: npt.NDArray[np.int64]) -> Arcs:
        return self.of(np.argsort(key, kind="stable"))


class Outgoing:
    """Where the arcs of each state are, in arcs that are sorted by source."""

    def __init__(self, source: npt.NDArray[np.int64], num_states: int) -> None:
        self.count: npt.NDArray[np.int64] = np.bincount(source, minlength=num_states)
        self.first: npt.NDArray[np.int64] = self.count.cumsum() - self.count

    def of(self, states: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The arcs that lead out of any of `states`, and for each which of `states` it is, both `[arcs]`."""
        count = self.count[states]
        nth: npt.NDArray[np.int64] = np.repeat(np.arange(len(states)), count)
        shift: npt.NDArray[np.int64] = self.first[states] - (np.cumsum(count) - count)
        return shift[nth] + np.arange(len(nth), dtype=np.int64), nth


@dataclass(frozen=True, eq=False)
class Segments:
    """Runs of equal values in a sorted array: what numpy's `reduceat` needs."""

    values: npt.NDArray[np.int64]
    """The value of each run."""
    starts: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]

    @classmethod
    def of(cls, sorted_values: npt.NDArray[np.int64]) -> Segments:
        starts = np.flatnonzero(np.r_[True, np.diff(sorted_values) != 0]) if len(sorted_values) else np.arange(0)
        return cls(sorted_values[starts], starts, np.diff(np.r_[starts, len(sorted_values)]))


@dataclass(frozen=True, eq=False)
class Moves:
    """Where the tokens of each class of text lead, from the states in which they can stand."""

    counts: npt.NDArray[np.int64]
    """`[classes]`: of how many states, one at least"""
    source: Ints
    """The states, class by class and ascending"""
    target: Ints

    def __len__(self) -> int:
        return len(self.counts)

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """`[classes + 1]`: where those of a class begin, and where all end."""
        return np.append(0, np.cumsum(self.counts))

    def target_of(self, token_class: int, state: int) -> int | None:
        """Where a token of the class leads from a state; None if it can't stand there."""
        first, end = self.starts[token_class : token_class + 2]
        place = first + int(np.searchsorted(self.source[first:end], state))
        return int(self.target[place]) if place < end and self.source[place] == state else None


@dataclass(frozen=True, eq=False)
class TokenAutomaton:
    """A deterministic automaton over tokens. State 0 is the start.

    Classes are numbered: first those of text, then `eos_class`, `pad_class` (which may be empty) and
    `illegal_class`, whose tokens no text has. States are those of the byte automaton, its dead sink
    included, and `end`, where an end of sequence leads from every accepting state. Only there a text ends,
    and what follows it is end of sequence and padding.
    """

    token_class: Ints
    """`[V]`"""
    moves: Moves
    accepting: npt.NDArray[np.bool_]
    """`[byte states]`"""
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None

    @property
    def dead(self) -> int:
        return len(self.accepting) - 1

    @property
    def end(self) -> int:
        return len(self.accepting)

    @property
    def num_states(self) -> int:
        return len(self.accepting) + 1

    @property
    def eos_class(self) -> int:
        return len(self.moves)

    @property
    def pad_class(self) -> int:
        return len(self.moves) + 1

    @property
    def illegal_class(self) -> int:
        return len(self.moves) + 2

    @property
    def num_classes(self) -> int:
        return len(self.moves) + 3

    def advance(self, state: int, tokens: Sequence[int]) -> int:
        """The state that the tokens lead to; `end` once a text has ended, whatever follows."""
        for token in tokens:
            if state in (self.end, self.dead):
                break
            token_class = int(self.token_class[token])
            if token_class < self.eos_class:
                target = self.moves.target_of(token_class, state)
                state = self.dead if target is None else target
            else:
                ends = token_class == self.eos_class and self.accepting[state]
                state = self.end if ends else self.dead
        return state

    @cached_property
    def _graph(self) -> tuple[Arcs, list[npt.NDArray[np.int64]], Ints]:
        """See `arcs`, `label_classes`, `distance`. Holds only moves from which the end can be reached."""
        classes = np.repeat(np.arange(len(self.moves)), self.moves.counts)
        sources, targets = self.moves.source.astype(np.int64), self.moves.target.astype(np.int64)
        accepting = np.flatnonzero(self.accepting)
        sources = np.r_[sources, accepting]
        targets = np.r_[targets, np.full(len(accepting), self.end)]
        classes = np.r_[classes, np.full(len(accepting), self.eos_class)]

        pair = sources * self.num_states + targets
        # Classes ascend already, those of the end come last: a stable sort keeps that.
        order = np.argsort(pair, kind="stable")
        classes, pairs = classes[order], Segments.of(pair[order])
        source, target = pairs.values // self.num_states, pairs.values % self.num_states
        distance = self._distances(source, target)
        kept = np.flatnonzero(distance[target] < UNREACHABLE)
        label, label_classes = _numbered(classes, pairs.starts[kept], pairs.sizes[kept])
        return Arcs(source[kept], target[kept], label), label_classes, distance

    def _distances(self, source: npt.NDArray[np.int64], target: npt.NDArray[np.int64]) -> Ints:
        """Breadth first from the end, against the arcs."""
        order = np.argsort(target, kind="stable")
        incoming = Outgoing(target[order], self.num_states)
        source = source[order]
        distance = np.full(self.num_states, UNREACHABLE, np.int32)
        states, length = np.array([self.end]), 0
        while len(states):
            distance[states] = length
            states = source[incoming.of(states)[0]]
            states = np.unique(states[distance[states] == UNREACHABLE])
            length += 1
        return distance

    @property
    def arcs(self) -> Arcs:
        """All moves but the one from `end` to itself, sorted by source."""
        return self._graph[0]

    @property
    def label_classes(self) -> list[npt.NDArray[np.int64]]:
        """The classes of each label, ascending."""
        return self._graph[1]

    @property
    def distance(self) -> Ints:
        """`[states]`: the fewest tokens from there to `end`, the end of sequence counted; else `UNREACHABLE`."""
        return self._graph[2]


def _numbered(
    members: npt.NDArray[np.int64], starts: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], list[npt.NDArray[np.int64]]]:
    """A number for each run of `members`, the same for the same runs, in the order in which they appear first; and
    the runs by number."""
    if not len(starts):
        return np.empty(0, np.int64), []
    nth = np.repeat(np.arange(len(starts)), sizes)
    within = np.arange(len(nth)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    # Runs are compared by a random hash modulo 2^64 ...
    flat = members[starts[nth] + within]
    random = np.random.default_rng(0).integers(1 << 63, size=int(members.max()) + 1, dtype=np.int64)
    hashes = np.add.reduceat(random[flat], np.cumsum(sizes) - sizes)
    _, first, number = np.unique(hashes, return_index=True, return_inverse=True)
    # ... and a collision, which would take one for the other, is looked for.
    same = first[number.reshape(-1)]
    if (sizes != sizes[same]).any() or (
        members[starts[nth] + within] != members[starts[same[nth]] + within]
    ).any():
        raise AssertionError("two different labels of an automaton have the same hash")
    first.sort()
    return np.searchsorted(first, same), [members[starts[i] : starts[i] + sizes[i]] for i in first.tolist()]


def build(dfa: ByteDFA, vocabulary: Vocabulary) -> TokenAutomaton:
    """The automaton of the token sequences that spell a text of `dfa` and end it.

    Raises `ConstraintError` if the vocabulary can't spell any, or the automaton would be too large.
    """
    token_class, moves = _classify(dfa, vocabulary)
    return assemble(token_class, moves, dfa, vocabulary)


def assemble(token_class: Ints, moves: Moves, dfa: ByteDFA, vocabulary: Vocabulary) -> TokenAutomaton:
    """The automaton from what a build found out: see `TokenAutomaton`. Raises `ConstraintError`."""
    automaton = TokenAutomaton(
        token_class, moves, dfa.accepting, vocabulary.eos_token_ids, vocabulary.pad_token_id
    )
    if automaton.distance[0] >= UNREACHABLE:
        raise ConstraintError(
            "No text fits: either the constraint contradicts itself, or it asks for characters that this "
            "model's tokenizer can't write."
        )
    return automaton


def _classify(dfa: ByteDFA, vocabulary: Vocabulary) -> tuple[Ints, Moves]:
    """Class of each token, and where each class of text leads.

    The map of a token is that of its prefix followed by the move of its last byte, so maps are built for all
    tokens at once, byte by byte, and each product of a map and a byte is computed once.
    """
    maps = _Maps(dfa)
    current = np.full(vocabulary.size, _Maps.DEAD, np.int32)  # in the order of vocabulary.tokens
    alive = np.arange(len(vocabulary.columns[0]) if vocabulary.columns else 0)
    current[alive] = _Maps.IDENTITY
    for column in vocabulary.columns:
        alive = alive[: np.searchsorted(alive, len(column))]
        following = maps.append(current[alive], column[alive])
        current[alive] = following
        alive = alive[following != _Maps.DEAD]
    return _number(current, maps, vocabulary)


class _Maps:
    """Maps of byte states to byte states, closed step by step under the moves of single bytes.

    Each holds only the states that it doesn't lead to the sink: of tens of thousands a token has a place in a few.
    """

    DEAD, IDENTITY = 0, 1

    def __init__(self, dfa: ByteDFA) -> None:
        self._dead = dfa.dead
        self._byte_moves: Ints = np.ascontiguousarray(dfa.moves.T)  # [byte kinds, states]
        self._byte_kind = dfa.byte_kind
        nothing, all_states = np.zeros(0, np.int32), np.arange(dfa.dead, dtype=np.int32)
        # Sources, ascending, and targets; and their numbers by a digest of both.
        self._maps: list[tuple[Ints, Ints]] = [(nothing, nothing), (all_states, all_states)]
        self._numbers = {_digest(*pair): number for number, pair in enumerate(self._maps)}
        self._num_moves = dfa.dead
        # [maps, byte kinds]: the map that follows, -1 where it has not been computed yet.
        self._products: Ints = np.full((64, len(self._byte_moves)), -1, np.int32)
        self._products[self.DEAD] = self.DEAD

    def __len__(self) -> int:
        return len(self._maps)

    def __getitem__(self, number: int) -> tuple[Ints, Ints]:
        return self._maps[number]

    def append(self, maps: Ints, last_bytes: npt.NDArray[np.uint8]) -> Ints:
        """The maps that do what `maps` do and then move by a byte. `ConstraintError` if that gets too much."""
        kinds = self._products.shape[1]
        pairs = maps * np.int32(kinds) + self._byte_kind[last_bytes]
        following: Ints = self._products.reshape(-1)[pairs]
        missing = np.zeros(len(self._maps) * kinds, np.bool_)
        missing[pairs[following < 0]] = True
        fresh = np.flatnonzero(missing)
        if not len(fresh):
            return following
        for pair in fresh:
            source, target = self._maps[pair // kinds]
            target = self._byte_moves[pair % kinds][target]
            alive = target != self._dead
            if not alive.all():
                source, target = source[alive], target[alive]
            number = self._number_of(source, target)
            self._products[pair // kinds, pair % kinds] = number
        self._products.reshape(-1).take(pairs, out=following)
        return following

    def _number_of(self, source: Ints, target: Ints) -> int:
        number = self._numbers.setdefault(_digest(source, target), len(self._maps))
        if number == len(self._maps):
            self._num_moves += len(source)
            if self._num_moves > MAX_MOVES:
                raise ConstraintError(
                    "The constraint is too complicated: it tells too many kinds of tokens apart. Make it simpler, "
                    "for example by shorter maximum lengths."
                )
            self._maps.append((source, target))
            if number == len(self._products):
                self._products = np.concatenate([self._products, np.full_like(self._products, -1)])
        return number


def _digest(source: Ints, target: Ints) -> bytes:
    """What stands for a map in a table: its own bytes would be kept a second time."""
    return hashlib.blake2b(source.tobytes() + target.tobytes(), digest_size=16).digest()


def _number(current: Ints, maps: _Maps, vocabulary: Vocabulary) -> tuple[Ints, Moves]:
    """Number the maps that tokens have, and the other classes behind them."""
    used = np.flatnonzero(np.bincount(current, minlength=len(maps)))
    used = used[used != _Maps.DEAD]
    eos_class, pad_class, illegal_class = len(used), len(used) + 1, len(used) + 2
    number = np.full(len(maps), illegal_class, np.int32)
    number[used] = np.arange(len(used))
    token_class = np.empty(vocabulary.size, np.int32)
    token_class[vocabulary.tokens] = number[current]
    token_class[list(vocabulary.eos_token_ids)] = eos_class
    if vocabulary.pad_token_id is not None:
        token_class[vocabulary.pad_token_id] = pad_class
    sources, targets = zip(*map(maps.__getitem__, used.tolist()), strict=True) if len(used) else ([], [])
    nothing = np.zeros(0, np.int32)
    return token_class, Moves(
        np.array([len(each) for each in sources], np.int64),
        np.concatenate([*sources, nothing]),
        np.concatenate([*targets, nothing]),
    )
