"""A text whose blanks are filled, as a user has it: `-o fill`."""

from __future__ import annotations

import asyncio
import json
import random
import re
from pathlib import Path

import llm
import pytest
import torch

from llm_diffusiongemma.backends.form import read_form
from llm_diffusiongemma.backends.local import LocalReply
from llm_diffusiongemma.backends.turn import ALWAYS_WANTED, Turn
from llm_diffusiongemma.diffusion.pipeline import Block, BlockDiffusionPipeline
from llm_diffusiongemma.diffusion.request import ConstrainedText, Prompt, Request
from llm_diffusiongemma.diffusion.sampler import GeneratorRandomness, SamplerSettings
from llm_diffusiongemma.grammar.automaton import build
from llm_diffusiongemma.grammar.blanks import parse_blanks
from llm_diffusiongemma.grammar.constraint import TextConstraint
from llm_diffusiongemma.options import Options

from .conftest import TINY, Llm
from .grammar.languages import BYTE_TOKENS, EOS, PAD, text_of, vocabulary_of
from .test_forms import UNSEEN, nonsense

PERSON = '{{"name": "{name}", "age": {age}}}'
# It takes more than one canvas.
LONG = f"{{first}}, {'then the next of them, ' * 40}and {{last...}}"


@pytest.mark.parametrize("seed", range(3))
def test_two_blanks(llm_command: Llm, seed: int) -> None:
    output = llm_command.ok("-m", TINY, "-o", "fill", PERSON, "name Ada, age 36", "-o", "seed", str(seed))
    assert output == '{"name": "Ada", "age": 36}'
    (turn,) = llm_command.logs()
    assert turn["response"] == output
    assert turn["response_json"]["blanks"] == {"name": "Ada", "age": "36"}
    assert turn["response_json"]["finish_reason"] == "stop"


def test_the_prompt_shows_the_text() -> None:
    form = read_form(None, None, None, '{{"a": {x}, {y...}}}')
    assert form is not None
    assert form.request == 'Answer with this text, its blanks filled in: {"a": {x}, {y...}}'


def test_a_greeting_which_the_next_turn_knows_of(llm_command: Llm) -> None:
    fill = ("-o", "fill", "Nice to meet you, {name}!")
    assert llm_command.ok("-m", TINY, *fill, "My name is Ada.") == "Nice to meet you, Ada!"
    assert llm_command.ok("-c", "What is my name?") == "Your name is Ada."
    assert "blanks" not in llm_command.logs()[-1]["response_json"]


def test_only_the_blanks_as_json(llm_command: Llm) -> None:
    asked = ("-m", TINY, "-o", "fill", PERSON, "-o", "fill_json", "true", "name Ada, age 36")
    output = llm_command.ok(*asked)
    assert output == '{"name": "Ada", "age": "36"}'
    assert llm_command.ok(*asked, "--no-stream") == output
    for turn in llm_command.logs():
        assert turn["response"] == output
        assert turn["response_json"]["blanks"] == json.loads(output)


def test_the_json_comes_at_once_when_all_canvases_are_done() -> None:
    options = {"fill": LONG, "fill_json": True, "max_denoising_steps": 2, "max_tokens": 600, "seed": 1}
    response = llm.get_model(TINY).prompt(UNSEEN, **options)
    events = list(response.stream_events())
    assert [event.type for event in events] == ["text"]
    report = response.response_json
    assert report is not None
    assert len(report["blocks"]) > 1
    assert json.loads(events[0].chunk) == report["blanks"]
    assert list(report["blanks"]) == ["first", "last"]
    assert llm.get_model(TINY).prompt(UNSEEN, **{**options, "fill_json": False}).text() == (
        parse_blanks(LONG).literals[0] + report["blanks"]["first"] + LONG[7:-9] + report["blanks"]["last"]
    )


def test_interrupted_it_is_no_half_of_a_json() -> None:
    """Nor is it what was held back: the first canvas ends within a character, each of which takes three tokens."""
    options = Options(fill="日" * 150 + "{x}", max_denoising_steps=1, max_tokens=600, seed=1)
    saying: dict[bool, list[list[str]]] = {}
    for fill_json in (False, True):
        turn = Turn([llm.user(UNSEEN)], options.model_copy(update={"fill_json": fill_json}))
        reply = LocalReply(llm.get_model(TINY).entry, turn, ALWAYS_WANTED)
        steps = reply.steps()
        events = next(steps)
        steps.close()
        saying[fill_json] = [[event.type for event in each] for each in (events, reply.cut_short())]
        assert reply.has_text == (not fill_json)
        assert reply.report.finish_reason == "interrupted"
        assert reply.report.blanks is None
    assert saying == {False: [["text"], ["text"]], True: [[], []]}


def test_a_thought_is_said_before_the_json(llm_command: Llm) -> None:
    asked = ("-m", TINY, "-o", "thinking", "true", "-o", "fill", PERSON, "-o", "fill_json", "true")
    result = llm_command(*asked, "name Ada, age 36")
    assert result.exit_code == 0
    assert set(json.loads(result.stdout)) == {"name", "age"}
    assert result.stderr.strip()


def test_tools_come_first(llm_command: Llm) -> None:
    fill = ("-T", "llm_version", "-o", "fill", "llm {version}", "-o", "fill_json", "true")
    output = llm_command.ok("-m", TINY, *fill, "What is the version of llm?")
    call, answer = llm_command.logs()
    assert call["tool_calls"][0]["name"] == "llm_version"
    assert "blanks" not in call["response_json"]
    assert answer["response_json"]["blanks"] == json.loads(output)


def test_async() -> None:
    async def ask() -> str:
        model = llm.get_async_model(TINY)
        return await model.prompt("name Ada, age 36", fill=PERSON, fill_json=True).text()

    assert json.loads(asyncio.run(ask())) == {"name": "Ada", "age": "36"}


def test_a_template_keeps_the_text(llm_command: Llm, tmp_path: Path) -> None:
    """What the blanks are filled from comes from a fragment."""
    llm_command.ok("-m", TINY, "-o", "fill", PERSON, "--save", "person")
    (tmp_path / "ada.txt").write_text("name Ada, age 36")
    assert llm_command.ok("-t", "person", "-f", str(tmp_path / "ada.txt")) == '{"name": "Ada", "age": 36}'


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (("fill", "letter.txt"), r"has no blank.*-o fill \"\$\(cat letter.txt\)\""),
        (("fill", "Dear {name, thank"), "at character 6 .*isn't closed"),
        (("fill", "Dear name},"), "at character 10 .*none has opened"),
        (("fill", "{a} and {a}"), "at character 9 .*a second time"),
        (("fill", "{a}{b}"), "nothing stands between"),
        (("fill", "{x..}"), "no blank in these braces"),
        (("fill", "caf\udce9 {x}"), "UTF-8"),
        (("fill", "{x}" + "a" * 66_000), "65,536 states"),
        (("fill", "{x}", "-o", "choices", "a,b"), "one form only, but choices and fill"),
        (("fill", "one two three {x}", "-o", "max_tokens", "2"), "Set max_tokens to"),
        (("fill_json", "true"), "^fill_json\n  is for a text with blanks"),
        (("fill", "{x}", "-o", "fill_json", "maybe"), "true or false"),
    ],
)
def test_what_is_refused(llm_command: Llm, arguments: tuple[str, ...], cause: str) -> None:
    message = llm_command.fails("-m", TINY, UNSEEN, "-o", *arguments)
    assert re.search(cause, message), message


@pytest.mark.parametrize("seed", range(4))
def test_nonsense_never_touches_what_stands_outside(seed: int) -> None:
    """Random weights and random texts, budgets from the least on, over one canvas and several."""
    rng = random.Random(seed)
    text = "".join(f"{{x{n}{rng.choice(['', '...'])}}}{rng.choice([', é', '. ', 'ab' * 20])}" for n in range(3))
    form, blanks = read_form(None, None, None, text), parse_blanks(text)
    assert form is not None
    automaton = build(form.language, vocabulary_of(BYTE_TOKENS, eos=(EOS,)))
    pipeline = BlockDiffusionPipeline(nonsense(), eos_token_ids=[EOS], pad_token_id=PAD)
    settings = SamplerSettings(2, 0.1, 0.4, 0.8, 0.005, 1)
    fewest = int(automaton.distance[0])
    for budget in (max(fewest - 1, 1), fewest + 40):
        constrained = ConstrainedText(TextConstraint(automaton, torch.device("cpu")))
        randomness = GeneratorRandomness(torch.Generator().manual_seed(seed))
        request = Request(Prompt([20, 30, 40]), settings, budget, (constrained,))
        blocks = list(pipeline.generate(request, randomness=randomness))
        tokens = [token for block in blocks if isinstance(block, Block) for token in block.tokens]
        filled = text_of(BYTE_TOKENS, tokens).decode()
        form.check(filled)
        values = blanks.read(filled)
        assert values is not None
        assert filled == "".join(map("".join, zip(blanks.literals, [*values.values(), ""], strict=True)))
