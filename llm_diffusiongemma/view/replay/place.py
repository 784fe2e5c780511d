"""Where a replay is written: what may be there before, and what becomes of it."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from ...errors import ReplayError
from ...wording import quoted

# By this the next replay knows that it overwrites one. A comment may stand before all else.
FIRST_LINE = "<!-- A replay made by llm-diffusiongemma -->\n"


def place_of(named: str) -> Path:
    """The file that somebody has named; of a link what it leads to. Raises `ReplayError`."""
    try:
        return Path(named).expanduser().resolve()
    except (OSError, RuntimeError) as error:  # nobody's home, or links that lead in a circle
        raise _impossible(Path(named), quoted(error).rstrip("."), "Name another file.") from error


def check(place: Path) -> None:
    """Raises `ReplayError` if a replay could not be written there, or would be written over something else."""
    folder = place.parent
    try:
        with suppress(FileNotFoundError):
            _check_file(place)
        if not folder.exists():
            raise _impossible(place, "there is no such folder", "Create it first, or name another file.")
        # Its rights say little of a disk, and on Windows nothing.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except ReplayError:
        raise
    except OSError as error:
        raise _impossible(place, _reason(error), "Name a file in a folder that you can write to.") from error


def write(place: Path, page: str) -> None:
    """All of it or nothing, with the rights of the file that was there. Raises `ReplayError`."""
    from ...hub.disk import write_whole

    try:
        mode = 0o666
        with suppress(FileNotFoundError):
            _check_file(place)  # the reply may have taken minutes
            mode = stat.S_IMODE(place.stat().st_mode)
        write_whole(place, FIRST_LINE + page, mode)
    except ReplayError:
        raise
    except OSError as error:
        raise ReplayError(
            f"The replay is not written to {quoted(place)}: {_reason(error)}. The reply is whole all the same: by "
            "its seed, which `llm logs --json` has, both can be made again."
        ) from error


def _check_file(place: Path) -> None:
    status = place.stat()
    if stat.S_ISDIR(status.st_mode):
        raise _impossible(place, "it is a folder", f"Name a file in it: {quoted(place / 'replay.html')}")
    if not stat.S_ISREG(status.st_mode):
        raise _impossible(place, "it is no regular file", "Name another one.")
    if not os.access(place, os.W_OK):
        raise _impossible(place, "it may not be written to", "Name another file.")
    first_line = FIRST_LINE.encode()
    with place.open("rb") as file:
        if status.st_size and file.read(len(first_line)) != first_line:
            raise _impossible(
                place, "it holds something else, which would be lost", "Name another file, or delete it first."
            )


def _impossible(place: Path, reason: str, way_out: str) -> ReplayError:
    return ReplayError(f"The replay can't be written to {quoted(place)}: {reason}. {way_out}")


def _reason(error: OSError) -> str:
    return quoted(error.strerror or error)
