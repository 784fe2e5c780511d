"""A client that knows nothing of ours, the `openai` package's own, over HTTP and on the embedded model."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import llm
import openai
import pytest
import uvicorn
from PIL import Image

from llm_diffusiongemma.backends.local import LocalReply
from llm_diffusiongemma.backends.turn import ALWAYS_WANTED, Turn
from llm_diffusiongemma.options import Options
from llm_diffusiongemma.server.app import make_app
from llm_diffusiongemma.server.desk import Desk
from llm_diffusiongemma.server.guard import only
from llm_diffusiongemma.server.listening import listen_on_tcp

from ..conftest import PATIENCE_SECONDS, TINY

TOKEN = "a-token"
CANVAS = "What is a canvas?"
COUNT = "Count from 1 to 320"
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


ENTRY = llm.get_model(TINY).entry


@dataclass(frozen=True)
class Running:
    desk: Desk
    url: str

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=TOKEN, max_retries=0, timeout=PATIENCE_SECONDS)

    @property
    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.url, api_key=TOKEN, max_retries=0, timeout=PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    desk = Desk(ENTRY)
    app = make_app(desk, only(TOKEN), instance="this-one", stop=lambda: None)
    server = uvicorn.Server(uvicorn.Config(app, http="h11", lifespan="off", log_level="error"))
    with listen_on_tcp("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield Running(desk, f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
        server.should_exit = True
        thread.join()


@pytest.fixture
def completions(running: Running) -> Iterator[Any]:
    with running.client as client:
        yield client.chat.completions


def asked(prompt: str, **more: Any) -> dict[str, Any]:
    return {"model": TINY, "messages": [{"role": "user", "content": prompt}], "seed": 1, **more}


def test_models(running: Running) -> None:
    with running.client as client:
        assert [model.id for model in client.models.list()] == [TINY]
        assert client.models.retrieve(TINY).owned_by == "llm-diffusiongemma"


def test_a_reply(completions: Any) -> None:
    reply = completions.create(**asked(CANVAS))
    alone = llm.get_model(TINY).prompt(CANVAS, seed=1)
    assert reply.choices[0].message.content == alone.text()
    assert reply.choices[0].finish_reason == "stop"
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (
        alone.input_tokens,
        alone.output_tokens,
    )


def test_a_stream_of_several_canvases(completions: Any) -> None:
    alone = llm.get_model(TINY).prompt(COUNT, seed=1, max_tokens=100, canvas_length=64)
    blocks = list(alone)
    short = {"diffusiongemma": {"canvas_length": 64}}
    stream = completions.create(
        **asked(COUNT, max_tokens=100, stream=True, stream_options={"include_usage": True}, extra_body=short)
    )
    role, *chunks, end, usage = list(stream)
    assert role.choices[0].delta.role == "assistant"
    assert [chunk.choices[0].delta.content for chunk in chunks] == blocks
    assert end.choices[0].finish_reason == "length"
    assert usage.usage.completion_tokens == 100


async def test_an_async_stream_with_a_thought(running: Running) -> None:
    question = "What is 12 times 34?"
    turn = Turn([llm.user(question)], Options(seed=1, thinking=True))
    events = [event for events in LocalReply(ENTRY, turn, ALWAYS_WANTED).steps() for event in events]
    async with running.async_client as client:
        stream = await client.chat.completions.create(**asked(question, stream=True, reasoning_effort="high"))
        deltas = [chunk.choices[0].delta async for chunk in stream]
    for kind, name in (("reasoning", "reasoning"), ("text", "content")):
        said = "".join(getattr(delta, name, None) or "" for delta in deltas)
        assert said == "".join(event.chunk for event in events if event.type == kind) != ""


def test_a_tool_and_its_result(completions: Any) -> None:
    request = asked("What is the weather in Oslo?", tools=[WEATHER])
    called = completions.create(**request)
    (call,) = called.choices[0].message.tool_calls
    assert called.choices[0].finish_reason == "tool_calls"
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Oslo"})
    streamed = [chunk.choices[0].delta.tool_calls for chunk in completions.create(**request, stream=True)]
    (((again,),)) = [calls for calls in streamed if calls]
    assert (again.function.name, again.function.arguments) == (call.function.name, call.function.arguments)
    request["messages"] += [
        called.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    answer = completions.create(**request)
    assert "sunny" in answer.choices[0].message.content
    assert answer.usage.prompt_tokens_details.cached_tokens > 0


def test_an_image(completions: Any) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (64, 48), (220, 25, 25)).save(picture, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "What colour is this image?"},
    ]
    reply = completions.create(model=TINY, messages=[{"role": "user", "content": content}], seed=1)
    assert reply.choices[0].message.content == "The image is red."
    content[0] = {"type": "image_url", "image_url": {"url": url[:-200]}}
    with pytest.raises(openai.BadRequestError, match="image"):
        completions.create(model=TINY, messages=[{"role": "user", "content": content}], stream=True)


def test_a_schema(completions: Any) -> None:
    response_format = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    reply = completions.create(**asked("name Ada, age 36", response_format=response_format))
    assert json.loads(reply.choices[0].message.content) == {"name": "Ada", "age": 36}
    (warning,) = completions.create(**asked(CANVAS, temperature=0.2)).model_extra["warnings"]
    assert "temperature" in warning


def test_a_decision(completions: Any) -> None:
    question = asked("What is 17 + 25?")
    decision = {"choices": ["32", "42", "52"], "probabilities": True, "reads": 2}
    reply = completions.create(**question, extra_body={"diffusiongemma": decision})
    assert reply.choices[0].finish_reason == "stop"
    probabilities = json.loads(reply.choices[0].message.content)
    assert sorted(probabilities) == decision["choices"]
    assert sum(probabilities.values()) == pytest.approx(1)
    report = reply.model_extra["diffusiongemma"]["report"]["choices"]
    assert (list(report["probabilities"]), report["reads"]) == (list(probabilities), 2)
    with pytest.raises(openai.BadRequestError, match=r"diffusiongemma\.reads are for probabilities") as caught:
        completions.create(**question, extra_body={"diffusiongemma": {"choices": "a,b", "reads": 2}})
    assert caught.value.param == "diffusiongemma.reads"
    with pytest.raises(openai.BadRequestError, match="two choices at least"):
        completions.create(**question, extra_body={"diffusiongemma": {"choices": ["a"], "probabilities": True}})


def test_refusals(running: Running, completions: Any) -> None:
    with pytest.raises(openai.NotFoundError, match=TINY):
        completions.create(**{**asked(CANVAS), "model": "gpt-4"})
    with pytest.raises(openai.BadRequestError, match="prompt is empty"):
        completions.create(**asked(" "))
    with pytest.raises(openai.BadRequestError, match="prompt is empty"):
        completions.create(**asked(" ", stream=True))
    stranger = openai.OpenAI(base_url=running.url, api_key="another", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError, match="token"):
        stranger.models.list()


async def test_many_clients_some_of_whom_go_away(running: Running) -> None:
    """Every reply that is finished is the one that it would have been alone."""
    prompts = [(CANVAS, 1), (COUNT, 2)]
    alone = {}
    for prompt, seed in prompts:
        reply = llm.get_model(TINY).prompt(prompt, seed=seed, max_tokens=300, max_denoising_steps=1)
        alone[prompt] = reply.text()
    finished: list[str] = []

    async def ask(client: openai.AsyncOpenAI, number: int) -> None:
        prompt, seed = prompts[number % 2]
        body = asked(prompt, max_tokens=300, extra_body={"diffusiongemma": {"max_denoising_steps": 1}})
        stream = await client.chat.completions.create(**{**body, "seed": seed}, stream=True)
        text = ""
        chunks_left = number % 4 if number % 3 == 0 else 1000
        async for chunk in stream:
            chunks_left -= 1
            if chunks_left < 0:
                await stream.close()  # before, behind or amid its canvases
                return
            text += chunk.choices[0].delta.content or ""
        assert text == alone[prompt]
        finished.append(prompt)

    async def come(number: int) -> None:
        async with running.async_client as client:
            for turn in range(2):
                await ask(client, number + 6 * turn)

    await asyncio.gather(*(come(number) for number in range(6)))
    assert len(finished) >= 8
    async with running.async_client as client:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while running.desk.status()["running_since"] is not None:
                await asyncio.sleep(0.01)
        assert running.desk.status()["waiting"] == 0
        assert [model.id async for model in client.models.list()] == [TINY]
