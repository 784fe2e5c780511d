"""The full model's first use, over real HTTP: a hub on loopback has the embedded checkpoint under its name."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import huggingface_hub.utils
import llm
import pytest
from huggingface_hub.utils import WeakFileLock

from llm_diffusiongemma import hub as hub_module
from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT, Source
from llm_diffusiongemma.diffusion import devices
from llm_diffusiongemma.errors import DiffusionGemmaError, HubConnectionError
from llm_diffusiongemma.hub import bringing, exchange, failures, listing, settings, transfer
from llm_diffusiongemma.hub import cache as cache_module
from llm_diffusiongemma.wording import printable

from .attacks import listings
from .conftest import NOT_NEEDED, TINY, Llm, point_to
from .loopback_hub import (
    COMMIT,
    FIRST_SHARD,
    INDEX,
    LAST_SHARD,
    NEWER_COMMIT,
    REPO,
    LoopbackHub,
    Refusal,
    fill_cache,
)

FULL = "diffusiongemma-bf16"  # whatever machine this is
QUICK = ("-o", "seed", "1", "-o", "max_tokens", "20", "-o", "max_denoising_steps", "2")
QUESTION = "What is a canvas?"
PART = 1_500_000
"""Of the last shard, which is twice as long."""


def blobs(cache: Path) -> list[Path]:
    return sorted((cache / f"models--{REPO.replace('/', '--')}" / "blobs").glob("*"))


def repository(cache: Path) -> Path:
    return cache / f"models--{REPO.replace('/', '--')}"


def needed(hub: LoopbackHub) -> dict[str, bytes]:
    return {name: content for name, content in hub.files.items() if name not in NOT_NEEDED}


def all_of(hub: LoopbackHub) -> str:
    return failures.size(sum(map(len, needed(hub).values())))


def located() -> hub_module.Checkpoint:
    """What a prompt does before it loads anything."""
    return hub_module.locate(Source(REPO), FULL, lambda weight_bytes: None)


def fails() -> str:
    """What a prompt says that doesn't get so far: a sentence of ours, and nothing in it that a terminal obeys."""
    with pytest.raises(DiffusionGemmaError) as raised:
        located()
    message = str(raised.value)
    assert message == printable(message)
    assert message.strip()
    return message


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    output, errors = process.communicate(timeout=120)
    assert "Traceback" not in errors
    return output.removesuffix("\n"), errors


def run_on_a_terminal(*arguments: str) -> tuple[int, str, str]:
    """Run `llm` with a terminal as its standard error, where progress bars are shown."""
    fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "llm", *arguments], stdout=subprocess.PIPE, stderr=theirs, text=True
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            chunk = os.read(ours, 4096)
        except OSError:  # Linux says so when the other end is closed
            break
        if not chunk:
            break
        seen += chunk
    os.close(ours)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output.removesuffix("\n"), seen.decode()


@pytest.mark.usefixtures("in_processes", "in_process")
def test_first_use_then_no_request(
    hub: LoopbackHub, checkpoint_files: dict[str, bytes], cache: Path, llm_command: Llm
) -> None:
    hub.seconds_a_request = 0.1  # so that it takes long enough for a bar
    status, answer, shown = run_on_a_terminal("-m", FULL, QUESTION, *QUICK)
    assert status == 0, shown
    # First what will be done, then the bar, then the answer.
    announcement, _, progress = shown.partition("Ctrl-C stops it")
    assert f"The weights of {REPO} are not on this machine yet." in announcement
    assert f"Downloading {all_of(hub)} in 9 files, to {cache}" in announcement
    assert "%" not in announcement
    assert "Downloading bf16 weights" in progress
    assert f"/{all_of(hub)}" in progress
    assert answer == llm_command.ok("-m", TINY, QUESTION, *QUICK)
    first, embedded = llm_command.logs()
    assert first["response"] == embedded["response"]
    assert first["resolved_model"] == f"{REPO}@{COMMIT}"
    assert first["response_json"]["finish_reason"] in ("stop", "length")
    # Each file once, and no file that a reply has no use for.
    assert sorted(hub.file_gets) == sorted(checkpoint_files)
    assert {request.authorization for request in hub.requests} == {None}

    hub.requests.clear()
    again = llm_command("-m", FULL, QUESTION, *QUICK)
    assert again.stdout == answer + "\n"
    assert again.stderr == ""
    assert hub.requests == []
    assert llm_command.logs()[-1]["resolved_model"] == f"{REPO}@{COMMIT}"


@pytest.mark.usefixtures("in_processes", "in_process")
@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
def test_stopped_and_gone_on_with(
    hub: LoopbackHub,
    cache: Path,
    llm_command: Llm,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ctrl-C in the middle of a file, a run without network, then one that fetches only the rest."""
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    hub.pause_after = PART
    process = llm_command.process("-m", FULL, QUESTION, *QUICK)
    assert hub.paused.wait(60)
    partial = wait_for_size(cache, PART)
    process.send_signal(signal.SIGINT)
    output, errors = finish(process)
    assert process.returncode == 130
    assert output == ""
    here = failures.size(sum(len(content) for name, content in needed(hub).items() if name != LAST_SHARD) + PART)
    assert f"Stopped. {here} of {all_of(hub)} are on disk" in errors
    assert "Error:" not in errors
    assert partial.stat().st_size == PART
    assert llm_command.logs() == []
    assert {request.authorization for request in hub.requests if request.file} == {"Bearer hf_of_a_test"}

    hub.requests.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "only partly in this machine's Hugging Face cache, and HF_HUB_OFFLINE" in fails()
    assert hub.requests == []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    # The newest commit is another by now, whose weights nobody has asked for.
    hub.newer = {name: content + b" " for name, content in hub.files.items()}
    assert located().resolved_model == f"{REPO}@{COMMIT}"
    said = capsys.readouterr().err
    assert "are not all on this machine yet" in said
    assert f"Downloading {all_of(hub)} in 9 files, {here} of it here already" in said
    assert "%" not in said  # no bar where there is no terminal
    assert hub.last_shard_ranges == [f"bytes={PART}-"]
    assert hub.file_gets == [LAST_SHARD]
    assert not [blob for blob in blobs(cache) if blob.name.endswith(".incomplete")]


def wait_for_size(cache: Path, size: int) -> Path:
    for _ in range(600):
        for blob in blobs(cache):
            if blob.name.endswith(".incomplete") and blob.stat().st_size >= size:
                return blob
        time.sleep(0.05)
    raise AssertionError(f"no unfinished file of {size} bytes: {blobs(cache)}")


@pytest.mark.usefixtures("in_process")
def test_dropped_connection(hub: LoopbackHub) -> None:
    """Within one run it is gone on with by itself."""
    hub.cut_after = PART
    located()
    assert hub.last_shard_ranges == [None, f"bytes={PART}-"]


@pytest.mark.usefixtures("in_process")
def test_cut_for_good(hub: LoopbackHub) -> None:
    """The rest comes with the next prompt, and nothing twice."""
    hub.truncate_to = PART
    message = fails()
    assert "did not come whole" in message
    assert "Run the command again" in message
    assert FIRST_SHARD in hub.file_gets
    hub.requests.clear()
    hub.truncate_to = None
    located()
    assert hub.file_gets == [LAST_SHARD]
    assert hub.last_shard_ranges == [f"bytes={PART}-"]


@pytest.mark.usefixtures("in_process")
def test_damaged_on_the_way(hub: LoopbackHub, cache: Path) -> None:
    hub.corrupt = True
    assert f"{LAST_SHARD} of {REPO} came damaged" in fails()
    assert len(blobs(cache)) == len(needed(hub)) - 1
    hub.corrupt = False
    located()
    assert hub.file_gets.count(FIRST_SHARD) == 1
    assert hub.last_shard_ranges == [None, None]


@pytest.mark.parametrize("is_listed", [True, False])
@pytest.mark.usefixtures("in_process")
def test_weights_cut_short_on_disk(is_listed: bool, hub: LoopbackHub, cache: Path) -> None:
    """They come again, and nothing else: the Hub's list or their header says how long they are."""
    snapshot = located().folder
    blob = (snapshot / LAST_SHARD).resolve()
    os.truncate(blob, 1_000_000)
    hub.requests.clear()
    if not is_listed:
        shutil.rmtree(repository(cache) / "trees")
        assert f"Damaged: {LAST_SHARD}. Delete {blob}, and" in hub_module.how_to_mend(REPO, snapshot)
    located()
    assert hub.file_gets == [LAST_SHARD]
    assert blob.read_bytes() == hub.files[LAST_SHARD]


@pytest.mark.usefixtures("in_process")
def test_a_partial_cache_of_an_older_huggingface_hub(hub: LoopbackHub, cache: Path) -> None:
    """It kept no list of a snapshot's files, so a missing shard is known from the weights' index only."""
    snapshot = located().folder
    shutil.rmtree(repository(cache) / "trees")
    (snapshot / LAST_SHARD).resolve().unlink()
    hub.requests.clear()
    located()
    assert hub.file_gets == [LAST_SHARD]


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("refusal", "only_files", "words"),
    [
        (Refusal(401, "GatedRepo", "Access is restricted"), True, ("accept a licence", "hf auth login")),
        (Refusal(403, "GatedRepo", "Not in the list"), False, ("accept a licence", "hf auth login")),
        (Refusal(401, None, "Invalid credentials in Authorization header"), False, ("401", "HF_TOKEN")),
        (Refusal(401, None, "Invalid username or password."), False, ("does not have", "hf auth login")),
        (Refusal(403, None, "\x1b]52;c;aGE=\x07 Not you"), True, ("403", "HF_TOKEN", "Not you")),
        (Refusal(401, "RepoNotFound"), False, ("does not have", "HF_ENDPOINT", "hf auth login")),
        (Refusal(404, "RepoNotFound"), False, ("does not have", "HF_ENDPOINT")),
        (Refusal(404, "EntryNotFound"), True, ("does not have", "not all of its files")),
        (Refusal(404, "RevisionNotFound"), False, ("not the revision",)),
        (Refusal(429), False, ("too many requests", "429")),
        (Refusal(429, retry_after="86400"), False, ("24 hours", "429", "too long to wait")),
        (Refusal(503, retry_after="99999999999999999999"), True, ("for ever", "503")),
        (Refusal(503, retry_after="Wed, 21 Oct 2099 07:28:00 GMT"), True, ("hours", "503")),
        (Refusal(503, retry_after="soon"), True, ("trouble of its own", "503")),
        (Refusal(500), False, ("trouble of its own (status 500)", "Try again later")),
        (Refusal(503), True, ("trouble of its own (status 503)", "Try again later")),
        (Refusal(418), True, ("refuses the request (status 418)",)),
    ],
)
def test_refused_by_the_hub(
    refusal: Refusal, only_files: bool, words: tuple[str, ...], hub: LoopbackHub, cache: Path
) -> None:
    if only_files:
        hub.refuse_files = refusal
    else:
        hub.refuse_all = refusal
    message = fails()
    assert REPO in message
    for word in words:
        assert word in message
    # Nothing but an empty begun file.
    assert sum(blob.stat().st_size for blob in blobs(cache)) == 0


@pytest.mark.usefixtures("in_process")
def test_a_small_file_refused(hub: LoopbackHub) -> None:
    hub.refuse_files, hub.refused_file = Refusal(403), "config.json"
    assert "refuses access" in fails()


@pytest.mark.usefixtures("in_process")
def test_no_hub_at_all(llm_command: Llm, monkeypatch: pytest.MonkeyPatch, hub: LoopbackHub) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        point_to(f"http://127.0.0.1:{unused.getsockname()[1]}", monkeypatch)
        refused = llm_command.fails("-m", FULL, QUESTION)
    assert "can't be reached" in refused
    assert "diffusiongemma-tiny" in refused

    # A name that has no address: RFC 2606 keeps this one from ever having one.
    point_to("http://hub.invalid", monkeypatch)
    assert "can't be reached" in fails()

    point_to(hub.url, monkeypatch)
    hub.instead = b"<html>Accept our terms to use this network</html>"
    assert "not a Hugging Face Hub" in fails()


@pytest.mark.usefixtures("in_process")
def test_no_weights_on_the_hub(hub: LoopbackHub) -> None:
    del hub.files[FIRST_SHARD], hub.files[LAST_SHARD]
    assert "no weights in safetensors files" in fails()
    assert hub.file_gets == []


@pytest.mark.usefixtures("in_process")
def test_too_large_for_this_machine(
    hub: LoopbackHub, cache: Path, llm_command: Llm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused by the size in the listing, before any file is asked for or made."""
    hub.claimed_sizes[LAST_SHARD] = 51_600_000_000
    monkeypatch.delenv("LLM_DIFFUSIONGEMMA_DEVICE")
    monkeypatch.setattr(devices, "available_devices", lambda: ["cpu"])
    message = llm_command.fails("-m", FULL, QUESTION)
    assert "48.1 GiB" in message
    assert "no GPU" in message
    assert "LLM_DIFFUSIONGEMMA_DEVICE=cpu" in message
    assert "llm -m diffusiongemma-tiny" in message

    monkeypatch.setattr(devices, "total_memory", lambda device: 6 * 2**30)
    monkeypatch.setattr(devices, "available_devices", lambda: ["cuda:0", "cpu"])
    message = llm_command.fails("-m", FULL, QUESTION)
    assert message.startswith("In bf16 the model takes ")
    assert "There may be taken 6.0 GiB of cuda:0." in message
    assert "-m diffusiongemma-nvfp4" not in message  # it would not fit either

    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_DEVICE", "cpu")
    assert "There may be taken 4.0 GiB of cpu." in llm_command.fails("-m", FULL, QUESTION)
    assert [request for request in hub.requests if request.file] == []
    assert not cache.exists()


@pytest.mark.usefixtures("in_process")
def test_too_large_for_the_disk(
    hub: LoopbackHub, cache: Path, llm_command: Llm, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.claimed_sizes[LAST_SHARD] = 51_600_000_000
    asked: list[Path] = []

    def disk_usage(place: Path) -> tuple[int, int, int]:
        asked.append(place)
        return namedtuple("Usage", "total used free")(10**12, 10**12 - 10**9, 10**9)

    monkeypatch.setattr(bringing.shutil, "disk_usage", disk_usage)
    message = llm_command.fails("-m", FULL, QUESTION)
    assert "needs 51.6 GB more" in message
    assert "only 1.0 GB are free" in message
    assert "HF_HUB_CACHE" in message
    assert asked == [cache.parent]  # the nearest folder that is there
    assert [request for request in hub.requests if request.file] == []
    assert not cache.exists()


@pytest.mark.usefixtures("in_process")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_disk_runs_full(hub: LoopbackHub, cache: Path) -> None:
    """The kernel's own ENOSPC, from the device that exists for this."""
    entry = next(entry for entry in hub.listing() if entry["name"] == LAST_SHARD)
    folder = repository(cache) / "blobs"
    folder.mkdir(parents=True)
    (folder / (entry["sha256"] + hub_module.PARTIAL_SUFFIX)).symlink_to("/dev/full")
    message = fails()
    assert "The disk ran full" in message
    assert "HF_HUB_CACHE" in message


@pytest.mark.usefixtures("in_process")
def test_cache_that_cannot_be_written(cache: Path) -> None:
    cache.write_text("a file where a folder should be")
    message = fails()
    assert "can't be written" in message
    assert os.strerror(errno.EEXIST) in message or os.strerror(errno.ENOTDIR) in message


@pytest.mark.usefixtures("in_process")
async def test_two_prompts_at_once_download_once(hub: LoopbackHub, checkpoint_files: dict[str, bytes]) -> None:
    """The second waits for the first one's download, and the event loop stays free meanwhile."""
    hub.pause_after = PART
    model = llm.get_async_model(FULL)

    async def reply() -> str:
        return await model.prompt(QUESTION, seed=1, max_tokens=20, max_denoising_steps=2).text()

    replies = asyncio.gather(reply(), reply())
    ticks = 0
    while not hub.paused.is_set():
        await asyncio.sleep(0.005)
    for _ in range(50):
        await asyncio.sleep(0.005)
        ticks += 1
    assert hub.last_shard_ranges == [None]
    hub.go_on.set()
    first, second = await asyncio.wait_for(replies, 60)
    assert first == second
    assert ticks == 50
    assert [request.path for request in hub.requests].count(f"/api/models/{REPO}") == 1
    assert sorted(hub.file_gets) == sorted(checkpoint_files)


@pytest.mark.usefixtures("in_process")
def test_another_process_is_at_it(hub: LoopbackHub, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It waits for the cache's lock, which `hf download` takes as well, and says for what."""
    entry = next(entry for entry in hub.listing() if entry["name"] == LAST_SHARD)
    lock = cache / ".locks" / f"models--{REPO.replace('/', '--')}" / f"{entry['sha256']}.lock"
    lock.parent.mkdir(parents=True)
    taken, told = threading.Event(), threading.Event()

    def hold() -> None:
        with WeakFileLock(lock):
            taken.set()
            told.wait(60)

    threading.Thread(target=hold).start()
    taken.wait(10)
    seen = []

    def check_wanted() -> None:
        seen.append(capsys.readouterr().err)
        if "Another process is downloading" in seen[-1]:
            told.set()

    hub_module.locate(Source(REPO), FULL, lambda weight_bytes: None, check_wanted)
    assert f"Another process is downloading {LAST_SHARD}; waiting for it." in "".join(seen)
    assert hub.last_shard_ranges == [None]


@pytest.mark.usefixtures("in_process")
async def test_async_failure(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubConnectionError, match="HF_HUB_OFFLINE") as raised:
        await llm.get_async_model(FULL).prompt(QUESTION).text()
    assert isinstance(raised.value, llm.ModelError)
    assert hub.requests == []


# --- weights that are here, and something small that is not ----------------------------------------------

SMALL_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    INDEX,
]
IMAGE_FILE = "preprocessor_config.json"


@pytest.fixture
def snapshot(in_process: None, cache: Path, checkpoint_files: dict[str, bytes]) -> Path:
    """A cache that is all here, as an older huggingface_hub left it."""
    return fill_cache(cache, checkpoint_files)


def lose(file: Path, how: str) -> None:
    blob = file.resolve()
    if how == "link and content":
        file.unlink()
    if how == "empty":
        os.truncate(blob, 0)
    else:
        blob.unlink()


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((name, "link and content") for name in [*SMALL_FILES, IMAGE_FILE]),
        ("tokenizer.json", "content"),
        ("tokenizer.json", "empty"),
        (INDEX, "empty"),
    ],
)
def test_a_small_file_is_missing(
    name: str, how: str, snapshot: Path, hub: LoopbackHub, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only that comes, and is announced: not a word of weights that are not here."""
    lose(snapshot / name, how)
    assert located() == hub_module.Checkpoint(snapshot, f"{REPO}@{COMMIT}")
    size = failures.size(len(hub.files[name]))
    announced = f"The weights of {REPO} are here, but not {name}. Downloading {size} to {cache}.\n"
    assert capsys.readouterr() == ("", announced)
    assert hub.file_gets == [name]
    assert (snapshot / name).read_bytes() == hub.files[name]
    hub.requests.clear()
    located()
    assert hub.requests == []


def test_a_small_file_is_missing_to_a_user(snapshot: Path, hub: LoopbackHub, llm_command: Llm) -> None:
    answer = llm_command.ok("-m", TINY, QUESTION, *QUICK)
    lose(snapshot / "tokenizer_config.json", "link and content")
    assert llm_command.ok("-m", FULL, QUESTION, *QUICK) == answer
    assert hub.file_gets == ["tokenizer_config.json"]


def test_several_small_files_are_missing_where_the_list_is_known(
    in_process: None, hub: LoopbackHub, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = located().folder
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        lose(snapshot / name, "content")
    hub.requests.clear()
    located()
    assert "are here, but not chat_template.jinja, tokenizer_config.json." in capsys.readouterr().err
    assert sorted(hub.file_gets) == ["chat_template.jinja", "tokenizer_config.json"]


@pytest.mark.parametrize("name", SMALL_FILES)
def test_a_small_file_is_missing_offline(
    name: str, snapshot: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is said, it is not that 52 GB must go or come."""
    lose(snapshot / name, "link and content")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    offline = re.escape(f"are in {snapshot}, but {name} is not, and HF_HUB_OFFLINE")
    with pytest.raises(HubConnectionError, match=offline) as raised:
        located()
    assert "only that" in str(raised.value)
    assert "hf cache rm" not in str(raised.value)
    assert "hf download" not in str(raised.value)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    point_to("http://hub.invalid", monkeypatch)
    with pytest.raises(HubConnectionError, match=re.escape(f"are in {snapshot}, but {name} is not, and the Hub")):
        located()
    # The other way out that it names.
    (snapshot / name).write_bytes(hub.files[name])
    assert located().folder == snapshot
    assert hub.requests == []


def test_text_needs_no_image_processor_offline(
    snapshot: Path, hub: LoopbackHub, llm_command: Llm, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(snapshot / IMAGE_FILE, "link and content")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    llm_command.ok("-m", FULL, QUESTION, *QUICK)


def test_what_is_missing_comes_from_the_weights_commit(
    snapshot: Path, hub: LoopbackHub, checkpoint_files: dict[str, bytes]
) -> None:
    """The newest commit has other weights, which nobody has asked for."""
    hub.newer = {name: content + b" " for name, content in checkpoint_files.items()}
    lose(snapshot / "tokenizer.json", "link and content")
    assert located().resolved_model == f"{REPO}@{COMMIT}"
    assert hub.file_gets == ["tokenizer.json"]


def test_a_missing_shard_comes_from_the_commit_of_the_others(
    snapshot: Path, hub: LoopbackHub, checkpoint_files: dict[str, bytes]
) -> None:
    hub.newer = {name: content + b" " for name, content in checkpoint_files.items()}
    lose(snapshot / FIRST_SHARD, "link and content")
    assert located().resolved_model == f"{REPO}@{COMMIT}"
    assert hub.file_gets == [FIRST_SHARD]


def test_the_weights_commit_is_gone_from_the_hub(
    snapshot: Path, hub: LoopbackHub, checkpoint_files: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """Then it is the newest one. What is the same in it does not come again."""
    generation_config = {**json.loads(checkpoint_files["generation_config.json"]), "t_max": 0.7}
    hub.newer = {**checkpoint_files, "generation_config.json": json.dumps(generation_config).encode()}
    hub.has_forgotten = True
    lose(snapshot / "tokenizer.json", "link and content")
    assert located().resolved_model == f"{REPO}@{NEWER_COMMIT}"
    assert "are here, but not generation_config.json, tokenizer.json." in capsys.readouterr().err
    assert sorted(hub.file_gets) == ["generation_config.json", "tokenizer.json"]
    hub.requests.clear()
    assert located().resolved_model == f"{REPO}@{NEWER_COMMIT}"
    assert hub.requests == []


def test_other_homes_of_template_and_image_processor(
    in_process: None, hub: LoopbackHub, checkpoint_files: dict[str, bytes], cache: Path, llm_command: Llm
) -> None:
    """A repository with the one in tokenizer_config.json and the other in processor_config.json lacks nothing."""
    files = dict(checkpoint_files)
    template = files.pop("chat_template.jinja").decode()
    tokenizer_config = {**json.loads(files["tokenizer_config.json"]), "chat_template": template}
    files["tokenizer_config.json"] = json.dumps(tokenizer_config).encode()
    files["processor_config.json"] = files.pop(IMAGE_FILE)
    fill_cache(cache, files)
    llm_command.ok("-m", FULL, QUESTION, *QUICK)
    assert hub.requests == []


def test_the_repository_does_not_have_it(
    in_process: None, hub: LoopbackHub, checkpoint_files: dict[str, bytes], cache: Path, llm_command: Llm
) -> None:
    """It is asked once, and not with every prompt; and then refused for what is missing."""
    del hub.files["tokenizer_config.json"]
    fill_cache(cache, {name: content for name, content in checkpoint_files.items() if name in hub.files})
    assert "has no tokenizer_config.json" in llm_command.fails("-m", FULL, QUESTION)
    assert hub.file_gets == []
    hub.requests.clear()
    assert "has no tokenizer_config.json" in llm_command.fails("-m", FULL, QUESTION)
    assert hub.requests == []


@pytest.mark.parametrize("name", SMALL_FILES)
def test_a_small_file_is_damaged(
    name: str,
    snapshot: Path,
    hub: LoopbackHub,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One other digit, and it is not the Hub's file any more: it comes again, and nothing else."""
    blob = (snapshot / name).resolve()
    content = bytearray(hub.files[name])
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = fails()
    assert f"but {name} is not as the Hub has it (damaged, or edited), and HF_HUB_OFFLINE" in message
    assert "elete" not in message
    assert hub.requests == []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert located().folder == snapshot
    assert hub.file_gets == [name]
    assert f"are here, but not {name}." in capsys.readouterr().err
    assert blob.read_bytes() == hub.files[name]


# --- copies of the weights in another layout -------------------------------------------------------------


@pytest.mark.parametrize(
    ("others", "loaded"),
    [
        (["consolidated.safetensors", "consolidated.safetensors.index.json"], [FIRST_SHARD, LAST_SHARD]),
        (["consolidated-00001-of-00001.safetensors"], [FIRST_SHARD, LAST_SHARD]),
        (["model.safetensors"], ["model.safetensors"]),
    ],
)
def test_a_copy_of_the_weights_is_not_downloaded(
    others: list[str], loaded: list[str], in_process: None, hub: LoopbackHub
) -> None:
    whole = (EMBEDDED_CHECKPOINT / "model.safetensors").read_bytes()
    hub.files |= {name: whole if name.endswith(".safetensors") else b"{}" for name in others}
    checkpoint = located()
    assert checkpoint.weight_bytes == sum(len(hub.files[name]) for name in loaded)
    assert sorted(name for name in hub.file_gets if name.endswith(".safetensors")) == loaded
    assert not any("consolidated" in name for name in hub.file_gets)
    hub.requests.clear()
    assert located() == checkpoint
    assert hub.requests == []


def test_weights_by_unusual_names_beside_shards(
    in_process: None, hub: LoopbackHub, checkpoint_files: dict[str, bytes], llm_command: Llm
) -> None:
    """What the index names is needed, whatever it is called."""
    hub.files["vision.safetensors"] = hub.files.pop(FIRST_SHARD)
    hub.files[INDEX] = hub.files[INDEX].replace(FIRST_SHARD.encode(), b"vision.safetensors")
    answer = llm_command.ok("-m", FULL, QUESTION, *QUICK)
    assert answer == llm_command.ok("-m", TINY, QUESTION, *QUICK)
    assert sorted(hub.file_gets) == sorted(hub.files.keys() - {*NOT_NEEDED})


# --- what this machine can tell --------------------------------------------------------------------------


@pytest.fixture
def judged(in_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU, nothing chosen: the machine that most people have."""
    monkeypatch.delenv("LLM_DIFFUSIONGEMMA_DEVICE")
    monkeypatch.setattr(devices, "available_devices", lambda: ["cpu"])


@pytest.fixture(params=["offline", "no network", "no Hub", "refused"])
def no_help(request: pytest.FixtureRequest, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ways in which the Hub does not say what it has."""
    if request.param == "offline":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    elif request.param == "no network":
        point_to("http://hub.invalid", monkeypatch)
    elif request.param == "no Hub":
        hub.instead = b"<html>Accept our terms to use this network</html>"
    else:
        hub.refuse_all = Refusal(503)


@pytest.mark.usefixtures("judged", "no_help")
def test_the_machine_before_the_network(
    cache: Path, checkpoint_files: dict[str, bytes], llm_command: Llm, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = llm_command.fails("-m", FULL, QUESTION)
    assert message.startswith("The model's weights take 48.1 GiB, and PyTorch finds no GPU here")
    # Also if they are partly here.
    lose(fill_cache(cache, checkpoint_files) / LAST_SHARD, "content")
    monkeypatch.setattr(devices, "total_memory", lambda device: 6 * 2**30)
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_DEVICE", "CPU")
    assert "There may be taken 4.0 GiB of cpu." in llm_command.fails("-m", FULL, QUESTION)
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_DEVICE", "bogus")
    assert llm_command.fails("-m", FULL, QUESTION).startswith("There is no device called 'bogus'. Here are: cpu.")


@pytest.mark.usefixtures("judged")
@pytest.mark.parametrize("device", ["bogus", "cuda:7", "cpu:3"])
def test_a_device_that_is_not_there_before_a_request(
    device: str, hub: LoopbackHub, cache: Path, llm_command: Llm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_DEVICE", device)
    assert repr(device) in llm_command.fails("-m", FULL, QUESTION)
    assert hub.requests == []
    assert not cache.exists()


@pytest.mark.usefixtures("judged")
def test_small_weights_that_are_here_are_judged_by_themselves(
    snapshot: Path, llm_command: Llm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by what the real ones would take."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    llm_command.ok("-m", FULL, QUESTION, *QUICK)
    lose(snapshot / "tokenizer.json", "content")
    assert "GPU" not in llm_command.fails("-m", FULL, QUESTION)


@pytest.mark.usefixtures("in_process")
def test_a_cache_that_cannot_be_written_before_the_network(
    hub: LoopbackHub, cache: Path, llm_command: Llm, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_text("a file where a folder should be")
    result = llm_command("-m", FULL, QUESTION)
    assert result.stderr.startswith("Error: ")  # no download announced
    assert hub.file_gets == []
    point_to("http://hub.invalid", monkeypatch)
    assert "can't be written" in llm_command.fails("-m", FULL, QUESTION)
    # Where nothing would be written that is not what is wrong.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in llm_command.fails("-m", FULL, QUESTION)


# --- lists that can't be believed ------------------------------------------------------------------------

SHA1, SHA256 = "0" * 40, "0" * 64
UNBELIEVABLE: list[dict[str, Any]] = [
    *(
        {"rfilename": name}
        for name in (
            *("", ".", "..", "../x.json", "a/../../x.json", "/etc/passwd", "a//b", "a/", "./a"),
            *("..\\x.json", "\\\\host\\x", "C:\\x", "C:x.json", "config.json:stream", "x?.json", "x|y"),
            *("con", "NUL.json", "aux.tar.gz", "com1.json", "LPT9", "COM¹", "a/prn", "con .json", "x.json."),
            *("x.json ", "x\0.json", "x\n.json", "\x1b]52;c;aGE=\x07.json", "x\u202enosj", "x\x7f", "\ud800"),
            *("n" * 300, "config.json", "CONFIG.JSON"),  # the last two are there already
        )
    ),
    *({"blobId": blob_id} for blob_id in ("../../y", "0" * 39, "A" * 40, "0" * 40 + "\n", 7, ["0" * 40])),
    *(
        {"lfs": {"sha256": sha256, "size": 1}}
        for sha256 in ("../../y", "/etc/passwd", "0" * 63, "A" * 64, "0" * 40, 7, None)
    ),
    *({"size": size} for size in (-1, 1.5, "12", True, 10**400, float("inf"), float("nan"), 1 << 63)),
    {"size": 5, "lfs": {"sha256": SHA256, "size": 6}},
    {"lfs": "yes"},
]


@pytest.mark.parametrize("changed", UNBELIEVABLE, ids=range(len(UNBELIEVABLE)))
@pytest.mark.usefixtures("in_process")
def test_a_list_that_cannot_be_believed(changed: dict[str, Any], hub: LoopbackHub, tmp_path: Path) -> None:
    """Refused whole, before anything is asked for or made."""
    extra = {"rfilename": "extra.json", "size": 1, "blobId": SHA1, **changed}
    hub.alter_listing = lambda content: {**content, "siblings": [*content["siblings"], extra]}
    assert "says can't be used" in fails()
    assert hub.file_gets == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" * 20_000, "not a Hugging Face Hub"),
        (b'{"sha":' * 20_000, "not a Hugging Face Hub"),
        (b'{"sha": 1' + b"0" * 5000 + b"}", "not a Hugging Face Hub"),
        (b"[]", "not a Hugging Face Hub"),
        (b"\xff\xfe", "not a Hugging Face Hub"),
        (b"", "not a Hugging Face Hub"),
        (b'{"error": "no"}', "not a Hugging Face Hub"),
        (b'{"sha": "../..", "siblings": []}', "not 40 hexadecimal digits"),
        (b'{"sha": 7, "siblings": []}', "sha is 7"),
        (b'{"sha": "%s", "siblings": null}' % COMMIT.encode(), "siblings is null"),
        (b'{"sha": "%s", "siblings": [7]}' % COMMIT.encode(), "can't be used"),
        (b'{"sha": "%s", "siblings": [{}]}' % COMMIT.encode(), "has no siblings.0.rfilename"),
        (b" " * (listing.MAX_LISTING_BYTES + 1), "has no end"),
    ],
    ids=range(13),
)
@pytest.mark.usefixtures("in_process")
def test_no_list_at_all(content: bytes, words: str, hub: LoopbackHub) -> None:
    hub.alter_listing = lambda _: content
    assert words in fails()
    assert hub.file_gets == []


# --- other bytes than were announced ---------------------------------------------------------------------


@pytest.mark.usefixtures("in_process")
def test_main_moves_after_the_list(hub: LoopbackHub, checkpoint_files: dict[str, bytes], cache: Path) -> None:
    """What was announced comes, once, and nothing of the other commit."""

    def move() -> None:
        hub.newer = {name: content + b" " for name, content in checkpoint_files.items()}

    hub.after_listing = move
    assert located().resolved_model == f"{REPO}@{COMMIT}"
    assert sorted(hub.file_gets) == sorted(checkpoint_files)
    assert not any(NEWER_COMMIT in request.path for request in hub.requests)
    assert (repository(cache) / "refs" / "main").read_text() == COMMIT
    for name, content in checkpoint_files.items():
        link = repository(cache) / "snapshots" / COMMIT / name
        assert link.resolve().parent == (repository(cache) / "blobs").resolve()
        assert link.read_bytes() == content


@pytest.mark.usefixtures("in_process")
def test_an_etag_that_a_proxy_has_changed(hub: LoopbackHub, cache: Path) -> None:
    hub.alter_headers = lambda name, headers: headers.update({"ETag": '"of-a-proxy"', "X-Linked-ETag": '"x"'})
    located()
    assert all(re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", blob.name) for blob in blobs(cache))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", LAST_SHARD])
@pytest.mark.usefixtures("in_process")
def test_a_flipped_bit_on_the_way(name: str, hub: LoopbackHub, cache: Path) -> None:
    hub.alter_body = lambda file, body: body[:-1] + bytes([body[-1] ^ 1]) if file == name else body
    assert f"{name} of {REPO} came damaged" in fails()
    assert not (repository(cache) / "snapshots" / COMMIT / name).exists()


@pytest.mark.parametrize("is_announced", [True, False])
@pytest.mark.parametrize("name", ["config.json", LAST_SHARD])
@pytest.mark.usefixtures("in_process")
def test_a_body_longer_than_announced(name: str, is_announced: bool, hub: LoopbackHub, cache: Path) -> None:
    """It is stopped while it comes, and nothing of it is kept."""
    hub.alter_body = lambda file, body: body * 20 if file == name else body
    if not is_announced:
        hub.alter_headers = lambda file, headers: headers.pop("Content-Length", None) and None
    assert f"{name} of {REPO} is longer than" in fails()
    assert not list((repository(cache) / "blobs").glob("*.incomplete"))
    hub.alter_body = hub.alter_headers = None
    located()


@pytest.mark.usefixtures("in_process")
def test_the_disk_is_judged_without_what_is_of_no_use(
    hub: LoopbackHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A begun file that is too long, and one of a content that nobody has any more, make room first."""
    ids = {entry["name"]: entry["sha256"] for entry in hub.listing()}
    folder = repository(cache) / "blobs"
    folder.mkdir(parents=True)
    for content_id, size in ((ids[LAST_SHARD], 2 * len(hub.files[LAST_SHARD])), ("f" * 64, 7_000_000)):
        (folder / (content_id + hub_module.PARTIAL_SUFFIX)).write_bytes(bytes(size))

    def disk_usage(place: Path) -> tuple[int, int, int]:
        taken = sum(blob.stat().st_size for blob in folder.iterdir())
        return namedtuple("Usage", "total used free")(10**7, taken, 10**7 - taken)

    monkeypatch.setattr(bringing.shutil, "disk_usage", disk_usage)
    located()


@pytest.mark.parametrize("what", ["content", "range ignored", "416", "another part"])
@pytest.mark.usefixtures("in_process")
def test_a_begun_file_that_cannot_be_gone_on_with(what: str, hub: LoopbackHub, cache: Path) -> None:
    hub.truncate_to = PART
    fails()
    hub.truncate_to = None
    begun = next((repository(cache) / "blobs").glob("*.incomplete"))
    if what == "content":
        begun.write_bytes(bytes(PART))
    else:
        hub.answer_ranges = what
    located()
    assert hub.last_shard_ranges[-2:] == [f"bytes={PART}-", None]


# --- mirrors that do not say everything ------------------------------------------------------------------


def without(*fields: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The list without some of what it says of files."""
    return lambda content: {
        **content,
        "siblings": [
            {key: value for key, value in file.items() if key not in fields} for file in content["siblings"]
        ],
    }


@pytest.mark.parametrize("no_head", [False, True])
@pytest.mark.parametrize("fields", [("size",), ("size", "blobId", "lfs")])
@pytest.mark.usefixtures("in_process")
def test_a_mirror_that_lists_no_sizes(
    fields: tuple[str, ...], no_head: bool, hub: LoopbackHub, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if fields == ("size",):
        no_size = {"size": None}
        hub.alter_listing = lambda content: {
            **content,
            "siblings": [
                {**file, **no_size, **({"lfs": {**file["lfs"], **no_size}} if "lfs" in file else {})}
                for file in content["siblings"]
            ],
        }
    else:
        hub.alter_listing = without(*fields)
    hub.refuse_head = 405 if no_head else None
    located()
    said = capsys.readouterr().err
    assert "have no sizes or checksums in the list" in said
    assert f"Downloading {all_of(hub)} in 9 files" in said
    assert {name: hub.files[name] for name in needed(hub)} == {
        file.name: file.read_bytes() for file in (repository(cache) / "snapshots" / COMMIT).iterdir()
    }


@pytest.mark.usefixtures("in_process")
def test_files_that_nobody_reads_may_be_anything(
    cache: Path, checkpoint_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a cache without a list each of them was needed, and offline that was an end."""
    snapshot = fill_cache(cache, checkpoint_files)
    (snapshot / "special_tokens_map.json").touch()
    (snapshot / "other.json").symlink_to("nowhere")
    (snapshot / "model.fp8.index.json").symlink_to("nowhere")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert located().folder == snapshot


@pytest.mark.usefixtures("in_process")
def test_a_storage_that_signs_its_addresses_for_another_request(
    hub: LoopbackHub, checkpoint_files: dict[str, bytes]
) -> None:
    """The Hub had said it all, and the storage's refusal of a HEAD was taken for the answer."""
    storage = LoopbackHub(checkpoint_files, refuse_head=403)
    storage.start()
    try:
        hub.elsewhere = storage.url
        hub.alter_listing = without("size", "blobId", "lfs")
        located()
    finally:
        storage.stop()
    assert "HEAD" in {request.method for request in storage.requests}
    assert sorted(storage.file_gets) == [FIRST_SHARD, LAST_SHARD]


@pytest.mark.usefixtures("in_process")
def test_what_a_mirror_without_sizes_hands_out_is_checked(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.alter_listing = without("size", "blobId", "lfs")
    with monkeypatch.context() as small:
        usage = namedtuple("Usage", "total used free")(10**6, 0, 10**6)
        small.setattr(bringing.shutil, "disk_usage", lambda place: usage)
        assert f"needs {all_of(hub)} more on disk" in fails()
    assert hub.file_gets == []
    hub.corrupt = True
    assert "came damaged" in fails()
    hub.corrupt = False
    located()


@pytest.mark.parametrize("lack", ["checksum", "size", "commit"])
@pytest.mark.usefixtures("in_process")
def test_a_mirror_that_says_nothing_to_check_by(lack: str, hub: LoopbackHub) -> None:
    def alter(name: str, headers: dict[str, str | None]) -> None:
        if lack == "commit":
            headers["X-Repo-Commit"] = NEWER_COMMIT
        for key in {"checksum": ("ETag", "X-Linked-ETag"), "size": ("Content-Length", "X-Linked-Size")}.get(
            lack, ()
        ):
            headers.pop(key, None)

    hub.alter_listing = without("size", "blobId", "lfs")
    hub.alter_headers = alter
    words = {"checksum": "what its checksum is", "size": "how large it is", "commit": "is of the commit"}
    assert words[lack] in fails()


# --- waiting ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_process")
def test_how_long_is_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that takes 13 s to list is slow, and not absent; who sets a variable means it."""
    monkeypatch.delenv("HF_HUB_ETAG_TIMEOUT", raising=False)
    assert settings.listing_seconds() == (60, 60)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_ETAG_TIMEOUT", 3)
    assert settings.listing_seconds() == (3, 60)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_ETAG_TIMEOUT", 200)
    assert settings.listing_seconds() == (200, 200)
    for seconds, waited in ((30, 30), (-5, 1), (10**30, 86_400)):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", seconds)
        assert settings.download_silence_seconds() == waited


@pytest.mark.usefixtures("in_process")
def test_a_slow_list(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(listing, "SLOW_SECONDS", 0.1)
    hub.seconds_before = 0.4
    located()
    said = capsys.readouterr().err
    assert said.count("takes long to say what it has. It is given 60 s; Ctrl-C stops it.") == 1


@pytest.mark.parametrize("how", ["silent", "a byte at a time"])
@pytest.mark.usefixtures("in_process")
def test_a_list_that_never_ends(how: str, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "silent":
        hub.seconds_before = 60
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_ETAG_TIMEOUT", 0.3)
    else:
        hub.seconds_a_byte = 0.05
        monkeypatch.setattr(settings, "LISTING_SECONDS", 0.3)
    assert "can't be reached or went silent" in fails()


@pytest.mark.usefixtures("in_process")
def test_a_file_that_trickles(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "TRICKLE_SECONDS", 0.0)
    monkeypatch.setattr(transfer, "TRICKLE_BYTES", 10**9)
    assert "comes too slowly to ever be here" in fails()


@pytest.mark.usefixtures("in_process")
def test_a_file_that_goes_silent(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_DOWNLOAD_TIMEOUT of silence, and it is asked for again where it was."""
    hub.pause_after = PART
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    located()
    assert hub.last_shard_ranges == [None, f"bytes={PART}-"]


@pytest.mark.usefixtures("in_process")
def test_a_wait_that_the_hub_asks_for(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(exchange, "wait", lambda seconds, check_wanted: waits.append(seconds))
    monkeypatch.setattr(exchange, "LONGEST_WAIT_SECONDS", 130)
    hub.troubles = [Refusal(429, retry_after="120"), Refusal(503), Refusal(503, retry_after="0")]
    located()
    assert waits == [120, 0.01, 0.01]
    said = capsys.readouterr().err
    assert said.count("have to wait") == 1
    assert "the Hub (status 429) asks for 120 s. Ctrl-C stops it" in said


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": " 7 "}, 7),
        ({"retry-after": "-7"}, None),
        ({"retry-after": "7.5"}, None),
        ({"retry-after": "9" * 5000}, 1e18),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"retry-after": "Wed, 21 Oct 99999 07:28:00 GMT"}, None),
        ({"ratelimit": '"api";r=0;t=55'}, 55),
        ({"ratelimit": '"api";r=9;t=55'}, None),
        ({}, None),
    ],
    ids=range(9),
)
def test_how_long_the_hub_asks_for(headers: dict[str, str], seconds: float | None) -> None:
    assert exchange._retry_after(headers) == seconds


class NobodyWantsItError(Exception):
    pass


@pytest.mark.parametrize("where", ["list", "file", "wait", "lock"])
@pytest.mark.usefixtures("in_process")
def test_nobody_wants_it_any_more(where: str, hub: LoopbackHub, cache: Path) -> None:
    """Whatever is waited for, the download ends: a thread that makes a reply gets no Ctrl-C."""
    if where == "list":
        hub.seconds_before = 60
    if where == "file":
        hub.pause_after = PART
    if where == "wait":
        hub.refuse_all = Refusal(503, retry_after="250")
    is_asked = threading.Event()

    def check_wanted() -> None:
        if hub.requests if where in ("list", "wait") else hub.paused.is_set() or is_asked.is_set():
            raise NobodyWantsItError

    with contextlib.ExitStack() as stack:
        if where == "lock":
            entry = next(entry for entry in hub.listing() if entry["name"] == LAST_SHARD)
            lock = cache / ".locks" / f"models--{REPO.replace('/', '--')}" / f"{entry['sha256']}.lock"
            lock.parent.mkdir(parents=True)
            stack.enter_context(WeakFileLock(lock))
            hub.alter_headers = lambda name, headers: is_asked.set() if name == FIRST_SHARD else None
        with pytest.raises(NobodyWantsItError):
            hub_module.locate(Source(REPO), FULL, lambda weight_bytes: None, check_wanted)


# --- what was wrong before anything was sent -------------------------------------------------------------


@pytest.mark.parametrize(
    "token",
    ["“hf_quoted”", "hf_a b", "hf_\u00e4", "hf_\u043f", "hf_a\x1b[31m", "hf_a\tb", "hf_\u200b", "hf_\udcff"],
)
@pytest.mark.usefixtures("in_process")
def test_a_token_that_is_none(token: str, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    message = fails()
    assert "The token in HF_TOKEN is none" in message
    assert "hf_" not in message
    assert hub.requests == []


@pytest.mark.usefixtures("judged")
def test_a_slip_in_a_setting_is_said_before_the_machine(
    hub: LoopbackHub, llm_command: Llm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was hidden behind the size that the weights are thought to have."""
    with monkeypatch.context() as slip:
        slip.setenv("HF_TOKEN", "“hf_quoted”")
        assert "The token in HF_TOKEN is none" in llm_command.fails("-m", FULL, QUESTION)
    point_to("hf-mirror.example", monkeypatch)
    assert "HF_ENDPOINT is" in llm_command.fails("-m", FULL, QUESTION)
    assert hub.requests == []


@pytest.mark.usefixtures("in_process")
def test_a_token_file_that_is_none(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for content in (b"\xff\xfeh\0f\0", "“hf_x”".encode()):
        (tmp_path / "token").write_bytes(content)
        assert str(tmp_path / "token") in fails()
    (tmp_path / "token").unlink()
    (tmp_path / "token").mkdir()
    assert str(tmp_path / "token") in fails()
    assert hub.requests == []


@pytest.mark.parametrize(
    "address",
    [
        *("not a url", "", "huggingface.co", "ftp://huggingface.co", "http://", "http://:80", "http://[::1"),
        *(
            "http://host:port",
            "http://host:99999",
            "https://a b.example",
            "http://a\x1b[31m",
            "http://\u2100.example",
        ),
        "http://xn--\ud83d.example",
    ],
)
@pytest.mark.usefixtures("in_process")
def test_an_endpoint_that_is_none(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to(address, monkeypatch)
    assert "HF_ENDPOINT is" in fails()


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "http_proxy", "ALL_PROXY", "SSL_CERT_FILE"])
@pytest.mark.usefixtures("in_process")
def test_network_settings_that_cannot_be_used(
    variable: str, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "/nowhere/at/all" if "SSL" in variable else "http://me:secret@[::1")
    huggingface_hub.utils.close_session()
    try:
        message = fails()
    finally:
        huggingface_hub.utils.close_session()
    assert f"Correct or unset {variable}" in message
    assert "secret" not in message
    assert hub.requests == []


@pytest.mark.parametrize("folder", ["~nobody-of-that-name/hub", "~", "~/.cache/huggingface/hub"])
@pytest.mark.usefixtures("in_process")
def test_no_home(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", nobody)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", folder)
    message = fails()
    assert "Set HOME to your home folder, or HF_HUB_CACHE" in message
    assert folder in message


@pytest.mark.usefixtures("in_process")
def test_a_password_in_the_endpoint_is_not_shown(monkeypatch: pytest.MonkeyPatch, hub: LoopbackHub) -> None:
    point_to(hub.url.replace("http://", "http://me:secret@"), monkeypatch)
    hub.refuse_all = Refusal(500)
    message = fails()
    assert "secret" not in message
    assert "status 500" in message


@pytest.mark.usefixtures("in_process")
def test_the_token_goes_to_no_other_host(
    hub: LoopbackHub, checkpoint_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    storage = LoopbackHub(checkpoint_files)
    storage.start()
    try:
        hub.elsewhere = storage.url
        located()
    finally:
        storage.stop()
    assert sorted(storage.file_gets) == [FIRST_SHARD, LAST_SHARD]
    assert {request.authorization for request in storage.requests} == {None}
    assert {request.authorization for request in hub.requests} == {"Bearer hf_of_a_test"}


@pytest.mark.parametrize(
    ("asked", "other", "is_same"),
    [
        ("https://a.co/x", "https://a.co/y", True),
        ("https://a.co/x", "https://A.co:443/y", True),
        ("http://a.co/x", "https://a.co/y", True),
        ("https://a.co/x", "http://a.co/y", False),
        ("https://a.co/x", "https://a.co:8443/y", False),
        ("https://a.co/x", "https://b.a.co/y", False),
        ("https://a.co/x", "https://a.co.b/y", False),
        ("https://a.co/x", "https://a.co@b.co/y", False),
    ],
)
def test_what_is_the_same_host(asked: str, other: str, is_same: bool) -> None:
    assert exchange._is_same_host(exchange._origin(asked), exchange._origin(other)) is is_same


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://x/y", "//", "http://[", "http://:80", "SELF"])
@pytest.mark.usefixtures("in_process")
def test_a_redirection_to_nowhere(location: str, hub: LoopbackHub) -> None:
    hub.redirect = hub.url + "/again" if location == "SELF" else location
    assert "can't be used" in fails()


# --- what is here is here --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [COMMIT + "\n", " " + COMMIT + "\r\n", None, "", NEWER_COMMIT, "../../x", "\0", "\xff", "a" * 5000, "dir"],
)
def test_a_reference_that_leads_nowhere(
    content: str | None, snapshot: Path, cache: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snapshots are looked at themselves, with a network and without."""
    reference = repository(cache) / "refs" / "main"
    reference.unlink()
    if content == "dir":
        reference.mkdir()
    elif content is not None:
        reference.write_bytes(content.encode("latin-1"))
    assert located() == hub_module.Checkpoint(snapshot, f"{REPO}@{COMMIT}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert located().folder == snapshot
    assert hub.requests == []


def test_a_whole_commit_goes_before_a_begun_one(snapshot: Path, cache: Path, hub: LoopbackHub) -> None:
    """Whatever was the newest when somebody last asked."""
    begun = snapshot.with_name(NEWER_COMMIT)
    begun.mkdir()
    (begun / "config.json").write_text("{}")
    (repository(cache) / "refs" / "main").write_text(NEWER_COMMIT)
    assert located().folder == snapshot
    assert hub.requests == []


def test_a_link_to_another_commits_content(
    in_process: None, hub: LoopbackHub, checkpoint_files: dict[str, bytes], cache: Path
) -> None:
    """Of the same length, as the weights of two commits are."""
    snapshot = located().folder
    other = repository(cache) / "blobs" / ("e" * 64)
    other.write_bytes(bytes(len(checkpoint_files[LAST_SHARD])))
    (snapshot / LAST_SHARD).unlink()
    (snapshot / LAST_SHARD).symlink_to(Path("..", "..", "blobs", other.name))
    hub.requests.clear()
    located()
    assert (snapshot / LAST_SHARD).read_bytes() == checkpoint_files[LAST_SHARD]
    assert hub.file_gets == []


def test_contents_that_the_cache_shares_between_repositories(
    snapshot: Path, cache: Path, hub: LoopbackHub
) -> None:
    """A content is then a link itself, to one whose name is another hash."""
    for number, blob in enumerate(blobs(cache)):
        shared = cache / "blobs" / f"{number:064x}"
        shared.parent.mkdir(exist_ok=True)
        blob.rename(shared)
        blob.symlink_to(shared)
    assert located().folder == snapshot
    assert hub.requests == []
    assert cache_module.damaged_files(snapshot) == []


@pytest.mark.usefixtures("in_process")
def test_a_disk_without_links(hub: LoopbackHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    snapshot = located().folder
    assert all(not (snapshot / name).is_symlink() for name in needed(hub))
    assert blobs(cache) == []
    hub.requests.clear()
    located()
    assert hub.requests == []
    (snapshot / "config.json").write_bytes(hub.files["config.json"].replace(b"1", b"2"))
    located()
    assert hub.file_gets == ["config.json"]


@pytest.mark.usefixtures("in_process")
def test_others_understand_the_cache(hub: LoopbackHub, cache: Path) -> None:
    snapshot = located().folder
    info = huggingface_hub.scan_cache_dir(cache)
    assert info.warnings == []
    [revision] = next(iter(info.repos)).revisions
    assert (revision.commit_hash, revision.refs) == (COMMIT, {"main"})
    assert {file.file_name for file in revision.files} == {*needed(hub)}
    assert huggingface_hub.try_to_load_from_cache(REPO, "config.json", cache_dir=cache) == str(
        snapshot / "config.json"
    )
    hub.requests.clear()
    found = huggingface_hub.snapshot_download(
        REPO, cache_dir=cache, allow_patterns=["model*.safetensors", "*.json"], local_files_only=True
    )
    assert found == str(snapshot)
    names = {entry.path for entry in huggingface_hub.get_cached_repo_tree(REPO, cache_dir=cache)}
    assert names == {*hub.files}
    assert hub.requests == []


# --- what this user may not read -------------------------------------------------------------------------


@contextlib.contextmanager
def as_somebody_else() -> Iterator[None]:
    """The superuser may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs POSIX rights")
@pytest.mark.parametrize("place", [LAST_SHARD, "config.json", "blobs", "snapshots", ""])
@pytest.mark.usefixtures("in_process")
def test_what_may_not_be_read(
    place: str, checkpoint_files: dict[str, bytes], hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is neither missing nor damaged, and nothing is downloaded, nor is anybody told to delete anything."""
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name)
        cache.chmod(0o755)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
        snapshot = fill_cache(cache, checkpoint_files)
        locked = (snapshot / place).resolve() if place in checkpoint_files else repository(cache) / place
        locked.chmod(0)
        try:
            with as_somebody_else():
                messages = [fails()]
                if place in checkpoint_files:
                    messages.append(hub_module.how_to_mend(REPO, snapshot))
                    messages.append(hub_module.how_to_mend(snapshot, snapshot))
        finally:
            locked.chmod(0o755)
    for message in messages:
        assert "no right to read" in message
        assert "chmod" in message
        assert "elete" not in message.replace("nor deleted", "")
        assert "hf cache" not in message
        assert "download" not in message
    assert hub.requests == []


def test_a_damaged_image_processor_is_not_used_offline(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing is told by a prompt with an image; damaged would only give other pictures."""
    blob = (snapshot / IMAGE_FILE).resolve()
    blob.write_bytes(blob.read_bytes().replace(b"0", b"1"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert f"{IMAGE_FILE} is not as the Hub has it" in fails()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_nobody_waits_at_a_pipe(snapshot: Path, cache: Path, hub: LoopbackHub) -> None:
    content = snapshot / LAST_SHARD
    begun = content.resolve().with_name(content.resolve().name + hub_module.PARTIAL_SUFFIX)
    for place in (repository(cache) / "refs" / "main", content.resolve(), (snapshot / "config.json").resolve()):
        place.unlink()
        os.mkfifo(place)
    os.mkfifo(begun)
    (repository(cache) / "trees").mkdir()
    os.mkfifo(repository(cache) / "trees" / f"{COMMIT}.json")
    assert located().folder == snapshot
    assert sorted(hub.file_gets) == ["config.json", LAST_SHARD]


def test_nothing_outside_of_the_cache_is_advised_to_be_deleted(snapshot: Path, tmp_path: Path) -> None:
    outside = tmp_path / "precious.safetensors"
    outside.write_bytes(b"short")
    (snapshot / LAST_SHARD).unlink()
    (snapshot / LAST_SHARD).symlink_to(outside)
    assert f"Delete {snapshot / LAST_SHARD}, and" in hub_module.how_to_mend(REPO, snapshot)


def test_hostile_hubs() -> None:
    """A short run of `python -m tests.attacks listings`."""
    outcomes = list(listings.run(16, 388))
    assert [outcome.detail for outcome in outcomes if not outcome.held] == []
    assert len({outcome.kind for outcome in outcomes}) > 7
