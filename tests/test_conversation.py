"""A whole conversation: what a later turn costs, and that the cache changes no answer."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from typing import Any

import llm
import pytest

from llm_diffusiongemma.backends.engine import get_engine

from .conftest import TINY, Llm

QUESTIONS = ["What is a canvas?", "What is entropy?", "My name is Ada.", "Count from 1 to 100", "What is my name?"]


def cached_tokens(turn: dict[str, Any]) -> int:
    details = turn["token_details"]
    return (json.loads(details) if isinstance(details, str) else details or {}).get("cached_tokens", 0)


def forget() -> None:
    get_engine(llm.get_model(TINY).entry).engine.pipeline.prefix_cache.clear()


def test_turns_of_a_chat(llm_command: Llm) -> None:
    forget()
    lines = [*QUESTIONS, *QUESTIONS[:2], "exit", ""]
    result = llm_command("chat", "-m", TINY, input="\n".join(lines))
    assert result.exit_code == 0
    turns = llm_command.logs()
    assert len(turns) == len(QUESTIONS) + 2
    cached = [cached_tokens(turn) for turn in turns]
    assert cached[0] == 0
    assert all(before < after for before, after in itertools.pairwise(cached)), cached
    # What is new is the last reply and the question: whatever the history, no more than this.
    assert all(turn["input_tokens"] - kept < 420 for turn, kept in zip(turns, cached, strict=True))
    assert cached[-1] > 0.75 * turns[-1]["input_tokens"]


@pytest.mark.parametrize("thinking", [None, True])
def test_the_answers_are_those_without_the_cache(thinking: bool | None) -> None:
    options = {} if thinking is None else {"thinking": thinking}

    def talk(remember: bool) -> list[str]:
        conversation = llm.get_model(TINY).conversation()
        answers = []
        for number, question in enumerate(QUESTIONS[: 2 if thinking else 3]):
            if not remember:
                forget()
            answers.append(conversation.prompt(question, seed=number, **options).text())
        return answers

    assert talk(remember=True) == talk(remember=False)


def test_async_conversation_uses_the_cache_too() -> None:
    async def talk() -> list[int]:
        conversation = llm.get_async_model(TINY).conversation()
        cached = []
        for question in QUESTIONS[:3]:
            response = conversation.prompt(question)
            await response.text()
            cached.append(((await response.usage()).details or {}).get("cached_tokens", 0))
        return cached

    forget()
    first, second, third = asyncio.run(talk())
    assert first == 0 < second < third


def test_a_thought_that_is_stripped_costs_only_its_turn(llm_command: Llm) -> None:
    forget()
    lines = "What is 7 + 12?\nWhat is 20 + 7?\nexit\n"
    llm_command.ok("chat", "-m", TINY, "-o", "thinking", "true", input=lines)
    first, second = llm_command.logs()
    assert cached_tokens(second) >= first["input_tokens"] - len("<|turn>model\n")
    assert "27" in second["response"]  # the second question's, if not as written on every processor


THINKING = ("-m", TINY, "-o", "thinking", "true")


def test_an_answer_inside_a_thought_that_never_closes_is_the_answer(
    llm_command: Llm, network_says: Callable[..., list[list[int]]]
) -> None:
    prompts = network_says("<|channel>thought\nIt is 42.", "Yes.")
    result = llm_command(*THINKING, "What is it?")
    assert result.stdout == "It is 42.\n"
    assert "It is 42." in result.stderr
    assert "empty" not in result.stderr
    (turn,) = llm_command.logs()
    assert turn["response"] == "It is 42."
    llm_command.ok("-c", "Really?")
    engine = get_engine(llm.get_model(TINY).entry).engine
    assert "<|turn>model\nIt is 42.<turn|>" in engine.decode(prompts[-1])


def test_a_thought_that_left_out_its_opening_is_no_answer(
    llm_command: Llm, network_says: Callable[..., list[list[int]]]
) -> None:
    network_says(
        "thought\nsix times seven\n<channel|>42", "thought\nidea\nnotion", "<|channel>final\n42\n<channel|>"
    )
    result = llm_command(*THINKING, "What is it?")
    assert result.stdout == "42\n"
    assert "six times seven" in result.stderr
    assert llm_command.ok("-m", TINY, "Synonyms of idea?") == "thought\nidea\nnotion"
    result = llm_command("-m", TINY, "What is it?")
    assert (result.stdout, result.stderr) == ("42\n", "")
