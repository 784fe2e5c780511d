"""Where a replay may be written, and that it is written whole or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llm_diffusiongemma.errors import ReplayError
from llm_diffusiongemma.hub import disk
from llm_diffusiongemma.view.replay.place import check, place_of, write

needs_rights = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="whoever runs the tests may write everywhere"
)


@pytest.fixture
def mask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def of(path: Path) -> str:
    """What a file is to a test: its kind and content."""
    return path.read_text() if os.path.isfile(path) else "nothing"  # whatever its name


def test_a_new_file_and_a_replay_again(tmp_path: Path) -> None:
    place = place_of(str(tmp_path / "out.html"))
    check(place)
    assert os.listdir(tmp_path) == []
    write(place, "<p>one</p>")
    check(place)
    write(place, "<p>two</p>")
    assert place.read_text().endswith("<p>two</p>")
    assert os.listdir(tmp_path) == ["out.html"]


def test_an_empty_file_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / "out.html").touch()
    check(tmp_path / "out.html")


def test_relative_to_the_folder_and_to_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    assert place_of("out.html") == tmp_path.resolve() / "out.html"
    assert place_of("~/out.html") == tmp_path.resolve() / "home" / "out.html"


def test_what_a_link_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "link.html").symlink_to(tmp_path / "kept" / "real.html")
    place = place_of(str(tmp_path / "link.html"))
    check(place)
    write(place, "<p>")
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "kept" / "real.html").read_text().endswith("<p>")


def a_file(path: Path) -> Path:
    path.write_text("My thesis")
    return path


def a_pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def a_circle(path: Path) -> Path:
    path.symlink_to(path)
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (a_file, "holds something else"),
        (lambda path: path.parent, "is a folder. Name a file in it"),
        (lambda path: path / "missing" / "out.html", "no such folder. Create it first"),
        (lambda path: a_file(path) / "out.html", "Not a directory"),
        (lambda path: path.with_name("x" * 300), "too long"),
        (a_pipe, "no regular file"),
        (lambda path: Path("/dev/null"), "no regular file"),
        (a_circle, ""),
    ],
    ids=["a file", "a folder", "no folder", "in a file", "a long name", "a pipe", "a device", "a circle"],
)
@pytest.mark.skipif(os.name == "nt", reason="no pipes and devices there, and other words")
def test_nothing_else_is_overwritten(tmp_path: Path, make: Callable[[Path], Path], reason: str) -> None:
    named = make(tmp_path / "thing")
    before = of(named)
    with pytest.raises(ReplayError, match="The replay can't be written to .*" + reason):
        check(place_of(str(named)))
    assert of(named) == before


@needs_rights
def test_rights(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(ReplayError, match="Permission denied"):
        check(locked / "out.html")
    write(tmp_path / "out.html", "<p>")
    (tmp_path / "out.html").chmod(0o400)
    with pytest.raises(ReplayError, match="may not be written to"):
        check(tmp_path / "out.html")


def test_what_came_there_meanwhile_is_kept(tmp_path: Path) -> None:
    """As in `-o replay out.html > out.html`."""
    place = tmp_path / "out.html"
    check(place)
    a_file(place)
    with pytest.raises(ReplayError, match="holds something else"):
        write(place, "<p>")
    assert place.read_text() == "My thesis"


def test_a_home_that_nobody_has() -> None:
    with pytest.raises(ReplayError, match=r"can't be written to ~nobody-of-that-name.*directory\. Name"):
        place_of("~nobody-of-that-name/out.html")


@pytest.mark.skipif(os.name == "nt", reason="no such rights there")
@pytest.mark.usefixtures("mask")
def test_rights_of_the_file(tmp_path: Path) -> None:
    place = tmp_path / "out.html"
    write(place, "<p>")
    assert stat.S_IMODE(place.stat().st_mode) == 0o640
    place.chmod(0o600)
    write(place, "<p>")
    assert stat.S_IMODE(place.stat().st_mode) == 0o600


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "out.html"
    write(place, "<p>old</p>")

    class Full:
        """A disk that has room for the beginning."""

        def __init__(self, path: Path, *arguments: object, **named: object) -> None:
            path.write_text("half")

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *raised: object) -> None:
            pass

        def write(self, text: str) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "open", Full, raising=False)
    with pytest.raises(ReplayError, match="No space left on device"):
        write(place, "<p>new</p>")
    assert place.read_text().endswith("<p>old</p>")
    assert os.listdir(tmp_path) == ["out.html"]
