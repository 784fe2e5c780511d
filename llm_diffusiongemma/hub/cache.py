"""What is on disk of a repository, in the cache's layout that huggingface_hub and others share.

    models--OWNER--NAME/
      blobs/ID               contents, named by their SHA-256 or, if they are small, by git's SHA-1
      snapshots/COMMIT/NAME  links to them, or files where links can't be made
      refs/NAME              the commit of a branch or tag when it was asked for: of main the newest
      trees/COMMIT.json      what all there is in a commit

Nothing here asks the network, and a file that this user may not read is not taken for one that is missing.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..documents import Document, DocumentError, conform, parse_object
from ..errors import DiffusionGemmaError
from ..layout import (
    READ_FILES,
    WEIGHTS_SUFFIX,
    missing_files,
    missing_weights,
    read_files,
    unreadable,
    weights_here,
)
from . import settings
from .disk import file_size, if_there, is_folder, nearest, write_whole
from .listing import COMMIT, GIT_SHA1, SHA256, Listing, RemoteFile, by_name, needed, remote_file
from .partial import HASH_CHUNK_BYTES, PARTIAL_SUFFIX, bytes_here

# As safetensors has it.
MAX_HEADER_BYTES = 100_000_000
TREE_FORMAT = 1

State = Literal["whole", "missing", "damaged"]


@dataclass(frozen=True)
class Repository:
    """A repository's folder in the cache, there or not."""

    repo: str
    folder: Path

    @classmethod
    def of(cls, repo: str) -> Repository:
        return cls(repo, settings.cache_folder() / f"models--{repo.replace('/', '--')}")

    @property
    def blobs(self) -> Path:
        return self.folder / "blobs"

    def ref(self, name: str) -> Path:
        return self.folder / "refs" / name

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def blob(self, content_id: str) -> Path:
        return self.blobs / content_id

    def partial(self, content_id: str) -> Path:
        return self.blobs / (content_id + PARTIAL_SUFFIX)

    def lock(self, content_id: str) -> Path:
        """As huggingface_hub names it."""
        return self.folder.parent / ".locks" / self.folder.name / f"{content_id}.lock"

    def tree(self, commit: str) -> Path:
        return self.folder / "trees" / f"{commit}.json"


@dataclass(frozen=True)
class Snapshot:
    """A commit on this machine, whole or not."""

    folder: Path
    missing: Sequence[str]
    """the files that a reply needs and that are not there, or not as they should be"""
    damaged: Sequence[str]
    """those of them that are there"""
    has_weights: bool
    """whether any of its weights are here, whole or begun"""

    @property
    def commit(self) -> str:
        """The cache names a snapshot's folder after it."""
        return self.folder.name


def find(repo: str, revision: str | None = None) -> Snapshot | None:
    """The snapshot of a revision; if any will do, the best: a whole one if there is any, else the one to complete.

    Raises `FileAccessError` if this user may not read it.
    """
    repository = Repository.of(repo)
    with readable(repository.folder):
        commits = commits_of(repository, revision)
        found = [_look_at(repository, repository.snapshot(commit)) for commit in commits]
    whole = [snapshot for snapshot in found if not snapshot.missing]
    # Only a commit that the Hub can be asked for can be completed.
    begun = [snapshot for snapshot in found if COMMIT.fullmatch(snapshot.folder.name)]
    begun.sort(key=lambda snapshot: not snapshot.has_weights)
    return next(iter(whole + begun), None)


def commits_of(repository: Repository, revision: str | None) -> list[str]:
    """What is here, whole or begun, of a revision or of all: first what was the newest, then the last made."""
    commits = [folder.name for folder in _snapshots(repository)]
    if revision is None:
        return commits
    wanted = revision if COMMIT.fullmatch(revision) else _commit_of(repository, revision)
    return [commit for commit in commits if commit == wanted]


def _snapshots(repository: Repository) -> list[Path]:
    with if_there():
        folders = [
            Path(entry) for entry in os.scandir(repository.folder / "snapshots") if is_folder(Path(entry.path))
        ]
        main = _commit_of(repository, "main")
        folders.sort(key=lambda folder: (folder.name == main, folder.stat().st_mtime), reverse=True)
        return folders
    return []


def _commit_of(repository: Repository, name: str) -> str | None:
    """What a branch or tag was when it was asked for, if that was noted."""
    try:
        return _note(repository.ref(name)).decode().strip()
    except (OSError, ValueError):
        return None


def _note(file: Path) -> bytes:
    """What was noted beside the snapshots. Raises `OSError` if nothing was: nobody waits at a pipe."""
    if not file.is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file))
    return file.read_bytes()


def _look_at(repository: Repository, folder: Path) -> Snapshot:
    listed = read_tree(repository, folder.name)
    check_readable(folder, repository.folder)
    weights = missing_weights(folder)
    if listed is None:
        # It is known which files every checkpoint has, from the index which weights, from them how long they are.
        names = {file.name for file in _small_files(folder)}
        missing = {*missing_files(folder), *weights}
    else:
        small = {name for name in needed(listed) if not name.endswith(WEIGHTS_SUFFIX)}
        names = small | {file.name for file in weights_here(folder)}
        # What the repository doesn't have there is no use in asking for: loading says so.
        missing = {*weights} & listed.keys()
    states = {name: _state(repository, folder / name, (listed or {}).get(name)) for name in names}
    damaged = {name for name, state in states.items() if state == "damaged"}
    if listed is None:
        damaged |= {file.name for file in weights_here(folder) if not _has_its_length(file)}
    missing |= damaged | {name for name, state in states.items() if state == "missing"}
    return Snapshot(
        folder,
        sorted(missing),
        sorted(damaged),
        any(file.name not in missing for file in folder.glob("*" + WEIGHTS_SUFFIX))
        or any(_is_begun(repository, file) for file in (listed or {}).values()),
    )


def sizes(repository: Repository, snapshot: Snapshot) -> tuple[int, int | None]:
    """How many bytes of what a reply needs of a snapshot are here, and how many aren't, if that is known."""
    listed = read_tree(repository, snapshot.commit)
    if listed is None:
        here = read_files(snapshot.folder)
        count = sum(file_size(file) for file in here if file.name not in snapshot.damaged)
        return count, None if snapshot.missing else 0
    # An index may name weights that are not called as usual.
    weights = {*missing_weights(snapshot.folder), *(file.name for file in weights_here(snapshot.folder))}
    names = needed(listed) | weights & listed.keys()
    here_bytes = total_bytes = 0
    for file in (listed[name] for name in names):
        total_bytes += file.size or 0
        here_bytes += _bytes_here(repository, snapshot, file)
    return here_bytes, total_bytes - here_bytes


def _bytes_here(repository: Repository, snapshot: Snapshot, file: RemoteFile) -> int:
    if file.size is None or file.content_id is None:
        return 0
    if state_in(repository, snapshot.commit, file) == "whole":
        return file.size
    return min(bytes_here(repository.partial(file.content_id)), file.size)


def _is_begun(repository: Repository, file: RemoteFile) -> bool:
    if file.content_id is None or not file.name.endswith(WEIGHTS_SUFFIX):
        return False
    return file_size(repository.blob(file.content_id)) + file_size(repository.partial(file.content_id)) > 0


def _small_files(folder: Path) -> list[Path]:
    with if_there():
        return [folder / name for name in sorted(os.listdir(folder)) if name in READ_FILES]
    return []


def damaged_files(folder: Path) -> list[Path]:
    """The files of a snapshot that are not as the cache has named them, or, of weights, cut short or longer.

    Raises `FileAccessError` if one may not be read.
    """
    repository = Repository("", folder.parent.parent)
    with readable(repository.folder):
        small = [file for file in _small_files(folder) if _state(repository, file, None) == "damaged"]
        return small + [file for file in weights_here(folder) if not _has_its_length(file)]


def _has_its_length(weights: Path) -> bool:
    """Whether a safetensors file ends where its header says that it does. True if there is no telling."""
    with weights.open("rb") as stream:
        header_length = int.from_bytes(stream.read(8), "little")
        size = weights.stat().st_size
        if header_length > MAX_HEADER_BYTES or header_length + 8 > size:
            return False
        try:
            header = parse_object(stream.read(header_length))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
            return 8 + header_length + max(ends, default=0) == size
        except (DocumentError, KeyError, IndexError, TypeError):
            return False


def removable(file: Path) -> Path:
    """What has to go for a snapshot's file to be downloaded again: its content, or the file itself."""
    target = _target(file)
    return target if target is not None and target.parent == file.parent.parent.parent / "blobs" else file


def _target(file: Path) -> Path | None:
    """Where a link leads at first: behind that the cache may share contents between repositories."""
    try:
        return Path(os.path.normpath(file.parent / os.readlink(file)))
    except OSError:
        return None


def _state(repository: Repository, file: Path, listed: RemoteFile | None) -> State:
    """Raises `PermissionError` if it may not be read."""
    with if_there():
        status = _open(file)
        if status is None:
            return "missing"
        if listed is not None and listed.size is not None:
            if status.st_size != listed.size:
                return "damaged" if status.st_size else "missing"
        elif status.st_size == 0:
            return "missing"
        named = _name_of_content(repository, file)
        content_id = named if listed is None or listed.content_id is None else listed.content_id
        if named is not None and named != content_id:
            return "damaged"  # a link to another commit's
        name = file.name if listed is None else listed.name
        if content_id is None or name not in READ_FILES:
            return "whole"  # a copy in place of a link can't be told, and weights take minutes to
        version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        is_same = _content_id(file, version, len(content_id)) == content_id
        return "whole" if is_same else "damaged"
    return "missing"


def _name_of_content(repository: Repository, file: Path) -> str | None:
    target = _target(file)
    if target is None or target.parent != repository.blobs:
        return None
    return target.name if GIT_SHA1.fullmatch(target.name) or SHA256.fullmatch(target.name) else None


@functools.lru_cache(64)
def _content_id(file: Path, version: tuple[int, ...], digits: int) -> str:
    """The hash of a small file, made again when `version` says that the file is another."""
    digest = hashlib.sha256() if digits == 64 else hashlib.sha1(b"blob %d\0" % file.stat().st_size)
    with file.open("rb") as stream:
        while chunk := stream.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def state_in(repository: Repository, commit: str, file: RemoteFile) -> State:
    """Of a listed file whose content, or the file itself, may be here."""
    assert file.content_id is not None
    states = [
        _state(repository, place, file)
        for place in (repository.blob(file.content_id), repository.snapshot(commit) / file.name)
    ]
    return "whole" if "whole" in states else "damaged" if "damaged" in states else "missing"


def is_whole(repository: Repository, place: Path, file: RemoteFile) -> bool:
    """Whether a listed file's content is in that place, as far as it can be told in no time."""
    return _state(repository, place, file) == "whole"


# --- what all there is in a commit --------------------------------------------------------------------------


class _TreeFile(Document):
    size: int
    blob_id: str
    lfs_sha256: str | None = None


class _Tree(Document):
    format_version: Literal[1]
    files: dict[str, _TreeFile]


def read_tree(repository: Repository, commit: str) -> Mapping[str, RemoteFile] | None:
    """As it was noted, by us or by huggingface_hub; None if it wasn't, or can't be read."""
    try:
        tree = conform(_Tree, parse_object(_note(repository.tree(commit))))
        return by_name(
            remote_file(name, file.size, file.blob_id, file.lfs_sha256) for name, file in tree.files.items()
        )
    except (OSError, DocumentError):
        return None


def files_here(repository: Repository) -> list[RemoteFile]:
    """All that the commits have which are on this machine, whole or begun."""
    trees = (read_tree(repository, commit) or {} for commit in commits_of(repository, None))
    return [file for tree in trees for file in tree.values()]


def write_tree(repository: Repository, listing: Listing) -> None:
    """Note what there is, as huggingface_hub does. If that is not known of all, nothing is noted."""
    files = {}
    for name, file in sorted(listing.files.items()):
        if file.size is None or file.git_sha1 is None:
            return
        files[name] = {"size": file.size, "blob_id": file.git_sha1}
        if file.sha256 is not None:
            files[name] |= {"lfs_sha256": file.sha256, "lfs_size": file.size}
    write_whole(repository.tree(listing.commit), json.dumps({"format_version": TREE_FORMAT, "files": files}))


# --- what may not be read -------------------------------------------------------------------------------------


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Raises `FileAccessError` for what can't be read, which is then no reason to download or delete it."""
    try:
        yield
    except OSError as error:
        if isinstance(error, DiffusionGemmaError):
            raise
        raise unreadable(Path(error.filename or folder), error) from error


def check_readable(folder: Path, whole: Path | None = None) -> None:
    """Raises `FileAccessError` if this user may not read a checkpoint's files. `whole` is where the folder is."""
    with readable(whole or folder):
        for name in os.listdir(folder):
            with if_there():
                if name in READ_FILES or name.endswith(WEIGHTS_SUFFIX):
                    _open(folder / name)


def _open(file: Path) -> os.stat_result | None:
    """Its status, after trying whether it may be read. None if it is no file, but something special."""
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        return None
    with file.open("rb"):
        return status


def check_writable(repository: Repository) -> None:
    """Raises `OSError` if nothing can be put into the repository's folder."""
    place = nearest(repository.blobs)
    if not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
    is_effective = os.access in os.supports_effective_ids
    if not os.access(place, os.W_OK | os.X_OK, effective_ids=is_effective):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
