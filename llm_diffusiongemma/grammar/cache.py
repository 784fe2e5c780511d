"""Token automata on disk: one file each, named by what it was built from.

The folder is bounded, the entries that were used last stay. It may be deleted at any time, and by several
processes at once nothing worse happens than that one is built twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np

from .automaton import Ints, TokenAutomaton, Vocabulary, assemble, build
from .dfa import ByteDFA

# Part of every name: count it up when what `build` makes, or the layout of a file, changes.
FORMAT_VERSION = 1

# An entry has two bytes a token, half a megabyte for Gemma's vocabulary, and a little for the states.
MAX_ENTRIES = 64
MAX_BYTES = 64 << 20


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
    path = folder / f"{_key(dfa, vocabulary)}.npz"
    tables = _read(path, dfa, vocabulary)
    if tables is not None:
        return assemble(*tables, dfa, vocabulary)
    automaton = build(dfa, vocabulary)
    # A cache that can't be kept costs time, not the reply.
    with contextlib.suppress(OSError):
        _write(path, automaton)
        _prune(folder, max_entries, max_bytes)
    return automaton


def _key(dfa: ByteDFA, vocabulary: Vocabulary) -> str:
    digest = hashlib.sha256(f"{FORMAT_VERSION} {vocabulary.digest} {len(dfa.accepting)}".encode())
    digest.update(np.ascontiguousarray(dfa.transitions, np.int32).tobytes())
    digest.update(np.ascontiguousarray(dfa.accepting, np.bool_).tobytes())
    return digest.hexdigest()


def _read(path: Path, dfa: ByteDFA, vocabulary: Vocabulary) -> tuple[Ints, Ints] | None:
    """Class of each token and the classes' moves, or None."""
    try:
        with np.load(path, allow_pickle=False) as entry:  # a zip file: compares checksums
            token_class = entry["token_class"].astype(np.int32)
            moves = entry["moves"].astype(np.int32)
        os.utime(path)
    except Exception:  # damaged bytes raise nearly anything, and whatever it is, the entry is useless
        return None
    fits = token_class.shape == (vocabulary.size,) and moves.shape[1:] == dfa.accepting.shape
    return (token_class, moves) if fits else None


def _write(path: Path, automaton: TokenAutomaton) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        try:
            np.savez(
                file,
                token_class=automaton.token_class.astype(np.min_scalar_type(automaton.num_classes)),
                moves=automaton.moves.astype(np.min_scalar_type(automaton.num_states)),
            )
            file.close()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _prune(folder: Path, max_entries: int, max_bytes: int) -> None:
    """Remove what was used longest ago, beyond the bounds; also what a killed process left half written."""
    entries = []
    for path in (*folder.glob("*.npz"), *folder.glob("*.tmp")):
        with contextlib.suppress(FileNotFoundError):  # another process prunes, too
            status = path.stat()
            entries.append((status.st_mtime_ns, status.st_size, path))
    total = 0
    for place, (_, size, path) in enumerate(sorted(entries, reverse=True)):
        total += size
        if place >= max_entries or total > max_bytes:
            path.unlink(missing_ok=True)
