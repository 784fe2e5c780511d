"""Bringing what is missing of one commit: announced, gone on with, checked, and only then put in its place."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Any

from ..errors import DiskSpaceError, DownloadError
from ..layout import WEIGHTS_SUFFIX, missing_weights
from ..wording import quoted, tell
from . import settings
from .cache import (
    HASH_CHUNK_BYTES,
    PARTIAL_SUFFIX,
    Repository,
    check_writable,
    file_size,
    is_whole,
    nearest,
    state_in,
    write_tree,
    write_whole,
)
from .exchange import (
    TICK_SECONDS,
    TROUBLES,
    Answer,
    CheckWanted,
    NoAnswerError,
    RefusedError,
    UnusableAnswerError,
    exchange,
    pause,
    recover,
)
from .failures import WITHOUT_THEM, listed, size
from .listing import Listing, RemoteFile, complete, file_url, needed

LOCK_SILENCE_SECONDS = 1.0
SLOW_TO_HASH_BYTES = 10**9
SOON_HERE_AGAIN_BYTES = 10**8

# No web server need hand out more at once. What is larger comes in parts.
LARGEST_ANSWER_BYTES = 50 * 10**9
# A file that comes more slowly than so many bytes in such a time will never be here.
TRICKLE_SECONDS = 60.0
TRICKLE_BYTES = 60_000

CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(?:\d{1,18}|\*)")


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
            file.size or 0 if self.is_here(file) else min(file.size or 0, file_size(self.partial(file)))
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
    listing: Listing, repository: Repository, ref: str | None, is_newest: bool, check_wanted: CheckWanted
) -> Download:
    """What is to be downloaded. Raises `DownloadError` if the repository has no weights that can be loaded."""
    names = needed(listing.files)
    if not any(name.endswith(WEIGHTS_SUFFIX) for name in names):
        raise DownloadError(
            f"{listing.repo} has no weights in safetensors files in its commit {listing.commit} on "
            f"{settings.shown_endpoint()}."
        )
    listing = complete(listing, names, check_wanted)
    return Download(listing, repository, names, ref, is_newest, check_wanted)


def bring(download: Download) -> Path:
    """Bring what is missing, saying so first, and return the snapshot's folder, all of it checked.

    Raises `ExchangeError`s, `OSError`s of the disk, `DiskSpaceError` and `DownloadError`.
    """
    folder = _bring(download)
    # An index may name weights that are not called as usual.
    more = {*missing_weights(folder)} & download.listing.files.keys()
    if more:
        listing = complete(download.listing, more, download.check_wanted)
        download = replace(download, listing=listing, names={*download.names, *more})
        _bring(download)
    if download.ref is not None:
        ref = download.repository.ref(download.ref)
        if download.is_newest or not ref.exists():
            with contextlib.suppress(OSError):  # a snapshot of main is found without it
                write_whole(ref, download.listing.commit)
    return folder


def _bring(download: Download) -> Path:
    check_writable(download.repository)
    _clean_up(download)
    free_bytes = _check_disk(download)
    _announce(download, free_bytes)
    write_tree(download.repository, download.listing)
    try:
        for file in download.files:
            with _lock(download, file):
                if not download.is_here(file):
                    _fetch(download, file)
                _link(download, file)
    except KeyboardInterrupt:
        # It goes on up as it is: click ends the command, and a program's own Ctrl-C stays its own.
        tell(
            f"\nStopped. {size(download.bytes_here())} of {size(download.total_bytes)} are on disk and stay "
            "there: the next prompt goes on from there."
        )
        raise
    return download.folder


def _clean_up(download: Download) -> None:
    """Remove begun files that can't be gone on with: of contents that this commit hasn't, or longer than they."""
    from huggingface_hub.utils import WeakFileLock

    sizes = {download.partial(file).name: file.size for file in download.listing.files.values() if file.content_id}
    if download.repository.blobs.is_dir():
        for partial in download.repository.blobs.glob("*" + PARTIAL_SUFFIX):
            whole = sizes.get(partial.name, 0)
            if partial.is_fifo() or (whole is not None and file_size(partial) > whole):
                lock = download.repository.lock(partial.name.removesuffix(PARTIAL_SUFFIX))
                lock.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(TimeoutError), WeakFileLock(lock, timeout=TICK_SECONDS):
                    partial.unlink(missing_ok=True)  # nobody else is at it


def _check_disk(download: Download) -> int:
    """The free bytes of the cache's disk. Refuses if they are too few for what is still to come."""
    cache = download.repository.folder.parent
    free_bytes = shutil.disk_usage(nearest(cache)).free
    missing_bytes = download.total_bytes - download.bytes_here()
    if free_bytes < missing_bytes:
        raise DiskSpaceError(
            f"{download.listing.repo} needs {size(missing_bytes)} more on disk, and where the cache is "
            f"({quoted(cache)}) only {size(free_bytes)} are free. Free some space, or set HF_HUB_CACHE to a "
            f"folder on a larger disk.\n{WITHOUT_THEM}"
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
    part = f", {size(here)} of it here already" if here else ""
    tell(
        f"The weights of {repo} are not {'all ' if here else ''}on this machine yet.\n"
        f"Downloading {size(download.total_bytes)} in {len(download.files)} files{part}, "
        f"to {cache} ({size(free_bytes)} free).\n"
        "Ctrl-C stops it; the next prompt goes on where it was."
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


class _TooLongError(DownloadError):
    """More comes than was announced."""


def _fetch(download: Download, file: RemoteFile) -> None:
    """Bring one file into the cache, going on where an earlier attempt was cut, and check it."""
    partial = download.partial(file)
    partial.parent.mkdir(parents=True, exist_ok=True)
    began_with = file_size(partial)
    try:
        is_right = _receive(download, file, partial)
        if not is_right and began_with:
            tell(f"What was here of {file.name} does not belong to it: downloading all of it.")
            partial.unlink()
            is_right = _receive(download, file, partial)
    except _TooLongError:
        if file_size(partial) != began_with or not began_with:
            partial.unlink()
        raise
    if not is_right:
        partial.unlink()
        raise DownloadError(
            f"{file.name} of {download.listing.repo} came damaged: its checksum is not the one that the Hub "
            "names. It has been deleted. Run the command again to download it again."
        )
    partial.replace(download.blob(file))


def _receive(download: Download, file: RemoteFile, partial: Path) -> bool:
    """Write what is still missing of a file behind what is there, to the disk. Whether all of it is right."""
    with partial.open("ab", buffering=0) as stream, _bar(file) as bar:
        receiver = _Receiver(download, file, stream, bar)
        receiver.take_what_is_here(partial)
        while receiver.offset < receiver.size:
            receiver.ask()
        os.fsync(stream.fileno())
    return bool(receiver.digest.hexdigest() == file.content_id)


class _Receiver:
    """One file as it comes. `offset` bytes of it are on disk and in `digest`."""

    def __init__(self, download: Download, file: RemoteFile, stream: FileIO, bar: Any) -> None:
        self.size = file.size or 0
        self.offset = 0
        self.digest = file.digest()
        self._download = download
        self._file = file
        self._stream = stream
        self._bar = bar
        self._failures = 0
        self._takes_parts = True
        self._watched_from = (time.monotonic(), 0)

    def take_what_is_here(self, partial: Path) -> None:
        count = file_size(partial)
        if count > SLOW_TO_HASH_BYTES:
            tell(f"Checking what is here of {self._file.name} ...")
        if count:
            with partial.open("rb") as stream:
                while chunk := stream.read(HASH_CHUNK_BYTES):
                    self._download.check_wanted()
                    self._count(chunk)
        self._watch_anew()

    def ask(self) -> None:
        """One request for the rest, or a part of it. What may pass of failures is waited for."""
        headers, check_wanted = settings.headers(), self._download.check_wanted
        end = min(self.size, self.offset + LARGEST_ANSWER_BYTES)
        if self._takes_parts and (self.offset or end < self.size):
            headers["Range"] = f"bytes={self.offset}-" + (str(end - 1) if end < self.size else "")
        url = file_url(self._download.listing, self._file.name)
        try:
            with exchange("GET", url, headers, settings.download_silence_seconds(), check_wanted) as answer:
                if answer.status in (200, 206):
                    self._take(answer, end)
                    return
                if answer.status == 416 and "Range" in headers:
                    self._takes_parts = False
                    return
                if answer.status not in TROUBLES:
                    raise RefusedError(answer)
            pause(answer, self._failures, self._download.listing.repo, check_wanted)
            self._watch_anew()
        except NoAnswerError:
            if not recover(self._failures, check_wanted):
                raise
        self._failures += 1

    def _take(self, answer: Answer, end: int) -> None:
        if answer.status == 206:
            match = CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
            if match is None or int(match[1]) != self.offset or answer.is_encoded:
                if not self._takes_parts:
                    raise UnusableAnswerError(f"it hands out other parts of {self._file.name} than were asked for")
                self._takes_parts = False  # and asked for all of it
                return
        else:
            end = self.size
            self._begin_again(answer)
        if answer.length is not None and self.offset + answer.length > self.size:
            raise self._too_long()
        for chunk in answer.chunks:
            if self.offset + len(chunk) > self.size:
                raise self._too_long()
            rest = memoryview(chunk)
            while rest:
                rest = rest[self._stream.write(rest) :]
            self._count(chunk)
            self._failures = 0
            self._watch()
        if self.offset < end:
            raise self._not_whole(self.offset)

    def _begin_again(self, answer: Answer) -> None:
        """Drop what is here for an answer that is all of the file, as far as it says. A login page is not."""
        if self.offset:
            is_all = answer.length == self.size or (answer.length is None and self.offset < SOON_HERE_AGAIN_BYTES)
            if not is_all:
                raise self._not_whole(self.offset)
            self._stream.truncate(0)
            self._bar.update(-self.offset)
            self.offset, self.digest = 0, self._file.digest()
            self._watch_anew()

    def _count(self, chunk: bytes) -> None:
        self.digest.update(chunk)
        self.offset += len(chunk)
        self._bar.update(len(chunk))

    def _watch(self) -> None:
        """Raises `DownloadError` if it would take for ever, though something comes."""
        began_at, began_with = self._watched_from
        if time.monotonic() < began_at + TRICKLE_SECONDS:
            return
        if self.offset < began_with + TRICKLE_BYTES:
            raise DownloadError(
                f"{self._file.name} of {self._download.listing.repo} comes too slowly to ever be here: "
                f"{self.offset - began_with:,} bytes in {TRICKLE_SECONDS:.0f} s. Check the network, and run the "
                "command again to go on from there."
            )
        self._watch_anew()

    def _watch_anew(self) -> None:
        self._watched_from = (time.monotonic(), self.offset)

    def _not_whole(self, count: int) -> DownloadError:
        return DownloadError(
            f"{self._file.name} of {self._download.listing.repo} did not come whole ({count:,} of {self.size:,} "
            "bytes). Run the command again to go on from there."
        )

    def _too_long(self) -> DownloadError:
        return _TooLongError(
            f"{self._file.name} of {self._download.listing.repo} is longer than the {size(self.size)} that the "
            f"Hub at {settings.shown_endpoint()} announced. What came of it has been deleted. Run the command "
            "again; if it stays so, check HF_ENDPOINT and proxy settings."
        )


def _bar(file: RemoteFile) -> Any:
    """How far it is, on a terminal, and unless HF_HUB_DISABLE_PROGRESS_BARS forbids it."""
    from huggingface_hub.utils import tqdm

    is_small = not file.name.endswith(WEIGHTS_SUFFIX)
    return tqdm(  # type: ignore[no-untyped-call]
        desc=file.name[-40:], total=file.size, unit="B", unit_scale=True, disable=True if is_small else None
    )


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
