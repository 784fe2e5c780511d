"""A Hugging Face Hub on 127.0.0.1: real HTTP, as much of the Hub's interface as a download needs.

It serves one repository's files, and others' beside it, logs each request, and misbehaves on demand.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

REPO = "google/diffusiongemma-26B-A4B-it"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NEWER_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
FIRST_SHARD = "model-00001-of-00002.safetensors"
LAST_SHARD = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"

LARGE_FILE_SUFFIXES = (".safetensors", ".gguf", ".pt")

FILE_PATH = re.compile(f"/([^/]+/[^/]+)/resolve/(?:{COMMIT}|{NEWER_COMMIT})/(.+)")
LIST_PATH = re.compile("/api/models/([^/]+/[^/]+)")
PIECE_BYTES = 1 << 16


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    authorization: str | None

    @property
    def file(self) -> str | None:
        """The repository's file that was asked for."""
        match = FILE_PATH.fullmatch(self.path)
        return match[2] if match else None

    @property
    def repo(self) -> str | None:
        """The repository that it is about, if that is served at all."""
        match = FILE_PATH.fullmatch(self.path) or LIST_PATH.match(self.path)
        return match[1] if match else None


@dataclass(frozen=True)
class Refusal:
    status: int
    code: str | None = None
    """The Hub's X-Error-Code."""
    message: str | None = None
    """The Hub's X-Error-Message."""
    retry_after: str | None = None


@dataclass
class LoopbackHub:
    """Start with `start`, stop with `stop`. What it does wrong can be changed at any time."""

    files: dict[str, bytes]
    """Of REPO."""
    others: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Of other repositories, by their names."""
    branches: dict[str, str] = field(default_factory=dict)
    """Their commits, by the names of branches and tags other than main. Of all repositories."""
    bytes_a_second: float | Callable[[Request], float | None] | None = None
    """How fast a connection is, or is to a request."""
    most_at_once: int | None = None
    """How many connections it takes for files."""
    at_once: int = 0
    at_once_at_most: int = 0
    bytes_sent: int = 0
    seconds_a_request: float = 0.0
    """How long each answer waits for its beginning."""
    newer: dict[str, bytes] | None = None
    """REPO's files in a commit after COMMIT."""
    has_forgotten: bool = False
    """Knows the newer commit only: the history was rewritten."""
    requests: list[Request] = field(default_factory=list)
    refuse_all: Refusal | None = None
    refuse_files: Refusal | None = None
    """Says what it has, but hands it out to nobody, as the Hub does with a gated repository."""
    refused_file: str | None = None
    """The only file that `refuse_files` is about."""
    claimed_sizes: dict[str, int] = field(default_factory=dict)
    """Sizes in the listing that are not so."""
    cut_after: int | None = None
    """Drop the connection after so many bytes of the last shard, once."""
    pause_after: int | None = None
    """Send so many bytes of the last shard and wait for `go_on` before the others."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    go_on: threading.Event = field(default_factory=threading.Event)
    paused: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    truncate_to: int | None = None
    """Hand out the last shard as if it were that short."""
    corrupt: bool = False
    """Hand out the last shard with one other byte."""
    instead: bytes | None = None
    """Answer all with this page."""
    alter_listing: Callable[[dict[str, Any]], Any] | None = None
    """What it says in place of its list, made of that; bytes are sent as they are."""
    after_listing: Callable[[], None] | None = None
    """What happens behind its back as soon as it has said what it has."""
    seconds_a_byte: float = 0.0
    """How slowly it says what it has."""
    seconds_before: float = 0.0
    """How long it is silent before that."""
    troubles: list[Refusal] = field(default_factory=list)
    """What it answers to the next requests for files."""
    before_file: Callable[[Request], None] | None = None
    """What happens when a file is asked for."""
    alter_body: Callable[[str, bytes], bytes] | None = None
    """What it hands out in place of a file."""
    alter_headers: Callable[[str, dict[str, str]], None] | None = None
    """Change a file's headers. None of a length: the body ends with the connection."""
    longest_part: int | None = None
    """How many bytes it hands out at most for a range."""
    answer_ranges: str | None = None
    """How a part is handed out that is none: "range ignored", "416" or "another part"."""
    refuse_head: int | None = None
    redirect: str | None = None
    """Where it sends whoever asks for its list."""
    stranger: str = ""
    """The address of another host."""
    elsewhere: str | None = None
    """Where the contents of large files lie: the address of another host."""
    _server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def last_shard_ranges(self) -> list[str | None]:
        """The Range header of each request for the last shard's content."""
        return [
            request.range for request in self.requests if request.method == "GET" and request.file == LAST_SHARD
        ]

    @property
    def file_gets(self) -> list[str]:
        """The files whose content was asked for."""
        return [request.file for request in self.requests if request.method == "GET" and request.file]

    def start(self) -> None:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.go_on.set()
        self.over.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def begin_again(self, files: dict[str, bytes]) -> LoopbackHub:
        """The same server without a memory, and with no fault."""
        self.over.set()
        self.go_on.set()
        result = LoopbackHub(files)
        assert self._server is not None
        result._server = self._server
        self._server.RequestHandlerClass.hub = result
        return result

    def commit_of(self, request: Request) -> str | None:
        """The commit that a request is about, if the hub has it."""
        newest = NEWER_COMMIT if self.newer is not None and request.repo == REPO else COMMIT
        match = re.search("/(?:revision|resolve|tree)/([^/]+)", request.path)
        asked = unquote(match[1]) if match else "main"
        commit = self.branches.get(asked, newest if asked == "main" else asked)
        if commit == COMMIT and self.has_forgotten:
            return None
        return commit if commit in (newest, COMMIT) else None

    def files_of(self, commit: str | None, repo: str = REPO) -> dict[str, bytes]:
        if repo in self.others:
            return self.others[repo]
        return self.newer if commit == NEWER_COMMIT and self.newer is not None else self.files

    def listing(self, commit: str | None = COMMIT, repo: str = REPO) -> list[dict[str, Any]]:
        """Name, size and ids of each file, as both of the Hub's listings need them."""
        result = []
        for name, content in sorted(self.files_of(commit, repo).items()):
            size = self.claimed_sizes.get(name, len(content))
            sha1, sha256 = _hashes(content)
            is_large = name.endswith(LARGE_FILE_SUFFIXES)
            result.append({"name": name, "size": size, "blob": sha1, "sha256": sha256 if is_large else None})
        return result


@functools.lru_cache(256)
def _hashes(content: bytes) -> tuple[str, str]:
    """What git names a content by, and its SHA-256."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(), hashlib.sha256(content).hexdigest()


def fill_cache(
    cache: Path, files: dict[str, bytes], repo: str = REPO, commit: str = COMMIT, ref: str = "main"
) -> Path:
    """Put a repository's files where an older huggingface_hub did, without a list of them; return its snapshot."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    for made in (folder / "blobs", folder / "refs", snapshot):
        made.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / ref).write_text(commit)
    for entry in LoopbackHub(files).listing():
        blob = folder / "blobs" / (entry["sha256"] or entry["blob"])
        blob.write_bytes(files[entry["name"]])
        (snapshot / entry["name"]).symlink_to(Path("..", "..", "blobs", blob.name))
    return snapshot


def contents(folder: Path) -> dict[str, bytes]:
    """What a hub serves of a folder's files."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def all_layouts(source: Path, work_folder: Path) -> dict[str, dict[str, bytes]]:
    """A plain checkpoint in the layouts of the Hub's repositories, by their names. Takes a second."""
    from .layouts import writer

    return {
        repo: contents(writer.write(source, work_folder / layout.replace(" ", "-"), layout))
        for layout, repo in writer.REPOSITORIES.items()
    }


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        pass  # the other side has hung up, as it may


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    asked: Request
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path, _, _ = self.path.partition("?")
        request = Request(self.command, path, self.headers.get("Range"), self.headers.get("Authorization"))
        self.asked = request
        commit, repo = self.hub.commit_of(request), request.repo
        self.hub.requests.append(request)
        self.hub.over.wait(self.hub.seconds_a_request)
        if self.command == "HEAD" and self.hub.refuse_head:
            self._refuse(Refusal(self.hub.refuse_head))
        elif self.hub.redirect is not None:
            self._send(302, b"", {"Location": self.hub.redirect})
        elif self.hub.instead is not None:
            self._send(200, self.hub.instead)
        elif self.hub.refuse_all is not None:
            self._refuse(self.hub.refuse_all)
        elif repo is None or repo not in (REPO, *self.hub.others):
            self._refuse(Refusal(404, "RepoNotFound"))
        elif commit is None:
            self._refuse(Refusal(404, "RevisionNotFound"))
        elif request.file is not None:
            with self._taken() as is_taken:
                if is_taken:
                    self._send_file(request, commit, repo)
                else:
                    self._refuse(Refusal(503))
        elif re.fullmatch(f"/api/models/{repo}(/revision/[^/]+)?", path):
            siblings = [_sibling(entry) for entry in self.hub.listing(commit, repo)]
            self._send_listing({"id": repo, "sha": commit, "siblings": siblings})
        elif path == f"/api/models/{repo}/tree/{commit}":
            self._send_listing([_tree_entry(entry) for entry in self.hub.listing(commit, repo)])
        else:
            self._refuse(Refusal(404, "EntryNotFound"))

    @contextmanager
    def _taken(self) -> Iterator[bool]:
        """Whether there is a connection left for a file."""
        hub = self.hub
        with hub.lock:
            is_taken = hub.most_at_once is None or hub.at_once < hub.most_at_once
            hub.at_once += is_taken
            hub.at_once_at_most = max(hub.at_once, hub.at_once_at_most)
        try:
            yield is_taken
        finally:
            with hub.lock:
                hub.at_once -= is_taken

    def _send_listing(self, content: Any) -> None:
        hub = self.hub
        if hub.alter_listing is not None:
            content = hub.alter_listing(content)
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        hub.over.wait(hub.seconds_before)
        if not hub.seconds_a_byte:
            self._send(200, body, {"Content-Type": "application/json"})
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            for byte in body:
                try:
                    self.wfile.write(bytes([byte]))
                except OSError:
                    break
                if hub.over.wait(hub.seconds_a_byte):
                    break
            self.close_connection = True
        if hub.after_listing is not None:
            hub.after_listing()

    def _send_file(self, request: Request, commit: str, repo: str) -> None:
        hub, name = self.hub, request.file
        if hub.before_file is not None:
            hub.before_file(request)
        if hub.refuse_files is not None and hub.refused_file in (None, name):
            return self._refuse(hub.refuse_files)
        if hub.troubles:
            return self._refuse(hub.troubles.pop(0))
        entry = next((entry for entry in hub.listing(commit, repo) if entry["name"] == name), None)
        if entry is None:
            return self._refuse(Refusal(404, "EntryNotFound"))
        assert name is not None
        content = whole = hub.files_of(commit, repo)[name]
        is_last_shard = name == LAST_SHARD
        if is_last_shard and hub.truncate_to is not None:
            content = content[: hub.truncate_to]
        if hub.alter_body is not None:
            content = hub.alter_body(name, content)
        if is_last_shard and hub.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        headers = {
            "ETag": f'"{entry["sha256"] or entry["blob"]}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }
        if entry["sha256"]:
            headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(whole))}
            if hub.elsewhere is not None:
                return self._send(302, b"", {**headers, "Location": f"{hub.elsewhere}{self.path}"})
        status, start, end = 200, 0, len(content)
        if request.range is not None and hub.answer_ranges == "416":
            return self._refuse(Refusal(416))
        if request.range is not None and hub.answer_ranges != "range ignored":
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.range)
            assert match is not None, request.range
            status, start = 206, int(match[1])
            if start >= len(content):
                return self._refuse(Refusal(416))
            end = min(int(match[2]) + 1, len(content)) if match[2] else len(content)
            end = min(end, start + (hub.longest_part or end))
            start = 0 if hub.answer_ranges == "another part" else start
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        if hub.alter_headers is not None:
            headers["Content-Length"] = str(end - start)
            hub.alter_headers(name, headers)
        return self._send(status, content[start:end], headers, is_last_shard=is_last_shard)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, *, is_last_shard: bool = False
    ) -> None:
        self.send_response(status)
        for header, value in (headers or {}).items():
            self.send_header(header, value)
        if self.hub.alter_headers is None or not 200 <= status < 300:
            self.send_header("Content-Length", str(len(body)))
        elif "Content-Length" not in (headers or {}):
            self.close_connection = True
        self.end_headers()
        if self.command == "HEAD":
            return
        hub = self.hub
        if is_last_shard and hub.cut_after is not None:
            body, hub.cut_after = body[: hub.cut_after], None
            self.close_connection = True
        if is_last_shard and hub.pause_after is not None:
            first, body, hub.pause_after = body[: hub.pause_after], body[hub.pause_after :], None
            self.wfile.write(first)
            self.wfile.flush()
            hub.paused.set()
            hub.go_on.wait(60)
        try:
            self._write(body)
        except OSError:  # the other side has hung up
            self.close_connection = True

    def _write(self, body: bytes) -> None:
        hub, rate = self.hub, self.hub.bytes_a_second
        if callable(rate):
            rate = rate(self.asked)
        piece_bytes = PIECE_BYTES if rate is None else max(min(PIECE_BYTES, int(rate / 10)), 1)
        started = time.monotonic()
        for start in range(0, len(body), piece_bytes):
            piece = body[start : start + piece_bytes]
            self.wfile.write(piece)
            with hub.lock:
                hub.bytes_sent += len(piece)
            ahead = started + (start + len(piece)) / rate - time.monotonic() if rate else 0
            if ahead > 0 and hub.over.wait(ahead):
                return

    def _refuse(self, refusal: Refusal) -> None:
        headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
        headers["Retry-After"] = refusal.retry_after
        self._send(refusal.status, b"{}", {name: value for name, value in headers.items() if value})


def _sibling(entry: dict[str, Any]) -> dict[str, Any]:
    result = {"rfilename": entry["name"], "size": entry["size"], "blobId": entry["blob"]}
    if entry["sha256"]:
        result["lfs"] = {"sha256": entry["sha256"], "size": entry["size"], "pointerSize": 135}
    return result


def _tree_entry(entry: dict[str, Any]) -> dict[str, Any]:
    result = {"type": "file", "path": entry["name"], "size": entry["size"], "oid": entry["blob"]}
    if entry["sha256"]:
        result["lfs"] = {"oid": entry["sha256"], "size": entry["size"], "pointerSize": 135}
    return result
