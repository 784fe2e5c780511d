"""The KV cache of the last conversation, kept for its next turn.

What stands at a position is an *identity*: the token's id, or for a soft token of an image the digest of
that image. The encoder is causal (an image sees all of itself, but nothing behind it), so two prompts that
begin with the same identities have the same keys and values there: the same but for rounding, since a sum over
a chunk of another size may be made in another order.

**Invariant**: a cache that is handed out holds the keys and values of exactly its `identities`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .kv_cache import KVCache

Identity = int | str


@dataclass(eq=False)
class EncodedPrefix:
    """A KV cache and what was read into it."""

    cache: KVCache
    identities: list[Identity] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.identities)

    def rewind(self, length: int) -> None:
        """Forget what stands behind the first `length` positions, and as much before as can't be restored."""
        del self.identities[self.cache.rewind(length) :]


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
        """Keep it for the next turn, in the place of what was kept so far.

        Not if its cache holds anything else than its identities say, as after an interruption in the middle.
        """
        if len(prefix) and prefix.cache.length == len(prefix):
            self._kept = prefix

    def clear(self) -> None:
        """Give the memory back."""
        self._kept = None
