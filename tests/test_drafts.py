"""Replies that begin as a text, as a user has them."""

from __future__ import annotations

import json
import re

import llm
import pytest

from llm_diffusiongemma.backends.engine import Engine, get_engine
from llm_diffusiongemma.diffusion.drafting import DraftedText
from llm_diffusiongemma.diffusion.sampler import Start

from .conftest import TINY, Llm

QUESTION = "What is a canvas?"
DAMAGED = "7 + 8 = 19"


def test_a_damaged_answer_is_repaired(llm_command: Llm) -> None:
    whole = llm_command.ok("-m", TINY, QUESTION)
    damaged = re.sub("[ae]", "x", whole)
    assert damaged != whole
    for more in ((), ("-o", "noise", "0")):
        assert llm_command.ok("-m", TINY, QUESTION, "-o", "draft", damaged, *more) == whole
    turn = llm_command.logs()[-1]
    assert turn["options_json"] == {"seed": 1, "draft": damaged, "noise": 0.0}
    assert turn["response_json"]["finish_reason"] == "stop"


def test_nothing_but_noise_is_the_ordinary_reply(llm_command: Llm) -> None:
    asked = ("-m", TINY, "count 1 to 320", "-o", "max_denoising_steps", "2")
    for more in ((), ("-o", "thinking", "true")):
        assert llm_command.ok(*asked, *more, "-o", "draft", "Because.", "-o", "noise", "1") == llm_command.ok(
            *asked, *more
        )
        drafted, plain = (turn["response_json"]["blocks"] for turn in llm_command.logs()[-2:])
        assert [block["tokens"] for block in drafted] == [block["tokens"] for block in plain]


def test_what_was_left_out_and_is_put_back_does_not_move_the_next_canvas(
    llm_command: Llm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on in the draft where the canvas before has left off, not 256 tokens on."""
    words = [str(number) for number in range(1, 331)]
    begun: list[str] = []
    original = DraftedText.start

    def note(drafted: DraftedText, canvas_length: int) -> Start | None:
        start = original(drafted, canvas_length)
        assert start is not None
        begun.append(get_engine(llm.get_model(TINY).entry).engine.decode(list(start.tokens)))
        return start

    monkeypatch.setattr(DraftedText, "start", note)
    draft = " ".join([*words[:100], *words[104:]])
    asked = ("-m", TINY, "count 1 to 330", "-o", "seed", "0", "-o", "draft", draft, "-o", "noise", "0.8")
    assert llm_command.ok(*asked).split() == words
    first, second = begun
    assert first.endswith(" 260")
    assert second.startswith(" 257 258")


def test_only_its_text_is_drafted_not_the_thought_before(llm_command: Llm) -> None:
    result = llm_command("-m", TINY, "What is 7 + 8?", "-o", "thinking", "true", "-o", "draft", DAMAGED)
    assert result.stdout.strip() == "7 + 8 = 15"
    turn = llm_command.logs()[-1]
    assert "7 + 8 = 15" in turn["reasoning"]
    assert len(turn["response_json"]["blocks"]) == 2


def test_nor_is_a_thought_that_the_prompt_has_opened(llm_command: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    """As templates do after a tool's result."""
    monkeypatch.setattr(Engine, "opens_thought", lambda *_: True)
    llm_command("-m", TINY, "What is 7 + 8?", "-o", "draft", DAMAGED)
    assert len(llm_command.logs()[-1]["response_json"]["blocks"]) == 2


def test_a_form_and_a_draft(llm_command: Llm) -> None:
    person = json.dumps({"name": "Adx", "age": 30})
    output = llm_command.ok("-m", TINY, "--schema", "name, age int", "name Ada, age 36", "-o", "draft", person)
    assert json.loads(output) == {"name": "Ada", "age": 36}


def test_no_control_token_comes_out_of_it() -> None:
    engine = get_engine(llm.get_model(TINY).entry).engine
    start = engine.drafted("<turn|>a <|channel>thought\n<pad><bos>", 0.0).start(256)
    assert start is not None
    *text, end = start.tokens
    assert not set(text) & set(engine.control_tokens)
    assert engine.control_tokens[end] == "<turn|>"
    assert engine.decode(text) == "<turn|>a <|channel>thought\n<pad><bos>"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("-o", "draft", ""), "draft\n  must be a text"),
        (("-o", "draft", " \n"), "draft\n  must be a text"),
        (("-o", "draft", "caf\udce9"), "draft\n  holds bytes that are no valid UTF-8. Convert it first"),
        (("-o", "noise", "0.5"), "noise\n  is that of a draft: give one with -o draft"),
        (("-o", "draft", "a", "-o", "noise", "1.1"), "noise"),
        (("-o", "draft", "a", "-o", "noise", "nan"), "noise"),
        (("-o", "draft", "a b c", "-o", "max_tokens", "2"), "tokens long, but max_tokens is 2. Set max_tokens to"),
        (("-o", "draft", "a " * 9000, "-o", "max_tokens", "20000"), "the prompt leaves room for"),
    ],
)
def test_what_is_no_draft(llm_command: Llm, options: tuple[str, ...], expected: str) -> None:
    assert expected in llm_command.fails("-m", TINY, QUESTION, *options)
