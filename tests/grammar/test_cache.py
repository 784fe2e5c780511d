"""Token automata on disk: what is believed of a file, what is not, and that nothing of it costs a reply."""

from __future__ import annotations

import errno
import io
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_diffusiongemma.grammar import cache as cache_module
from llm_diffusiongemma.grammar.automaton import TokenAutomaton, build
from llm_diffusiongemma.grammar.cache import load_or_build
from llm_diffusiongemma.grammar.dfa import ByteDFA
from llm_diffusiongemma.grammar.pattern import regex_language

from .languages import BYTE_TOKENS, EOS, tables_of, vocabulary_of

JSON = r'\{"name": "[^"\\\x00-\x1f]*", "age": (0|[1-9][0-9]{0,2})\}'


def same(one: TokenAutomaton, other: TokenAutomaton) -> bool:
    pairs = [*zip(tables_of(one), tables_of(other), strict=True), (one.distance, other.distance)]
    return all(np.array_equal(*pair) for pair in pairs) and (
        (one.eos_token_ids, one.pad_token_id) == (other.eos_token_ids, other.pad_token_id)
    )


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[ByteDFA]:
    """What has really been built."""
    built: list[ByteDFA] = []

    def counting(dfa: ByteDFA, vocabulary: Any) -> TokenAutomaton:
        built.append(dfa)
        return build(dfa, vocabulary)

    monkeypatch.setattr(cache_module, "build", counting)
    return built


def test_the_second_time_it_comes_from_disk(tmp_path: Path, builds: list[ByteDFA]) -> None:
    dfa, vocabulary, folder = regex_language(JSON), vocabulary_of(BYTE_TOKENS), tmp_path / "new" / "folder"
    first = load_or_build(dfa, vocabulary, folder)
    again = load_or_build(dfa, vocabulary, folder)
    assert len(builds) == 1
    assert same(first, again)
    assert same(first, build(dfa, vocabulary))


def test_what_differs_is_never_mixed_up(tmp_path: Path, builds: list[ByteDFA]) -> None:
    dfa, other = regex_language("a+"), regex_language("a*")
    variants = [
        (dfa, vocabulary_of(BYTE_TOKENS)),
        (other, vocabulary_of(BYTE_TOKENS)),
        (dfa, vocabulary_of(BYTE_TOKENS, eos=(EOS,))),
        (dfa, vocabulary_of(BYTE_TOKENS[:-1])),
        (dfa, vocabulary_of(BYTE_TOKENS, size=300)),
        (dfa, vocabulary_of([*BYTE_TOKENS[:-2], b"aa", BYTE_TOKENS[-1]])),
    ]
    for _ in range(2):
        for variant in variants:
            assert same(load_or_build(*variant, tmp_path), build(*variant))
    assert len(builds) == len(variants)


Change = Callable[[bytes], bytes]


def with_byte(place: int, change: int) -> Change:
    """A file whose tables are as well-formed as before."""
    return lambda content: content[:place] + bytes([content[place] ^ change]) + content[place + 1 :]


def version_1(_: bytes) -> bytes:
    """What version 1 wrote."""
    with io.BytesIO() as file:
        np.savez(file, token_class=np.zeros(261, np.uint8), moves=np.zeros((2, 2), np.uint8))
        return file.getvalue()


CONTENTS: dict[str, Change] = {
    "empty": lambda _: b"",
    "one byte": lambda _: b"\0",
    "a header alone": lambda content: content[: cache_module.HEADER.size],
    "zeros": lambda content: bytes(len(content)),
    "noise": lambda content: np.random.default_rng(0).bytes(len(content)),
    "half": lambda content: content[: len(content) // 2],
    "one byte less": lambda content: content[:-1],
    "one byte more": lambda content: content + b"\0",
    "twice": lambda content: content * 2,
    "another digest": with_byte(0, 1),
    "another number of classes": with_byte(32, 1),
    "a number of classes beyond all bounds": with_byte(35, 0xFF),
    "another number of moves": with_byte(36, 1),
    "another class of the first token": with_byte(40, 1),
    "another class of a token": with_byte(40 + 100, 3),
    "another move": with_byte(-20, 1),
    "another last move": with_byte(-1, 2),
    "version 1": version_1,
}


@pytest.mark.parametrize("change", CONTENTS.values(), ids=CONTENTS)
def test_a_damaged_entry_is_built_anew(tmp_path: Path, change: Change, builds: list[ByteDFA]) -> None:
    """Tables that were well-formed and wrong were believed, and made replies that were not of the form."""
    dfa, vocabulary = regex_language(JSON), vocabulary_of(BYTE_TOKENS)
    expected = load_or_build(dfa, vocabulary, tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    assert change(content) != content
    path.write_bytes(change(content))
    for _ in range(2):
        assert same(load_or_build(dfa, vocabulary, tmp_path), expected)
        assert len(builds) == 2
    assert path.read_bytes() == content


def test_entries_under_each_others_names_are_built_anew(tmp_path: Path, builds: list[ByteDFA]) -> None:
    """Their tables are of one shape, so nothing but the key tells them apart."""
    vocabulary = vocabulary_of(BYTE_TOKENS)
    dfas = [regex_language(pattern) for pattern in ("ab", "ac")]
    paths = []
    for dfa in dfas:
        load_or_build(dfa, vocabulary, tmp_path)
        paths += [path for path in tmp_path.iterdir() if path not in paths]
    contents = [path.read_bytes() for path in paths]
    assert len(contents[0]) == len(contents[1])
    for path, content in zip(paths, reversed(contents), strict=True):
        path.write_bytes(content)
    for dfa in dfas:
        assert same(load_or_build(dfa, vocabulary, tmp_path), build(dfa, vocabulary))
    assert len(builds) == 4


def make_socket(path: Path) -> None:
    # The path of a socket may be a hundred bytes long.
    here = os.open(".", os.O_RDONLY)
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("s")
        Path("s").rename(path.name)
    finally:
        os.fchdir(here)
        os.close(here)


def make_huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 42)


def make_full_folder(path: Path) -> None:
    path.mkdir()
    (path / "something").write_text("")


def linked_to(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def link(path: Path) -> None:
        target = path.with_name("target")
        make(target)
        path.symlink_to(target)

    return link


# What it is, and whether a file can take its place.
SPECIAL: dict[str, tuple[Callable[[Path], Any], bool]] = {
    "a pipe": (os.mkfifo, True),
    "a socket": (make_socket, True),
    "a folder": (Path.mkdir, False),
    "a folder with something in it": (make_full_folder, False),
    "a file of four terabytes": (make_huge, True),
    "a link to a pipe": (linked_to(os.mkfifo), True),
    "a link to a folder": (linked_to(Path.mkdir), True),
    "a link to nothing": (lambda path: path.symlink_to("nothing"), True),
    "a link to itself": (lambda path: path.symlink_to(path), True),
    "a link to a device": (lambda path: path.symlink_to("/dev/zero"), True),
    "a file that may not be read": (lambda path: (path.write_bytes(b"x"), path.chmod(0)), True),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX files")
@pytest.mark.parametrize(("make", "is_replaced"), SPECIAL.values(), ids=SPECIAL)
def test_a_special_file_is_no_entry(
    tmp_path: Path, make: Callable[[Path], Any], is_replaced: bool, builds: list[ByteDFA]
) -> None:
    """A pipe under the name of an entry was waited for, for ever."""
    dfa, vocabulary = regex_language(JSON), vocabulary_of(BYTE_TOKENS)
    expected = load_or_build(dfa, vocabulary, tmp_path)
    (path,) = tmp_path.iterdir()
    path.unlink()
    make(path)
    for turn in range(2):
        assert same(load_or_build(dfa, vocabulary, tmp_path), expected)
        assert len(builds) == (2 if is_replaced else 2 + turn)
    assert stat.S_ISREG(path.lstat().st_mode) == is_replaced
    assert not list(tmp_path.glob("*.tmp"))


def test_the_folder_is_bounded_and_keeps_what_was_used_last(tmp_path: Path, builds: list[ByteDFA]) -> None:
    vocabulary = vocabulary_of(BYTE_TOKENS)
    dfas = [regex_language("a" * n) for n in range(1, 7)]
    now = 1_000_000_000
    for i, dfa in enumerate(dfas[:4]):
        load_or_build(dfa, vocabulary, tmp_path, max_entries=4)
        path = max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        os.utime(path, (now + i, now + i))
    (tmp_path / "left-over.tmp").write_bytes(b"half an entry")
    os.utime(tmp_path / "left-over.tmp", (now - 1, now - 1))
    load_or_build(dfas[0], vocabulary, tmp_path, max_entries=4)  # used: not the oldest any more
    load_or_build(dfas[4], vocabulary, tmp_path, max_entries=4)
    assert len(list(tmp_path.iterdir())) == 4
    assert not list(tmp_path.glob("*.tmp"))
    built = len(builds)
    load_or_build(dfas[0], vocabulary, tmp_path, max_entries=4)
    assert len(builds) == built
    load_or_build(dfas[1], vocabulary, tmp_path, max_entries=4)
    assert len(builds) == built + 1


def test_the_folder_is_bounded_in_bytes(tmp_path: Path) -> None:
    vocabulary = vocabulary_of(BYTE_TOKENS)
    load_or_build(regex_language("a"), vocabulary, tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    for n in range(2, 8):
        load_or_build(regex_language("a" * n), vocabulary, tmp_path, max_bytes=4 * size)
    assert 1 <= sum(path.stat().st_size for path in tmp_path.iterdir()) <= 4 * size


def test_an_entry_larger_than_the_bound_throws_no_other_out(tmp_path: Path, builds: list[ByteDFA]) -> None:
    vocabulary = vocabulary_of(BYTE_TOKENS)
    small, large = regex_language("a"), regex_language("a{500}")
    load_or_build(small, vocabulary, tmp_path, max_bytes=1000)
    load_or_build(large, vocabulary, tmp_path, max_bytes=1000)
    load_or_build(small, vocabulary, tmp_path, max_bytes=1000)
    assert len(builds) == 2


def test_what_is_no_entry_does_not_keep_the_folder_from_being_bounded(tmp_path: Path) -> None:
    """A folder that can't be removed like a file ended it."""
    vocabulary = vocabulary_of(BYTE_TOKENS)
    others = [tmp_path / "a note.txt", tmp_path / f"old{cache_module.SUFFIX}" / "in a folder"]
    for other in others:
        other.parent.mkdir(exist_ok=True)
        other.write_text("x")
        os.utime(other.parent if other.parent != tmp_path else other, (2, 2))
    (tmp_path / "of version 1.npz").write_bytes(b"x")
    os.utime(tmp_path / "of version 1.npz", (1, 1))
    for n in range(1, 5):
        load_or_build(regex_language("a" * n), vocabulary, tmp_path, max_entries=2)
    assert all(other.exists() for other in others)
    assert len([path for path in tmp_path.iterdir() if path.is_file()]) == 3


def a_file(folder: Path) -> Path:
    folder.write_text("")
    return folder


def below_a_file(folder: Path) -> Path:
    return a_file(folder) / "automata"


def linked_to_itself(folder: Path) -> Path:
    folder.symlink_to(folder)
    return folder


@pytest.mark.parametrize("make", [a_file, below_a_file, linked_to_itself])
def test_without_a_folder_to_write_to_it_is_built(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    folder = make(tmp_path / "folder")
    dfa, vocabulary = regex_language("a"), vocabulary_of(BYTE_TOKENS)
    assert same(load_or_build(dfa, vocabulary, folder), build(dfa, vocabulary))


def test_without_rights_to_write_it_is_built_and_what_is_there_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, builds: list[ByteDFA]
) -> None:
    """What could not be marked as used just now was taken for damaged."""
    dfa, vocabulary = regex_language(JSON), vocabulary_of(BYTE_TOKENS)
    expected = load_or_build(dfa, vocabulary, tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "no rights")

    # As root the tests may do anything.
    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(cache_module.tempfile, "mkstemp", refuse)
    assert same(load_or_build(dfa, vocabulary, tmp_path), expected)
    assert len(builds) == 1
    other = regex_language("a")
    assert same(load_or_build(other, vocabulary, tmp_path), build(other, vocabulary))


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file of this process gets longer than 100 bytes."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_on_a_full_disk_it_is_built_and_leaves_nothing(tmp_path: Path, full_disk: None) -> None:
    dfa, vocabulary = regex_language(JSON), vocabulary_of(BYTE_TOKENS)
    assert same(load_or_build(dfa, vocabulary, tmp_path), build(dfa, vocabulary))
    assert not list(tmp_path.iterdir())


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []

    def fsync(descriptor: int) -> None:
        assert not list(tmp_path.glob(f"*{cache_module.SUFFIX}"))
        flushed.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    load_or_build(regex_language(JSON), vocabulary_of(BYTE_TOKENS), tmp_path)
    (path,) = tmp_path.iterdir()
    assert flushed == [path.stat().st_size]


def test_the_attack_on_it_holds() -> None:
    pytest.importorskip("resource")
    from ..attacks import forms

    assert not [outcome for outcome in forms.run(count=60, seed=2) if not outcome.held]
