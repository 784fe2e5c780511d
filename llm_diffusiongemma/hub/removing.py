"""Letting go of what is on disk of a repository: first what it is, then, if that is wanted, doing it."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import RemovalError
from ..wording import quoted
from . import settings
from .cache import Repository, commits_of, read_tree, readable
from .disk import file_size, if_there
from .exchange import TICK_SECONDS
from .partial import JOURNAL_SUFFIX, PARTIAL_SUFFIX, bytes_here, discard

# What a repository's folder is made of, by whoever.
PARTS = ("blobs", "snapshots", "refs", "trees", ".no_exist")

IN_USE = "Wait until it is done, or stop it, and run the command again."


@dataclass(frozen=True)
class Removal:
    """What would go of a repository."""

    repo: str
    commits: tuple[str, ...]
    num_bytes: int
    """that the disk gets back"""
    is_all: bool
    """whether nothing of the repository stays in the cache"""


def plan(repo: str, revision: str | None) -> Removal:
    """What there is of a repository, or what of a revision of it no other one needs.

    Raises `RemovalError` if there is nothing, and `FileAccessError`.
    """
    repository = Repository.of(repo)
    with readable(repository.folder):
        commits = commits_of(repository, revision)
        is_all = revision is None or {*commits_of(repository, None)} == {*commits}
        if not commits and not (is_all and repository.folder.is_dir()):
            of = repo if revision is None else f"{repo} in revision {quoted(revision, 100)}"
            raise RemovalError(
                f"Nothing of {of} is in this machine's Hugging Face cache ({quoted(settings.cache_folder())})."
            )
        strategy = _strategy(repository, commits)
        if strategy is not None:
            num_bytes = strategy.expected_freed_size
        elif is_all:
            num_bytes = sum(map(file_size, _blobs(repository)))
        else:
            raise RemovalError(
                f"What is here of {repo} is not in order, so what a single revision of it needs can't be told. "
                f"Delete the folder {quoted(repository.folder)} to remove all of it."
            )
        num_bytes += sum(map(bytes_here, _partials(repository, commits, is_all)))
    return Removal(repo, tuple(commits), num_bytes, is_all)


def remove(removal: Removal) -> None:
    """Raises `RemovalError` if a download is using it, or the disk doesn't let it go.

    A model that another process has loaded is not known of: where open files can be removed, as on Linux and
    macOS, it stays whole until that process ends.
    """
    repository = Repository.of(removal.repo)
    is_elsewhere = repository.folder.is_symlink()
    folder = repository.folder.resolve()
    try:
        with _held(repository) as locks:
            strategy = _strategy(repository, removal.commits)
            if strategy is not None:
                strategy.execute()
            for partial in _partials(repository, removal.commits, removal.is_all):
                discard(partial)
            for commit in removal.commits:
                repository.tree(commit).unlink(missing_ok=True)
                _remove_folder(repository.snapshot(commit))
            if removal.is_all:
                if is_elsewhere:
                    _remove_parts(folder)
                    repository.folder.unlink(missing_ok=True)
                else:
                    _remove_folder(folder)
                for lock in locks:
                    lock.unlink(missing_ok=True)
                with suppress(OSError):
                    repository.lock("x").parent.rmdir()
    except OSError as error:
        if isinstance(error, RemovalError):
            raise
        raise RemovalError(
            f"Not all of {removal.repo} could be removed: {quoted(error)}. If another program has it open, end "
            "that one, and run the command again."
        ) from error


def _remove_folder(folder: Path) -> None:
    """Of a link to one only the link."""
    with if_there():
        if folder.is_symlink():
            folder.unlink()
        else:
            shutil.rmtree(folder)


def _remove_parts(folder: Path) -> None:
    """Where a link has led to a folder, something of its owner's may be in it, too."""
    for part in PARTS:
        _remove_folder(folder / part)
    with suppress(OSError):
        folder.rmdir()


def _strategy(repository: Repository, commits: Collection[str]) -> Any:
    """huggingface_hub's own way: it knows which contents others need, and what repositories share.

    None if it finds the repository there in a state that it doesn't understand.
    """
    from huggingface_hub import scan_cache_dir

    if not commits:
        return None
    found = scan_cache_dir(repository.folder.parent)
    mine = [repo for repo in found.repos if repo.repo_path.resolve() == repository.folder.resolve()]
    if not mine or not {*commits} <= {revision.commit_hash for revision in mine[0].revisions}:
        return None
    # It would take a commit from every repository that has it, as a copy of this one may; and what a link in a
    # snapshot leads to, wherever that is.
    root = repository.folder.resolve()
    revisions = (
        replace(
            each, files=frozenset(file for file in each.files if root in file.blob_path.parent.resolve().parents)
        )
        for each in mine[0].revisions
    )
    only = replace(mine[0], revisions=frozenset(revisions))
    return replace(found, repos=frozenset({only})).delete_revisions(*commits)


def _blobs(repository: Repository) -> Iterator[Path]:
    return (blob for blob in repository.blobs.glob("*") if not blob.name.endswith(".incomplete"))


def _partials(repository: Repository, commits: Collection[str], is_all: bool) -> list[Path]:
    """Begun files that nothing else could go on with."""
    found = [place for place in repository.blobs.glob("*.incomplete") if not place.name.endswith(JOURNAL_SUFFIX)]
    if is_all:
        return found
    mine = _contents(repository, commits) - _contents(repository, {*commits_of(repository, None)} - {*commits})
    return [place for place in found if place.name.removesuffix(PARTIAL_SUFFIX) in mine]


def _contents(repository: Repository, commits: Collection[str]) -> set[str]:
    trees = [read_tree(repository, commit) or {} for commit in commits]
    return {file.content_id for tree in trees for file in tree.values() if file.content_id is not None}


@contextmanager
def _held(repository: Repository) -> Iterator[list[Path]]:
    """All the locks that there are of a repository. Raises `RemovalError` if somebody has one."""
    from huggingface_hub.utils import WeakFileLock

    locks = sorted(repository.lock("x").parent.glob("*.lock"))
    with ExitStack() as stack:
        for lock in locks:
            try:
                stack.enter_context(WeakFileLock(lock, timeout=TICK_SECONDS))
            except TimeoutError as error:
                raise RemovalError(
                    f"{repository.repo} is in use: another process is downloading it. {IN_USE}"
                ) from error
        yield locks
