"""Token automata on disk: one file each, named by what it was built from.

A file is believed only if it is whole and is the one that its name stands for: it holds a digest over its key and
its tables. That tells accidents of every kind, not somebody who writes files of his own for this user.

The folder is bounded, the entries that were used last stay. It may be deleted at any time, and by several
processes at once nothing worse happens than that one is built twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import struct
import tempfile
from pathlib import Path

import numpy as np

from .automaton import Ints, Moves, TokenAutomaton, Vocabulary, assemble, build
from .dfa import ByteDFA

# Part of every key: count it up when what `build` makes, or the layout of a file, changes.
FORMAT_VERSION = 4

# An entry has a byte or two a token, half a megabyte at most for Gemma's vocabulary, and some bytes a move, of
# which schemas of tens of thousands of states have a few millions.
MAX_ENTRIES = 64
MAX_BYTES = 64 << 20

# A file is the digest, the numbers of classes of text and of moves, then the tables in the smallest unsigned
# integers that hold their numbers: class of each token `[V]`, how many moves each class of text has, and these.
HEADER = struct.Struct("<32sII")

SUFFIX = ".tables"
# What is removed when there is too much: also what a killed process left half written, and the files of version 1.
PRUNED = frozenset({SUFFIX, ".tmp", ".npz"})

# Of a pipe opening would wait for the other end. Not every system has all of these.
_FLAGS = ("O_NONBLOCK", "O_NOFOLLOW", "O_BINARY")
OPEN_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in _FLAGS)


def load_or_build(
    dfa: ByteDFA,
    vocabulary: Vocabulary,
    folder: Path,
    *,
    max_entries: int = MAX_ENTRIES,
    max_bytes: int = MAX_BYTES,
) -> TokenAutomaton:
    """The automaton of `dfa` over `vocabulary`, from `folder` if it is there, else built and put there.

    A file that can't be read, or is none of ours, is built anew. So it goes on without a folder that can
    be written to. Raises what `build` raises.
    """
    key = _key(dfa, vocabulary)
    path = folder / f"{key.hex()}{SUFFIX}"
    tables = _read(path, key, dfa, vocabulary, max_bytes)
    if tables is not None:
        return assemble(*tables, dfa, vocabulary)
    automaton = build(dfa, vocabulary)
    # A cache that can't be kept costs time, not the reply.
    with contextlib.suppress(OSError):
        content = _content(key, automaton)
        if len(content) <= max_bytes:  # or it would have to go at once, and all others with it
            _write(path, content)
            _prune(folder, max_entries, max_bytes)
    return automaton


def _key(dfa: ByteDFA, vocabulary: Vocabulary) -> bytes:
    digest = hashlib.sha256(f"{FORMAT_VERSION} {vocabulary.digest} {len(dfa.accepting)}".encode())
    for table in (dfa.moves, dfa.byte_kind, dfa.accepting):
        digest.update(np.ascontiguousarray(table).tobytes())
    return digest.digest()


def _content(key: bytes, automaton: TokenAutomaton) -> bytes:
    moves = automaton.moves
    class_type, state_type = _types(len(moves), len(automaton.accepting))
    tables = (
        (automaton.token_class, class_type),
        (moves.counts, state_type),
        (moves.source, state_type),
        (moves.target, state_type),
    )
    content = struct.pack("<II", len(moves), len(moves.source))
    content += b"".join(table.astype(kind).tobytes() for table, kind in tables)
    return hashlib.sha256(key + content).digest() + content


def _types(text_classes: int, states: int) -> tuple[np.dtype, np.dtype]:  # type: ignore[type-arg]
    """What the numbers of classes and of states are kept in. Three classes come behind those of text."""
    smallest = (np.min_scalar_type(count).newbyteorder("<") for count in (text_classes + 3, states))
    return next(smallest), next(smallest)


def _read(
    path: Path, key: bytes, dfa: ByteDFA, vocabulary: Vocabulary, max_bytes: int
) -> tuple[Ints, Moves] | None:
    """Class of each token and the classes' moves, or None if what is there is not what was put there."""
    content = _bytes_of(path, max_bytes)
    if content is None or len(content) < HEADER.size:
        return None
    digest, text_classes, num_moves = HEADER.unpack_from(content)
    if hashlib.sha256(key + content[len(digest) :]).digest() != digest:
        return None
    with contextlib.suppress(OSError):  # a folder that can only be read
        os.utime(path)
    class_type, state_type = _types(text_classes, len(dfa.accepting))
    place = HEADER.size
    tables = []
    for kind, count in (
        (class_type, vocabulary.size),
        (state_type, text_classes),
        (state_type, num_moves),
        (state_type, num_moves),
    ):
        tables.append(np.frombuffer(content, kind, count, place))
        place += tables[-1].nbytes
    token_class, counts, source, target = tables
    moves = Moves(counts.astype(np.int64), source.astype(np.int32), target.astype(np.int32))
    return token_class.astype(np.int32), moves


def _bytes_of(path: Path, max_bytes: int) -> bytes | None:
    """What a regular file holds, if it can be read and is not larger than any entry."""
    try:
        descriptor = os.open(path, OPEN_FLAGS)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
                return None
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(status.st_size)
        finally:
            os.close(descriptor)
    except OSError:
        return None


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)  # or a power cut might leave the name and nothing behind it
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _prune(folder: Path, max_entries: int, max_bytes: int) -> None:
    """Remove what was used longest ago, beyond the bounds. Folders and what is none of ours stay."""
    entries = []
    for path in folder.iterdir():
        if path.suffix not in PRUNED:
            continue
        with contextlib.suppress(FileNotFoundError):  # another process prunes, too
            status = path.lstat()
            if not stat.S_ISDIR(status.st_mode):
                entries.append((status.st_mtime_ns, status.st_size, path))
    total = 0
    for place, (_, size, path) in enumerate(sorted(entries, reverse=True)):
        total += size
        if place >= max_entries or total > max_bytes:
            with contextlib.suppress(OSError):  # what can't be removed keeps nothing else from it
                path.unlink()
