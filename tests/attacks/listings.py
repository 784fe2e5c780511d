"""Hostile and broken hubs: mutated lists, headers, bodies, statuses, caches that were left behind.

Each case ends in one printable sentence, or in a snapshot whose files are those of its commit; nothing is made
outside of the cache, the token goes to no other host, and nothing is waited for without end.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import huggingface_hub.constants

from llm_diffusiongemma import hub as hub_module
from llm_diffusiongemma.catalog import Source
from llm_diffusiongemma.errors import DiffusionGemmaError
from llm_diffusiongemma.hub import exchange, settings
from llm_diffusiongemma.wording import printable

from ..loopback_hub import COMMIT, FIRST_SHARD, LAST_SHARD, NEWER_COMMIT, REPO, LoopbackHub, Refusal, fill_cache
from .outcome import Outcome

TOKEN = "hf_of_an_attack"
HANG_SECONDS = 30.0
LONGEST_SENTENCE = 2000

Attack = Callable[[random.Random, LoopbackHub, Path], None]


def _files() -> dict[str, bytes]:
    """A checkpoint as far as a download looks at it."""
    weight_map = {"a": FIRST_SHARD, "b": LAST_SHARD}
    small = (
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "processor_config.json",
    )
    return {
        **{name: b'{"a": 1, "name": "%s"}' % name.encode() for name in small},
        "chat_template.jinja": b"{{ messages }}",
        "model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode(),
        FIRST_SHARD: _shard("a"),
        LAST_SHARD: _shard("b"),
        "README.md": b"# A model",
    }


def _shard(name: str) -> bytes:
    header = json.dumps({name: {"dtype": "U8", "shape": [90_000], "data_offsets": [0, 90_000]}}).encode()
    return len(header).to_bytes(8, "little") + header + random.Random(name).randbytes(90_000)


FILES = _files()


def _hostile_values(root: Path) -> list[Any]:
    return [
        *(
            None,
            True,
            False,
            0,
            -1,
            1.5,
            10**30,
            10**400,
            float("inf"),
            float("nan"),
            1 << 62,
            "",
            "x",
            [],
            {},
            [[]],
        ),
        *(
            "../../y",
            "../" * 9 + "y",
            str(root / "outside"),
            "/etc/passwd",
            "..\\y",
            "C:\\y",
            "C:y",
            "~/y",
            "con",
            "a:b",
        ),
        *(
            "0" * 40,
            "0" * 64,
            "A" * 40,
            COMMIT,
            NEWER_COMMIT,
            COMMIT + "\n",
            "f" * 63,
            "\0",
            "\ud800",
            "\x1b]52;c;eA==\x07",
        ),
        *(
            "\u202egnp.x",
            "config.json",
            "CONFIG.JSON",
            FIRST_SHARD,
            "a/b/c.json",
            "x" * 5000,
            " ",
            ".",
            "..",
            "main",
        ),
    ]


def _places(document: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value inside of a JSON document."""
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in items:
        yield (*at, key)
        if isinstance(value, dict | list):
            yield from _places(value, (*at, key))


def _mutated(draw: random.Random, document: Any, root: Path) -> Any:
    document = copy.deepcopy(document)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        *way, key = draw.choice(list(_places(document)))
        place = document
        for step in way:
            place = place[step]
        match draw.randrange(5):
            case 0:
                del place[key]
            case 1 if isinstance(place, list):
                place.append(copy.deepcopy(place[key]))
            case 2 if isinstance(place, dict):
                place[str(draw.choice(_hostile_values(root)))] = place[key]
            case _:
                place[key] = draw.choice(_hostile_values(root))
        if not document:
            break
    return document


def _mutated_bytes(draw: random.Random, content: bytes) -> bytes:
    start = draw.randrange(len(content))
    match draw.randrange(5):
        case 0:
            return content[:start]
        case 1:
            return content[:start] + bytes([content[start] ^ (1 << draw.randrange(8))]) + content[start + 1 :]
        case 2:
            return content[:start] + draw.randbytes(draw.randrange(1, 40)) + content[start:]
        case 3:
            return content * draw.choice((2, 30))
    return draw.choice((b"", b"[" * 20_000, b'{"a":' * 20_000, b"<html>Log in</html>", b"null", b"9" * 6000))


def a_list(draw: random.Random, hub: LoopbackHub, root: Path) -> None:
    hub.alter_listing = lambda content: _mutated(draw, content, root)


def a_lists_bytes(draw: random.Random, hub: LoopbackHub, root: Path) -> None:
    hub.alter_listing = lambda content: _mutated_bytes(draw, json.dumps(content).encode())


def a_list_that_says_less(draw: random.Random, hub: LoopbackHub, root: Path) -> None:
    dropped = draw.sample(("size", "blobId", "lfs"), draw.randrange(1, 4))
    hub.alter_listing = lambda content: {
        **content,
        "siblings": [{key: file[key] for key in file if key not in dropped} for file in content["siblings"]],
    }
    hub.refuse_head = 405 if draw.random() < 0.3 else None
    if draw.random() < 0.5:
        headers(draw, hub, root)


def bodies(draw: random.Random, hub: LoopbackHub, root: Path) -> None:
    victim = draw.choice([None, *FILES])
    hub.alter_body = lambda name, body: _mutated_bytes(draw, body) if victim in (None, name) else body
    if draw.random() < 0.3:
        hub.alter_headers = lambda name, headers: headers.pop("Content-Length", None) and None


def headers(draw: random.Random, hub: LoopbackHub, root: Path) -> None:
    names = ["Content-Length", "Content-Range", "Content-Encoding", "ETag", "X-Linked-ETag", "X-Linked-Size"]
    values = [
        "",
        "0",
        "-1",
        "7",
        "9" * 30,
        "x",
        "gzip",
        "br",
        "bytes 0-5/6",
        "bytes 9-1/*",
        '"' + "0" * 40 + '"',
        "\xe4",
    ]
    changes = {name: draw.choice([*values, None]) for name in draw.sample([*names, "X-Repo-Commit"], 2)}

    def alter(name: str, sent: dict[str, Any]) -> None:
        for header, value in changes.items():
            sent.pop(header, None)
            if value is not None:
                sent[header] = value

    hub.alter_headers = alter


def statuses(draw: random.Random, hub: LoopbackHub, root: Path) -> None:
    waits = (None, "0", "1", "86400", "9" * 40, "-1", "soon", "Wed, 21 Oct 2099 07:28:00 GMT")
    codes = (None, "GatedRepo", "RepoNotFound", "EntryNotFound", "RevisionNotFound", "\x9b31m")
    status = draw.choice(
        (204, 206, 300, 302, 304, 400, 401, 403, 404, 405, 408, 410, 416, 418, 429, 451, 500, 502, 503, 599)
    )
    refusal = Refusal(
        status, draw.choice(codes), draw.choice((None, "No.", "\x9b]52;c;eA==\x07" * 50)), draw.choice(waits)
    )
    if draw.random() < 0.5:
        hub.refuse_all = refusal
    elif draw.random() < 0.5:
        hub.refuse_files, hub.refused_file = refusal, draw.choice([None, *FILES])
    else:
        hub.troubles = [refusal] * draw.randrange(1, 6)


def redirections(draw: random.Random, hub: LoopbackHub, root: Path) -> None:
    if draw.random() < 0.5:
        hub.elsewhere = hub.stranger
    else:
        nowhere = (
            "file:///etc/passwd",
            "//",
            "http://[",
            "\x1b[31m",
            f"{hub.stranger}/x",
            "/again",
            "http://127.0.0.1:1/x",
        )
        hub.redirect = draw.choice(nowhere)


def a_moving_main(draw: random.Random, hub: LoopbackHub, root: Path) -> None:
    newer = {name: content + b" " for name, content in FILES.items()}

    def move() -> None:
        hub.newer = newer
        hub.has_forgotten = draw.random() < 0.3

    hub.after_listing = move


def a_cache_left_behind(draw: random.Random, hub: LoopbackHub, root: Path) -> None:
    """By a kill, a bad disk, another program."""
    snapshot = fill_cache(root / "hub", FILES)
    repository = snapshot.parent.parent
    (repository / "trees").mkdir()
    tree = {
        entry["name"]: {"size": entry["size"], "blob_id": entry["blob"]}
        | ({"lfs_sha256": entry["sha256"], "lfs_size": entry["size"]} if entry["sha256"] else {})
        for entry in hub.listing()
    }
    noted: dict[str, Any] = {"format_version": 1, "files": tree}
    if draw.random() < 0.6:
        noted = _mutated(draw, noted, root)
    (repository / "trees" / f"{COMMIT}.json").write_text(json.dumps(noted))
    for _ in range(draw.randrange(1, 4)):
        place = draw.choice(sorted((*repository.rglob("*"),)))
        match draw.randrange(6):
            case 0 if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            case 1 if place.is_file():
                os.truncate(place, draw.randrange(place.stat().st_size + 1))
            case 2 if place.is_file() and not place.name.startswith("model") and place.stat().st_size < 50_000:
                place.write_bytes(_mutated_bytes(draw, place.read_bytes() or b"x"))
            case 3 if place.parent.name == "blobs":
                place.rename(place.with_name(place.name + hub_module.PARTIAL_SUFFIX))
            case 4 if place.parent.name == "blobs":
                partial = place.with_name(place.name + hub_module.PARTIAL_SUFFIX)
                partial.write_bytes(draw.randbytes(draw.choice((1, 5000, 200_000))))
                place.unlink()
            case _ if not place.is_dir() or place.is_symlink():
                place.unlink()


ATTACKS: tuple[Attack, ...] = (
    *(a_list, a_list, a_list, a_lists_bytes, a_list_that_says_less, bodies, headers, statuses, redirections),
    *(a_moving_main, a_cache_left_behind, a_cache_left_behind),
)


def run(count: int, seed: int) -> Iterator[Outcome]:
    with _hurried(), _Servers() as servers:
        for number in range(count):
            case = f"{seed}:{number}"
            draw = random.Random(case)
            attack = draw.choice(ATTACKS)
            kind = attack.__name__.replace("a_lists_bytes", "bytes of a list").replace("_", " ")
            with tempfile.TemporaryDirectory() as name:
                root = Path(name).resolve()
                result, fault = _one(draw, attack, servers, root)
            yield Outcome(kind, result, not fault, f"case {case}: {fault}")


def _one(draw: random.Random, attack: Attack, servers: _Servers, root: Path) -> tuple[str, str]:
    """What came of a case, and what is wrong with that, if anything."""
    hub, stranger = servers.fresh()
    attack(draw, hub, root)
    until = time.monotonic() + HANG_SECONDS

    def check_wanted() -> None:
        if time.monotonic() > until:
            raise TimeoutError

    result, fault = "a sentence", ""
    said = io.StringIO()
    cache = mock.patch.object(huggingface_hub.constants, "HF_HUB_CACHE", str(root / "hub"))
    with cache, contextlib.redirect_stderr(said):
        try:
            checkpoint = hub_module.locate(Source(REPO), "attacked", lambda weight_bytes: None, check_wanted)
        except DiffusionGemmaError as error:
            message = str(error)
            if printable(message) != message or not 20 < len(message) < LONGEST_SENTENCE or "Delete" in message:
                fault = f"no sentence to show: {message!r}"
        except TimeoutError:
            result, fault = "a hang", f"it took more than {HANG_SECONDS:.0f} s"
        except Exception as error:
            result, fault = type(error).__name__, repr(error)
        else:
            result = "a snapshot of the commit"
            fault = _fault_of_snapshot(hub, checkpoint.folder, root)
    if printable(said.getvalue()) != said.getvalue():
        fault = f"raw on the terminal: {said.getvalue()!r}"
    made = sorted(place.name for place in root.iterdir() if place.name != "hub")
    if made:
        fault = f"made outside of the cache: {made}"
    if any(request.authorization for request in stranger.requests):
        fault = "the token went to another host"
    return result, fault


def _fault_of_snapshot(hub: LoopbackHub, folder: Path, root: Path) -> str:
    if not folder.resolve().is_relative_to(root / "hub"):
        return f"the snapshot is {folder}"
    truth = hub.files_of(folder.name)
    wrong = sorted(
        file.name
        for file in folder.iterdir()
        if file.suffix in (".json", ".jinja", ".safetensors") and file.read_bytes() != truth.get(file.name)
    )
    return f"not as in the commit: {wrong}" if wrong else ""


class _Servers:
    """The hub that is asked, and another host, each with its requests."""

    def __enter__(self) -> _Servers:
        self._hubs = [LoopbackHub(FILES), LoopbackHub(FILES)]
        for hub in self._hubs:
            hub.start()
        self._endpoint = mock.patch.object(huggingface_hub.constants, "ENDPOINT", self._hubs[0].url)
        self._endpoint.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._endpoint.stop()
        for hub in self._hubs:
            hub.stop()

    def fresh(self) -> tuple[LoopbackHub, LoopbackHub]:
        """The same servers without a memory and with no fault."""
        for place, old in enumerate(self._hubs):
            self._hubs[place] = old.begin_again(dict(FILES))
        self._hubs[0].stranger = self._hubs[1].url
        return self._hubs[0], self._hubs[1]


@contextlib.contextmanager
def _hurried() -> Iterator[None]:
    """Waits cut short, and a token."""
    constants = huggingface_hub.constants
    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            (constants, "HF_HUB_OFFLINE", False),
            (constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1),
            (settings, "LISTING_SECONDS", 1),
            (exchange, "RETRY_SECONDS", (0.01, 0.01, 0.01)),
            (exchange, "LONGEST_WAIT_SECONDS", 0.0),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(mock.patch.dict(os.environ, {"HF_TOKEN": TOKEN, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}))
        yield
