"""What the Hub says it has, as far as it can be believed: names that stay in a folder, ids that are hashes."""

from __future__ import annotations

import hashlib
import re
import time
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from ..documents import Document, DocumentError, conform, parse_object
from ..layout import READ_FILES, weights_among
from ..wording import printable, quoted, tell
from . import settings
from .exchange import (
    TROUBLES,
    Answer,
    CheckWanted,
    RefusedError,
    UnusableAnswerError,
    exchange,
    pause,
    whole_number,
)

MAX_LISTING_BYTES = 1 << 24
MAX_NAME_BYTES = 255
MAX_SIZE = 1 << 50

SLOW_SECONDS = 5.0

COMMIT = re.compile("[0-9a-f]{40}")
GIT_SHA1 = re.compile("[0-9a-f]{40}")
SHA256 = re.compile("[0-9a-f]{64}")
ETAG = re.compile('(?:W/)?"?([0-9a-f]{40}|[0-9a-f]{64})"?')

# What no system, or not Windows, takes in the name of a file or takes for something else.
FORBIDDEN_CHARACTERS = frozenset('\\:*?"<>|')
RESERVED_NAMES = frozenset({"con", "prn", "aux", "nul", "conin$", "conout$"}) | {
    f"{device}{number}" for device in ("com", "lpt") for number in "0123456789¹²³"
}


class _LargeFile(Document):
    sha256: str
    size: int | None = None


class _Sibling(Document):
    rfilename: str
    size: int | None = None
    blobId: str | None = None  # noqa: N815
    lfs: _LargeFile | None = None


class _Listing(Document):
    sha: str
    siblings: list[_Sibling]


@dataclass(frozen=True)
class RemoteFile:
    """A file of a commit. What the Hub hasn't named is None. A large file has a SHA-256."""

    name: str
    size: int | None
    git_sha1: str | None
    sha256: str | None

    @property
    def content_id(self) -> str | None:
        """The hash that it is checked by, and the name of its content in the cache."""
        return self.sha256 or self.git_sha1

    @property
    def is_known(self) -> bool:
        """Whether what comes can be checked."""
        return self.size is not None and self.content_id is not None

    def digest(self) -> Any:
        """The beginning of the hash that `content_id` is. The size has to be known."""
        if self.sha256 is not None:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % (self.size or 0))


@dataclass(frozen=True)
class Listing:
    """What a repository has in one commit."""

    repo: str
    commit: str
    files: Mapping[str, RemoteFile]


def remote_file(name: str, size: int | None, git_sha1: str | None, sha256: str | None) -> RemoteFile:
    """Raises `DocumentError` for a name that is none in every folder, a size or an id that can be none."""
    if reason := objection(name):
        raise DocumentError(f"{quoted(name, 100)!r} {reason}")
    if size is not None and not 0 <= size <= MAX_SIZE:
        raise DocumentError(f"the size of {name} is {quoted(size, 40)}")
    if git_sha1 is not None and not GIT_SHA1.fullmatch(git_sha1):
        raise DocumentError(f"the id of {name} is {quoted(repr(git_sha1), 100)}, not 40 hexadecimal digits")
    if sha256 is not None and not SHA256.fullmatch(sha256):
        raise DocumentError(f"the SHA-256 of {name} is {quoted(repr(sha256), 100)}, not 64 hexadecimal digits")
    return RemoteFile(name, size, git_sha1, sha256)


def objection(name: str) -> str | None:
    """Why a name would not be one file inside a folder on every system."""
    if not name or printable(name) != name or "\n" in name:
        return "is no name of a file"
    for part in name.split("/"):
        if part in ("", ".", ".."):
            return "is no name inside a folder"
        if FORBIDDEN_CHARACTERS & {*part} or part[-1] in ". " or part[0] == " ":
            return "is no name of a file on every system"
        if part.partition(".")[0].rstrip().casefold() in RESERVED_NAMES:
            return "is the name of a device on Windows"
        if len(part.encode()) > MAX_NAME_BYTES:
            return "is too long a name"
    return None


def by_name(files: Iterable[RemoteFile]) -> dict[str, RemoteFile]:
    """Raises `DocumentError` if there are two that some systems take for one."""
    result: dict[str, RemoteFile] = {}
    alike: set[str] = set()
    for file in files:
        key = unicodedata.normalize("NFC", file.name).casefold()
        if key in alike:
            raise DocumentError(f"it has {file.name} twice")
        alike.add(key)
        result[file.name] = file
    return result


def needed(names: Iterable[str]) -> set[str]:
    """What is read of a repository's files.

    Not the same weights in other formats or another layout, nor whatever is in subfolders.
    """
    flat = {name for name in names if "/" not in name}
    return weights_among(flat) | flat & READ_FILES


def ask(repo: str, revision: str | None, check_wanted: CheckWanted, commit: str | None = None) -> Listing:
    """What a repository has in `commit`, or, if there is none, in a revision, or, if that is None, now.

    Raises `ExchangeError`s.
    """
    if commit is not None and commit != revision:
        try:
            return _ask(repo, commit, check_wanted)
        except RefusedError as error:
            # The Hub's answer to an unknown commit is not always that it is one.
            if error.code not in ("RevisionNotFound", "RepoNotFound") and error.status != 404:
                raise
    return _ask(repo, revision, check_wanted)


def _ask(repo: str, revision: str | None, check_wanted: CheckWanted) -> Listing:
    url = f"{settings.endpoint()}/api/models/{repo}"
    if revision is not None:
        url += f"/revision/{quote(revision, safe='')}"
    content = _fetch(url + "?blobs=true", repo, check_wanted)
    try:
        document = parse_object(content)
        if not {"sha", "siblings"} <= document.keys():
            raise DocumentError("it names no commit and no files")
    except DocumentError as error:
        # A login page of a hotel, or whatever else is not the Hub and answers "200 OK".
        raise NoHubError(str(error)) from error
    try:
        return _read(repo, revision, document)
    except DocumentError as error:
        raise UnusableAnswerError(f"in its list of {repo}, {error}") from error


class NoHubError(UnusableAnswerError):
    """What answers is no Hub at all."""


def _read(repo: str, revision: str | None, document: dict[str, Any]) -> Listing:
    listing = conform(_Listing, document)
    if not COMMIT.fullmatch(listing.sha):
        raise DocumentError(f"the commit is {quoted(repr(listing.sha), 100)}, not 40 hexadecimal digits")
    if revision is not None and COMMIT.fullmatch(revision) and listing.sha != revision:
        raise DocumentError(f"the commit is {listing.sha}, where {revision} was asked for")
    files = []
    for sibling in listing.siblings:
        sizes = {sibling.size, sibling.lfs.size if sibling.lfs else None} - {None}
        if len(sizes) > 1:
            raise DocumentError(f"{quoted(sibling.rfilename, 100)} has two sizes")
        sha256 = sibling.lfs.sha256 if sibling.lfs else None
        files.append(remote_file(sibling.rfilename, next(iter(sizes), None), sibling.blobId, sha256))
    return Listing(repo, listing.sha, by_name(files))


def _fetch(url: str, repo: str, check_wanted: CheckWanted) -> bytes:
    silence_seconds, whole_seconds = settings.listing_seconds()
    asked_at = time.monotonic()
    was_told = False

    def check() -> None:
        nonlocal was_told
        check_wanted()
        if not was_told and time.monotonic() > asked_at + SLOW_SECONDS:
            was_told = True
            tell(
                f"The weights of {repo} are not all on this machine, and the Hub at {settings.shown_endpoint()} "
                f"takes long to say what it has. It is given {whole_seconds:.0f} s; Ctrl-C stops it."
            )

    tries = 0
    while True:
        deadline = time.monotonic() + whole_seconds
        with exchange("GET", url, settings.headers(), silence_seconds, check, deadline) as answer:
            if answer.status == 200:
                content = bytearray()
                for chunk in answer.chunks:
                    content += chunk
                    if len(content) > MAX_LISTING_BYTES:
                        raise UnusableAnswerError(f"its list of {repo} has no end")
                return bytes(content)
            if answer.status not in TROUBLES:
                raise RefusedError(answer)
        pause(answer, tries, repo, check_wanted)
        tries += 1


def file_url(listing: Listing, name: str) -> str:
    return f"{settings.endpoint()}/{listing.repo}/resolve/{listing.commit}/{quote(name)}"


def complete(listing: Listing, names: Iterable[str], check_wanted: CheckWanted) -> Listing:
    """The listing with the sizes and ids of those files, asked of the files themselves where it names none.

    Raises `ExchangeError`s, and `UnusableAnswerError` if nobody says how to check what comes.
    """
    unknown = [file for name in sorted(names) if not (file := listing.files[name]).is_known]
    if not unknown:
        return listing
    tell(
        f"The weights of {listing.repo} have no sizes or checksums in the list at {settings.shown_endpoint()}: "
        f"asking {len(unknown)} files themselves."
    )
    asked = {file.name: _ask_file(listing, file, check_wanted) for file in unknown}
    return replace(listing, files={**listing.files, **asked})


def _ask_file(listing: Listing, file: RemoteFile, check_wanted: CheckWanted) -> RemoteFile:
    for method in ("HEAD", "GET"):  # not every mirror answers the first; the body of the second isn't waited for
        silence_seconds, whole_seconds = settings.listing_seconds()
        tries = 0
        while True:
            deadline = time.monotonic() + whole_seconds
            url = file_url(listing, file.name)
            with exchange(method, url, settings.headers(), silence_seconds, check_wanted, deadline) as answer:
                if answer.status not in TROUBLES:
                    break
            pause(answer, tries, listing.repo, check_wanted)
            tries += 1
        file = _with_headers(file, answer, listing)
        if file.is_known:
            return file
        if answer.status != 200 and (method == "GET" or answer.status not in (400, 404, 405, 501)):
            raise RefusedError(answer)
    lack = "how large it is" if file.size is None else "what its checksum is"
    raise UnusableAnswerError(f"of {file.name} it does not say {lack}, so what comes could not be checked")


def _with_headers(file: RemoteFile, answer: Answer, listing: Listing) -> RemoteFile:
    """Of all answers on the way the first that says something: the Hub's own goes before a storage's.

    A storage may refuse a request for the head alone, after the Hub has said it all.
    """
    size, content_id = file.size, file.content_id
    is_of_the_file = answer.status == 200
    for headers in (*answer.hops, *([answer.headers] if is_of_the_file else [])):
        commit = headers.get("x-repo-commit")
        if commit is not None and commit != listing.commit and file.content_id is None:
            raise UnusableAnswerError(
                f"{file.name} is of the commit {quoted(commit, 60)}, not of {listing.commit}"
            )
        etag = ETAG.fullmatch(headers.get("x-linked-etag", headers.get("etag", "")))
        content_id = content_id or (etag and etag[1])
        size = whole_number(headers.get("x-linked-size")) if size is None else size
    if size is None and is_of_the_file:
        size = answer.length
    ids = (None, content_id) if content_id and len(content_id) == 64 else (content_id, None)
    try:
        return remote_file(file.name, size, *ids)
    except DocumentError as error:
        raise UnusableAnswerError(str(error)) from error
