"""Decisions with their probabilities, as a user has them."""

from __future__ import annotations

import json
import math
import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import llm
import numpy as np
import pytest
from PIL import Image

from llm_diffusiongemma.backends import form
from llm_diffusiongemma.backends.deciding import DECIMALS, _canvas_length, as_text, behind_a_thought
from llm_diffusiongemma.backends.engine import Engine, get_engine
from llm_diffusiongemma.backends.form import LEAST_LOG_MASS, mass_note
from llm_diffusiongemma.backends.local import LocalReply
from llm_diffusiongemma.backends.turn import ChoicesReport, Stop, Turn
from llm_diffusiongemma.diffusion.pipeline import BlockDiffusionPipeline, Read
from llm_diffusiongemma.diffusion.request import Prompt, Reads
from llm_diffusiongemma.options import Options

from .conftest import TINY, Llm, after_each_forward

SUM = ("-m", TINY, "What is 17 + 25?", "-o", "choices", "41,42,43", "-o", "probabilities", "true")
ASKED = {"choices": "41,42,43", "probabilities": True, "seed": 1}
THOUGHT = "<|channel>thought\n<channel|>"


def engine() -> Engine:
    return get_engine(llm.get_model(TINY).entry).engine


class Noted:
    """What pipelines were asked to read, and what came of it."""

    def __init__(self) -> None:
        self.asked: list[Reads] = []
        self.reads: list[Read] = []

    @property
    def prompt(self) -> str:
        """The last one."""
        return engine().decode(list(self.asked[-1].prompt.token_ids))


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> Noted:
    noted, read = Noted(), BlockDiffusionPipeline.read

    def note(self: BlockDiffusionPipeline, asked: Reads, **settings: Any) -> Iterator[Any]:
        noted.asked.append(asked)
        noted.reads.clear()
        records = read(self, asked, **settings)

        def each() -> Iterator[Any]:
            for record in records:
                if isinstance(record, Read):
                    noted.reads.append(record)
                yield record

        return each()

    monkeypatch.setattr(BlockDiffusionPipeline, "read", note)
    return noted


def shares(log_probabilities: Sequence[Any]) -> Any:
    """By read and choice, from the log-probabilities of the choices."""
    weights = np.exp(np.array(log_probabilities) - np.max(log_probabilities, axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


# --- what it says ------------------------------------------------------------------------------------------


def test_of_an_image(llm_command: Llm, tmp_path: Path, noted: Noted) -> None:
    Image.new("RGB", (64, 48), (25, 160, 45)).save(tmp_path / "green.png")
    arguments = ("-m", TINY, "What colour is this image?", "-a", str(tmp_path / "green.png"))
    engine().pipeline.prefix_cache.clear()
    output = llm_command.ok(*arguments, "-o", "choices", "red,green,blue", "-o", "probabilities", "true")
    assert "\n" not in output
    decided = json.loads(output)
    assert list(decided.values()) == sorted(decided.values(), reverse=True)
    assert sum(decided.values()) == pytest.approx(1, abs=1e-12)
    assert next(iter(decided)) == "green"
    assert decided["green"] > 0.5

    (turn,) = llm_command.logs()
    assert turn["response"] == output
    report = turn["response_json"]
    assert report["finish_reason"] == "stop"
    assert report["choices"]["reads"] == 1
    assert "spread" not in report["choices"]
    assert list(report["choices"]["probabilities"]) == list(decided)
    assert report["choices"]["probabilities"] == pytest.approx(decided, abs=1.01 * 10**-DECIMALS)
    assert sum(report["choices"]["probabilities"].values()) == pytest.approx(1, abs=1e-12)
    # One prefill and one step over the shortest canvas; no text was written.
    (block,) = report["blocks"]
    assert (block["tokens"], block["denoising_steps"], block["encoded_tokens"]) == (0, 1, turn["input_tokens"])
    assert json.loads(turn["token_details"]) == {"canvases": 1, "denoising_steps": 1}
    assert noted.asked[-1].canvas_length == 16
    assert re.search(r"image\?\n\nAnswer with one of: red, green, blue<turn\|>\n<\|turn>model\n", noted.prompt)
    assert noted.prompt.endswith(f"model\n{THOUGHT}")


def test_several_reads_are_averaged(llm_command: Llm, noted: Noted) -> None:
    output = llm_command.ok(*SUM, "-o", "reads", "4")
    assert llm_command.ok(*SUM, "-o", "reads", "4") == output
    texts = engine().choice_texts(["41", "42", "43"])
    expected = shares([texts.log_probabilities(read.log_probabilities.numpy()) for read in noted.reads])
    assert len(expected) == 4
    assert np.ptp(expected, axis=0).max() > 0.01  # of noise of its own each
    *_, turn = llm_command.logs()
    assert json.loads(turn["token_details"])["cached_tokens"] == turn["input_tokens"]
    choices = turn["response_json"]["choices"]
    assert (choices["reads"], turn["response_json"]["blocks"][1]["encoded_tokens"]) == (4, 0)
    for i, choice in enumerate(("41", "42", "43")):
        assert choices["probabilities"][choice] == pytest.approx(expected[:, i].mean(), abs=1e-9)
        assert choices["spread"][choice] == pytest.approx(expected[:, i].std(ddof=1), abs=1e-9)
        assert json.loads(output)[choice] == pytest.approx(expected[:, i].mean(), abs=1.01 * 10**-DECIMALS)
    masses = [np.logaddexp.reduce(texts.log_probabilities(read.log_probabilities.numpy())) for read in noted.reads]
    assert choices["log_mass"] == pytest.approx(np.mean(masses), abs=1e-9)
    # The first of them is the one that a single read has.
    single = json.loads(llm_command.ok(*SUM))
    assert list(single.values()) == pytest.approx(sorted(expected[0], reverse=True), abs=1.01 * 10**-DECIMALS)
    assert json.loads(llm_command.ok(*SUM, "-o", "seed", "2")) != single


def test_the_order_is_that_of_the_mean() -> None:
    weighed = ChoicesReport.of_reads(
        ["a", "b"], [[math.log(0.06), math.log(0.04)], [math.log(0.1), math.log(0.9)]]
    )
    assert list(weighed.probabilities.items()) == [("b", pytest.approx(0.65)), ("a", pytest.approx(0.35))]


async def test_async_and_what_options_say_of_denoising() -> None:
    """Defaults that somebody keeps for replies have no say in a decision, and are no reason to refuse it."""
    kept = {"max_tokens": 1, "max_denoising_steps": 2, "t_min": 30.0, "entropy_bound": 3.0, "stop_at_end": True}
    model, of_async = llm.get_model(TINY), llm.get_async_model(TINY)
    texts = {model.prompt("What is 17 + 25?", **ASKED, **more).text() for more in ({}, kept)}
    texts.add(await of_async.prompt("What is 17 + 25?", **ASKED).text())
    assert len(texts) == 1


def test_in_a_conversation(llm_command: Llm, noted: Noted) -> None:
    """With a system prompt, behind other turns, and before another one."""
    llm_command.ok("-m", TINY, "-s", "Be brief.", "My name is Ada.")
    decided = llm_command.ok("-c", "Who am I?", "-o", "choices", "Ada,Bob", "-o", "probabilities", "true")
    assert re.search(r"system\nBe brief\..*My name is Ada\..*Who am I\?\n\nAnswer", noted.prompt, re.DOTALL)
    llm_command.ok("-c", "What is my name?")
    *_, turn = llm_command.logs()
    assert turn["response"]
    details = json.loads(turn["token_details"])
    assert details["cached_tokens"] > 10
    kept = engine().pipeline.prefix_cache._kept
    assert kept is not None
    assert decided in engine().decode([each for each in kept.identities if isinstance(each, int)])


def weather(city: str) -> str:
    """Weather in a city"""
    return "sunny"


def test_tools_come_first() -> None:
    model = llm.get_model(TINY)
    called = model.prompt("What is the weather in Rome?", tools=[weather], **ASKED)
    assert [call.name for call in called.tool_calls()] == ["weather"]
    assert called.text() == ""
    decided = model.prompt("What is 17 + 25?", tools=[weather], **ASKED)
    assert json.loads(decided.text()).keys() == {"41", "42", "43"}
    assert decided.response_json["finish_reason"] == "stop"


def test_who_watches_is_told_how_far_the_prompt_is_read(llm_command: Llm) -> None:
    plain = llm_command.ok(*SUM)
    assert llm_command.ok(*SUM, "-o", "watch", "true") == plain


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
def test_an_interrupted_decision_is_none() -> None:
    calls = []

    def interrupt() -> None:
        calls.append(None)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)

    with after_each_forward(engine(), interrupt):
        response = llm.get_model(TINY).prompt("What is 17 + 25?", **ASKED, reads=8)
        assert response.text() == ""
    assert response.response_json["finish_reason"] == "interrupted"
    assert len(calls) == 2
    assert "choices" not in response.response_json


class StopsAfter(Stop):
    """Nobody wants the reply any more after so many denoising steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def is_set(self) -> bool:
        return self.left <= 0

    def step(self) -> None:
        self.left -= 1


@pytest.mark.parametrize("steps", [1, 3, 99])
def test_one_that_nobody_wants_any_more_is_none(steps: int) -> None:
    stop = StopsAfter(steps)
    turn = Turn([llm.user("What is 17 + 25?")], Options(**ASKED, reads=3))
    with after_each_forward(engine(), stop.step):
        reply = LocalReply(llm.get_model(TINY).entry, turn, stop)
        events = [event for events in reply.steps() for event in events]
    assert (len(events), reply.has_text) == ((1, True) if steps > 3 else (0, False))
    assert reply.report.finish_reason == ("stop" if steps > 3 else "interrupted")
    assert reply.cut_short() == []


# --- what stands before the canvas, and how long that is ---------------------------------------------------


@pytest.mark.parametrize(
    ("written", "then"),
    [
        ("<|turn>model\n", THOUGHT),
        (f"<|turn>model\n{THOUGHT}", ""),
        ("<|turn>model\n<|channel>thought\n", "<channel|>"),
        (f"<|turn>model\n{THOUGHT}Yes.<turn|>\n<|turn>user\nSure?<turn|>\n<|turn>model\n", THOUGHT),
    ],
    ids=["no thought", "the template's own", "one that is open", "one of an earlier turn"],
)
def test_an_empty_thought_is_there_once(written: str, then: str) -> None:
    encoder = engine().prompt_encoder
    ids = []
    for piece in filter(None, encoder._control.split(written) and re.split(r"(<\|?[a-z]+\|?>)", written)):
        control = encoder.control_id(piece)
        ids += encoder._tokenizer.encode(piece) if control is None else [control]
    found = behind_a_thought(engine(), Prompt(ids))
    assert engine().decode(list(found.token_ids)) == written + then


def test_the_canvas_is_as_short_as_the_longest_choice_allows(noted: Noted) -> None:
    model = llm.get_model(TINY)
    longest = "one two three four five six seven eight nine ten eleven twelve"
    needs = engine().choice_texts(["one", longest]).fewest_positions
    assert needs > 16
    for asked, length in ((None, math.ceil(needs / 16) * 16), (128, 128)):
        model.prompt("Count", choices=["one", longest], probabilities=True, canvas_length=asked, seed=1).text()
        assert noted.asked[-1].canvas_length == length == len(noted.reads[0].log_probabilities)
    assert _canvas_length(None, 5, checkpoints=8) == 8


# --- what people read --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exact", "shown"),
    [
        ([0.75, 0.25], [0.75, 0.25]),
        ([1 / 3, 1 / 3, 1 / 3], [0.333334, 0.333333, 0.333333]),
        ([0.9999999, 5e-8, 5e-8], [1.0, 0.0, 0.0]),
        ([0.9999983, 0.0000009, 0.0000008], [0.999998, 0.000001, 0.000001]),
    ],
)
def test_rounded_probabilities_add_up_to_one(exact: list[float], shown: list[float]) -> None:
    text = as_text({f"é{i}": each for i, each in enumerate(exact)})
    assert text.startswith('{"é0": ')
    assert list(json.loads(text).values()) == shown


def test_rounding_keeps_the_order_of_many() -> None:
    exact = np.sort(np.random.default_rng(1).dirichlet(np.full(1000, 0.05)))[::-1]
    shown = list(json.loads(as_text({str(i): each for i, each in enumerate(exact.tolist())})).values())
    assert shown == sorted(shown, reverse=True)
    assert round(math.fsum(shown) * 10**DECIMALS) == 10**DECIMALS
    assert np.abs(np.array(shown) - exact).max() < 10**-DECIMALS


def test_choices_that_the_model_would_hardly_write(llm_command: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mass_note(ChoicesReport({"a": 1.0}, LEAST_LOG_MASS, reads=1)) is None
    assert mass_note(ChoicesReport({"a": 1.0}, LEAST_LOG_MASS - 1, reads=1)) is not None
    assert mass_note(ChoicesReport({"a": 1.0}, -99.0)) is None  # it was held to them
    # Whatever the network makes of these.
    monkeypatch.setattr(form, "LEAST_LOG_MASS", 1.0)
    asked = ("-m", TINY, "What is 17 + 25?", "-o", "probabilities", "true")
    assert llm_command(*asked, "-o", "choices", "Paris,Rome").stderr == ""
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    assert llm_command(*asked, "-o", "choices", "Paris,Rome").stderr.startswith("\nThe choices are hardly what")


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"choices": "yes;no"}, "two choices at least, and 'yes;no' is one"),
        ({"choices": ""}, "no choices"),
        ({"choices": "a,b,a"}, "'a' is there twice"),
        ({"choices": "a,,b"}, "empty"),
        ({"choices": "[1"}, "JSON list"),
        ({"choices": [str(i) for i in range(1001)]}, "1,001 choices"),
        ({"choices": "a,b", "thinking": "true"}, "^probabilities\n  are .* thinking false"),
        ({"choices": "a,b", "draft": "a"}, "^draft\n  would decide"),
        ({"choices": "a,b", "replay": "a.html"}, "^replay\n  shows steps"),
        ({"choices": "a,b", "regex": "a"}, "one form only"),
        ({"choices": "a,b", "fill": "a {b}"}, "one form only"),
        ({"choices": "a,b", "canvas_length": "512"}, "canvas_length is 512"),
        (
            {"choices": ["a", "x y " * 20], "canvas_length": "16"},
            r"takes \d+ tokens .* Set it to (48|64|80|96) or",
        ),
        ({"choices": ["a", "x y " * 200]}, r"takes \d+ tokens .* this checkpoint's have 256"),
    ],
)
def test_what_is_no_decision(llm_command: Llm, options: dict[str, Any], cause: str) -> None:
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in options.items()}
    given = [each for name, value in texts.items() for each in ("-o", name, value)]
    message = llm_command.fails("-m", TINY, "Which?", "-o", "probabilities", "true", *given)
    assert re.search(cause, message), message
