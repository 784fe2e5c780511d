"""A reply of this process, and what who watches it is told. tests/test_prompts.py has what users see of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import llm
import pytest
from llm.parts import StreamEvent
from PIL import Image

from llm_diffusiongemma.backends.engine import get_engine
from llm_diffusiongemma.backends.local import LocalReply
from llm_diffusiongemma.backends.turn import ALWAYS_WANTED, Report, Turn
from llm_diffusiongemma.options import Options
from llm_diffusiongemma.view.records import (
    ACCEPTED,
    CALL,
    CONTROL,
    NOISE,
    SETTLED,
    TEXT,
    THOUGHT,
    Reading,
    Snapshot,
    Wants,
    Watch,
)

from ..conftest import TINY
from ..diffusion.scripted import Scripted
from ..tokenizers import ours

ENTRY = llm.get_model(TINY).entry
PERSON = llm.schema_dsl("name, age int")


def weather(city: str) -> str:
    """Weather in a city"""
    return "sunny"


WEATHER = llm.Tool.function(weather)


def turn_of(text: str, *, image: llm.Attachment | None = None, **asked: Any) -> Turn:
    of_turn = {name: asked.pop(name) for name in ("tools", "schema") if name in asked}
    message = llm.user(text) if image is None else llm.user(text, image)
    return Turn([message], Options(**{"seed": 3, **asked}), **of_turn)


def marked(text: str) -> list[int]:
    """Tokens of a text in which markers are control tokens."""
    return ours().backend.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("nothing", ["", " \n", "<|channel>thought\n<channel|>", "<|channel>thought\n"])
def test_what_says_nothing_is_drawn_again(monkeypatch: pytest.MonkeyPatch, nothing: str) -> None:
    Scripted(monkeypatch, marked(f"{nothing}<turn|>"), marked("Yes.<turn|>"))
    events, report = answered(turn_of("Is it?"))
    assert ("".join(event.chunk for event in events), report.blocks[0].redrawn) == ("Yes.", 1)


@pytest.mark.parametrize("something", ["<|channel>thought\nHm.<channel|>", "<|channel>thought\nYes."])
def test_a_thought_is_something(monkeypatch: pytest.MonkeyPatch, something: str) -> None:
    Scripted(monkeypatch, marked(f"{something}<turn|>"))
    _, report = answered(turn_of("Is it?"))
    assert report.blocks[0].redrawn == 0


def answered(turn: Turn) -> tuple[list[StreamEvent], Report]:
    """By an engine that has nothing of it in its cache. Without what is another one each time."""
    get_engine(ENTRY).engine.pipeline.prefix_cache.clear()
    reply = LocalReply(ENTRY, turn, ALWAYS_WANTED)
    events = [replace(event, tool_call_id=None) for events in reply.steps() for event in events]
    report = reply.report
    assert report.generate_seconds >= sum(block.seconds for block in report.blocks)
    return events, replace(
        report,
        load_seconds=0,
        generate_seconds=0,
        weights=None,
        blocks=tuple(replace(block, seconds=0) for block in report.blocks),
    )


def watched(turn: Turn, wants: Wants = "candidates") -> tuple[list[Any], list[StreamEvent], Report]:
    """What who watches is told, and the rest."""
    seen: list[Any] = []
    return seen, *answered(replace(turn, watch=Watch(seen.append, wants)))


@pytest.fixture
def red(tmp_path: Path) -> llm.Attachment:
    Image.new("RGB", (64, 48), (220, 25, 25)).save(tmp_path / "red.png")
    return llm.Attachment(path=str(tmp_path / "red.png"), type="image/png")


CASES: dict[str, Callable[..., Turn]] = {
    "several canvases": lambda _: turn_of("Count from 1 to 100", canvas_length=64),
    "a budget": lambda _: turn_of("Count from 1 to 400", max_tokens=21),
    "a thought": lambda _: turn_of("What is 17 + 25?", thinking=True),
    "a call": lambda _: turn_of("What is the weather in Rome?", tools=[WEATHER]),
    "a form": lambda _: turn_of("name Ada, age 36", schema=PERSON),
    "a thought before a form": lambda _: turn_of("name Ada, age 36", schema=PERSON, thinking=True),
    "a form instead of a call": lambda _: turn_of("name Ada, age 36", schema=PERSON, tools=[WEATHER]),
    "an image": lambda image: turn_of("What colour is this image?", image=image),
}


@pytest.mark.parametrize("case", CASES)
def test_watching_changes_no_reply_and_tells_how_it_comes_to_be(case: str, red: llm.Attachment) -> None:
    turn = CASES[case](red)
    seen, events, report = watched(turn)
    assert (events, report) == answered(turn)

    snapshots = [each for each in seen if isinstance(each, Snapshot)]
    readings = [each for each in seen if isinstance(each, Reading)]
    assert readings[0] == Reading(0, readings[0].of)
    assert readings[-1] == Reading(report.input_tokens or 0, report.input_tokens or 0)
    assert [each.seconds for each in snapshots] == sorted({each.seconds for each in snapshots})

    last_attempt = snapshots[-1].attempt
    assert last_attempt == (case == "a form instead of a call")
    committed = [each for each in snapshots if each.attempt == last_attempt]
    text = {TEXT: "", THOUGHT: "", CALL: "", CONTROL: ""}
    tokens_before = 0
    for index, block in enumerate(report.blocks):
        canvas = [each for each in committed if each.block == index]
        assert [each.step for each in canvas] == [*range(1, block.denoising_steps + 1)]
        assert {each.tokens_before for each in canvas} == {tokens_before}
        tokens_before += block.tokens
        for before, each in itertools.pairwise([None, *canvas]):
            check(before, each, turn.options.canvas_length or 256)
        done = canvas[-1]
        for kind, piece in zip(done.kinds[: done.end], done.pieces[: done.end], strict=True):
            text[kind] += piece
    said = {kind: "".join(event.chunk for event in events if event.type == kind) for kind in ("text", "reasoning")}
    assert text[TEXT].strip() == said["text"].strip()
    assert text[THOUGHT].removeprefix("thought\n").strip() == said["reasoning"]
    assert bool(text[CALL]) == (case == "a call")


def check(before: Snapshot | None, snapshot: Snapshot, length: int) -> None:
    """A canvas after a step, and the one before it."""
    assert snapshot.max_steps == 48
    assert len(snapshot.pieces) == len(snapshot.kinds) == len(snapshot.states) == length
    assert set(snapshot.states) <= {NOISE, ACCEPTED, SETTLED}
    for position, state in enumerate(snapshot.states):
        if state == SETTLED:
            assert before is not None
            assert before.states[position] != NOISE
            assert before.pieces[position] == snapshot.pieces[position]
    assert snapshot.likely is not None
    assert len(snapshot.likely.entropies) == len(snapshot.likely.candidates) == length
    for candidates in snapshot.likely.candidates:
        shares = [share for _, share in candidates]
        assert 1 <= len(shares) <= 5
        assert shares == sorted(shares, reverse=True)
        assert 0 <= sum(shares) <= 1.001


def test_only_what_is_wanted_is_made() -> None:
    turn = turn_of("What is a canvas?")
    readings, *_ = watched(turn, "readings")
    assert {type(each) for each in readings} == {Reading}
    seen, *_ = watched(turn, "drafts")
    assert seen[: len(readings)] == readings
    drafts = seen[len(readings) :]
    assert drafts
    assert all(isinstance(each, Snapshot) and each.likely is None for each in drafts)


def test_what_the_cache_holds_has_been_read() -> None:
    turn = turn_of("What is a canvas?")
    answered(turn)
    seen: list[Any] = []
    list(LocalReply(ENTRY, replace(turn, watch=Watch(seen.append, "readings")), ALWAYS_WANTED).steps())
    assert seen
    assert all(0 < each.tokens <= each.of for each in seen)
    assert seen[-1].tokens == seen[-1].of


@pytest.mark.parametrize("fails_at", [Reading, Snapshot])
def test_who_can_not_watch_spoils_nothing_but_the_reply(fails_at: type) -> None:
    def see(seen: Reading | Snapshot) -> None:
        if isinstance(seen, fails_at):
            raise KeyError("of the watcher")

    turn = turn_of("What is a canvas?")
    with pytest.raises(KeyError):
        answered(replace(turn, watch=Watch(see, "drafts")))
    engine = get_engine(ENTRY).engine
    assert engine.lock.acquire(blocking=False)
    engine.lock.release()
    # What was kept of the prompt is as good as anything else.
    list(LocalReply(ENTRY, turn, ALWAYS_WANTED).steps())
    after = [event for events in LocalReply(ENTRY, turn, ALWAYS_WANTED).steps() for event in events]
    assert after == answered(turn)[0]


def test_a_choice_that_was_not_come_to_has_no_probabilities() -> None:
    turn = turn_of("Is 17 + 25 more than 40?", thinking=True, choices="yes,no")
    reply = LocalReply(ENTRY, turn, ALWAYS_WANTED)
    next(reply.steps())  # the thought
    reply.cut_short()
    assert (reply.report.finish_reason, reply.report.choices) == ("interrupted", None)
    choices = answered(turn)[1].choices
    assert choices is not None
    assert set(choices.probabilities) == {"yes", "no"}
