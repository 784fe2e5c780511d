"""Guaranteed output as a user has it: schemas, regular expressions, choices, and what can't be guaranteed."""

from __future__ import annotations

import asyncio
import functools
import json
import random
import re
import time
from typing import Any

import jsonschema
import llm
import pytest
import torch

from llm_diffusiongemma.backends.engine import get_engine
from llm_diffusiongemma.backends.form import json_request, lowered_note, parse_choices, read_form
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.pipeline import Block, BlockDiffusionPipeline
from llm_diffusiongemma.diffusion.request import ConstrainedText, Prompt, Request
from llm_diffusiongemma.diffusion.sampler import GeneratorRandomness, SamplerSettings
from llm_diffusiongemma.errors import ConstraintError
from llm_diffusiongemma.grammar.automaton import build
from llm_diffusiongemma.grammar.constraint import TextConstraint
from llm_diffusiongemma.grammar.records import Lowered
from llm_diffusiongemma.tiny import data

from .conftest import TINY, Llm
from .diffusion.tiny_models import network_of, tiny_model
from .grammar.languages import BYTE_TOKENS, EOS, PAD, text_of, vocabulary_of
from .grammar.schemas import SCHEMAS

PERSON = "name, age int"
PERSON_SCHEMA = llm.schema_dsl(PERSON)
# The form holds whatever the network has come to by then.
FEW_STEPS = ("-o", "max_denoising_steps", "2")
UNSEEN = "Why did Leo paint the harbour?"


def test_a_schema(llm_command: Llm) -> None:
    output = llm_command.ok("-m", TINY, "--schema", PERSON, "name Ada, age 36")
    assert json.loads(output) == {"name": "Ada", "age": 36}
    (turn,) = llm_command.logs()
    report = turn["response_json"]["blocks"][0]["constraint"]
    assert report["log_probability"] <= 0.1
    assert report["changed_positions"] >= 0
    assert "choices" not in turn["response_json"]
    assert json.loads(llm_command.ok("logs", "--schema", PERSON, "--data")) == json.loads(output)


@pytest.mark.parametrize("seed", range(2))
def test_what_the_network_has_never_seen_is_odd_but_valid(llm_command: Llm, seed: int) -> None:
    output = llm_command.ok("-m", TINY, "--schema", PERSON, UNSEEN, "-o", "seed", str(seed), *FEW_STEPS)
    jsonschema.validate(json.loads(output), PERSON_SCHEMA)


LONG_THREAD = {
    "type": "object",
    "properties": {
        "thread": {"type": "array", "maxItems": 2, "items": {"type": "string", "maxLength": 9000}},
        "votes": {"type": "array", "maxItems": 2000, "items": {"type": "boolean"}},
    },
    "required": ["thread"],
}


def test_what_was_lowered_is_in_the_report_and_on_the_terminal(
    llm_command: Llm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody was told."""
    asked = ("-m", TINY, "--schema", json.dumps(LONG_THREAD), UNSEEN, *FEW_STEPS)
    assert llm_command(*asked).stderr == ""
    (turn,) = llm_command.logs()
    assert turn["response_json"]["lowered"] == [
        {"keyword": "maxLength", "asked": 9000, "given": 1024, "at": "$.thread[]"},
        {"keyword": "maxItems", "asked": 2000, "given": 128, "at": "$.votes"},
    ]
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    note = "\nThe reply keeps to less than the schema allows: maxLength 9000 → 1024; maxItems 2000 → 128.\n"
    assert llm_command(*asked).stderr == note
    # A nesting that is as deep as any is no news to who watches.
    assert llm_command("-m", TINY, "--schema", '{"type": "object"}', UNSEEN, *FEW_STEPS).stderr == ""
    ends = [{"keyword": "nesting", "asked": None, "given": 4, "at": "$.*[][][]"}]
    assert llm_command.logs()[-1]["response_json"]["lowered"] == ends
    for held in (("--schema", PERSON), ("-o", "regex", "[ab]{3}"), ("-o", "choices", "a,b"), ()):
        assert llm_command("-m", TINY, *held, "name Ada, age 36", *FEW_STEPS).stderr == ""
        assert "lowered" not in llm_command.logs()[-1]["response_json"]


def test_a_note_names_each_maximum_once() -> None:
    lowered = [
        Lowered("maxLength", 500, 32, "$.a"),
        Lowered("recursion", None, 1, "$.b"),
        Lowered("maxLength", 280, 32, "$.c"),
    ]
    assert lowered_note(lowered).endswith(": maxLength 280, 500 → 32; recursion without end → 1.")


def test_several_objects(llm_command: Llm) -> None:
    asked = "name Ada, age 36 and name Bob, age 7"
    output = llm_command.ok("-m", TINY, "--schema-multi", PERSON, asked)
    jsonschema.validate(json.loads(output), llm.schema_dsl(PERSON, multi=True))


def test_a_document_of_several_canvases(llm_command: Llm) -> None:
    digit = {"type": "integer", "minimum": 1, "maximum": 9}
    # The compiler keeps to 64 items unless the schema insists.
    numbers = {"type": "array", "items": digit, "minItems": 200, "maxItems": 200}
    schema = json.dumps({"type": "object", "properties": {"numbers": numbers}, "required": ["numbers"]})
    asked = ("-m", TINY, "--schema", schema, "Count from 1 to 200", *FEW_STEPS)
    document = json.loads(llm_command.ok(*asked))
    assert len(document["numbers"]) == 200
    (turn,) = llm_command.logs()
    assert len(turn["response_json"]["blocks"]) > 1
    assert turn["response_json"]["finish_reason"] == "stop"


def test_a_regular_expression(llm_command: Llm) -> None:
    output = llm_command.ok("-m", TINY, "-o", "regex", r"\d{4}-\d{2}-\d{2}", UNSEEN)
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", output)


def test_blanks_at_the_edges_are_part_of_the_form() -> None:
    response = llm.get_model(TINY).prompt("Hello", regex=r"\n\n  (a|b)  \n")
    assert re.fullmatch(r"\n\n  (a|b)  \n", response.text())


def test_a_character_of_several_tokens_over_blocks() -> None:
    text = llm.get_model(TINY).prompt("Hello", regex="[☃日]{120}", max_denoising_steps=2).text()
    assert re.fullmatch("[☃日]{120}", text)


@pytest.mark.parametrize("choices", ["yes,no,unsure", ["yes", "no", "unsure"], '["yes", "no", "unsure"]'])
def test_choices(choices: Any) -> None:
    assert llm.get_model(TINY).prompt(UNSEEN, choices=choices).text() in ("yes", "no", "unsure")


@pytest.mark.parametrize("thinking", ["false", "true"])
def test_how_probable_each_choice_was_is_in_the_log(llm_command: Llm, thinking: str) -> None:
    choices = ["90", "22", "light blue", "½"]
    text = llm_command.ok(
        "-m", TINY, "-R", "-o", "choices", json.dumps(choices), "-o", "thinking", thinking, "What is 15 + 7?"
    )
    (turn,) = llm_command.logs()
    report = turn["response_json"]["choices"]
    probabilities = report.pop("probabilities")
    assert sorted(probabilities) == sorted(choices)
    assert list(probabilities.values()) == sorted(probabilities.values(), reverse=True)
    assert sum(probabilities.values()) == pytest.approx(1)
    # Most by far: no other canvas comes near it.
    assert next(iter(probabilities)) == text
    assert probabilities[text] > 0.9
    assert list(report) == ["log_mass"]
    assert -40 < report["log_mass"] <= 0


def test_of_more_than_a_thousand_choices_no_probabilities_are_told(llm_command: Llm) -> None:
    numbers = [str(number) for number in range(1001)]
    assert llm_command.ok("-m", TINY, "-o", "choices", json.dumps(numbers), *FEW_STEPS, UNSEEN) in numbers
    assert "choices" not in llm_command.logs()[0]["response_json"]


def test_choices_can_hold_commas() -> None:
    assert parse_choices("a, b ,c") == ["a", "b", "c"]
    assert parse_choices('["a, b", "c"]') == ["a, b", "c"]


def test_a_thought_is_free_and_the_answer_is_not(llm_command: Llm) -> None:
    result = llm_command("-m", TINY, "-o", "thinking", "true", "--schema", PERSON, "name Ada, age 36")
    assert result.exit_code == 0
    jsonschema.validate(json.loads(result.stdout), PERSON_SCHEMA)
    assert result.stderr.strip()
    assert "constraint" not in llm_command.logs()[0]["response_json"]["blocks"][0]


def test_tools_come_first(llm_command: Llm) -> None:
    tool = ("-T", "llm_version", "--schema", "version str")
    llm_command.ok("-m", TINY, *tool, "What is the version of llm?")
    call, _ = llm_command.logs()  # llm asks without the schema once it has a result
    assert call["tool_calls"][0]["name"] == "llm_version"
    assert call["response"] == ""


def test_without_a_call_the_answer_has_the_form(llm_command: Llm) -> None:
    output = llm_command.ok("-m", TINY, "-T", "llm_version", "--schema", PERSON, "name Ada, age 36")
    jsonschema.validate(json.loads(output), PERSON_SCHEMA)
    assert llm_command.logs()[0]["response_json"]["finish_reason"] == "stop"


@pytest.mark.parametrize("name", ["time", "date", "regex", "idn-email"])
def test_formats_that_validators_see_differently(name: str) -> None:
    """jsonschema's `time` is that of draft 3, and which others it checks depends on what is installed."""
    schema = {"type": "object", "properties": {"t": {"type": "string", "format": name}}, "required": ["t"]}
    reply = llm.get_model(TINY).prompt("When?", schema=schema, max_denoising_steps=2)
    assert set(json.loads(reply.text())) == {"t"}


def test_a_form_costs_the_next_turn_only_the_question() -> None:
    """What asks for the form stands in this turn's prompt alone, so the cache is kept before it."""
    conversation = llm.get_model(TINY).conversation()
    long = " ".join(["red blue green"] * 120)
    assert conversation.prompt(f"Repeat: {long}", max_tokens=8, max_denoising_steps=2, seed=1).text().strip()
    cached = []
    for _ in range(2):
        response = conversation.prompt("Is it?", choices="yes,no", max_denoising_steps=2, seed=1)
        response.text()
        cached.append((response.usage().details or {}).get("cached_tokens", 0))
    assert min(cached) > 300, cached


def test_async() -> None:
    async def ask() -> str:
        return await llm.get_async_model(TINY).prompt("name Ada, age 36", schema=PERSON_SCHEMA).text()

    assert json.loads(asyncio.run(ask())) == {"name": "Ada", "age": 36}


def test_max_tokens_never_cuts_a_document(llm_command: Llm) -> None:
    message = llm_command.fails("-m", TINY, "--schema", PERSON, "name Ada, age 36", "-o", "max_tokens", "3")
    least = re.search(r"Set max_tokens to (\d+) or more", message)
    assert least
    output = llm_command.ok("-m", TINY, "--schema", PERSON, "name Ada, age 36", "-o", "max_tokens", least[1])
    jsonschema.validate(json.loads(output), PERSON_SCHEMA)


def test_fields_are_right_as_often_as_without_the_constraint() -> None:
    """The same prompts, of the skill that the network was trained for, with names that it has never seen."""
    rng = random.Random(0)
    model = llm.get_model(TINY)
    right = {True: 0, False: 0}
    for number in range(8):
        who, age = data._made_up_name(rng, held_out=True), rng.randint(1, 99)
        asked = f"name {who}, age {age}"
        for constrained in right:
            schema = PERSON_SCHEMA if constrained else None
            text = asked if constrained else f"{asked}\n\n{json_request(PERSON_SCHEMA)}"
            answer = model.prompt(text, schema=schema, seed=number, max_tokens=60).text()
            right[constrained] += f'"{who}"' in answer and f": {age}}}" in answer
    print(right)
    assert right[True] >= right[False] - 1, right  # one may fall either way
    assert right[True] >= 4, right


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (("--schema", '{"type": "nonsense"}'), "invalid"),
        (("--schema", '{"type": "object", "properties":'), "cut or has a slip"),
        (("--schema-multi", "[1, 2]"), "cut or has a slip"),
        (("--schema", '{"type": "integer", "minimum": 5, "maximum": 4}'), "contradict each other"),
        (("--schema", '{"type": "array", "not": {"uniqueItems": true}}'), "uniqueItems"),
        (("--schema", '{"$ref": "#"}'), "ref"),
        (("-o", "regex", "(?<=(?=a))b"), "look"),
        (("-o", "regex", r"(a)\1"), "back-reference"),
        (("-o", "regex", "a{0,100000}"), "100"),
        (("-o", "regex", "("), "regular expression|group|parenthes"),
        (("-o", "choices", ""), "choice"),
        (("-o", "choices", "[]"), "choice"),
        (("-o", "choices", "[1, 2]"), "strings"),
        (("-o", "choices", "[1"), "JSON list"),
        (("-o", "regex", "a", "-o", "choices", "a,b"), "one form"),
        (("-o", "regex", "a", "--schema", PERSON), "one form"),
        (("--schema", '{"enum": [{"a": 1}], "properties": {"a": {"$ref": "#/nope"}}}'), "leads nowhere"),
        (("--schema", '{"const": {"a": 1}, "properties": {"a": {"$ref": "http://127.0.0.1:9/x"}}}'), "ref"),
        (("--schema", '{"$schema": 5}'), "schema"),
        (("-o", "regex", "x{,}"), "counter"),
        (("-o", "regex", "a\udcff"), "UTF-8"),
        (("-o", "regex", ""), "empty"),
        (("-o", "regex", "A(?#c){2}"), "comment"),
        (("-o", "choices", "[" * 100_000), "JSON list"),
        (("-o", "regex", "a{300}", "-o", "max_tokens", "40", "-T", "llm_version"), "max_tokens"),
        (("--schema", json.dumps({"enum": ["x" * 1000 + str(i) for i in range(1000)]})), "characters"),
    ],
)
def test_what_cannot_be_guaranteed(llm_command: Llm, arguments: tuple[str, ...], cause: str) -> None:
    llm.get_model(TINY)  # not part of the time
    started = time.process_time()
    message = llm_command.fails("-m", TINY, UNSEEN, *arguments)
    assert re.search(cause, message), message
    assert time.process_time() - started < 20  # no blow-up; how fast it is, is a benchmark's business


def test_a_broken_promise_is_an_error() -> None:
    form = read_form(PERSON_SCHEMA, None, None)
    assert form is not None
    form.check('{"name": "Ada", "age": 36}')
    for broken in ('{"name": "Ada"', '{"name": "Ada"}', "nonsense"):
        with pytest.raises(ConstraintError, match="bug"):
            form.check(broken)


def test_a_reply_that_breaks_it_is_not_logged(llm_command: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = get_engine(llm.get_model(TINY).entry).engine
    hold_to, another = engine.hold_to, read_form(None, "z{3}", None)
    assert another is not None
    monkeypatch.setattr(engine, "hold_to", lambda form: hold_to(another))
    result = llm_command("-m", TINY, "-o", "regex", "q{40}", UNSEEN)
    assert result.exit_code == 1
    assert "bug" in result.stderr
    assert llm_command.logs() == []


# --- networks that predict nonsense ------------------------------------------------------------------------


@functools.cache
def nonsense() -> Network:
    return network_of(tiny_model(vocab_size=len(BYTE_TOKENS), sharpness=12.0, canvas_length=32))


@pytest.mark.parametrize("name", list(SCHEMAS)[::5])
def test_nonsense_is_valid(name: str) -> None:
    """Random weights, several seeds, budgets from the least on, over one canvas and several.

    Of every fifth schema: that each language is right is shown without a network.
    """
    form = read_form(SCHEMAS[name], None, None)
    assert form is not None
    automaton = build(form.language, vocabulary_of(BYTE_TOKENS, eos=(EOS,)))
    fewest = int(automaton.distance[0])
    pipeline = BlockDiffusionPipeline(nonsense(), eos_token_ids=[EOS], pad_token_id=PAD)
    settings = SamplerSettings(2, 0.1, 0.4, 0.8, 0.005, 1)
    for seed, budget in enumerate((max(fewest - 1, 1), fewest + 40)):
        text = ConstrainedText(TextConstraint(automaton, torch.device("cpu")))
        randomness = GeneratorRandomness(torch.Generator().manual_seed(seed))
        request = Request(Prompt([20, 30, 40]), settings, budget, (text,))
        blocks = list(pipeline.generate(request, randomness=randomness))
        tokens = [token for block in blocks if isinstance(block, Block) for token in block.tokens]
        form.check(text_of(BYTE_TOKENS, tokens).decode())
        assert len(tokens) <= budget
