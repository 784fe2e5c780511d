"""Bringing what is missing of one commit: announced, gone on with, checked, and only then put in its place."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..catalog import HUB_SOURCES
from ..errors import DiskSpaceError, DownloadError
from ..layout import WEIGHTS_SUFFIX, missing_weights
from ..view.progress import Progress, indicate
from ..wording import quoted, tell
from . import settings
from .cache import Repository, check_writable, files_here, is_whole, state_in, write_tree
from .disk import file_size, nearest, write_whole
from .exchange import TICK_SECONDS, CheckWanted
from .failures import listed, size
from .listing import Listing, RemoteFile, complete, needed
from .partial import JOURNAL_SUFFIX, PARTIAL_SUFFIX, Partial, bytes_here, discard, is_large
from .transfer import LAST_SECONDS, Connections, TooLongError, Transfer

LOCK_SILENCE_SECONDS = 1.0
FILES_AT_ONCE = 3


@dataclass(frozen=True)
class Download:
    """What is wanted of a commit, and the cache's places for it."""

    listing: Listing
    repository: Repository
    names: Collection[str]
    ref: str | None
    """The branch or tag that was asked for; None for a commit."""
    is_newest: bool
    """Whether the commit is what that is now."""
    check_wanted: CheckWanted
    update_of: str | None = None
    """The commit that is here and does as well."""

    @property
    def files(self) -> list[RemoteFile]:
        """Small ones first: the index among them says what else there is."""
        files = [self.listing.files[name] for name in self.names]
        return sorted(files, key=lambda file: (file.name.endswith(WEIGHTS_SUFFIX), file.name))

    @property
    def folder(self) -> Path:
        return self.repository.snapshot(self.listing.commit)

    @property
    def total_bytes(self) -> int:
        return _sum(self.files)

    @property
    def weight_bytes(self) -> int:
        return _sum(file for file in self.files if file.name.endswith(WEIGHTS_SUFFIX))

    @property
    def missing(self) -> list[RemoteFile]:
        return [file for file in self.files if not self.is_here(file)]

    def is_here(self, file: RemoteFile) -> bool:
        return state_in(self.repository, self.listing.commit, file) == "whole"

    def bytes_here(self) -> int:
        """How much of it all is on disk, in whole files or begun ones."""
        return sum(
            file.size or 0 if self.is_here(file) else min(file.size or 0, bytes_here(self.partial(file)))
            for file in self.files
        )

    def partial(self, file: RemoteFile) -> Path:
        assert file.content_id is not None
        return self.repository.partial(file.content_id)

    def blob(self, file: RemoteFile) -> Path:
        assert file.content_id is not None
        return self.repository.blob(file.content_id)


def _sum(files: Any) -> int:
    return sum(file.size or 0 for file in files)


def prepare(
    listing: Listing,
    repository: Repository,
    ref: str | None,
    is_newest: bool,
    check_wanted: CheckWanted,
    update_of: str | None,
) -> Download:
    """What is to be downloaded. Raises `DownloadError` if the repository has no weights that can be loaded."""
    names = needed(listing.files)
    if not any(name.endswith(WEIGHTS_SUFFIX) for name in names):
        raise DownloadError(
            f"{listing.repo} has no weights in safetensors files in its commit {listing.commit} on "
            f"{settings.shown_endpoint()}."
        )
    listing = complete(listing, names, check_wanted)
    return Download(listing, repository, names, ref, is_newest, check_wanted, update_of)


def bring(download: Download, announce: Callable[[int], None]) -> Path:
    """Bring what is missing, saying so first, and return the snapshot's folder, all of it checked.

    `announce` is called with the size of all weights before any of them come.

    Raises `ExchangeError`s, `OSError`s of the disk, `DiskSpaceError` and `DownloadError`.
    """
    folder = _bring(download, announce)
    # An index may name weights that are not called as usual.
    more = {*missing_weights(folder)} & download.listing.files.keys()
    if more:
        listing = complete(download.listing, more, download.check_wanted)
        download = replace(download, listing=listing, names={*download.names, *more})
        _bring(download, announce)
    if download.ref is not None:
        ref = download.repository.ref(download.ref)
        if download.is_newest or not ref.exists():
            with contextlib.suppress(OSError):  # a snapshot of main is found without it
                write_whole(ref, download.listing.commit)
    return folder


def _bring(download: Download, announce: Callable[[int], None]) -> Path:
    check_writable(download.repository)
    _clean_up(download)
    free_bytes = _check_disk(download)
    _announce(download, free_bytes)
    if any(file.name.endswith(WEIGHTS_SUFFIX) for file in download.missing):
        announce(download.weight_bytes)
    write_tree(download.repository, download.listing)
    try:
        with _indicate(download) as progress:
            connections = Connections()
            large = [file for file in download.files if is_large(file.size or 0)]
            for file in download.files:
                if file not in large:
                    _bring_file(download, file, connections, progress)
            _bring_together(download, large, connections, progress)
    except KeyboardInterrupt:
        # It goes on up as it is: click ends the command, and a program's own Ctrl-C stays its own.
        tell(
            f"\nStopped. {size(download.bytes_here())} of {size(download.total_bytes)} are on disk and stay "
            "there: the same command goes on from there."
        )
        raise
    return download.folder


def _bring_together(
    download: Download, files: list[RemoteFile], connections: Connections, progress: Progress
) -> None:
    """Some files at a time, so that no connection has to wait for the end of one."""
    waiting = iter(files)
    errors: list[BaseException] = []
    is_over = threading.Event()
    lock = threading.Lock()

    def check_wanted() -> None:
        if is_over.is_set():
            raise _OverError

    def work() -> None:
        try:
            while not is_over.is_set():
                with lock:
                    file = next(waiting, None)
                if file is None:
                    return
                _bring_file(replace(download, check_wanted=check_wanted), file, connections, progress)
        except _OverError:
            pass
        except BaseException as error:  # raised again by who waits for it
            errors.append(error)
            is_over.set()

    threads = [threading.Thread(target=work, daemon=True, name="file") for _ in files[:FILES_AT_ONCE]]
    try:
        for thread in threads:
            thread.start()
        while alive := [thread for thread in threads if thread.is_alive()]:
            download.check_wanted()
            alive[0].join(TICK_SECONDS)
    finally:
        is_over.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join(LAST_SECONDS)
    if errors:
        raise errors[0]


class _OverError(Exception):
    """Nobody wants it any more."""


def _bring_file(download: Download, file: RemoteFile, connections: Connections, progress: Progress) -> None:
    with _lock(download, file):
        if not download.is_here(file):
            _fetch(download, file, connections, progress)
        _link(download, file)


def _clean_up(download: Download) -> None:
    """Remove begun files that can't be gone on with: of contents that no commit here has, or longer than they."""
    from huggingface_hub.utils import WeakFileLock

    files = [*files_here(download.repository), *download.listing.files.values()]
    sizes = {download.partial(file).name: file.size for file in files if file.content_id}
    if download.repository.blobs.is_dir():
        for partial in download.repository.blobs.glob("*" + PARTIAL_SUFFIX):
            whole = sizes.get(partial.name, 0)
            if partial.is_fifo() or (whole is not None and file_size(partial) > whole):
                lock = download.repository.lock(partial.name.removesuffix(PARTIAL_SUFFIX))
                lock.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(TimeoutError), WeakFileLock(lock, timeout=TICK_SECONDS):
                    discard(partial)  # nobody else is at it
        for journal in download.repository.blobs.glob("*" + JOURNAL_SUFFIX):
            if not journal.with_name(journal.name.removesuffix(JOURNAL_SUFFIX) + PARTIAL_SUFFIX).exists():
                journal.unlink(missing_ok=True)


def _check_disk(download: Download) -> int:
    """The free bytes of the cache's disk. Refuses if they are too few for what is still to come."""
    cache = download.repository.folder.parent
    free_bytes = shutil.disk_usage(nearest(cache)).free
    missing_bytes = download.total_bytes - download.bytes_here()
    if free_bytes < missing_bytes:
        raise DiskSpaceError(
            f"{download.listing.repo} needs {size(missing_bytes)} more on disk, and where the cache is "
            f"({quoted(cache)}) only {size(free_bytes)} are free. Free some space, or set HF_HUB_CACHE to a "
            "folder on a larger disk."
        )
    return free_bytes


def _announce(download: Download, free_bytes: int) -> None:
    missing = download.missing
    if not missing:
        return
    repo, cache = download.listing.repo, quoted(download.repository.folder.parent)
    if not any(file.name.endswith(WEIGHTS_SUFFIX) for file in missing):
        names = sorted(file.name for file in missing)
        count = _sum(missing)
        tell(f"The weights of {repo} are here, but not {listed(names)}. Downloading {size(count)} to {cache}.")
        return
    here = download.bytes_here()
    what = f"The weights of {repo} are not {'all ' if here else ''}on this machine yet."
    if download.update_of is not None:
        new, old = download.listing.commit[:12], download.update_of[:12]
        what = f"There is a newer commit of {repo}: {new}. Here is {old}."
    part = f", {size(here)} of it here already" if here else ""
    tell(
        f"{what}\n"
        f"Downloading {size(download.total_bytes)} in {len(download.files)} files{part}, "
        f"to {cache} ({size(free_bytes)} free).\n"
        "Ctrl-C stops it; the same command goes on where it was."
    )


@contextlib.contextmanager
def _lock(download: Download, file: RemoteFile) -> Iterator[None]:
    """Keep other processes from downloading the same file: ours, and huggingface_hub's."""
    from huggingface_hub.utils import WeakFileLock

    path = download.repository.lock(str(file.content_id))
    path.parent.mkdir(parents=True, exist_ok=True)
    is_told = False
    with contextlib.ExitStack() as stack:
        while True:
            download.check_wanted()
            try:
                stack.enter_context(WeakFileLock(path, timeout=LOCK_SILENCE_SECONDS))
                break
            except TimeoutError:
                if not is_told:
                    tell(f"Another process is downloading {file.name}; waiting for it. Ctrl-C stops it.")
                is_told = True
        yield


def _fetch(download: Download, file: RemoteFile, connections: Connections, progress: Progress) -> None:
    """Bring one file into the cache, going on where an earlier attempt was cut, and check it."""
    place = download.partial(file)
    began_with = file_size(place)
    partial = Partial(place, file.size or 0, file.digest)
    transfer = Transfer(download.listing, file, partial, connections, download.check_wanted, progress.advance)
    try:
        transfer.run()
        if partial.hexdigest() != file.content_id and began_with:
            tell(f"What was here of {file.name} does not belong to it: downloading all of it.")
            progress.advance(-partial.received)
            partial.restart()
            transfer.run()
    except TooLongError:
        if file_size(place) != began_with or not began_with:
            partial.discard()
        raise
    finally:
        partial.close()
    if partial.hexdigest() != file.content_id:
        partial.discard()
        raise DownloadError(
            f"{file.name} of {download.listing.repo} came damaged: its checksum is not the one that the Hub "
            "names. It has been deleted. Run the command again to download it again."
        )
    partial.move(download.blob(file))


@contextlib.contextmanager
def _indicate(download: Download) -> Iterator[Progress]:
    """How far it is, on a terminal, and unless HF_HUB_DISABLE_PROGRESS_BARS forbids it."""
    from huggingface_hub.utils import are_progress_bars_disabled

    repo = download.listing.repo
    names = {source.where: f"{source.representation} weights" for source in HUB_SOURCES}
    what = f"Downloading {names.get(repo) or quoted(repo.rpartition('/')[2], 60)}"
    if are_progress_bars_disabled():
        yield Progress(what, None)
        return
    with indicate(what, download.total_bytes, download.bytes_here()) as progress:
        yield progress


def _link(download: Download, file: RemoteFile) -> None:
    """Put a checked content in its place in the snapshot: a link, or where there are none the content itself."""
    blob, place = download.blob(file), download.folder / file.name
    place.parent.mkdir(parents=True, exist_ok=True)
    if blob.exists() and not (place.is_symlink() and place.resolve() == blob.resolve()):
        _put(blob, place)
    if not is_whole(download.repository, place, file):
        raise DownloadError(
            f"{quoted(place)} is not what has been downloaded: something else has changed it. Run the command "
            "again."
        )


def _put(blob: Path, place: Path) -> None:
    draft = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    draft.unlink(missing_ok=True)
    try:
        if not _links_are_forbidden():
            try:
                draft.symlink_to(os.path.relpath(blob, place.parent))
                draft.replace(place)
                return
            except (OSError, NotImplementedError):
                # Windows without developer mode, or a disk of its kind. A real fault will show at once.
                draft.unlink(missing_ok=True)
        if blob.is_symlink():  # of a cache that shares contents between repositories
            shutil.copyfile(blob, draft)
            draft.replace(place)
        else:
            blob.replace(place)
    finally:
        draft.unlink(missing_ok=True)


def _links_are_forbidden() -> bool:
    from huggingface_hub import constants

    return bool(getattr(constants, "HF_HUB_DISABLE_SYMLINKS", False))
