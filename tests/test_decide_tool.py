"""`diffusiongemma_decide`: what other models ask of this one, by llm's own chains."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from typing import Any

import llm
import pytest
from click.testing import Result

from llm_diffusiongemma import hub
from llm_diffusiongemma.backends import answering, engine, form
from llm_diffusiongemma.catalog import DECIDES_VARIABLE

from .conftest import TINY, Llm, after_each_forward

QUESTION = "What colour is grass?"
ASKED = {"question": QUESTION, "choices": ["red", "green", "blue"]}
TOOL = "diffusiongemma_decide"


@pytest.fixture(autouse=True)
def _tiny_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DECIDES_VARIABLE, TINY)


class Calling(llm.Model):
    """Some model that calls the tool, and says what it was told."""

    model_id = "calling"
    supports_tools = True
    can_stream = False

    def execute(self, prompt: Any, stream: Any, response: Any, conversation: Any) -> Iterator[str]:
        yield say(prompt, response)


class AsyncCalling(llm.AsyncModel):
    model_id = "calling"
    supports_tools = True
    can_stream = False

    async def execute(
        self, prompt: Any, stream: Any, response: Any, conversation: Any
    ) -> AsyncGenerator[str, None]:
        yield say(prompt, response)


def say(prompt: Any, response: Any) -> str:
    if prompt.tool_results:
        return "".join(result.output for result in prompt.tool_results)
    response.add_tool_call(llm.ToolCall(TOOL, ASKED, tool_call_id="tc_1"))
    return ""


def tool() -> llm.Tool:
    found: Any = llm.get_tools()[TOOL]
    return found


def decide(**changes: Any) -> str:
    """As a chain calls it."""
    said: str = tool().implementation(**ASKED | changes)  # type: ignore[misc]
    return said


def shares(said: str) -> dict[str, float]:
    """Of an answer, the warning behind it left out."""
    found: dict[str, float] = json.loads(said.partition("\n")[0])
    assert set(found) == {*ASKED["choices"]}
    assert sum(found.values()) == pytest.approx(1)
    assert [*found.values()] == sorted(found.values(), reverse=True)
    return found


def test_it_is_there_for_every_model(llm_command: Llm) -> None:
    said = llm_command.ok("tools", "list", TOOL)
    assert f"{TOOL}(question: str, choices: list[str]) -> str (plugin: diffusiongemma)" in said
    assert tool().input_schema["properties"] == {
        "question": {"type": "string"},
        "choices": {"type": "array", "items": {"type": "string"}},
    }


def test_a_command_whose_model_calls_it(
    llm_command: Llm, network_says: Callable[..., list[list[int]]], capsys: pytest.CaptureFixture[str]
) -> None:
    """It gives what a prompt of the same question gives."""
    quote = '<|"|>'
    choices = ",".join(f"{quote}{choice}{quote}" for choice in ASKED["choices"])
    call = f"<|tool_call>call:{TOOL}{{choices:[{choices}],question:{quote}{QUESTION}{quote}}}<tool_call|>"
    network_says(call, "Green, I guess.")
    result: Result = llm_command("-m", TINY, "-T", TOOL, QUESTION)
    assert (result.exit_code, result.stdout) == (0, "Green, I guess.\n")
    (told,) = llm_command.logs()[-1]["tool_results"]
    options = ("-o", "choices", json.dumps(ASKED["choices"]), "-o", "probabilities", "true", "-o", "seed", "0")
    assert shares(told["output"]) == pytest.approx(
        json.loads(llm_command.ok("-m", TINY, QUESTION, *options)), abs=1e-4
    )


def test_sync_chains_and_those_in_a_notebook() -> None:
    """There the chain is sync and a loop runs all the same."""

    def ask() -> str:
        text: str = Calling().chain("Ask.", tools=[tool()]).text()
        return text

    async def in_loop() -> str:
        return ask()

    assert shares(ask()) == pytest.approx(shares(asyncio.run(in_loop())), abs=1e-4)


def test_an_async_chain_goes_on_with_other_things_meanwhile() -> None:
    threads = set()
    network = engine.get_engine(llm.get_model(TINY).entry).engine

    async def ask() -> str:
        text: str = await AsyncCalling().chain("Ask.", tools=[tool()]).text()
        return text

    with after_each_forward(network, lambda: threads.add(threading.current_thread())):
        said = asyncio.run(ask())
    assert shares(said) == pytest.approx(shares(decide()), abs=1e-4)
    assert threads
    assert threading.main_thread() not in threads


@pytest.mark.usefixtures("served")
def test_a_warm_server_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is loaded here, not even to see what could be."""
    monkeypatch.setattr(answering, "_here", None)
    monkeypatch.setattr(engine, "is_here", None)
    shares(decide())


@pytest.mark.parametrize(("least", "is_said"), [(1.0, True), (-math.inf, False)])
def test_what_it_is_worth_is_said_with_it(monkeypatch: pytest.MonkeyPatch, least: float, is_said: bool) -> None:
    """However sure of its answers the network is."""
    monkeypatch.setattr(form, "LEAST_LOG_MASS", least)
    assert ("hardly what the model would write" in decide(question="What is 17 + 25?")) == is_said


def test_the_same_question_has_the_same_answer() -> None:
    assert decide() == decide()


def test_nothing_is_downloaded_for_a_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv(DECIDES_VARIABLE)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "locate", None)
    said = Calling().chain("Ask.", tools=[tool()]).text()
    assert said.startswith(
        "Error: The weights of diffusiongemma are not on this machine, and a tool downloads none."
    )
    assert "`llm diffusiongemma download diffusiongemma`" in said
    assert DECIDES_VARIABLE in said


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"question": " "}, "The question has to be a text"),
        ({"question": 3}, "The question has to be a text"),
        ({"choices": None}, "The choices have to be a list of texts"),
        ({"choices": [1, 2]}, "Choices are texts"),
        ({"choices": ["a"]}, "needs two choices"),
        ({"choices": ["a", "a"]}, "twice"),
    ],
)
def test_what_a_model_may_get_wrong(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        decide(**changes)
    # Some write them so.
    assert shares(decide(choices="red,green,blue"))


def test_a_model_that_can_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DECIDES_VARIABLE, "nobody's")
    with pytest.raises(ValueError, match=r"LLM_DIFFUSIONGEMMA_DECIDES is .*which is no DiffusionGemma"):
        decide()


@pytest.mark.parametrize("is_lost", [False, True], ids=["raised", "lost in what was going on"])
def test_interrupted_it_ends_as_any_tool_does(is_lost: bool) -> None:
    network = engine.get_engine(llm.get_model(TINY).entry).engine
    before = signal.getsignal(signal.SIGINT)

    def interrupt() -> None:
        with suppress(*([KeyboardInterrupt] if is_lost else [])):
            signal.raise_signal(signal.SIGINT)

    with after_each_forward(network, interrupt), pytest.raises(KeyboardInterrupt):
        Calling().chain("Ask.", tools=[tool()]).text()
    assert signal.getsignal(signal.SIGINT) is before
