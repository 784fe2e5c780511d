"""The KV cache of the last conversation, kept for its next turn.

What stands at a position is an *identity*: the token's id, or for a soft token of an image the digest of
that image. The encoder is causal (an image sees all of itself, but nothing behind it), so two prompts that
begin with the same identities have the same keys and values there.

**Invariant**: a cache that is handed out holds the keys and values of exactly its `identities`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Identity = int | str


@dataclass(frozen=True)
class _Snapshot:
    """What the sliding layers held after so many tokens, which they forget later: keys and values each."""

    length: int
    sliding: list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(eq=False)
class EncodedPrefix:
    """A KV cache and what was read into it."""

    cache: DynamicCache
    identities: list[Identity] = field(default_factory=list)
    _snapshot: _Snapshot | None = None

    def __len__(self) -> int:
        return len(self.identities)

    def mark(self) -> None:
        """Remember this length: the cache can be rewound to it, whatever is read later.

        One is remembered. It costs the sliding layers' keys and values once more, `sliding_window - 1`
        tokens of them, as soon as the cache has moved on by a window.
        """
        # An update of a layer makes new tensors and leaves these as they are.
        sliding = [(layer.keys, layer.values) for layer in self._layers() if layer.is_sliding]
        self._snapshot = _Snapshot(len(self), sliding)

    def is_whole(self) -> bool:
        """Whether every layer holds what `identities` says; not after an encoder's forward was broken off."""
        return all(layer.get_seq_length() == len(self) for layer in self._layers())

    def rewind(self, length: int) -> None:
        """Forget what stands behind the first `length` tokens, and as much before as can't be restored."""
        if length < len(self):
            length = self._restorable(length)
            snapshot = self._snapshot
            restored = iter(snapshot.sliding if snapshot is not None and snapshot.length == length else ())
            for layer in self._layers():
                keys, values = layer.keys, layer.values
                if layer.is_sliding:
                    keys, values = next(restored, (keys, values))
                    layer.cumulative_length = length
                layer.keys, layer.values = keys[:, :, :length], values[:, :, :length]
            del self.identities[length:]
        if self._snapshot is not None and self._snapshot.length > len(self):
            self._snapshot = None

    def _restorable(self, length: int) -> int:
        # Until a sliding layer has dropped its first token it is like any other.
        if all(layer.keys.shape[-2] == len(self) for layer in self._layers()):
            return length
        if self._snapshot is not None and self._snapshot.length <= length:
            return self._snapshot.length
        return 0

    def _layers(self) -> Iterator[Any]:
        # Until the first update a layer has no tensors.
        return (layer for layer in self.cache.layers if layer.is_initialized)


class PrefixCache:
    """Keeps one `EncodedPrefix` between replies. A reply takes it out, so that two can't write to it.

    Not thread-safe: hold the engine's lock.
    """

    def __init__(self) -> None:
        self._kept: EncodedPrefix | None = None

    def take(self, identities: Sequence[Identity]) -> EncodedPrefix | None:
        """What is kept, rewound to what it has in common with a prompt of these identities. None if nothing."""
        kept, self._kept = self._kept, None
        if kept is None:
            return None
        pairs = zip(kept.identities, identities, strict=False)
        shorter = min(len(kept), len(identities))
        kept.rewind(next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), shorter))
        return kept if len(kept) else None

    def keep(self, prefix: EncodedPrefix) -> None:
        """Keep it for the next turn, in the place of what was kept so far."""
        if len(prefix) and prefix.is_whole():
            self._kept = prefix

    def clear(self) -> None:
        """Give the memory back."""
        self._kept = None
