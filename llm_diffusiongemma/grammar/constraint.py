"""Holds the canvases of one reply to a language: exactly, at every denoising step.

The network says of each position how likely each token is there. Of the canvases whose text belongs to the
language this finds the most probable one (Viterbi), which is what gets committed, and what each position
looks like on average over all of them, weighted by their probability (forward–backward), which is what the
sampler works with. Neither depends on the network being right, so nor does the guarantee.

**Invariant**: from the state at the start of a canvas the end can be reached with the tokens that are left.
Only canvases that keep it are counted, so the last one ends the text.

Sizes in comments: L positions of a canvas, V tokens, C classes, S states.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ..errors import NotANumberError
from .automaton import Segments, TokenAutomaton
from .choices import ChoiceTexts
from .exchange import Exchange
from .groups import Groups, exponentials
from .lattice import Lattice, Paths
from .log_weights import LOG_ZERO, Floats, Integers, Singles
from .records import ConstraintReport

# A position behind the end of a text costs at most so many nats. A vague network is far from sure of an empty
# position; without a bound it would have to pay for each of them, with one at nothing the shortest text would
# win before the network has made up its mind (of truncated documents .47 of the fields came out right at
# nothing, .72 at 4).
TAIL_WEIGHT = 4.0

# A class is reduced in blocks of at most so many tokens, as the sampler's own searches are.
BLOCK = 512

# On a CPU a class with at least such a share of the vocabulary is reduced where its tokens stand: to pick a token
# out takes several times as long as what is then done with it. An accelerator picks as fast as it reads, and there
# fewer launches count.
COMMON_SHARE = 0.75

# Nats below the best token of a block. What is less probable is taken to be as probable as that, which changes no
# sum: on a CPU an exponential that underflows takes up to 30 times as long.
FLOOR = -70.0

# Stands where a token of another class is.
LOWEST = torch.finfo(torch.float32).min


class _Group(NamedTuple):
    """Blocks of the same size in a row of tokens sorted by `_Layout.order`."""

    width: int
    tokens: slice
    blocks: slice

    def of(self, ordered: torch.Tensor, skipped: int = 0) -> torch.Tensor:
        """Their tokens: `[rows, V - skipped]`, of which the first ones are missing, to `[rows, blocks, width]`."""
        tokens = ordered[:, self.tokens.start - skipped : self.tokens.stop - skipped]
        return tokens.view(len(ordered), self.blocks.stop - self.blocks.start, self.width)


class _Layout:
    """The tokens sorted by class, in blocks whose sizes are powers of two, so that none has to be filled up.

    A class of 1,300 tokens is two blocks of 512, one of 256, one of 16 and one of 4. Blocks of the same size
    stand together, the largest first: one reduction serves them all.

    A class that is most of the vocabulary (`COMMON_SHARE`) stays in place: its blocks come first and are those of
    the vocabulary, but for the tokens of others.
    """

    def __init__(
        self, token_class: npt.NDArray[np.int32], num_classes: int, filler: int, device: torch.device
    ) -> None:
        """`filler` is the token of one more block, the last, which is of no class."""
        sizes = np.bincount(token_class, minlength=num_classes)
        self.common: int | None = None
        """The class that stays in place."""
        self.num_common = 0
        """How many blocks are in place."""
        in_place = np.zeros(len(token_class), np.bool_)
        if device.type == "cpu" and sizes.max() >= COMMON_SHARE * len(token_class):
            self.common, self.num_common = int(sizes.argmax()), len(token_class) // BLOCK
            in_place[: self.num_common * BLOCK] = token_class[: self.num_common * BLOCK] == self.common
            sizes[self.common] -= in_place.sum()
        picked = np.flatnonzero(~in_place)
        by_class = picked[np.argsort(token_class[picked], kind="stable")]
        firsts = np.cumsum(sizes) - sizes
        groups, classes, begins = [], [np.full(self.num_common, self.common or 0)], []
        width, num_tokens, self.num_blocks = BLOCK, 0, self.num_common
        while width:
            counts = sizes // width if width == BLOCK else sizes // width % 2
            in_larger = np.zeros_like(sizes) if width == BLOCK else sizes // (2 * width) * (2 * width)
            of_class = np.repeat(np.arange(num_classes), counts)
            nth = np.arange(len(of_class)) - np.repeat(np.cumsum(counts) - counts, counts)
            classes.append(of_class)
            begins.append((firsts + in_larger)[of_class] + nth * width)
            group_tokens = slice(num_tokens, num_tokens + width * len(of_class))
            blocks = slice(self.num_blocks, self.num_blocks + len(of_class))
            if width == BLOCK or len(of_class):
                groups.append(_Group(width, group_tokens, blocks))
            width, num_tokens, self.num_blocks = width // 2, group_tokens.stop, blocks.stop
        self.large, *self.small = groups
        begin, block_class = np.concatenate(begins), np.concatenate(classes)
        widths = np.repeat([g.width for g in groups], [g.blocks.stop - g.blocks.start for g in groups])
        first = np.cumsum(widths) - widths
        block_tokens = by_class[np.repeat(begin - first, widths) + np.arange(num_tokens)]
        # In place of tokens of other classes stands one of the class from the same block.
        places = np.arange(self.num_common * BLOCK).reshape(-1, BLOCK)
        own = in_place[: places.size].reshape(-1, BLOCK)
        common_tokens = np.where(own, places, places[:, :1] + own.argmax(1)[:, None]).reshape(-1)
        tokens = np.concatenate([common_tokens, block_tokens, [filler]])
        self.tokens = torch.from_numpy(tokens).int().to(device)
        """The tokens, block by block, and the filler"""
        self.order = self.tokens[len(common_tokens) : -1]
        """Those that don't stay in place"""
        self.spans = np.stack(
            [
                np.concatenate([places[:, 0], len(common_tokens) + np.append(first, num_tokens)]),
                np.concatenate([np.full(self.num_common, BLOCK - 1), np.append(widths, 1) - 1]),
            ],
            axis=1,
        )
        """Of each block where it begins in `tokens`, and how far from there its last token is."""
        sorted_blocks = np.argsort(block_class, kind="stable")
        classes_of_blocks = Segments.of(block_class[sorted_blocks])
        self.classes = classes_of_blocks.values
        """Those that have tokens, ascending"""
        of_classes = np.split(sorted_blocks, classes_of_blocks.starts[1:])
        self.blocks_of_class = dict(zip(self.classes.tolist(), of_classes, strict=True))
        self.blocks = Groups(of_classes)
        """The blocks of each of `classes`"""
        self.common_only = torch.from_numpy(np.where(own.reshape(-1), 0, LOWEST)).float().to(device)
        """Added to the tokens of blocks in place it leaves those of the class."""
        self._within = torch.arange(BLOCK, device=device)

    def common_of(self, chunk: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
        """The tokens that stay in place, of `[rows, V]` to `[rows, blocks, BLOCK]`, in `scratch` `[rows, V]`."""
        width = len(self.common_only)
        tokens = torch.add(chunk[:, :width], self.common_only, out=scratch[:, :width])
        return tokens.view(len(chunk), self.num_common, BLOCK)

    def tokens_of(self, spans: torch.Tensor) -> torch.Tensor:
        """The tokens of one block for each of n `spans`, int64 `[n, BLOCK]`; a smaller one repeats its last."""
        first, last = spans.long().chunk(2, -1)  # [n, 1]
        return self.tokens[first + torch.minimum(self._within, last)].long()


class _Measured:
    """What the network says of the classes at each position, `[C, L]`; nats, of the whole row."""

    def __init__(self, statistics: Singles, layout: _Layout, num_classes: int) -> None:
        """`statistics` fp32 `[2, L, blocks]`: of each block m = max z and sum exp(z - m)."""
        block_max, block_sum = statistics
        blocks = layout.blocks
        scaled = blocks.members_of(block_max.T)
        maximum = blocks.maxima(scaled)
        # The blocks' sums relative to the maximum of the class: exp(z - M) = exp(z - m) exp(m - M).
        blocks.subtract(scaled, maximum)
        scaled = exponentials(scaled)
        scaled *= blocks.members_of(block_sum.T)
        sums, maximum = blocks.in_order(blocks.sums(scaled)), blocks.in_order(maximum).astype(np.float64)

        row_max = maximum.max(0)
        row_sum = (sums * exponentials(maximum - row_max)).sum(0)
        self.normaliser: Floats = row_max + np.log(row_sum)
        """`[L]`: log sum exp z over the whole vocabulary"""
        self.best: Singles = np.full((num_classes, len(block_max)), LOG_ZERO, np.float32)
        """z of the class's best token"""
        self.best[layout.classes] = maximum
        self.total: Floats = np.full(self.best.shape, LOG_ZERO)
        """log-probability of the class"""
        self.total[layout.classes] = maximum + np.log(sums) - self.normaliser


class TextConstraint:
    """One reply's: which state it has come to, and what that means for a canvas.

    A canvas begins with `start_canvas`. Each denoising step calls `observe` for all rows, chunk by chunk,
    then `decide`, then `reweigh` for all rows. The canvas ends with `commit`. Rows are positions, and logits
    are divided by the temperature already.

    All but the paths is computed on the device: they take one copy to the host, the step's only wait in here,
    and one back.
    """

    def __init__(
        self,
        automaton: TokenAutomaton,
        device: torch.device,
        tail_weight: float = TAIL_WEIGHT,
        choices: ChoiceTexts | None = None,
    ) -> None:
        """`device` is the model's. `tail_weight` (nats, >= 0) bounds what an empty position costs. `choices` are
        all texts of the language, if it is to be told how probable each of them was."""
        self._automaton = automaton
        self._choices = choices
        tokens = torch.zeros(0, dtype=torch.int64) if choices is None else torch.from_numpy(choices.tokens)
        self._choices_tokens = tokens.to(device)
        self._choices_decided = False
        self._normaliser = np.zeros((0, 1))
        self._tail_weight = tail_weight
        self._lattice = Lattice(automaton)
        # What the positions behind the end show. Anything would do: a constant is stable.
        filler = automaton.eos_token_ids[0] if automaton.pad_token_id is None else automaton.pad_token_id
        self._layout = _Layout(automaton.token_class, automaton.num_classes, filler, device)
        # The tokens whose bias is not the common class's, if there is one, and the classes of those, int32.
        self._picked = self._layout.order.long()
        token_class = torch.from_numpy(automaton.token_class).to(device)
        self._biased = token_class if self._layout.common is None else token_class[self._picked]
        self._labels = Groups(automaton.label_classes)
        """The classes of each label"""
        # And the labels of each class that has any.
        label_classes = np.concatenate(automaton.label_classes)
        sizes = [len(classes) for classes in automaton.label_classes]
        by_class = np.argsort(label_classes, kind="stable")
        classes = Segments.of(label_classes[by_class])
        self._written, label = classes.values, np.repeat(np.arange(len(sizes)), sizes)[by_class]
        self._classes = Groups(np.split(label, classes.starts[1:]))
        # Of each label the blocks of its classes.
        blocks = self._layout.blocks_of_class
        self._label_blocks = [
            np.concatenate([blocks[token_class] for token_class in classes.tolist()])
            for classes in automaton.label_classes
        ]
        self._device = device
        self._room = torch.empty(0, device=device)
        self._state = 0
        self._positions = 0
        self._canvas = self._lattice.canvas(0, 0, self.fewest_tokens)
        self._make_room(canvas_length=0)
        self._log_total = 0.0
        self._changed = np.zeros(0, np.bool_)

    @property
    def fewest_tokens(self) -> int:
        """How many tokens the shortest text still takes from here, its end of sequence counted. 0 at its end."""
        return int(self._automaton.distance[self._state])

    def start_canvas(self, canvas_length: int, tokens_left: int) -> None:
        """Begin a canvas of a reply that may have `tokens_left` more tokens, its end of sequence counted."""
        assert self.fewest_tokens <= tokens_left
        # Behind the budget everything is tail.
        self._positions = min(canvas_length, tokens_left)
        self._canvas = self._lattice.canvas(self._state, self._positions, tokens_left - self._positions)
        self._choices_decided = False
        if len(self._small) != canvas_length:
            self._make_room(canvas_length)

    def _make_room(self, canvas_length: int) -> None:
        layout, device = self._layout, self._device
        self._statistics = Exchange((2, canvas_length, layout.num_blocks), device)
        # The logits of the tokens in other than the largest blocks.
        num_small = len(layout.order) - layout.large.tokens.stop
        self._small = torch.empty(canvas_length, num_small, dtype=torch.float32, device=device)
        self._largest_chunk = 0
        # Of each position the bias of each class, and the span of the block of its token. fp32 holds every number
        # of tokens below 2^24 exactly.
        self._decision = Exchange((canvas_length, self._automaton.num_classes + 2), device)
        # What the network says of the choices' tokens: `[L, U]`, fetched when somebody asks.
        self._choices_logits = Exchange((canvas_length, len(self._choices_tokens)), device)

    def observe(self, rows: slice, chunk: torch.Tensor) -> None:
        """Take in what the network says of some rows: `chunk` fp32 `[rows, V]`, which is left as it is."""
        layout, statistics = self._layout, self._statistics.on_device
        self._largest_chunk = max(self._largest_chunk, chunk.numel())
        # Of a single row without its axis: many times as fast on a CPU, and then a chunk is a row.
        if layout.common is not None:
            common = layout.common_of(chunk, self._scratch(chunk.shape))
            _reduce_blocks(common, statistics[:, rows, : layout.num_common])
        ordered = self._scratch((len(chunk), len(layout.order)))
        torch.index_select(chunk.squeeze(0), -1, layout.order, out=ordered.squeeze(0))
        _reduce_blocks(layout.large.of(ordered), statistics[:, rows, layout.large.blocks])
        # Together with those of other rows: there are many sizes of them, each with few tokens.
        self._small[rows] = ordered[:, layout.large.tokens.stop :]

    def decide(self, logits: torch.Tensor) -> torch.Tensor:
        """The canvas to commit if this step is the last, int64 `[L]`.

        `logits` fp32 `[L, V]` are all the rows that have been observed. Raises `NotANumberError` if they are none.
        """
        self._reduce_small()
        if self._can_be_any_choice():
            # Here, for `reweigh` writes over them.
            torch.index_select(logits, 1, self._choices_tokens, out=self._choices_logits.on_device)
            self._choices_decided = True
        statistics = self._statistics.fetch().numpy()
        if not np.isfinite(statistics).all():
            raise NotANumberError()
        measured = _Measured(statistics, self._layout, self._automaton.num_classes)
        self._normaliser = measured.normaliser[:, None]
        tail = np.logaddexp(measured.total[self._automaton.eos_class], measured.total[self._automaton.pad_class])
        tail_weight = np.maximum(tail, -self._tail_weight)
        labels = self._labels
        bests = labels.in_order(labels.maxima(labels.members_of(measured.best))) - measured.normaliser
        totals = labels.log_sums(measured.total)
        paths = self._canvas.weigh(self._rows(bests, tail_weight), self._rows(totals, tail_weight))
        self._log_total = paths.log_total + float(tail_weight[self._positions :].sum())
        decision, classes = self._decision.on_host.numpy(), self._automaton.num_classes
        decision[:, :classes] = (self._log_ratios(totals, paths, tail) - measured.normaliser).T
        decision[:, classes:] = self._layout.spans[self._best_blocks(statistics[0], paths.best)]

        candidates = self._layout.tokens_of(self._decision.send()[:, classes:])
        nth = logits.gather(1, candidates).argmax(1, keepdim=True)
        return candidates.gather(1, nth)[:, 0]

    def reweigh(self, rows: slice, chunk: torch.Tensor) -> None:
        """Replace the logits of some rows **in place** by log-probabilities under the constraint. Those of what
        can't be are near `LOG_ZERO`: numbers, and far below all others."""
        bias, common = self._decision.on_device[rows, : self._automaton.num_classes], self._layout.common
        of_tokens = self._scratch((len(chunk), len(self._biased)))
        # See `observe` for the axis.
        torch.index_select(bias.squeeze(0), -1, self._biased, out=of_tokens.squeeze(0))
        if common is None:
            chunk.add_(of_tokens)
            return
        tokens = chunk.squeeze(0)
        of_tokens.squeeze(0).add_(tokens.index_select(-1, self._layout.order))
        chunk.add_(bias[:, common, None])
        tokens.index_copy_(-1, self._picked, of_tokens.squeeze(0))

    def _scratch(self, shape: Sequence[int]) -> torch.Tensor:
        """Where something is worked out, until the next is: to make room anew each time costs as much as to use
        it."""
        size = math.prod(shape)
        if self._room.numel() < size:
            self._room = torch.empty(size, dtype=torch.float32, device=self._device)
        return self._room[:size].view(*shape)

    def choices(self) -> tuple[float, ...] | None:
        """How probable each of the choices was in what was decided on last, nats: see `ChoiceTexts`. Waits for the
        device. Before `commit`.

        None if there are none, or the canvas had no room for all of them, or their text began before it.
        """
        if self._choices is None or not self._choices_decided:
            return None
        log_p = self._choices_logits.fetch().double().numpy() - self._normaliser
        return tuple(self._choices.log_probabilities(log_p).tolist())

    def _can_be_any_choice(self) -> bool:
        """Whether the canvas at hand can hold each of the choices, from its first position on."""
        return self._choices is not None and self._state == 0 and self._choices.fewest_positions <= self._positions

    def commit(self, canvas: Sequence[int]) -> ConstraintReport:
        """Go on from the canvas that was decided on last."""
        self._state = self._automaton.advance(self._state, canvas)
        assert self._state != self._automaton.dead, "a committed text has left the language"
        return ConstraintReport(self._log_total, int(self._changed.sum()))

    def _reduce_small(self) -> None:
        small, skipped, statistics = self._small, self._layout.large.tokens.stop, self._statistics.on_device
        for group in self._layout.small:
            # As much at a time as whoever calls `observe` finds good for the device.
            rows_per_chunk = max(1, self._largest_chunk // (group.tokens.stop - group.tokens.start))
            for start in range(0, len(small), rows_per_chunk):
                rows = slice(start, start + rows_per_chunk)
                _reduce_blocks(group.of(small[rows], skipped), statistics[:, rows, group.blocks])

    def _rows(self, weights: Floats, tail_weight: Floats) -> Floats:
        """Log-weights of the text's labels, `[labels, L]`, with those of the tail behind them, by position: to
        `[positions, labels]`."""
        rows = np.empty((self._positions, len(weights) + 1))
        rows[:, :-1] = weights[:, : self._positions].T
        rows[:, -1] = tail_weight[: self._positions]
        return rows

    def _best_blocks(self, block_max: Singles, path: Integers) -> Integers:
        """In which block the token of each position is, `[L]`, on the most probable canvas: of each label the
        block that has the best token. Notes where it differs from what the network prefers."""
        result = np.full(len(block_max), self._layout.num_blocks)  # the filler's
        self._changed = np.zeros(len(block_max), np.bool_)
        for label in np.unique(path[path != self._lattice.tail]).tolist():
            positions, blocks = np.flatnonzero(path == label), self._label_blocks[label]
            of_label = block_max[positions].take(blocks, axis=1)
            result[positions] = blocks[of_label.argmax(1)]
            self._changed[positions] = of_label.max(1) < block_max[positions].max(1)
        return result

    def _log_ratios(self, totals: Floats, paths: Paths, tail: Floats) -> Floats:
        """How much more probable a token of a class is among all canvases of the language than the network says,
        nats: `[C, L]`. `totals` `[labels, L]`."""
        # A label's share falls to its tokens by their probabilities, and so does the tail's.
        ratios = np.full((self._automaton.num_classes, len(tail)), LOG_ZERO)
        with np.errstate(divide="ignore"):
            of_labels = np.log(paths.shares.T)
        of_labels[:-1] -= totals[:, : self._positions]
        np.maximum(of_labels, LOG_ZERO, out=of_labels)
        ratios[self._written, : self._positions] = self._classes.log_sums(of_labels)
        in_tail = -tail
        in_tail[: self._positions] += of_labels[-1]
        for token_class in (self._automaton.eos_class, self._automaton.pad_class):
            ratios[token_class] = np.logaddexp(ratios[token_class], in_tail)
        return ratios


def _reduce_blocks(blocks: torch.Tensor, statistics: torch.Tensor) -> None:
    """Write m = max z and sum exp(z - m) of each block into `statistics`, and over the blocks.

    `[rows, blocks, width]` to `[2, rows, blocks]`.
    """
    maximum, total = statistics
    torch.amax(blocks, -1, out=maximum)
    torch.sum(blocks.sub_(maximum[..., None]).clamp_(min=FLOOR).exp_(), -1, out=total)
