"""Where the weights of a model are: on this machine, or on the Hub and after a download on this machine.

No network for what is here already. What isn't is announced before it comes: how much, how much of it is
here, and where it goes.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import click

from .catalog import EMBEDDED_CHECKPOINT, FULL_REPO, MODEL_VARIABLE, ModelEntry
from .errors import (
    CheckpointNotFoundError,
    DiffusionGemmaError,
    DiskSpaceError,
    DownloadError,
    HubAccessError,
    HubConnectionError,
)
from .layout import (
    CONFIG_FILE,
    IMAGE_FILES,
    INDEX_FILE,
    WEIGHTS_SUFFIX,
    is_file,
    is_folder,
    is_here,
    missing_files,
    missing_weights,
    read_start,
    weights_among,
    weights_here,
)

SMALL_SUFFIXES = (".json", ".jinja")
FOREIGN_INDEX_SUFFIX = ".index.json"

# "owner/name", maybe with a revision, and the address of its page. A Path has made one slash of two.
REPOSITORY = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@[^/]*)?")
ADDRESS = re.compile(r"(?:https?:/+[^/]+|hf:|huggingface\.co|hf\.co)/+(\w[\w.-]*/\w[\w.-]*)(?:[/?#@].*)?")

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
        """Of what will be loaded: a copy of the weights in another layout doesn't count."""
        return sum(file.stat().st_size for file in weights_here(self.folder))


def locate(entry: ModelEntry, check_size: CheckSize) -> Checkpoint:
    """Find a model's checkpoint on disk. What is not there of one of the Hub is downloaded.

    `check_size` is asked before a download and before the network is blamed, not for what is here.

    Raises `CheckpointNotFoundError` if there is no such folder, and for a download `HubConnectionError`,
    `HubAccessError`, `DiskSpaceError`, `DownloadError`, and what `check_size` raises.
    """
    if isinstance(entry.source, Path):
        _check_folder(entry.source)
        return Checkpoint(entry.source, f"{entry.model_id}@{_fingerprint(entry.source)}")
    folder = _in_hub_cache(entry.source)
    missing = None if folder is None else _missing(entry.source, folder)
    if folder is None or missing:
        try:
            folder = _download(entry.source, folder, missing or [], entry.weight_bytes, check_size)
        except (HubConnectionError, HubAccessError, DownloadError, DiskSpaceError):
            # Text needs no image processor. A prompt with an image will say that it is not there.
            if folder is None or set(missing or []) - set(IMAGE_FILES):
                raise
    # The cache names a snapshot's folder after its commit.
    return Checkpoint(folder, f"{entry.source}@{folder.name}")


def how_to_mend(source: str | Path, folder: Path) -> str:
    """What to do about a checkpoint that can't be used, wherever it is from."""
    if isinstance(source, str):
        if damaged := _damaged(folder):
            names = _listed(file.name for file in damaged)
            contents = _listed(str(file.resolve()) for file in damaged)
            return f"Damaged: {names}. Delete {contents}, and the next prompt downloads only that again."
        return (
            f"The folder is part of the Hugging Face cache. `hf cache verify {source}` names its damaged files: "
            "delete those, and the next prompt downloads only them again. The last resort is "
            f"`hf cache rm model/{source}`, after which it downloads everything."
        )
    if source == EMBEDDED_CHECKPOINT:
        return "The folder is part of this plugin: install it again."
    return f"{MODEL_VARIABLE} names the folder. Set it to another one, or unset it for the Hub's checkpoint."


def _check_folder(folder: Path) -> None:
    """Raises `CheckpointNotFoundError` with what may have been meant instead."""
    if not is_folder(folder):
        raise CheckpointNotFoundError(_what_else(folder))
    snapshots = sorted(file.parent for file in folder.glob(f"snapshots/*/{CONFIG_FILE}"))
    if snapshots and not is_file(folder / CONFIG_FILE):
        raise CheckpointNotFoundError(
            f"{folder} is a repository's folder in a Hugging Face cache, where the checkpoint is the folder "
            f"{snapshots[-1]}. Set {MODEL_VARIABLE} to that one."
        )


def _what_else(folder: Path) -> str:
    if folder.exists():
        return f"{folder} is a file. Set {MODEL_VARIABLE} to the folder of a DiffusionGemma checkpoint."
    text = str(folder)
    no_folder = f"There is no folder {text}."
    match = ADDRESS.fullmatch(text) or REPOSITORY.fullmatch(text)
    repo = match[1] if match else text
    if repo.casefold() in (FULL_REPO.casefold(), FULL_REPO.partition("/")[2].casefold()):
        return (
            f"{no_folder} {MODEL_VARIABLE} takes a folder, and {FULL_REPO} is the repository of the Hugging Face "
            "Hub that `diffusiongemma` uses by itself: unset the variable, and the next prompt downloads it."
        )
    if match:
        return (
            f"{no_folder} {MODEL_VARIABLE} takes a folder. If {repo} is a repository of the Hugging Face Hub, "
            f"download it with `hf download {repo} --local-dir FOLDER` and set the variable to that folder, or "
            f"unset it to use {FULL_REPO}."
        )
    return (
        f"{no_folder} Set {MODEL_VARIABLE} to a folder with a DiffusionGemma checkpoint, or unset it to use the "
        "one from the Hugging Face Hub."
    )


def _fingerprint(folder: Path) -> str:
    """What stands for a commit where there is none: a hash over the weight files' sizes and headers.

    Reading 52 GB to hash all of it would take longer than the reply. A safetensors header names every
    tensor, its shape and place, but not its values, so a little of the values goes in, too.
    """
    digest = hashlib.sha256()
    for file in weights_here(folder):
        digest.update(f"{file.name} {file.stat().st_size} ".encode())
        digest.update(read_start(file, 1 << 20))
    return digest.hexdigest()[:12]


def _in_hub_cache(repo: str) -> Path | None:
    """The repository's snapshot on this machine, whole or not. Asks nobody but the disk."""
    folder = _repo_folder(repo)
    try:
        commit = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    snapshot = folder / "snapshots" / commit
    return snapshot if commit and snapshot.is_dir() else None


def _missing(repo: str, folder: Path) -> list[str]:
    """The files that a snapshot in the cache needs and lacks.

    huggingface_hub remembers what files the repository has. Of a cache without that (an older version's, or a
    copied one) it is known which files every checkpoint has, and from the index which weights.
    """
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    weights = missing_weights(folder)
    try:
        listed = {file.path for file in get_cached_repo_tree(repo, revision=folder.name)}
    except (CachedRepoTreeNotFoundError, ValueError):
        return sorted({*missing_files(folder), *weights})
    small = {name for name in _needed(listed) if not name.endswith(WEIGHTS_SUFFIX)}
    # What the repository doesn't have there is no use in asking for: loading says so.
    return sorted({name for name in small if not is_here(folder / name)} | {*weights} & listed)


def _needed(names: Iterable[str]) -> set[str]:
    """What a reply needs of a repository's files.

    Not the same weights in other formats or another layout, nor whatever is in subfolders.
    """
    flat = {name for name in names if "/" not in name}
    small = {name for name in flat if name.endswith(SMALL_SUFFIXES) and not name.endswith(FOREIGN_INDEX_SUFFIX)}
    return weights_among(flat) | small | flat & {INDEX_FILE}


def _damaged(folder: Path) -> list[Path]:
    """The small files of a snapshot whose content is not the one that the cache has named it after."""
    return [
        file
        for file in sorted(folder.iterdir())
        if file.name.endswith(SMALL_SUFFIXES) and file.is_file() and not _is_as_named(file.resolve())
    ]


def _is_as_named(blob: Path) -> bool:
    """Whether a content fits its name: its SHA-256 if it is a large file, else what git calls it."""
    if re.fullmatch("[0-9a-f]{64}", blob.name):
        return _sha256(blob) == blob.name
    if re.fullmatch("[0-9a-f]{40}", blob.name):
        content = blob.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == blob.name
    return True  # a copy in place of a link: it can't be told


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
    """What the Hub has in one commit, and the cache's places for it."""

    repo: str
    commit: str
    is_newest: bool
    files: tuple[_RemoteFile, ...]
    """Those that are needed."""
    others: dict[str, _RemoteFile]

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
        return sum(file.size for file in self.files if file.name.endswith(WEIGHTS_SUFFIX))

    @property
    def missing(self) -> list[_RemoteFile]:
        return [file for file in self.files if not self.is_here(file)]

    def blob(self, file: _RemoteFile) -> Path:
        return self.folder / "blobs" / file.blob

    def partial(self, file: _RemoteFile) -> Path:
        return self.folder / "blobs" / (file.blob + PARTIAL_SUFFIX)

    def places(self, file: _RemoteFile) -> tuple[Path, Path]:
        """Where its content may be: the second is a link to the first, or a file of its own."""
        return self.blob(file), self.folder / "snapshots" / self.commit / file.name

    def is_here(self, file: _RemoteFile) -> bool:
        return any(is_here(place) for place in self.places(file))

    def bytes_here(self) -> int:
        """How much of it all is on disk, in whole files or begun ones."""
        return sum(
            file.size if self.is_here(file) else min(file.size, _file_size(self.partial(file)))
            for file in self.files
        )


def _download(
    repo: str, here: Path | None, missing: Sequence[str], weight_bytes: int | None, check_size: CheckSize
) -> Path:
    """Bring what is missing of a repository, saying so first, and return its snapshot's folder.

    `here` is a snapshot that lacks the files `missing`, or None. `weight_bytes` is the weights' size as far as
    it is known without the Hub.
    """
    from huggingface_hub import constants

    commit = None
    if here is not None and any(is_here(file) for file in here.glob("*" + WEIGHTS_SUFFIX)):
        commit = here.name  # Its weights fit no other one, and should not come twice.
        if not any(name.endswith(WEIGHTS_SUFFIX) for name in missing):
            weight_bytes = Checkpoint(here, repo).weight_bytes
    with _in_plain_words(repo, here, missing):
        try:
            snapshot = _ask_hub(repo, commit)
        except Exception:
            # What this machine can tell goes before what somebody else is to blame for.
            if weight_bytes is not None:
                check_size(weight_bytes)
            if not constants.HF_HUB_OFFLINE:
                _check_writable(repo)
            raise
        check_size(snapshot.weight_bytes)
        folder = _fetch(snapshot)
        # An index may name weights that are not called as usual.
        more = set(missing_weights(folder)) & set(snapshot.others)
        if more:
            files = (*snapshot.files, *(snapshot.others[name] for name in sorted(more)))
            folder = _fetch(replace(snapshot, files=files))
        return folder


def _fetch(snapshot: _Snapshot) -> Path:
    """Bring the missing ones of a snapshot's files, saying so first, and return its folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.file_download import are_symlinks_supported

    _check_writable(snapshot.repo)
    free_bytes = _check_disk(snapshot)
    _announce(snapshot, free_bytes)
    try:
        _remove_empty_files(snapshot)
        # Without symlinks in the cache (Windows without developer mode) huggingface_hub would copy
        # our file to its place and keep both. It does all of the download then.
        if are_symlinks_supported(snapshot.cache):
            for file in snapshot.files:
                _fetch_resumable(snapshot, file)
        # Fetches what is still missing, and links all into a snapshot.
        few_bytes = snapshot.total_bytes - snapshot.bytes_here() < WORTH_A_BAR_BYTES
        return Path(
            snapshot_download(
                snapshot.repo,
                # Asked for by no name, it remembers which commit is the newest.
                revision=None if snapshot.is_newest else snapshot.commit,
                allow_patterns=[glob.escape(file.name) for file in snapshot.files],
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


def _remove_empty_files(snapshot: _Snapshot) -> None:
    """huggingface_hub takes a file for whole that is there, and an empty one has come to nothing."""
    for file in snapshot.missing:
        for place in snapshot.places(file):
            if file.size and place.is_file():
                place.unlink()


def _ask_hub(repo: str, commit: str | None) -> _Snapshot:
    """What the Hub has in a repository's commit, or in the newest if it is None or no longer there."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    if commit is not None:
        # The Hub's answer to an unknown commit is not always that it is one.
        with contextlib.suppress(RevisionNotFoundError, RepositoryNotFoundError):
            return _ask_hub_for(repo, commit)
    return _ask_hub_for(repo, None)


def _ask_hub_for(repo: str, revision: str | None) -> _Snapshot:
    """One small request. None is the newest commit."""
    from huggingface_hub import HfApi, constants

    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=LISTING_TIMEOUT_SECONDS)
        if not info.sha:
            raise KeyError("sha")
        listed = {
            file.rfilename: _RemoteFile(
                name=file.rfilename,
                size=int(file.size or 0),
                blob=file.lfs.sha256 if file.lfs else str(file.blob_id),
                sha256=file.lfs.sha256 if file.lfs else None,
            )
            for file in info.siblings or []
        }
    except (KeyError, TypeError, ValueError) as error:
        # A login page of a hotel, or whatever else is not the Hub and answers "200 OK".
        raise DownloadError(
            f"What answers at {constants.ENDPOINT} is not a Hugging Face Hub. Check HF_ENDPOINT, if you set "
            "it, and whether this network wants you to log in first."
        ) from error
    needed = _needed(listed)
    if not any(name.endswith(WEIGHTS_SUFFIX) for name in needed):
        raise DownloadError(
            f"{repo} has no weights in safetensors files in its newest commit on {constants.ENDPOINT}."
        )
    files = tuple(file for name, file in listed.items() if name in needed)
    others = {name: file for name, file in listed.items() if name not in needed}
    return _Snapshot(repo, info.sha, revision is None, files, others)


def _nearest(place: Path) -> Path:
    """The nearest folder that is there."""
    while not place.exists():
        place = place.parent
    return place


def _check_writable(repo: str) -> None:
    """Raises `OSError` if nothing can be put into the cache's folder of a repository."""
    place = _nearest(_repo_folder(repo) / "blobs")
    if not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))


def _check_disk(snapshot: _Snapshot) -> int:
    """The free bytes of the cache's disk. Refuses if they are too few for what is still to come."""
    free_bytes = shutil.disk_usage(_nearest(snapshot.cache)).free
    missing_bytes = snapshot.total_bytes - snapshot.bytes_here()
    if free_bytes < missing_bytes:
        raise DiskSpaceError(
            f"{snapshot.repo} needs {_size(missing_bytes)} more on disk, and where the cache is "
            f"({snapshot.cache}) only {_size(free_bytes)} are free. Free some space, or set HF_HUB_CACHE to a "
            f"folder on a larger disk.\n{WITHOUT_THEM}"
        )
    return free_bytes


def _announce(snapshot: _Snapshot, free_bytes: int) -> None:
    missing = snapshot.missing
    if not missing:
        return
    if not any(file.name.endswith(WEIGHTS_SUFFIX) for file in missing):
        names, count = _listed(file.name for file in missing), sum(file.size for file in missing)
        click.echo(
            f"The weights of {snapshot.repo} are here, but not {names}. Downloading {_size(count)} to "
            f"{snapshot.cache}.",
            err=True,
        )
        return
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
def _in_plain_words(repo: str, here: Path | None, missing: Sequence[str]) -> Iterator[None]:
    """Turn what huggingface_hub, the network and the disk can raise into errors of this plugin.

    `here` is a snapshot on this machine that lacks the files `missing`, or None.
    """
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
        _raise_for_failure(repo, here, missing, error)


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


def _raise_for_failure(repo: str, here: Path | None, missing: Sequence[str], error: BaseException) -> NoReturn:
    """There was no answer, or what came could not be used or kept."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    if here is not None and not any(name.endswith(WEIGHTS_SUFFIX) for name in missing):
        lack = f"The weights of {repo} are in {here}, but {_listed(missing)} is not"
        by_hand = "it downloads only that. Or put a copy of it there yourself."
    else:
        cached = "only partly" if any(_repo_folder(repo).glob("blobs/*")) else "not"
        lack = f"The weights of {repo} are {cached} in this machine's Hugging Face cache"
        by_hand = f"or fetch them where there is a network with: hf download {repo}"
    if isinstance(error, OfflineModeIsEnabled):
        raise HubConnectionError(
            f"{lack}, and HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids to fetch what is missing. Unset it "
            f"and run the command again, {by_hand}\n{WITHOUT_THEM}"
        ) from error
    if isinstance(error, HTTPError):
        reason = str(error) or type(error).__name__
        raise HubConnectionError(
            f"{lack}, and the Hub at {constants.ENDPOINT} can't be reached or went silent ({reason}). Check the "
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
    if count >= 10**8:
        return f"{count / 1e9:,.1f} GB"
    return f"{count / 1e6:,.1f} MB" if count >= 10**5 else f"{count / 1e3:,.1f} kB"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
