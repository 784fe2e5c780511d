"""Where the weights of a model are: on this machine, or on the Hub and after a download on this machine.

No network for what is here already. What isn't is announced before it comes: how much, how much of it is
here, and where it goes. All of it is of the announced commit, and checked against what the Hub's list says.

    settings   what the environment says: where the Hub is, where its cache, who asks
    disk       the little that is asked of a disk
    cache      what is on disk, whole or not, and what may not be read
    exchange   one request and its answer
    listing    what the Hub says it has, as far as it can be believed
    partial    a begun file: which parts of it are there
    transfer   one file as it comes, over several connections at once
    bringing   what is missing of a commit: announced, brought, checked, put in its place
    removing   letting go of what is here
    failures   what goes wrong, in plain words
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..catalog import EMBEDDED_CHECKPOINT, HUB_SOURCES, MODEL_VARIABLE, Source, chosen_folder
from ..errors import (
    CheckpointNotFoundError,
    DiskSpaceError,
    DownloadError,
    FileAccessError,
    HubAccessError,
    HubConnectionError,
    RemovalError,
)
from ..layout import CONFIG_FILE, IMAGE_FILES, is_file, is_folder, read_files, read_start, weights_here
from ..wording import quoted, tell
from . import bringing, cache, listing, settings
from .cache import Repository, Snapshot
from .disk import file_size
from .exchange import CheckWanted
from .failures import Lack, in_plain_words, offline, size
from .failures import listed as _listed
from .partial import PARTIAL_SUFFIX
from .removing import Removal, plan, remove
from .settings import check_environment

__all__ = [
    "PARTIAL_SUFFIX",
    "Checkpoint",
    "OnDisk",
    "Removal",
    "check_environment",
    "download",
    "how_to_mend",
    "locate",
    "newest",
    "on_disk",
    "removal",
    "remove",
]

# "owner/name", maybe with a revision, and the address of its page. A Path has made one slash of two.
REPOSITORY = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@[^/]*)?")
ADDRESS = re.compile(r"(?:https?:/+[^/]+|hf:|huggingface\.co|hf\.co)/+(\w[\w.-]*/\w[\w.-]*)(?:[/?#@].*)?")

OF_ONES_OWN = (
    "Put a whole checkpoint there, or take the model out with `llm diffusiongemma remove` (its name is in "
    "`llm diffusiongemma status`)."
)

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


def locate(
    source: Source,
    model_id: str,
    check_size: CheckSize,
    check_wanted: CheckWanted = lambda: None,
    announce: Callable[[int], None] = lambda weight_bytes: None,
) -> Checkpoint:
    """Find a checkpoint on disk. What is not there of one of the Hub is downloaded. One of a folder is logged as
    `model_id`.

    `check_size` is asked before a download and before the network is blamed, not for what is here. `announce` is
    called with the size of the weights just before they come.
    `check_wanted` is asked again and again while a download goes on, and raises to end it.

    Raises `CheckpointNotFoundError` if there is no such folder, `FileAccessError` if it can't be read,
    and for a download `HubConnectionError`, `HubAccessError`, `DiskSpaceError`, `DownloadError`, and what
    `check_size` and `check_wanted` raise.
    """
    where = source.where
    if isinstance(where, Path):
        with cache.readable(where):
            _check_folder(where)
            cache.check_readable(where)
            return Checkpoint(where, f"{model_id}@{_fingerprint(where)}")
    here = _find(source)
    folder = here.folder if here is not None else None
    if here is None or here.missing:
        try:
            folder = _download(source, here, check_size, check_wanted, announce)
        except (HubConnectionError, HubAccessError, DownloadError, DiskSpaceError) as error:
            # Text needs no image processor. A prompt with an image will say that it is not there.
            if here is None or here.damaged or {*here.missing} - {*IMAGE_FILES}:
                if isinstance(error, HubConnectionError | DiskSpaceError):
                    raise type(error)(f"{error}\n{WITHOUT_THEM}") from error
                raise
    assert folder is not None
    return _checkpoint(source, folder)


def _checkpoint(source: Source, snapshot: Path) -> Checkpoint:
    # The cache names a snapshot's folder after its commit.
    return Checkpoint(snapshot, f"{source.where}@{snapshot.name}")


def download(source: Source, update: bool = False, check_wanted: CheckWanted = lambda: None) -> Checkpoint:
    """Bring what is missing of a repository; to `update` means to bring the newest commit, whatever is here.

    What was here before stays, and is named. Raises what `locate` does, but for memory.
    """
    if isinstance(source.where, Path):
        return locate(source, str(source.where), lambda weight_bytes: None, check_wanted)
    here = _find(source)
    if here is not None and not here.missing:
        if not update or newest(source, check_wanted) == here.commit:
            return _checkpoint(source, here.folder)
        checkpoint = _checkpoint(source, _download(source, here, lambda weight_bytes: None, check_wanted))
        before = removal(replace(source, revision=here.commit))
        tell(
            f"The weights of {source.where} from before (commit {here.commit[:12]}, {size(before.num_bytes)} of "
            f"their own) stay on disk. To remove them: hf cache rm {here.commit}"
        )
        return checkpoint
    return _checkpoint(source, _download(source, here, lambda weight_bytes: None, check_wanted))


def removal(source: Source) -> Removal:
    """What would be let go of a repository, or of its revision if the source names one. Changes nothing.

    Raises `RemovalError` for a folder of one's own and if there is nothing, `CheckpointNotFoundError` for what can
    be no revision, and `FileAccessError`.
    """
    if isinstance(source.where, Path):
        raise RemovalError(
            f"{quoted(source.where)} is a folder of your own, which is never deleted from here. If you don't need "
            "it any more, delete it yourself."
        )
    _check_revision(source)
    return plan(source.where, source.revision)


@dataclass(frozen=True)
class OnDisk:
    """What is on this machine of a source, whole or not. Of a folder of one's own all of it is."""

    folder: Path
    commit: str | None
    """of a repository"""
    num_bytes: int
    """of what a reply needs, whole files and begun ones"""
    missing_bytes: int | None
    """how many are still to come; None if the Hub has to say it"""
    is_whole: bool
    """whether a prompt would ask nobody"""


def on_disk(source: Source) -> OnDisk | None:
    """What a prompt would find, and None if that is nothing. Asks no network.

    Raises `CheckpointNotFoundError` for what can be no revision, and `FileAccessError`.
    """
    where = source.where
    if isinstance(where, Path):
        with cache.readable(where):
            files = read_files(where)
            return OnDisk(where, None, sum(map(file_size, files)), 0, True) if files else None
    here = _find(source)
    if here is None:
        return None
    with cache.readable(here.folder):
        num_bytes, missing_bytes = cache.sizes(Repository.of(where), here)
    return OnDisk(here.folder, here.commit, num_bytes, missing_bytes, not here.missing)


def newest(source: Source, check_wanted: CheckWanted = lambda: None) -> str:
    """The commit that a repository's branch or tag is now, as the Hub says; of None the main branch.

    Raises `HubConnectionError`, `HubAccessError`, `DownloadError` and `CheckpointNotFoundError`.
    """
    here = _find(source)
    lack = Lack(str(source.where), here, source.revision)
    with in_plain_words(lack):
        settings.check_usable()
        if settings.is_offline():
            raise offline(lack)
        return listing.ask(lack.repo, source.revision, check_wanted).commit


def _find(source: Source) -> Snapshot | None:
    """What a prompt would use of a repository. Raises `CheckpointNotFoundError` and `FileAccessError`."""
    _check_revision(source)
    assert isinstance(source.where, str)
    return cache.find(source.where, source.revision)


def _check_revision(source: Source) -> None:
    if source.revision is not None and (objection := listing.objection(source.revision)):
        raise CheckpointNotFoundError(
            f"{quoted(repr(source.revision), 100)} {objection}, so it can't be a revision of {source.where}. "
            "Name a branch, a tag or a whole commit of it."
        )


def _download(
    source: Source,
    here: Snapshot | None,
    check_size: CheckSize,
    check_wanted: CheckWanted,
    announce: Callable[[int], None] = lambda weight_bytes: None,
) -> Path:
    """Bring what is missing of a repository, saying so first, and return its snapshot's folder."""
    repo, revision, weight_bytes = str(source.where), source.revision, source.weight_bytes
    lack = Lack(repo, here, revision)
    # Its weights fit no other commit, and should not come twice. What is whole is here for an update.
    update_of = here.commit if here is not None and not here.missing else None
    commit = here.commit if here is not None and here.has_weights and not update_of else None
    if here is not None and lack.is_small:
        weight_bytes = _checkpoint(source, here.folder).weight_bytes
    repository = Repository.of(repo)
    ref = None if revision is not None and listing.COMMIT.fullmatch(revision) else revision or "main"
    with in_plain_words(lack):
        if not settings.is_offline():
            # A slip in a setting is sure, and the weights' size is an assumption.
            settings.check_usable()
        try:
            if settings.is_offline():
                raise offline(lack)
            found = listing.ask(repo, revision, check_wanted, commit)
            is_newest = found.commit != commit
            wanted = bringing.prepare(found, repository, ref, is_newest, check_wanted, update_of)
        except Exception:
            # What this machine can tell goes before what somebody else is to blame for.
            if weight_bytes is not None:
                check_size(weight_bytes)
            if not settings.is_offline():
                cache.check_writable(repository)
            raise
        check_size(wanted.weight_bytes)
        if commit is not None and is_newest:
            # The Hub has it no more, so nobody can go on with what is begun of it.
            repository.tree(commit).unlink(missing_ok=True)
        return bringing.bring(wanted, announce)


def how_to_mend(source: str | Path, folder: Path) -> str:
    """What to do about a checkpoint that can't be used, wherever it is from."""
    try:
        cache.check_readable(folder)
        damaged = cache.damaged_files(folder) if isinstance(source, str) else []
    except FileAccessError as error:
        return str(error)
    if isinstance(source, str):
        if damaged:
            names = _listed(file.name for file in damaged)
            contents = _listed(cache.removable(file) for file in damaged)
            return f"Damaged: {names}. Delete {contents}, and the next prompt downloads only that again."
        return (
            f"The folder is part of the Hugging Face cache. `hf cache verify {source}` says whether any of its "
            "files are damaged: if so delete those, and the next prompt downloads only them again."
        )
    if source == EMBEDDED_CHECKPOINT:
        return "The folder is part of this plugin: install it again."
    if source != chosen_folder():
        return f"The folder is that of a model of your own. {OF_ONES_OWN}"
    return f"{MODEL_VARIABLE} names the folder. Set it to another one, or unset it for the Hub's weights."


def _check_folder(folder: Path) -> None:
    """Raises `CheckpointNotFoundError` with what may have been meant instead."""
    if not is_folder(folder):
        if folder != chosen_folder():
            raise CheckpointNotFoundError(
                f"There is no folder {quoted(folder)} any more: a model of your own is to be in it. {OF_ONES_OWN}"
            )
        raise CheckpointNotFoundError(_what_else(folder))
    snapshots = sorted(file.parent for file in folder.glob(f"snapshots/*/{CONFIG_FILE}"))
    if snapshots and not is_file(folder / CONFIG_FILE):
        way_out = f"Set {MODEL_VARIABLE} to that one." if folder == chosen_folder() else OF_ONES_OWN
        raise CheckpointNotFoundError(
            f"{quoted(folder)} is a repository's folder in a Hugging Face cache, where the checkpoint is the "
            f"folder {quoted(snapshots[-1])}. {way_out}"
        )


def _what_else(folder: Path) -> str:
    if folder.exists():
        return f"{quoted(folder)} is a file. Set {MODEL_VARIABLE} to the folder of a DiffusionGemma checkpoint."
    text = str(folder)
    no_folder = f"There is no folder {quoted(text)}."
    match = ADDRESS.fullmatch(text) or REPOSITORY.fullmatch(text)
    repo = match[1] if match else text
    for source in HUB_SOURCES:
        if repo.casefold() in (str(source).casefold(), str(source).partition("/")[2].casefold()):
            return (
                f"{no_folder} {MODEL_VARIABLE} takes a folder, and {source} is a repository of the Hugging Face "
                f"Hub: unset the variable, and `llm -m diffusiongemma-{source.representation}` runs it."
            )
    if match:
        return (
            f"{no_folder} {MODEL_VARIABLE} takes a folder. If {repo} is a repository of the Hugging Face Hub, "
            f"unset the variable, and make it a model with `llm diffusiongemma add NAME {repo}`."
        )
    return (
        f"{no_folder} Set {MODEL_VARIABLE} to a folder with a DiffusionGemma checkpoint, or unset it to use the "
        "weights from the Hugging Face Hub."
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
