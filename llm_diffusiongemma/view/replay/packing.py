"""Snapshots in little memory: a long reply has 1,500 of them, of 256 positions with four candidates each. As
Python's tuples these would be 150 MB, and so they are some 20."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import overload

from ..records import Likely, Snapshot


@dataclass(frozen=True, slots=True)
class _Packed:
    plain: Snapshot
    """without its pieces and what was likely"""
    pieces: array[int]
    """numbers of texts"""
    entropies: array[float] | None
    counts: array[int]
    """of candidates at each position"""
    candidates: array[int]
    """numbers of texts, of all positions one behind the other"""
    probabilities: array[float]


class Snapshots(Sequence[Snapshot]):
    """A list that grows. Of entropies and probabilities it keeps what float32 has: a network says no more."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._numbers: dict[str, int] = {}
        self._packed: list[_Packed] = []

    def append(self, snapshot: Snapshot) -> None:
        likely = snapshot.likely
        candidates = () if likely is None else likely.candidates
        flat = [candidate for each in candidates for candidate in each]
        packed = _Packed(
            replace(snapshot, pieces=(), likely=None),
            self._pack(snapshot.pieces),
            None if likely is None else array("f", likely.entropies),
            array("H", map(len, candidates)),
            self._pack(text for text, _ in flat),
            array("f", [probability for _, probability in flat]),
        )
        self._packed.append(packed)

    def __len__(self) -> int:
        return len(self._packed)

    def __iter__(self) -> Iterator[Snapshot]:
        return map(self._unpack, self._packed)

    @overload
    def __getitem__(self, index: int) -> Snapshot: ...
    @overload
    def __getitem__(self, index: slice) -> list[Snapshot]: ...
    def __getitem__(self, index: int | slice) -> Snapshot | list[Snapshot]:
        if isinstance(index, slice):
            return [self._unpack(packed) for packed in self._packed[index]]
        return self._unpack(self._packed[index])

    def _pack(self, texts: Iterable[str]) -> array[int]:
        numbers = self._numbers
        packed = array("I")
        for text in texts:
            number = numbers.get(text)
            if number is None:
                number = numbers[text] = len(self._texts)
                self._texts.append(text)
            packed.append(number)
        return packed

    def _unpack(self, packed: _Packed) -> Snapshot:
        texts = self._texts
        pieces = tuple(texts[number] for number in packed.pieces)
        if packed.entropies is None:
            return replace(packed.plain, pieces=pieces)
        named = zip((texts[number] for number in packed.candidates), packed.probabilities, strict=True)
        candidates = tuple(tuple(next(named) for _ in range(count)) for count in packed.counts)
        return replace(packed.plain, pieces=pieces, likely=Likely(tuple(packed.entropies), candidates))
