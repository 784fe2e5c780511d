"""The little that is asked of a disk, where what isn't there is no error."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(file: Path, text: str, mode: int = 0o666) -> None:
    """So that whoever reads it meets the old text or the new one. Of `mode` the process's mask is taken away."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # Nobody can have put something else there, and no name is too long for it.
    draft = file.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(draft, "x", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, mode)) as stream:
            stream.write(text)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def file_size(file: Path) -> int:
    """0 if there is no such file."""
    with if_there():
        return file.stat().st_size
    return 0


def nearest(place: Path) -> Path:
    """The nearest folder that is there."""
    while not place.exists():
        place = place.parent
    return place


def is_folder(place: Path) -> bool:
    with if_there():
        return stat.S_ISDIR(place.stat().st_mode)
    return False


@contextmanager
def if_there() -> Iterator[None]:
    """Go on behind the block if what it looks at isn't there, or its links lead in a circle."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            raise
