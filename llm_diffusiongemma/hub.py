"""Where the weights of a model are: on this machine, or on the Hub and after a download on this machine.

No network for what is here already. What isn't is announced before it comes: how much, how much of it is
here, and where it goes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import click

from .catalog import EMBEDDED_CHECKPOINT, MODEL_VARIABLE, ModelEntry
from .errors import (
    CheckpointNotFoundError,
    DiffusionGemmaError,
    DiskSpaceError,
    DownloadError,
    HubAccessError,
    HubConnectionError,
)

WEIGHTS_PATTERN = "*.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"

# What a reply needs of a repository. The same weights in other formats (.gguf, .pt) and whatever is in
# subfolders are not.
ALLOW_PATTERNS = [WEIGHTS_PATTERN, "*.json", "*.jinja"]
IGNORE_PATTERNS = ["*/*"]

# Ends as the Hub's own unfinished files do, so that `hf cache prune` knows it for what it is.
PARTIAL_SUFFIX = ".resumable.incomplete"

LISTING_TIMEOUT_SECONDS = 10.0
LOCK_SILENCE_SECONDS = 1.0
HASH_CHUNK_BYTES = 1 << 24
SLOW_TO_HASH_BYTES = 10**9
WORTH_A_BAR_BYTES = 10**8

WITHOUT_THEM = "To try the plugin without them use the embedded model: llm -m diffusiongemma-tiny"

CheckSize = Callable[[int], None]
"""Raises if this machine can't hold weights of so many bytes."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's folder, and the name under which a reply of it is logged."""

    folder: Path
    resolved_model: str

    @property
    def weight_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.folder.glob(WEIGHTS_PATTERN))


def locate(entry: ModelEntry, check_size: CheckSize) -> Checkpoint:
    """Find a model's checkpoint on disk. One of the Hub that is not there, or not all, is downloaded.

    `check_size` is asked before a download, not for what is here.

    Raises `CheckpointNotFoundError` if there is no such folder, and for a download `HubConnectionError`,
    `HubAccessError`, `DiskSpaceError`, `DownloadError`, and what `check_size` raises.
    """
    if isinstance(entry.source, Path):
        if not entry.source.is_dir():
            raise CheckpointNotFoundError(
                f"There is no folder {entry.source}. Set {MODEL_VARIABLE} to a folder with a DiffusionGemma "
                "checkpoint, or unset it to use the one from the Hugging Face Hub."
            )
        return Checkpoint(entry.source, f"{entry.model_id}@{_fingerprint(entry.source)}")
    folder = _in_hub_cache(entry.source) or _download(entry.source, check_size)
    # The cache names a snapshot's folder after its commit.
    return Checkpoint(folder, f"{entry.source}@{folder.name}")


def how_to_mend(source: str | Path) -> str:
    """What to do about a checkpoint that can't be used, wherever it is from."""
    if isinstance(source, str):
        return (
            f"The folder is part of the Hugging Face cache. `hf cache verify {source}` names its damaged files, "
            f"and after `hf cache rm model/{source}` the next prompt downloads it all again."
        )
    if source == EMBEDDED_CHECKPOINT:
        return "The folder is part of this plugin: install it again."
    return f"{MODEL_VARIABLE} names the folder. Set it to another one, or unset it for the Hub's checkpoint."


def _fingerprint(folder: Path) -> str:
    """What stands for a commit where there is none: a hash over the weight files' sizes and headers.

    Reading 52 GB to hash all of it would take longer than the reply. A safetensors header names every
    tensor, its shape and place, but not its values, so a little of the values goes in, too.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.glob(WEIGHTS_PATTERN)):
        digest.update(f"{file.name} {file.stat().st_size} ".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(1 << 20))
    return digest.hexdigest()[:12]


def _in_hub_cache(repo: str) -> Path | None:
    """The repository's snapshot if all of it is on this machine. Asks nobody but the disk."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                repo, allow_patterns=ALLOW_PATTERNS, ignore_patterns=IGNORE_PATTERNS, local_files_only=True
            )
        )
    except LocalEntryNotFoundError:
        return None
    # Only a cache of a recent huggingface_hub knows which files a snapshot should have.
    return folder if _has_all_weights(folder) else None


def _has_all_weights(folder: Path) -> bool:
    if not (folder / WEIGHTS_INDEX).is_file():
        return any(file.is_file() for file in folder.glob(WEIGHTS_PATTERN))
    try:
        names = set(json.loads((folder / WEIGHTS_INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return True  # It is here and damaged: loading says so.
    return all((folder / name).is_file() for name in names)


def _repo_folder(repo: str) -> Path:
    """The cache's folder of a repository, there or not."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(constants.HF_HUB_CACHE).expanduser().resolve()
    return cache / repo_folder_name(repo_id=repo, repo_type="model")


@dataclass(frozen=True)
class _RemoteFile:
    name: str
    size: int
    blob: str
    """Its name in the cache's folder of contents."""
    sha256: str | None
    """Known for large files only."""


@dataclass(frozen=True)
class _Snapshot:
    """What the Hub has, and the cache's places for it."""

    repo: str
    commit: str
    files: tuple[_RemoteFile, ...]

    @property
    def cache(self) -> Path:
        """The folder of all repositories."""
        return self.folder.parent

    @property
    def folder(self) -> Path:
        return _repo_folder(self.repo)

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def weight_bytes(self) -> int:
        return sum(file.size for file in self.files if Path(file.name).match(WEIGHTS_PATTERN))

    def blob(self, file: _RemoteFile) -> Path:
        return self.folder / "blobs" / file.blob

    def partial(self, file: _RemoteFile) -> Path:
        return self.folder / "blobs" / (file.blob + PARTIAL_SUFFIX)

    def is_here(self, file: _RemoteFile) -> bool:
        return self.blob(file).exists() or (self.folder / "snapshots" / self.commit / file.name).exists()

    def bytes_here(self) -> int:
        """How much of it all is on disk, in whole files or begun ones."""
        return sum(
            file.size if self.is_here(file) else min(file.size, _file_size(self.partial(file)))
            for file in self.files
        )


def _download(repo: str, check_size: CheckSize) -> Path:
    """Bring what is missing of a repository, saying so first, and return its snapshot's folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.file_download import are_symlinks_supported

    with _in_plain_words(repo):
        snapshot = _ask_hub(repo)
        check_size(snapshot.weight_bytes)
        free_bytes = _check_disk(snapshot)
        _announce(snapshot, free_bytes)
        try:
            # Without symlinks in the cache (Windows without developer mode) huggingface_hub would copy
            # our file to its place and keep both. It does all of the download then.
            if are_symlinks_supported(snapshot.cache):
                for file in snapshot.files:
                    _fetch_resumable(snapshot, file)
            # Fetches what is still missing, and links all into a snapshot.
            few_bytes = snapshot.total_bytes - snapshot.bytes_here() < WORTH_A_BAR_BYTES
            return Path(
                snapshot_download(
                    repo,
                    allow_patterns=ALLOW_PATTERNS,
                    ignore_patterns=IGNORE_PATTERNS,
                    tqdm_class=_no_bar() if few_bytes else None,
                )
            )
        except KeyboardInterrupt:
            # It goes on up as it is: click ends the command, and a program's own Ctrl-C stays its own.
            click.echo(
                f"\nStopped. {_size(snapshot.bytes_here())} of {_size(snapshot.total_bytes)} are on disk and "
                "stay there: the next prompt goes on from there.",
                err=True,
            )
            raise


def _ask_hub(repo: str) -> _Snapshot:
    """What the Hub has in a repository's newest commit. One small request."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import filter_repo_objects

    try:
        info = HfApi().model_info(repo, files_metadata=True, timeout=LISTING_TIMEOUT_SECONDS)
        if not info.sha:
            raise KeyError("sha")
        files = tuple(
            _RemoteFile(
                name=file.rfilename,
                size=int(file.size or 0),
                blob=file.lfs.sha256 if file.lfs else str(file.blob_id),
                sha256=file.lfs.sha256 if file.lfs else None,
            )
            for file in filter_repo_objects(
                info.siblings or [],
                allow_patterns=ALLOW_PATTERNS,
                ignore_patterns=IGNORE_PATTERNS,
                key=lambda file: file.rfilename,
            )
        )
    except (KeyError, TypeError, ValueError) as error:
        # A login page of a hotel, or whatever else is not the Hub and answers "200 OK".
        raise DownloadError(
            f"What answers at {constants.ENDPOINT} is not a Hugging Face Hub. Check HF_ENDPOINT, if you set "
            "it, and whether this network wants you to log in first."
        ) from error
    if not any(Path(file.name).match(WEIGHTS_PATTERN) for file in files):
        raise DownloadError(
            f"{repo} has no weights in safetensors files in its newest commit on {constants.ENDPOINT}."
        )
    return _Snapshot(repo, info.sha, files)


def _check_disk(snapshot: _Snapshot) -> int:
    """The free bytes of the cache's disk. Refuses if they are too few for what is still to come."""
    place = snapshot.cache
    while not place.exists():
        place = place.parent
    free_bytes = shutil.disk_usage(place).free
    missing_bytes = snapshot.total_bytes - snapshot.bytes_here()
    if free_bytes < missing_bytes:
        raise DiskSpaceError(
            f"{snapshot.repo} needs {_size(missing_bytes)} more on disk, and where the cache is "
            f"({snapshot.cache}) only {_size(free_bytes)} are free. Free some space, or set HF_HUB_CACHE to a "
            f"folder on a larger disk.\n{WITHOUT_THEM}"
        )
    return free_bytes


def _announce(snapshot: _Snapshot, free_bytes: int) -> None:
    here = snapshot.bytes_here()
    part = f", {_size(here)} of it here already" if here else ""
    click.echo(
        f"The weights of {snapshot.repo} are not {'all ' if here else ''}on this machine yet.\n"
        f"Downloading {_size(snapshot.total_bytes)} in {len(snapshot.files)} files{part}, "
        f"to {snapshot.cache} ({_size(free_bytes)} free).\n"
        "Ctrl-C stops it; the next prompt goes on where it was.",
        err=True,
    )


def _fetch_resumable(snapshot: _Snapshot, file: _RemoteFile) -> None:
    """Bring one weight file into the cache, going on where an earlier attempt was cut, and check it.

    huggingface_hub goes on by itself after a dropped connection, but deletes an unfinished file when its
    process ends, and transformers writes weights in files of up to 50 GB. So they come into a file of our
    own, which becomes the content that `snapshot_download` then finds.
    """
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    # Over plain HTTP the Hub hands out no larger files. Those are left to snapshot_download.
    if file.sha256 is None or file.size > constants.MAX_HTTP_DOWNLOAD_SIZE or snapshot.is_here(file):
        return
    blob, partial = snapshot.blob(file), snapshot.partial(file)
    blob.parent.mkdir(parents=True, exist_ok=True)
    with _lock(snapshot, file):
        if blob.exists():  # another process was faster
            return
        if _file_size(partial) > file.size:
            partial.unlink()
        with partial.open("ab") as stream:
            http_get(
                hf_hub_url(snapshot.repo, file.name, revision=snapshot.commit),
                stream,
                resume_size=_file_size(partial),
                # Compressed, a file can't be gone on with.
                headers=build_hf_headers(headers={"Accept-Encoding": "identity"}),
                expected_size=file.size,
                displayed_filename=file.name,
            )
        if file.size > SLOW_TO_HASH_BYTES:
            click.echo(f"Checking {file.name} ...", err=True)
        if _sha256(partial) != file.sha256:
            partial.unlink()
            raise DownloadError(
                f"{file.name} of {snapshot.repo} came damaged: its checksum is not the one that the Hub names. "
                "It has been deleted. Run the command again to download it again."
            )
        partial.replace(blob)


@contextlib.contextmanager
def _lock(snapshot: _Snapshot, file: _RemoteFile) -> Iterator[None]:
    """Keep other processes from downloading the same file: ours, and huggingface_hub's."""
    from huggingface_hub.utils import WeakFileLock

    path = snapshot.cache / ".locks" / snapshot.folder.name / f"{file.blob}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(path, timeout=LOCK_SILENCE_SECONDS))
        except TimeoutError:
            click.echo(f"Another process is downloading {file.name}; waiting for it.", err=True)
            stack.enter_context(WeakFileLock(path))
        yield


@contextlib.contextmanager
def _in_plain_words(repo: str) -> Iterator[None]:
    """Turn what huggingface_hub, the network and the disk can raise into errors of this plugin."""
    # The HTTP library's base class. Which library that is depends on huggingface_hub's version.
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError

    try:
        yield
    except (HTTPError, OSError) as raised:
        error: BaseException = raised
        # snapshot_download says with this that it has no local copy, either. Its reason is what matters.
        while isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
            error = error.__cause__
        if isinstance(error, DiffusionGemmaError):
            raise
        if isinstance(error, HfHubHTTPError):
            _raise_for_answer(repo, error)
        _raise_for_failure(repo, error)


def _raise_for_answer(repo: str, error: Any) -> NoReturn:
    """The Hub answered, and it was no yes."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        raise HubAccessError(
            f"{repo} is gated: its authors want you to accept a licence. Do so on its page, "
            f"{constants.ENDPOINT}/{repo}, then log in with `hf auth login` or set HF_TOKEN, and run the command "
            "again."
        ) from error
    if isinstance(error, RevisionNotFoundError):
        raise DownloadError(
            f"The Hub has {repo}, but not the revision that was asked for. Run the command again; if it stays "
            "so, the repository has been changed or emptied."
        ) from error
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        raise DownloadError(
            f"The Hub at {constants.ENDPOINT} does not have {repo}, or not all of its files, or hides it from "
            "you. Check HF_ENDPOINT, if you set it; if the repository is private, log in with `hf auth login`."
        ) from error
    if status in (401, 403):
        raise HubAccessError(
            f"The Hub refuses access to {repo} (status {status}). Log in again with `hf auth login`, or correct "
            "or unset HF_TOKEN."
        ) from error
    if status == 429:
        raise DownloadError(
            f"The Hub has had too many requests from here (status 429) while asked for {repo}. Log in with "
            "`hf auth login` for a higher limit, or wait some minutes and run the command again."
        ) from error
    trouble = "has trouble of its own" if status >= 500 else "refuses the request"
    raise DownloadError(
        f"The Hub at {constants.ENDPOINT} {trouble} (status {status}), so {repo} can't be downloaded now. Try "
        "again later; what is on disk is kept."
    ) from error


def _raise_for_failure(repo: str, error: BaseException) -> NoReturn:
    """There was no answer, or what came could not be used or kept."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    cached = "only partly" if any(_repo_folder(repo).glob("blobs/*")) else "not"
    here = f"The weights of {repo} are {cached} in this machine's Hugging Face cache"
    if isinstance(error, OfflineModeIsEnabled):
        raise HubConnectionError(
            f"{here}, and HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids to fetch them. Unset it and run the "
            f"command again, or fetch them where there is a network with: hf download {repo}\n{WITHOUT_THEM}"
        ) from error
    if isinstance(error, HTTPError):
        reason = str(error) or type(error).__name__
        raise HubConnectionError(
            f"{here}, and the Hub at {constants.ENDPOINT} can't be reached or went silent ({reason}). Check the "
            "network, and HF_ENDPOINT and proxy settings if there are any, and run the command again; what is "
            f"on disk is kept.\n{WITHOUT_THEM}"
        ) from error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise DiskSpaceError(
            f"The disk ran full while {repo} was downloaded to {constants.HF_HUB_CACHE}. What came is kept: "
            "free some space and run the command again, or set HF_HUB_CACHE to a folder on a larger disk."
        ) from error
    if isinstance(error, OSError) and error.errno is not None:
        raise DownloadError(
            f"{repo} can't be written to the Hugging Face cache: {error}. Correct that, or set HF_HUB_CACHE to "
            "another folder."
        ) from error
    # huggingface_hub compares a finished file's size with the announced one, and raises a bare OSError.
    raise DownloadError(
        f"{repo} did not come whole ({str(error).splitlines()[0]}). Run the command again to go on from there."
    ) from error


def _no_bar() -> type[Any]:
    """A progress bar that isn't shown. snapshot_download has three, for what can be a few small files."""
    from huggingface_hub.utils import tqdm

    class NoBar(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **{**settings, "disable": True})  # type: ignore[no-untyped-call]

    return NoBar


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _file_size(file: Path) -> int:
    """0 if there is no such file."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _size(count: int) -> str:
    """A number of bytes as the Hub and shops for disks write it."""
    return f"{count / 1e9:,.1f} GB" if count >= 10**8 else f"{count / 1e6:,.1f} MB"
