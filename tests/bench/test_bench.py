"""`llm diffusiongemma bench` of a model: what it says, and what it leaves behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import llm
import pytest

from llm_diffusiongemma import bench
from llm_diffusiongemma.backends import engine
from llm_diffusiongemma.backends.form import read_form
from llm_diffusiongemma.bench import measure, prompts, random_weights, replies, table
from llm_diffusiongemma.bench.clock import ReplyClock, Sample
from llm_diffusiongemma.bench.prompts import Kind
from llm_diffusiongemma.bench.theirs import Theirs
from llm_diffusiongemma.catalog import KERNELS_VARIABLE
from llm_diffusiongemma.errors import DeviceMemoryError
from llm_diffusiongemma.view.records import Reading

from ..conftest import TINY, Llm

QUESTION = Kind("question", "What is a canvas?")
DECISION = next(kind for kind in prompts.EMBEDDED if kind.choices is not None)
PERSON = next(kind for kind in prompts.EMBEDDED if kind.schema is not None)


@pytest.fixture(autouse=True)
def _few_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "EMBEDDED", (QUESTION, PERSON))


def found(llm_command: Llm, *arguments: str) -> dict[str, Any]:
    return json.loads(llm_command.ok("diffusiongemma", "bench", TINY, "--json", *arguments))


def test_every_kind_has_a_name_of_its_own() -> None:
    for kinds in (prompts.GENERAL, prompts.EMBEDDED):
        assert len({kind.name for kind in kinds}) == len(kinds) > 1


@pytest.mark.parametrize("kind", [kind for kind in prompts.GENERAL if kind.schema is not None])
def test_what_is_asked_of_a_large_model_can_be_held_to_its_form(kind: Kind) -> None:
    """Within the tokens that there are."""
    form = read_form(kind.schema, None, None)
    assert form is not None
    constraint = engine.get_engine(llm.get_model(TINY).entry).engine.hold_to(form)
    assert constraint.fewest_tokens < prompts.MAX_TOKENS


def test_it_measures_what_a_prompt_gets(llm_command: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds, begun = [], []
    local_reply, read = replies.LocalReply, ReplyClock.read

    def noting_reply(entry: Any, turn: Any, stop: Any) -> Any:
        seeds.append(turn.options.seed)
        return local_reply(entry, turn, stop)

    def noting_read(clock: ReplyClock, reading: Reading) -> None:
        begun.append(reading.tokens)
        read(clock, reading)

    monkeypatch.setattr(replies, "LocalReply", noting_reply)
    monkeypatch.setattr(ReplyClock, "read", noting_read)
    result = found(llm_command, "--repeats", "2", "--seed", "7")
    # The first round warms up. Each is with its own seed, and reads its whole prompt: nothing is in a cache.
    assert seeds == [7, 7, 7, 7, 8, 8]
    assert begun.count(0) == len(seeds)

    expected = [llm.get_model(TINY).prompt(QUESTION.text, seed=seed) for seed in (7, 8)]
    tokens = [response.usage().output for response in expected]
    question = result["kinds"]["question"]
    assert question["output_tokens"] == {
        "median": sum(tokens) / 2, "least": min(tokens), "most": max(tokens),
    }  # fmt: skip
    assert question["prompt_tokens"] == expected[0].usage().input
    assert question["replies"] == 2
    report = expected[0].response_json
    for name in ("representation", "repository", "device", "dtype", "placement"):
        assert result[name] == report[name]
    assert (result["model"], result["seed"], result["repeats"]) == (TINY, 7, 2)
    assert {"llm-diffusiongemma", "torch"} <= result["versions"].keys()
    assert result["all"]["tokens_per_second"]["median"] > 0
    assert result["problems"] == {}
    assert not result["is_interrupted"]
    assert llm_command.logs() == []


def test_the_tables(llm_command: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNELS_VARIABLE, "off")
    result = found(llm_command, "--repeats", "1")
    assert (result["environment"], result["driver_version"]) == ({KERNELS_VARIABLE: "off"}, None)
    assert abs(datetime.now(UTC) - datetime.fromisoformat(result["date"])) < timedelta(hours=1)
    printed = "\n".join(table.lines(result))
    lines = [line.split("  ") for line in printed.splitlines()]
    assert lines[0] == [TINY]
    names = [line[1] for line in lines if len(line) > 2]
    assert names.count("question") == names.count("schema") == names.count("all") == 3
    assert "Replies (one of each kind)" in printed
    assert "of the whole process, with Python and PyTorch" in printed

    # Of a fast card, where nothing is the same twice.
    each = {"median": 1234, "least": 1180, "most": 1290}
    for of in [*result["kinds"].values(), result["all"]]:
        of |= {name: each for name in of if isinstance(of[name], dict)}
        of |= {"steps_per_canvas": {"median": 10.3, "least": 9.33, "most": 12.7}, "peak_memory_bytes": 100 << 30}
    result["kinds"]["explanation"] = result["kinds"].pop("question")
    names = ("ours_tokens_per_second", "transformers_tokens_per_second", "times_faster")
    result |= {"against": {"explanation": dict.fromkeys(names, each)}, "driver_version": "570.86"}
    printed = "\n".join(table.lines(result))
    assert all(each in printed for each in ("1,234 (1,180–1,290)", "100.0 GiB", "driver 570.86"))
    _, _, tables = printed.partition("\n\n")
    assert max(map(len, tables.splitlines())) <= 80


def test_a_decision(llm_command: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    """One prefill and one step, and no tokens that a rate could be of."""
    monkeypatch.setattr(prompts, "EMBEDDED", (DECISION,))
    result = found(llm_command, "--repeats", "1")
    decision = result["kinds"]["decision"]
    assert [decision[name]["most"] for name in ("canvases", "steps_per_canvas", "output_tokens")] == [1, 1, 0]
    assert decision["tokens_per_second"] is None
    assert decision["forward_ms"]["median"] > 0
    assert decision["sampler_ms"]["median"] > 0
    assert decision["reply_seconds"]["median"] >= decision["reading_ms"]["median"] / 1e3
    row = next(line for line in table.lines(result) if line.strip().startswith("decision"))
    assert len(row.split()) == 4  # without a rate


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_what_cannot_be_written(llm_command: Llm) -> None:
    """By whatever command."""
    with open("/dev/full", "w") as full:
        process = llm_command.process("diffusiongemma", "warm", stdout=full.fileno())
        _, errors = process.communicate()
    assert process.returncode == 1
    assert errors.startswith("Error: What this command says can't be written: No space left on device.")
    assert len(errors.splitlines()) == 1


def test_the_driver_is_asked_of_nvidias_own_command(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["570.86.15\n570.86.15\n", "", None])

    def run(command: Sequence[str], **_: Any) -> Any:
        if (answer := next(answers)) is None:
            raise subprocess.TimeoutExpired(command, 1)
        return subprocess.CompletedProcess(command, 0, answer)

    monkeypatch.setattr(subprocess, "run", run)
    assert [bench._driver_version() for _ in range(3)] == ["570.86.15", None, None]


def test_against_transformers(llm_command: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it has no memory for hides nothing else: the longest prompt of random weights is the last of the
    first round, and all others were lost with it."""
    monkeypatch.setattr(prompts, "EMBEDDED", (QUESTION, Kind("reading", "What is a block?"), PERSON))
    answer = Theirs.reply

    def answer_or_not(theirs: Theirs, name: str, seed: int) -> Sample:
        if name == "reading":
            raise DeviceMemoryError("There is no room.")
        return answer(theirs, name, seed)

    monkeypatch.setattr(Theirs, "reply", answer_or_not)
    result = llm_command("diffusiongemma", "bench", TINY, "--repeats", "1", "--against", "transformers", "--json")
    assert result.exit_code == 1
    result = json.loads(result.stdout)
    assert result["problems"] == {"reading, transformers": "There is no room."}
    assert result["kinds"].keys() == {"question", "reading", "schema"}
    # A reply that is held to a form is none of transformers'.
    assert result["against"].keys() == {"question"}
    question = result["against"]["question"]
    ours, theirs = (question[f"{who}_tokens_per_second"]["median"] for who in ("ours", "transformers"))
    assert question["times_faster"]["median"] == pytest.approx(ours / theirs, rel=1e-2)
    # A sentence: what stands behind its end of sequence in the canvas of 256 is not counted.
    assert 10 < question["transformers_output_tokens"]["most"] < 100


def test_what_cannot_be_answered_hides_nothing_else(llm_command: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "EMBEDDED", (Kind("reading", "word " * 9000), QUESTION))
    result = llm_command("diffusiongemma", "bench", TINY, "--repeats", "1")
    assert result.exit_code == 1
    assert "reading: The prompt is" in result.stdout
    assert "question" in result.stdout
    monkeypatch.setattr(prompts, "EMBEDDED", prompts.EMBEDDED[:1])
    assert "The prompt is" in llm_command.fails("diffusiongemma", "bench", TINY, "--repeats", "1")


@pytest.mark.parametrize("arguments", [(TINY,), ("--random-weights", "bf16")])
def test_a_transformers_without_it_is_told_before_anything_is_loaded_or_drawn(
    arguments: Sequence[str], llm_command: Llm, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(engine, "get_engine", None)
    monkeypatch.setattr(random_weights, "place", None)
    monkeypatch.setattr(engine, "import_vision", asked.append)  # it has to say what hinders an import
    monkeypatch.setitem(sys.modules, "transformers", ModuleType("transformers"))
    message = llm_command.fails("diffusiongemma", "bench", *arguments, "--against", "transformers")
    assert "transformers has DiffusionGemma from 5.23 on" in message
    assert asked == [False]


# --- interrupted ---------------------------------------------------------------------------------------------


def interrupt_in(reply: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a Ctrl-C come at the first step of a reply, counted from 0 with those of the first round."""
    count, is_set = [-1], ReplyClock.is_set
    init = ReplyClock.__init__

    def counting(*arguments: Any) -> None:
        count[0] += 1
        init(*arguments)

    def interrupted(clock: ReplyClock) -> bool:
        if count[0] == reply:
            count[0] += 1000
            signal.raise_signal(signal.SIGINT)
        return is_set(clock)

    monkeypatch.setattr(ReplyClock, "__init__", counting)
    monkeypatch.setattr(ReplyClock, "is_set", interrupted)


def test_what_was_measured_is_kept(llm_command: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_in(5, monkeypatch)
    result = llm_command("diffusiongemma", "bench", TINY, "--json", "--repeats", "9")
    assert result.exit_code == 130
    assert "Interrupted" in result.stderr
    result = json.loads(result.stdout)
    assert result["is_interrupted"]
    assert [of["replies"] for of in result["kinds"].values()] == [2, 1]
    lock = engine.get_engine(llm.get_model(TINY).entry).engine.lock
    assert lock.acquire(blocking=False)
    lock.release()


def test_nothing_was_measured(llm_command: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_in(1, monkeypatch)
    result = llm_command("diffusiongemma", "bench", TINY)
    assert result.exit_code == 130
    assert result.stdout == ""
    assert result.stderr.endswith("\nInterrupted. Nothing has been measured yet.\n")


def test_an_error_that_is_made_of_an_interrupt(llm_command: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    original, made = measure._reply, []

    def reply(*arguments: Any, **named: Any) -> Any:
        made.append(None)
        if len(made) == 4:
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise RuntimeError("as a library makes it") from None
        return original(*arguments, **named)

    monkeypatch.setattr(measure, "_reply", reply)
    result = llm_command("diffusiongemma", "bench", TINY)
    assert result.exit_code == 130
    assert "question" in result.stdout


# --- what can't be measured -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "The weights of diffusiongemma are not on this machine"),
        (("diffusiongemma-tini",), "Did you mean diffusiongemma-tiny?"),
        ((TINY, "--steps", "3"), "--steps is for --random-weights"),
        ((TINY, "--random-weights", "bf16"), "leave diffusiongemma-tiny or --random-weights out"),
        (("elsewhere",), "is answered by the server http://127.0.0.1:9/v1"),
    ],
)
def test_what_cannot_be_measured(
    arguments: Sequence[str], says: str, llm_command: Llm, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    if arguments == ("elsewhere",):
        llm_command("diffusiongemma", "add", "elsewhere", "http://127.0.0.1:9/v1")
    assert says in " ".join(llm_command.fails("diffusiongemma", "bench", *arguments).split())


@pytest.mark.usefixtures("served")
def test_a_server_that_runs_is_told_of(llm_command: Llm) -> None:
    result = llm_command("diffusiongemma", "bench", TINY, "--repeats", "1")
    assert f"A server for {TINY} is running" in result.stderr
    assert result.exit_code == 0
