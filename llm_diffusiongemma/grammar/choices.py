"""How probable each of several texts is, from what a network says of each position of a canvas.

One denoising step says of each position, by itself, how likely each token is there. A canvas drawn from that is a
text if tokens that spell it, in whichever way, stand before its first end of sequence, and nothing but ends of
sequence and padding behind it. So the probability of a text is a sum over its tokenisations of products over all
positions. The bytes of all texts as one tree have these tokenisations as their paths, and one sweep over the
positions adds all of them up.

What stands behind the end counts because without it a short text would have positions for nothing. Of three ways
to count them (at nothing, at no more than `constraint.TAIL_WEIGHT`, in full) this one had the lowest log loss on
the embedded checkpoint and preferred short texts least; docs/canvas.md has the figures.

The tree is not minimised: an automaton that merges the ends of texts can't tell them apart any more.

Sizes in comments: L positions of a canvas, U tokens, S spellings, N nodes of the tree.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence

import numpy as np

from ..errors import ConstraintError
from .automaton import UNREACHABLE, Segments
from .log_weights import LOG_ZERO, NEGLIGIBLE, Floats, Integers, log_sums

# Of more than this no probabilities are told. What is at these bounds is laid out in about two seconds at most.
MAX_CHOICES = 1000
MAX_CHOICES_BYTES = 65_536

# By so many of its first bytes a token is left out that stands nowhere in the texts.
BEGINNING = 4


class ChoiceTexts:
    """Several texts, laid out for the tokens of a vocabulary."""

    def __init__(
        self,
        choices: Sequence[str],
        token_bytes: Sequence[bytes | None],
        *,
        eos_token_ids: Collection[int],
        pad_token_id: int | None,
    ) -> None:
        """`choices` are what `pattern.check_choices` lets pass; `token_bytes` and the ids are `Vocabulary`'s.

        Raises `ConstraintError` if there are more of them than probabilities are told of, or none that the tokens
        can spell.
        """
        texts = [choice.encode() for choice in choices]
        check_sizes(texts)
        tree = _Tree(texts, _spellings(texts, token_bytes, eos_token_ids))
        fewest = [tree.fewest[node] for node in tree.ends if tree.fewest[node] < UNREACHABLE]
        if not fewest:
            raise ConstraintError(
                "None of the choices can be written: each has characters that this model's tokenizer can't write. "
                "Name others."
            )
        # By depth: a text of i tokens has i bytes or more, so what a position can lead to is one stretch of them.
        depth = np.array(tree.depth, np.int64)
        by_depth = np.argsort(depth, kind="stable")
        rank = np.argsort(by_depth)
        target = rank[np.array(tree.targets, np.int64)]
        order = np.argsort(target, kind="stable")
        self._source = rank[np.array(tree.sources, np.int64)[order]]
        self._spelling = np.array(tree.spellings, np.int64)[order]
        self._targets = Segments.of(target[order])
        self._run = np.repeat(np.arange(len(self._targets.sizes)), self._targets.sizes)
        self._bounds = np.append(self._targets.starts, len(order))
        self._target_depth = depth[by_depth][self._targets.values]
        # The shallowest node that takes more than so many tokens is no bound: deeper ones may take fewer.
        fewest_tokens = np.array(tree.fewest, np.int64)[by_depth][self._targets.values]
        self._fewest_behind = np.minimum.accumulate(fewest_tokens[::-1])[::-1]
        self._num_nodes = len(depth)
        self._ends = rank[np.array(tree.ends)]
        self._deepest = int(depth.max())

        self._spellings = Segments.of(np.repeat(np.arange(len(tree.spelled)), [len(s) for s in tree.spelled]))
        ending = sorted(eos_token_ids)
        padding = [] if pad_token_id is None or pad_token_id in ending else [pad_token_id]
        text_tokens = [token for tokens in tree.spelled for token in tokens]
        self._num_text = len(text_tokens)
        self._num_ending = len(ending)
        self.tokens: Integers = np.array([*text_tokens, *ending, *padding], np.int64)
        """`[U]`: the ids of those tokens whose log-probabilities it wants"""
        self.fewest_positions = max(fewest) + 1
        """that the choice which takes most of them needs, its end of sequence counted"""

    def log_probabilities(self, canvas: Floats) -> Floats:
        """The log-probability of each choice, in their order, nats; -inf if no canvas of that length is that text.

        `canvas` fp64 `[L, U]`: log-probabilities of `tokens` at each position, of the whole vocabulary.
        """
        canvas = np.maximum(canvas, LOG_ZERO)
        ends = np.logaddexp.reduce(canvas[:, self._num_text : self._num_text + self._num_ending], axis=1)  # [L]
        tail = np.logaddexp.reduce(canvas[:, self._num_text :], axis=1)  # [L]
        ends[:-1] += tail[:0:-1].cumsum()[::-1]
        # Further than this no text goes.
        positions = min(len(canvas), self._deepest + 1)
        spelled = log_sums(canvas[:positions, : self._num_text], self._spellings)  # [positions, S]
        here = np.full(self._num_nodes, LOG_ZERO)
        here[0] = 0.0
        result = np.full(len(self._ends), LOG_ZERO)
        for i in range(positions):
            result = np.logaddexp(result, here[self._ends] + ends[i])
            here = self._further(here, spelled[i], i + 1)
        return np.where(result > LOG_ZERO / 2, result, -np.inf)

    def _further(self, here: Floats, spelled: Floats, tokens: int) -> Floats:
        """log-sums `[N]` of all ways to each node with so many tokens, from those with one token less."""
        first = int(np.searchsorted(self._target_depth, tokens))
        last = int(np.searchsorted(self._fewest_behind, tokens, side="right"))
        following = np.full(self._num_nodes, LOG_ZERO)
        if first < last:
            edges = slice(self._bounds[first], self._bounds[last])
            starts = self._bounds[first:last] - self._bounds[first]
            values = here[self._source[edges]] + spelled[self._spelling[edges]]
            top = np.maximum.reduceat(values, starts)
            scaled = np.exp(np.maximum(values - top[self._run[edges] - first], NEGLIGIBLE))
            following[self._targets.values[first:last]] = top + np.log(np.add.reduceat(scaled, starts))
        return following


class _Tree:
    """The bytes of several texts as a tree. Node 0 is the root, and no node comes before its parent."""

    def __init__(self, texts: Sequence[bytes], spellings: dict[bytes, list[int]]) -> None:
        self.depth = [0]
        """of each node, in bytes"""
        self.fewest = [0]
        """tokens to each node; `UNREACHABLE` if none lead there"""
        self.ends: list[int] = []
        """of each text its node"""
        # Of each edge. Arrays, for a text of blanks has millions of them.
        self.sources, self.targets, self.spellings = array("q"), array("q"), array("q")
        numbers: dict[bytes, int] = {}
        children: dict[tuple[int, int], int] = {}
        longest = max(map(len, spellings), default=0)
        for text in texts:
            path = [0]
            for length, byte in enumerate(text, start=1):
                child = children.setdefault((path[-1], byte), len(self.depth))
                path.append(child)
                if child < len(self.depth):
                    continue
                fewest = int(UNREACHABLE)
                for start in range(max(0, length - longest), length):
                    piece, source = text[start:length], path[start]
                    if piece in spellings and self.fewest[source] < UNREACHABLE:
                        self.sources.append(source)
                        self.targets.append(child)
                        self.spellings.append(numbers.setdefault(piece, len(numbers)))
                        fewest = min(fewest, self.fewest[source] + 1)
                self.depth.append(length)
                self.fewest.append(fewest)
            self.ends.append(path[-1])
        self.spelled = [spellings[piece] for piece in numbers]
        """by number, the tokens of each spelling"""


def check_sizes(texts: Sequence[bytes]) -> None:
    """Raises `ConstraintError` if there are more of them than probabilities are told of."""
    if len(texts) > MAX_CHOICES:
        raise ConstraintError(
            f"There are {len(texts):,} choices, but probabilities are told of {MAX_CHOICES:,} at most. Use fewer."
        )
    if sum(map(len, texts)) > MAX_CHOICES_BYTES:
        raise ConstraintError(
            f"The choices have more than {MAX_CHOICES_BYTES:,} bytes together, which is too much to tell "
            "probabilities of. Use fewer or shorter ones."
        )


def _spellings(
    texts: Sequence[bytes], token_bytes: Sequence[bytes | None], eos_token_ids: Collection[int]
) -> dict[bytes, list[int]]:
    """The tokens that may stand in one of the texts, by their bytes, and some others: far from all."""
    lengths = range(1, BEGINNING + 1)
    beginnings = {text[i : i + length] for text in texts for i in range(len(text)) for length in lengths}
    found = [
        (spelled, token)
        for token, spelled in enumerate(token_bytes)
        if spelled and spelled[:BEGINNING] in beginnings
    ]
    spellings: dict[bytes, list[int]] = {}
    for spelled, token in found:
        if token not in eos_token_ids:
            spellings.setdefault(spelled, []).append(token)
    return spellings
