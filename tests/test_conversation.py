"""A whole conversation: what a later turn costs, and that the cache changes no answer."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from typing import Any

import llm
import pytest

from llm_diffusiongemma.backends import local

from .conftest import TINY, Llm

QUESTIONS = ["What is a canvas?", "What is entropy?", "My name is Ada.", "Count from 1 to 100", "What is my name?"]


def cached_tokens(turn: dict[str, Any]) -> int:
    details = turn["token_details"]
    return (json.loads(details) if isinstance(details, str) else details or {}).get("cached_tokens", 0)


def forget() -> None:
    local.get_engine(llm.get_model(TINY).entry).engine.pipeline.prefix_cache.clear()


def test_twenty_turns_of_chat(llm_command: Llm) -> None:
    forget()
    lines = [*(QUESTIONS * 4), "exit", ""]
    result = llm_command("chat", "-m", TINY, input="\n".join(lines))
    assert result.exit_code == 0
    turns = llm_command.logs()
    assert len(turns) == 20
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
        for number, question in enumerate(QUESTIONS):
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
    lines = "What is 7 + 12?\nWhat is 8 + 3?\nexit\n"
    llm_command.ok("chat", "-m", TINY, "-o", "thinking", "true", input=lines)
    first, second = llm_command.logs()
    assert cached_tokens(second) >= first["input_tokens"] - len("<|turn>model\n")
    assert re.search(r"8 \+ 3 = \d+", second["response"])
