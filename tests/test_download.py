"""A large file over several connections at once: gone on with after any end, whole, and nothing twice."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.utils
import pytest

from llm_diffusiongemma import hub as hub_module
from llm_diffusiongemma.catalog import Source
from llm_diffusiongemma.errors import DownloadError, HubAccessError
from llm_diffusiongemma.hub import bringing, exchange, partial, transfer
from llm_diffusiongemma.hub.cache import Repository
from llm_diffusiongemma.hub.partial import PARTIAL_SUFFIX, Partial, bytes_here, journal_of, ranges_here
from llm_diffusiongemma.view.progress import Progress

from .loopback_hub import FIRST_SHARD, LAST_SHARD, NEWER_COMMIT, REPO, LoopbackHub, Refusal, Request

SIZE = 6_000_000
SPAN = 250_000
LARGE = random.Random(7).randbytes(SIZE)


class StoppedError(Exception):
    pass


@pytest.fixture
def large(hub: LoopbackHub, in_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last shard is large enough for all connections, the first for none but one. Nobody looks into them."""
    hub.files |= {FIRST_SHARD: LARGE[:SPAN], LAST_SHARD: LARGE}
    monkeypatch.setattr(partial, "MIN_SPAN_BYTES", SPAN)
    monkeypatch.setattr(partial, "NOTED_BYTES", SIZE // 100)


def place() -> Path:
    """Of the begun file."""
    entry = next(entry for entry in LoopbackHub({LAST_SHARD: LARGE}).listing())
    return Repository.of(REPO).partial(entry["sha256"])


def located(check_wanted: exchange.CheckWanted = lambda: None) -> Path:
    folder = hub_module.locate(Source(REPO), "x", lambda weight_bytes: None, check_wanted).folder
    assert (folder / LAST_SHARD).read_bytes() == LARGE
    blobs = Repository.of(REPO).blobs
    assert not list(blobs.glob("*.incomplete"))
    return folder


def stop(hub: LoopbackHub) -> int:
    """End a download when a third is here. Returns how much that is."""

    def check_wanted() -> None:
        if bytes_here(place()) >= SIZE // 3:
            raise StoppedError

    hub.bytes_a_second = 2_000_000
    with pytest.raises(StoppedError):
        located(check_wanted)
    hub.bytes_a_second = None
    hub.requests.clear()
    return bytes_here(place())


def asked(hub: LoopbackHub) -> list[tuple[int, int]]:
    """The parts of the file that were asked for, in order."""
    parts = []
    for text in hub.last_shard_ranges:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", text or "bytes=0-")
        assert match is not None
        parts.append((int(match[1]), int(match[2]) + 1 if match[2] else SIZE))
    return sorted(parts)


def twice(hub: LoopbackHub, here: list[tuple[int, int]]) -> int:
    """How many of the bytes that are here were asked for again."""
    return sum(max(min(end, until) - max(start, since), 0) for start, end in here for since, until in asked(hub))


@pytest.mark.usefixtures("large")
def test_several_parts_at_once(hub: LoopbackHub) -> None:
    hub.bytes_a_second = 2_000_000
    located()
    # All of them, but for a machine that is slow to start them.
    assert hub.at_once_at_most > transfer.CONNECTIONS // 2
    parts = asked(hub)
    assert (parts[0][0], parts[-1][1]) == (0, SIZE)
    # One after the other, or half of one that another connection was at.
    assert all(after[0] == before[1] or after[1] == before[1] for before, after in itertools.pairwise(parts))


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("is_refused", [False, True])
def test_several_files_share_the_connections(is_refused: bool, hub: LoopbackHub) -> None:
    """None waits for the end of another one, and what is wrong with one ends all."""
    hub.files[FIRST_SHARD] = LARGE[: 4 * SPAN]
    hub.bytes_a_second = 2_000_000
    hub.refuse_files, hub.refused_file = (Refusal(403) if is_refused else None), LAST_SHARD
    if is_refused:
        with pytest.raises(HubAccessError):
            located()
        assert "connection" not in [thread.name for thread in threading.enumerate()]
        hub.refuse_files = None
        hub.requests.clear()
    located()
    assert hub.at_once_at_most > transfer.CONNECTIONS // 2
    first, last = (
        [number for number, request in enumerate(hub.requests) if request.file == name]
        for name in (FIRST_SHARD, LAST_SHARD)
    )
    # The first file has work for four, so the other ones began with the second. Where that was refused, the first
    # one may be whole by now.
    assert is_refused or last[0] < first[0] + transfer.CONNECTIONS


@pytest.mark.usefixtures("large")
def test_stopped_and_gone_on_with(hub: LoopbackHub) -> None:
    count = stop(hub)
    assert "connection" not in [thread.name for thread in threading.enumerate()]
    here = ranges_here(place())
    assert len(here) > 1
    assert count == sum(end - start for start, end in here)
    content = place().read_bytes()
    assert all(content[start:end] == LARGE[start:end] for start, end in here)
    on_disk = hub_module.on_disk(Source(REPO))
    assert on_disk is not None
    assert on_disk.missing_bytes == SIZE - count
    located()
    assert not twice(hub, here)


@pytest.mark.usefixtures("large", "in_processes")
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_killed_at_any_instant(hub: LoopbackHub, cache: Path) -> None:
    """What the journal names is here, and does not come again; and the checksum is right in the end."""
    code = (
        "import sys; from llm_diffusiongemma import hub; from llm_diffusiongemma.catalog import Source;"
        "from llm_diffusiongemma.hub import partial;"
        f"partial.MIN_SPAN_BYTES, partial.NOTED_BYTES = {SPAN}, {SIZE // 400};"
        "hub.locate(Source(sys.argv[1]), 'x', lambda count: None)"
    )
    hub.bytes_a_second = 1_000_000
    draw = random.Random(19)
    here: list[tuple[int, int]] = []
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", code, REPO], stderr=subprocess.DEVNULL)
        at = sum(end - start for start, end in here) + draw.randrange(SIZE // 10, SIZE // 3)
        while bytes_here(place()) < at and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not twice(hub, here)
        here = ranges_here(place())
        content = place().read_bytes()
        assert all(content[start:end] == LARGE[start:end] for start, end in here)
        hub.requests.clear()
    hub.bytes_a_second = None
    located()
    assert not twice(hub, here)
    assert asked(hub)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("answer", ["range ignored", "416", "another part"])
@pytest.mark.parametrize("is_begun", [False, True])
def test_a_mirror_without_parts(answer: str, is_begun: bool, hub: LoopbackHub) -> None:
    """One connection brings all of it."""
    if is_begun:
        stop(hub)
    hub.answer_ranges = answer
    located()
    assert hub.last_shard_ranges.count(None) == 1


@pytest.mark.usefixtures("large")
def test_odd_answers_among_parts(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the others have brought is not dropped for them, as it would be for a mirror without parts."""
    stop(hub)
    here = ranges_here(place())
    # One request after the other, so that it is known who gets which answer.
    monkeypatch.setattr(transfer, "CONNECTIONS", 1)
    answers = itertools.chain([None, "range ignored", "416", "another part"], itertools.repeat(None))

    def before_file(request: Request) -> None:
        hub.answer_ranges = next(answers)

    hub.before_file = before_file
    located()
    assert next(answers) is None
    assert not twice(hub, here)


@pytest.mark.usefixtures("large")
def test_a_storage_that_hands_out_less_than_it_is_asked_for(hub: LoopbackHub) -> None:
    hub.longest_part = SPAN // 2
    located()
    assert None not in hub.last_shard_ranges


@pytest.mark.usefixtures("large")
def test_what_is_begun_of_another_revision_is_kept(hub: LoopbackHub) -> None:
    here = stop(hub)
    hub.branches = {"tuned": NEWER_COMMIT}
    hub.newer = {**hub.files, LAST_SHARD: LARGE[::-1]}
    hub_module.download(Source(REPO, revision="tuned"))
    assert bytes_here(place()) == here


@pytest.mark.usefixtures("large")
def test_what_nobody_can_go_on_with_makes_room(hub: LoopbackHub) -> None:
    """The commit that it was of isn't there any more."""
    stop(hub)
    hub.has_forgotten = True
    hub.newer = {**hub.files, LAST_SHARD: LARGE[::-1]}
    hub_module.download(Source(REPO))
    assert not place().exists()


@pytest.mark.usefixtures("large")
def test_a_login_page_in_place_of_a_part(hub: LoopbackHub) -> None:
    """What is here is kept."""
    here = stop(hub)
    hub.answer_ranges = "range ignored"
    hub.alter_body = lambda name, body: b"<html>Log in</html>"
    with pytest.raises(DownloadError, match="did not come whole"):
        located()
    assert bytes_here(place()) == here
    hub.alter_body = hub.answer_ranges = None
    located()


@pytest.mark.usefixtures("large")
def test_a_silent_connection(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others go on, and what it had to bring is asked for again."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    hub.pause_after = 100_000
    located()
    assert len({start for start, _ in asked(hub)}) > transfer.CONNECTIONS


@pytest.mark.usefixtures("large")
def test_a_slow_connection(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take the part a minute."""
    monkeypatch.setattr(transfer, "SLOW_SECONDS", 0.3)
    hub.bytes_a_second = lambda request: 10_000 if request.range == "bytes=0-749999" else 3_000_000
    located()
    parts = asked(hub)
    assert parts[0] == (0, 750_000)
    # From where it was; the other half of it another one may have taken.
    assert 0 < parts[1][0] < 375_000


@pytest.mark.usefixtures("large")
def test_a_hub_that_takes_few_connections(hub: LoopbackHub) -> None:
    hub.most_at_once = 0
    with pytest.raises(DownloadError, match="trouble of its own"):
        located()
    hub.most_at_once = 2
    hub.bytes_a_second = 5_000_000
    located()


@pytest.mark.usefixtures("large")
def test_connections_that_were_given_up_come_back(hub: LoopbackHub) -> None:
    """A trouble of some seconds must not make the hours behind it slow."""
    hub.most_at_once = 1
    hub.bytes_a_second = 4_000_000

    def check_wanted() -> None:
        if hub.bytes_sent > SIZE // 3:
            hub.most_at_once = None

    located(check_wanted)
    assert hub.at_once_at_most > 1


@pytest.mark.usefixtures("large")
def test_one_connection_waits_for_all(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Hub's wish is told once, and heeded once."""
    waits: list[float] = []
    refused: list[Request] = []
    all_refused = threading.Event()

    def wait(seconds: float, check_wanted: exchange.CheckWanted) -> None:
        waits.append(seconds)
        all_refused.wait(10)
        time.sleep(0.1)

    def refuse(request: Request) -> None:
        if request.range is not None and len(refused) < 4:
            refused.append(request)
            hub.troubles.append(Refusal(429, retry_after="120"))
            if len(refused) == 4:
                all_refused.set()

    monkeypatch.setattr(exchange, "wait", wait)
    hub.before_file = refuse
    located()
    assert waits == [120]
    assert capsys.readouterr().err.count("have to wait") == 1


@pytest.mark.usefixtures("large")
def test_damaged_on_the_way(hub: LoopbackHub) -> None:
    hub.corrupt = True
    with pytest.raises(DownloadError, match=f"{LAST_SHARD} of {REPO} came damaged"):
        located()
    hub.corrupt = False
    located()


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("answer", [None, "416"])
def test_one_bar_for_all_that_is_missing(
    answer: str | None, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins with what is here, and ends where it was to end, also if that has to come again."""
    bars: list[Progress] = []
    begun_with = []

    @contextlib.contextmanager
    def indicate(what: str, total_bytes: int, num_bytes: int) -> Iterator[Progress]:
        bars.append(Progress(what, total_bytes, num_bytes))
        begun_with.append(num_bytes)
        yield bars[-1]

    monkeypatch.setattr(bringing, "indicate", indicate)
    here = stop(hub)
    hub.answer_ranges = answer
    located()
    what, num_bytes, total = bars[-1].now()
    assert (what, num_bytes) == ("Downloading bf16 weights", total)
    assert total is not None
    assert begun_with == [0, total - SIZE + here]
    hub.others["somebody/tuned"] = hub.files
    hub_module.download(Source("somebody/tuned"))
    assert bars[-1].now()[0] == "Downloading tuned"


@pytest.mark.usefixtures("large")
def test_no_bar_where_it_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bringing, "indicate", None)
    monkeypatch.setattr(huggingface_hub.utils, "are_progress_bars_disabled", lambda: True)
    located()


# --- a begun file -------------------------------------------------------------------------------------------


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    file = tmp_path / f"x{PARTIAL_SUFFIX}"
    file.write_bytes(LARGE[:1000])
    return file


def journal(**noted: object) -> str:
    return json.dumps({"written": [], "kept": [], "boot": "a", **noted})


@pytest.mark.parametrize(
    ("text", "here"),
    [
        (None, [(0, 1000)]),  # a prefix, as one connection leaves it
        (journal(written=[[0, 100], [300, 700]], kept=[[0, 100]]), [(0, 100), (300, 700)]),
        (journal(written=[[0, 100], [300, 700]], kept=[[0, 100]], boot="b"), [(0, 100)]),
        (journal(written=[[0, 100], [300, 700]], kept=[[0, 100]], boot=""), [(0, 100)]),
        (journal(), []),
        (journal(written=[[0, 100], [900, 5000]]), [(0, 100), (900, 1000)]),  # the file was cut since
        *(
            (broken, [])
            for broken in (
                *("", "{", "[]", "{}", "\0" * 40, journal(boot=7), journal(written=7), journal(written=[[0]])),
                *(journal(written=[[0, 1, 2]]), journal(written=[[5, 3]]), journal(written=[[0, 9], [5, 20]])),
                *(journal(written=[[-5, 3]]), journal(written=[[0.5, 3]]), journal(written=[["0", "3"]])),
            )
        ),
    ],
)
def test_what_is_here_of_a_begun_file(
    text: str | None, here: list[tuple[int, int]], begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial, "_boot", lambda: "a")
    if text is not None:
        journal_of(begun).write_text(text)
    assert [part for part in ranges_here(begun) if part[0] < part[1]] == here
    assert ranges_here(begun.with_name("nothing")) == []


def test_a_journal_names_only_what_is_there(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there before there is a hole; and what the disk is said to have kept it had been asked to."""
    monkeypatch.setattr(partial, "MIN_SPAN_BYTES", 1000)
    monkeypatch.setattr(partial, "NOTED_BYTES", 50)
    file = Partial(begun, 10_000, lambda: None)

    def noted() -> tuple[list[list[int]], list[list[int]]]:
        content = json.loads(journal_of(begun).read_text())
        return content["written"], content["kept"]

    assert file.divide(4) == 4
    assert noted() == ([[0, 1000]], [[0, 1000]])
    spans = [file.take() for _ in range(4)]
    assert [(span.start, span.end) for span in spans if span] == [
        *((1000, 3250), (3250, 5500), (5500, 7750), (7750, 10_000))
    ]
    last = spans[-1]
    assert last is not None
    asked = threading.Event()
    go_on = threading.Event()

    def fsync(handle: int) -> None:
        asked.set()
        go_on.wait(10)

    monkeypatch.setattr(os, "fsync", fsync)
    for position, is_due in ((7790, False), (7800, True)):
        count, last.position = position - last.position, position
        assert file.is_due(count) is is_due
        file.note_if_due()
    # The disk is slow: what has come is noted nevertheless.
    assert asked.wait(10)
    assert file.is_due(50)
    file.note_if_due()
    assert noted() == ([[0, 1000], [7750, 7800]], [[0, 1000]])
    last.position = 7900
    go_on.set()
    file.keep()
    assert noted() == ([[0, 1000], [7750, 7900]], [[0, 1000], [7750, 7900]])
    file.close()


def test_an_old_begun_file_is_gone_on_with(hub: LoopbackHub, large: None) -> None:
    """It is a prefix, without a journal."""
    place().parent.mkdir(parents=True)
    place().write_bytes(LARGE[:4_000_000])
    located()
    assert asked(hub)[0][0] == 4_000_000
