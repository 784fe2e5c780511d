"""Keys and values of what the encoder has read, in their place.

Committed positions are counted by `length`. What is written behind them, a canvas's or those of a chunk that is
being read, counts only once it is committed: the next write simply goes over it. Batch size is 1.

**Invariant**: each layer holds the keys and values of the first `length` positions, a sliding one those of the
last `window - 1` of them at least. `length` is 0 while something is moved: what is broken off holds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .config import NetworkConfig

# Full layers grow by so many positions. A layer of the real network takes 4 KiB a position in bf16.
PIECE = 4096
# Sliding layers, whose need has an end, by fewer.
SLIDING_PIECE = 512


@dataclass(frozen=True, eq=False)
class _Mark:
    """A length to come back to, and what the sliding layers held by then as soon as they forget it."""

    length: int
    sliding: tuple[torch.Tensor, ...] | None = None


class KVCache:
    """The KV cache of one conversation. Tensors stay where they are until they have to grow."""

    def __init__(
        self, config: NetworkConfig, dtype: torch.dtype, devices: torch.device | Sequence[torch.device]
    ) -> None:
        """`devices` are one for each layer, or one for all."""
        if isinstance(devices, torch.device):
            devices = [devices] * len(config.layers)
        self.length = 0
        """Committed positions."""
        self._reach = None if config.window is None else config.window - 1
        """How many committed positions a sliding layer's next token sees."""
        self._is_sliding = [layer.window is not None for layer in config.layers]
        # Of each layer keys and values, each [key and value heads, room, head_dim].
        self._tensors = [
            tuple(
                torch.empty(layer.num_key_value_heads, 0, layer.head_dim, dtype=dtype, device=device)
                for _ in range(2)
            )
            for layer, device in zip(config.layers, devices, strict=True)
        ]
        self._dropped = 0
        """The position in the first slot of the sliding layers."""
        self._mark: _Mark | None = None

    def first_seen(self, window: int | None) -> int:
        """The first committed position that the next token sees, in a layer of that window."""
        return 0 if window is None else max(0, self.length - window + 1)

    def reserve(self, positions: int) -> None:
        """Make room for so many behind the committed ones."""
        if self.length == 0:  # maybe because moving something was broken off
            self._dropped, self._mark = 0, None
        if self._reach is not None and self.length - self._dropped + positions > self._room(sliding=True):
            self._forget(max(0, self.length - self._reach))
        for sliding, piece in ((True, SLIDING_PIECE), (False, PIECE)):
            needed = self.length - self._dropped * sliding + positions
            if any(each == sliding for each in self._is_sliding) and needed > self._room(sliding=sliding):
                self._grow(-(-needed // piece) * piece, sliding)

    def slots(self, layer: int, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the keys and values of so many positions behind the committed ones belong: views
        `[heads, positions, head_dim]`. Room must be reserved."""
        start = self._first_free(layer)
        keys, values = self._tensors[layer]
        return keys[:, start : start + positions], values[:, start : start + positions]

    def seen(self, layer: int, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What so many positions behind the committed ones may see once theirs are in their slots, views
        `[heads, seen, head_dim]`: of a sliding layer the last `window - 1` committed positions, of a full one all
        of them, and the positions themselves."""
        start = self._first_free(layer)
        first = max(0, start - self._reach) if self._is_sliding[layer] and self._reach is not None else 0
        keys, values = self._tensors[layer]
        return keys[:, first : start + positions], values[:, first : start + positions]

    def written(self, positions: int) -> list[torch.Tensor]:
        """The slots of all layers, keys and values."""
        return [each for layer in range(len(self._tensors)) for each in self.slots(layer, positions)]

    def commit(self, positions: int) -> None:
        """Count so many more that every layer has been written."""
        self.length += positions

    def mark(self) -> None:
        """Remember this length: the cache can be rewound to it, whatever is read later. One is remembered.

        It costs the sliding layers' `window - 1` positions once more as soon as they forget the first of them.
        """
        self._mark = _Mark(self.length)

    def rewind(self, length: int) -> int:
        """Forget what stands behind the first `length` positions, and as much before as can't be restored.

        Returns the length that is left.
        """
        if self._mark is not None and self._mark.length > length:
            self._mark = None
        if length < self.length and self._reach is not None and self._dropped > max(0, length - self._reach):
            if self._mark is None or self._mark.sliding is None:
                self.length = 0
            else:
                self._restore(self._mark.length, self._mark.sliding)
        self.length = min(self.length, length)
        return self.length

    def _first_free(self, layer: int) -> int:
        return self.length - self._dropped * self._is_sliding[layer]

    def _of_kind(self, sliding: bool) -> list[torch.Tensor]:
        kinds = zip(self._is_sliding, self._tensors, strict=True)
        return [tensor for each, pair in kinds if each == sliding for tensor in pair]

    def _room(self, *, sliding: bool) -> int:
        return min((tensor.shape[1] for tensor in self._of_kind(sliding)), default=0)

    def _grow(self, room: int, sliding: bool) -> None:
        for i, (keys, values) in enumerate(self._tensors):
            if self._is_sliding[i] == sliding:
                self._tensors[i] = (_with_room(keys, room), _with_room(values, room))

    def _forget(self, dropped: int) -> None:
        """Let the sliding layers begin with that position."""
        if dropped == self._dropped:
            return
        kept = slice(dropped - self._dropped, self.length - self._dropped)
        if self._mark is not None and self._mark.sliding is None and self._reach is not None:
            first = max(0, self._mark.length - self._reach)
            if first < dropped:
                marked = slice(first - self._dropped, self._mark.length - self._dropped)
                saved = tuple(tensor[:, marked].clone() for tensor in self._of_kind(sliding=True))
                self._mark = _Mark(self._mark.length, saved)
        length, self.length = self.length, 0
        for tensor in self._of_kind(sliding=True):
            tensor[:, : kept.stop - kept.start] = tensor[:, kept].clone()  # a copy may not overlap its source
        self._dropped, self.length = dropped, length

    def _restore(self, length: int, sliding: tuple[torch.Tensor, ...]) -> None:
        self.length = 0
        for tensor, saved in zip(self._of_kind(sliding=True), sliding, strict=True):
            tensor[:, : saved.shape[1]] = saved
        self._dropped, self.length = length - sliding[0].shape[1], length


def _with_room(tensor: torch.Tensor, room: int) -> torch.Tensor:
    """The same in a larger place: `[heads, n, head_dim]` to `[heads, room, head_dim]`, at least."""
    if tensor.shape[1] >= room:  # where growing was broken off
        return tensor
    larger = tensor.new_empty(tensor.shape[0], room, tensor.shape[2])
    larger[:, : tensor.shape[1]] = tensor
    return larger
