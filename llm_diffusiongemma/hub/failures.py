"""What can go wrong with a download in plain words, told apart by where it arose.

What could not be sent is told in `settings`, and what may not be read in `cache`. Here: there was no answer, or
the answer was no yes, or no Hub's, or the disk did not take it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..catalog import HUB_SOURCES
from ..errors import (
    CheckpointNotFoundError,
    DiffusionGemmaError,
    DiskSpaceError,
    DownloadError,
    HubAccessError,
    HubConnectionError,
)
from ..layout import WEIGHTS_SUFFIX
from ..wording import quoted
from . import settings
from .cache import Repository, Snapshot
from .disk import file_size
from .exchange import ExchangeError, RefusedError, UnusableAnswerError
from .listing import NoHubError

BAD_CREDENTIALS = "Invalid credentials in Authorization header"


@dataclass(frozen=True)
class Lack:
    """What of a repository isn't here, as the beginning of a sentence, and what can be done by hand."""

    repo: str
    here: Snapshot | None
    revision: str | None = None

    def __str__(self) -> str:
        here = self.here
        if here is not None and not here.missing:
            return f"The weights of {self.repo} are here (commit {here.commit[:12]})"
        if here is not None and self.is_small:
            damaged = [name for name in here.missing if name in here.damaged]
            lacking = [name for name in here.missing if name not in here.damaged]
            faults = [f"{listed(lacking)} is not"] if lacking else []
            faults += [f"{listed(damaged)} is not as the Hub has it (damaged, or edited)"] if damaged else []
            return f"The weights of {self.repo} are in {quoted(here.folder)}, but {' and '.join(faults)}"
        blobs = Repository.of(self.repo).blobs
        begun = "only partly" if any(file_size(blob) for blob in blobs.glob("*")) else "not"
        return f"The weights of {self.repo} are {begun} in this machine's Hugging Face cache"

    @property
    def is_small(self) -> bool:
        return self.here is not None and not any(name.endswith(WEIGHTS_SUFFIX) for name in self.here.missing)

    @property
    def by_hand(self) -> str:
        if self.here is not None and not self.here.missing:
            return "or use what is here."
        if self.here is not None and self.is_small:
            if self.here.damaged:
                return (
                    "it downloads only that. To use a file of your own, copy the folder and make the copy a model "
                    "with `llm diffusiongemma add`."
                )
            return "it downloads only that. Or put a copy of it there yourself."
        return f"or fetch them where there is a network with: {self.command}"

    @property
    def command(self) -> str:
        revision = "" if self.revision is None else f" --revision {quoted(self.revision)}"
        return f"hf download {self.repo}{revision}"


@contextmanager
def in_plain_words(lack: Lack) -> Iterator[None]:
    """Turn what a request, its answer and the disk can raise into errors of this plugin."""
    try:
        yield
    except DiffusionGemmaError:
        raise
    except RefusedError as error:
        raise _refused(lack, error) from error
    except NoHubError as error:
        raise DownloadError(
            f"What answers at {settings.shown_endpoint()} is not a Hugging Face Hub. Check HF_ENDPOINT, if you "
            "set it, and whether this network wants you to log in first."
        ) from error
    except UnusableAnswerError as error:
        raise DownloadError(
            f"What the Hub at {settings.shown_endpoint()} says can't be used: {quoted(error)}. Nothing of that "
            f"was downloaded. Check HF_ENDPOINT, if you set it; or fetch the weights with: {lack.command}"
        ) from error
    except ExchangeError as error:
        raise HubConnectionError(
            f"{lack}, and the Hub at {settings.shown_endpoint()} can't be reached or went silent "
            f"({quoted(error)}). Check the network, and HF_ENDPOINT and proxy settings if there are any, and run "
            "the command again; what is on disk is kept."
        ) from error
    except OSError as error:
        raise _not_kept(lack.repo, error) from error


def offline(lack: Lack) -> HubConnectionError:
    what = "ask for a newer commit" if lack.here is not None and not lack.here.missing else "fetch what is missing"
    return HubConnectionError(
        f"{lack}, and HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids to {what}. Unset it and run the command "
        f"again, {lack.by_hand}"
    )


def _refused(lack: Lack, error: RefusedError) -> DiffusionGemmaError:
    """The Hub answered, and it was no yes."""
    hub, repo, status = f"The Hub at {settings.shown_endpoint()}", lack.repo, error.status
    if error.code == "GatedRepo":
        return HubAccessError(
            f"{repo} is gated: its authors want you to accept a licence. Do so on its page, "
            f"{settings.shown_endpoint()}/{repo}, then log in with `hf auth login` or set HF_TOKEN, and run the "
            "command again."
        )
    if error.code == "RevisionNotFound" and lack.revision is not None:
        return CheckpointNotFoundError(
            f"The Hub has {repo}, but not its revision {quoted(lack.revision, 100)}. Name a branch, a tag or a "
            "whole commit that it has."
        )
    if error.code == "RevisionNotFound":
        return DownloadError(
            f"The Hub has {repo}, but not the revision that was asked for. Run the command again; if it stays so, "
            "the repository has been changed or emptied."
        )
    is_hidden = status == 401 and not error.was_logged_in and error.words != BAD_CREDENTIALS
    if error.code == "RepoNotFound" or status == 404 or is_hidden:
        is_known = repo in map(str, HUB_SOURCES)
        check = "Check" if is_known else "Most likely there is a slip in that name. If not, check"
        return DownloadError(
            f"{hub} does not have {repo}, or not all of its files, or hides it from you. {check} "
            "HF_ENDPOINT, if you set it; if the repository is private, log in with `hf auth login`."
        )
    its_words = f" It says: {error.words}" if error.words else ""
    if status in (401, 403):
        return HubAccessError(
            f"The Hub refuses access to {repo} (status {status}). Log in again with `hf auth login`, or correct "
            f"or unset HF_TOKEN.{its_words}"
        )
    if error.wait_seconds is not None:
        return DownloadError(
            f"{hub} wants no more requests for {_duration(error.wait_seconds)} (status {status}), which is too "
            f"long to wait for {repo}. Run the command again after that; what is on disk is kept.{its_words}"
        )
    if status == 429:
        return DownloadError(
            f"The Hub has had too many requests from here (status 429) while asked for {repo}. Log in with "
            f"`hf auth login` for a higher limit, or wait some minutes and run the command again.{its_words}"
        )
    trouble = "has trouble of its own" if status >= 500 else "refuses the request"
    return DownloadError(
        f"{hub} {trouble} (status {status}), so {repo} can't be downloaded now. Try again later; what is on disk "
        f"is kept.{its_words}"
    )


def _not_kept(repo: str, error: OSError) -> DiffusionGemmaError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskSpaceError(
            f"The disk ran full while {repo} was downloaded to {quoted(settings.cache_folder())}. What came is "
            "kept: free some space and run the command again, or set HF_HUB_CACHE to a folder on a larger disk."
        )
    return DownloadError(
        f"{repo} can't be written to the Hugging Face cache: {quoted(error)}. Correct that, or set HF_HUB_CACHE "
        "to another folder."
    )


def _duration(seconds: float) -> str:
    if seconds < 7200:
        return f"{seconds / 60:,.0f} minutes"
    return f"{seconds / 3600:,.0f} hours" if seconds < 10**10 else "ever"


def size(count: int) -> str:
    """A number of bytes as the Hub and shops for disks write it."""
    if count >= 10**8:
        return f"{count / 1e9:,.1f} GB"
    return f"{count / 1e6:,.1f} MB" if count >= 10**5 else f"{count / 1e3:,.1f} kB"


def listed(names: Iterable[object]) -> str:
    return ", ".join(map(quoted, names))
