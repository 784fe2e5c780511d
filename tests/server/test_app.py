"""The server's paths, who may ask them, and how replies and errors go out. Asked in this process."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import httpx2
import llm
import pytest
from llm.parts import StreamEvent

from llm_diffusiongemma import errors
from llm_diffusiongemma.backends.protocol import error_from_wire, report_from_wire
from llm_diffusiongemma.backends.running import proof
from llm_diffusiongemma.backends.watched import seen_to_wire
from llm_diffusiongemma.errors import DiffusionGemmaError
from llm_diffusiongemma.server import app as app_module
from llm_diffusiongemma.server import replying
from llm_diffusiongemma.server.app import make_app
from llm_diffusiongemma.server.desk import Desk
from llm_diffusiongemma.server.guard import only
from llm_diffusiongemma.server.refusals import refusal_of
from llm_diffusiongemma.server.requests import Asked, read_request
from llm_diffusiongemma.view.records import Reading, Snapshot

from ..conftest import PATIENCE_SECONDS, TINY
from .scripted import Scripted

TOKEN = "a-token"
AUTHORIZATION = {"Authorization": f"Bearer {TOKEN}"}
COMPLETIONS = "/v1/chat/completions"
REQUEST = {"model": TINY, "messages": [{"role": "user", "content": "Is it?"}]}
STREAMED = {**REQUEST, "stream": True}
WATCHED = {**STREAMED, "diffusiongemma": {"progress": True}}

DRAFT = Snapshot(0, 0, 1, 48, ("a",), "t", "n", None, 1.0, 0, 0.5)

stops: list[str] = []


@pytest.fixture
def desk(scripted: Scripted) -> Desk:
    return Desk(llm.get_model(TINY).entry)


@pytest.fixture
def app(desk: Desk) -> Any:
    stops.clear()
    return make_app(
        desk,
        only(TOKEN),
        instance="this-one",
        stop=lambda: stops.append("stop"),
        hosts=["dg-box"],
        max_body_bytes=1 << 20,
    )


@pytest.fixture
async def client(app: Any) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(
        transport=transport, base_url="http://localhost:8642", headers=AUTHORIZATION
    ) as client:
        yield client


def error_of(response: httpx2.Response) -> str:
    """The message of an answer that has to be an error in OpenAI's shape."""
    (error,) = response.json().values()
    assert {*response.json()} == {"error"}
    assert {*error} == {"message", "type", "param", "code"}
    return error["message"]


def events_of(response: httpx2.Response) -> list[Any]:
    """What a stream consists of: chunks, errors, comments as they are, and `[DONE]`."""
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    parts = response.text.removesuffix("\n\n").split("\n\n")
    lines = [part.removeprefix("data: ") for part in parts]
    return [json.loads(line) if line.startswith("{") else line for line in lines]


# --- who may ask ---------------------------------------------------------------------------------------------

HOSTS = {
    "127.0.0.1": 200,
    "127.0.0.1:8642": 200,
    "localhost": 200,
    "LOCALHOST:1": 200,
    "[::1]": 200,
    "[::1]:8642": 200,
    "dg-box:80": 200,
    "evil.example": 421,
    "evil.example:8642": 421,
    "localhost.evil.example": 421,
    "localhost@evil.example": 421,
    "127.0.0.1:8642:1": 421,
    "192.168.1.2": 421,
    "": 421,
}


async def test_names_that_it_is_asked_by(client: httpx2.AsyncClient) -> None:
    for path, host in itertools.product(["/health", "/v1/models"], HOSTS):
        response = await client.get(path, headers={"Host": host})
        assert (host, response.status_code) == (host, HOSTS[host])
        if response.status_code != 200:
            assert "isn't called" in error_of(response)


TOKENS = ["", "Bearer", "Bearer ", "Bearer another", "Basic a-token", "a-token", "Bearer a-token x", "Bearer é"]
PATHS = {
    "/v1/models": "GET",
    f"/v1/models/{TINY}": "GET",
    COMPLETIONS: "POST",
    "/diffusiongemma/status": "GET",
    "/diffusiongemma/stop": "POST",
    "/nowhere": "GET",
    "/%09health": "GET",
}


async def test_nothing_without_the_token(client: httpx2.AsyncClient) -> None:
    for (path, method), authorization in itertools.product(PATHS.items(), TOKENS):
        headers = {"Authorization": authorization.encode()}
        response = await client.request(method, path, headers=headers, json=REQUEST)
        assert (path, authorization, response.status_code) == (path, authorization, 401)
        assert response.headers["www-authenticate"] == "Bearer"
        assert TOKEN not in response.text
        assert "token" in error_of(response)
        assert isinstance(error_from_wire(response.json()["error"]), errors.ServerAccessError)
    assert not stops


async def test_whether_it_lives_anybody_may_ask(app: Any) -> None:
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as stranger:
        assert (await stranger.get("/health")).json() == {"status": "ok"}
        # Nobody can say later what has been heard once.
        said = [(await stranger.get(f"/health?challenge={each}")).json()["proof"] for each in "aba"]
        assert said == [proof("this-one", each) for each in "aba"]
        assert said[0] != said[1]


async def test_no_page_may_read_an_answer(client: httpx2.AsyncClient) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for method, path in itertools.product(["GET", "POST", "OPTIONS"], ["/health", *PATHS]):
        response = await client.request(method, path, headers=headers)
        assert not [name for name in response.headers if name.startswith("access-control")]


# --- paths ---------------------------------------------------------------------------------------------------


async def test_models(client: httpx2.AsyncClient) -> None:
    (model,) = (await client.get("/v1/models")).json()["data"]
    assert (model["id"], model["object"], model["owned_by"]) == (TINY, "model", "llm-diffusiongemma")
    assert model["diffusiongemma"] == {"watch": ["readings", "drafts", "candidates"]}
    assert (await client.get(f"/v1/models/{TINY}")).json() == model
    unknown = await client.get("/v1/models/gpt-4/x")
    assert unknown.status_code == 404
    assert "There is no model 'gpt-4/x' here" in error_of(unknown)


NOT_THERE = [
    ("GET", "/", 404),
    ("GET", "/v1", 404),
    ("POST", "/v1/completions", 404),
    ("POST", f"{COMPLETIONS}/", 404),
    ("GET", COMPLETIONS, 405),
    ("PUT", COMPLETIONS, 405),
    ("GET", "/diffusiongemma/stop", 405),
]


async def test_what_there_is_not(client: httpx2.AsyncClient) -> None:
    for method, path, status in NOT_THERE:
        response = await client.request(method, path)
        assert (path, response.status_code) == (path, status)
        assert path in error_of(response)
        assert (response.headers.get("allow") == "POST") == (status == 405)


async def test_status_and_stop(client: httpx2.AsyncClient) -> None:
    await client.post(COMPLETIONS, json=REQUEST)
    status = (await client.get("/diffusiongemma/status")).json()
    assert (status["model"], status["replies"], status["waiting"]) == (TINY, 1, 0)
    assert (await client.post("/diffusiongemma/stop")).json() == {"status": "stopping"}
    assert stops == ["stop"]


# --- bodies --------------------------------------------------------------------------------------------------


async def test_only_json_is_read(client: httpx2.AsyncClient) -> None:
    for kind in (None, "", "text/plain", "application/x-www-form-urlencoded", "json"):
        headers = {} if kind is None else {"Content-Type": kind}
        response = await client.post(COMPLETIONS, content=json.dumps(REQUEST).encode(), headers=headers)
        assert (kind, response.status_code) == (kind, 415)
        assert "application/json" in error_of(response)


async def test_a_compressed_body_is_refused(client: httpx2.AsyncClient) -> None:
    response = await client.post(COMPLETIONS, json=REQUEST, headers={"Content-Encoding": "gzip"})
    assert response.status_code == 415


async def test_json_says_its_characters(client: httpx2.AsyncClient) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert (await client.post(COMPLETIONS, content=json.dumps(REQUEST), headers=headers)).status_code == 200


async def test_too_large_by_what_it_says(client: httpx2.AsyncClient) -> None:
    async def never() -> AsyncIterator[bytes]:
        pytest.fail("it was read")
        yield b""

    for length in ("1048577", "9" * 5000):
        headers = {"Content-Type": "application/json", "Content-Length": length}
        response = await client.post(COMPLETIONS, content=never(), headers=headers)
        assert response.status_code == 413
        assert "larger than 1 MiB" in error_of(response)


@pytest.mark.parametrize("length", [None, "10", "-1", "many"])
async def test_too_large_by_what_comes(client: httpx2.AsyncClient, length: str | None) -> None:
    taken = 0

    async def large() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield b" " * (1 << 16)

    headers = {"Content-Type": "application/json"} | ({} if length is None else {"Content-Length": length})
    response = await client.post(COMPLETIONS, content=large(), headers=headers)
    assert response.status_code == 413
    assert taken == 17


async def test_what_cannot_be_read_is_said(client: httpx2.AsyncClient) -> None:
    response = await client.post(COMPLETIONS, content=b"{", headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert "it is no JSON from line 1, column 2 on" in error_of(response)
    unknown = await client.post(COMPLETIONS, json={**REQUEST, "model": "gpt-4"})
    assert unknown.status_code == 404
    assert TINY in error_of(unknown)


async def test_who_sends_much_keeps_nobody_waiting(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(body: bytes, served: str) -> Asked:
        assert threading.current_thread() is not threading.main_thread()
        return read_request(body, served)

    monkeypatch.setattr(app_module, "read_request", read)
    assert (await client.post(COMPLETIONS, json=REQUEST)).status_code == 200


# --- replies -------------------------------------------------------------------------------------------------


async def test_a_whole_reply(client: httpx2.AsyncClient, scripted: Scripted) -> None:
    scripted.told = ["Weights were chosen."]
    answer = (await client.post(COMPLETIONS, json=REQUEST)).json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "Yes."}
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["warnings"] == ["Weights were chosen."]
    assert report_from_wire(answer["diffusiongemma"]["report"]).output_tokens == 5


async def test_a_stream(client: httpx2.AsyncClient, scripted: Scripted) -> None:
    scripted.blocks = [[StreamEvent("reasoning", "t"), StreamEvent("text", "a")], [], [StreamEvent("text", "b")]]
    scripted.told = ["Weights were chosen."]
    request = {**STREAMED, "stream_options": {"include_usage": True}}
    *chunks, done = events_of(await client.post(COMPLETIONS, json=request))
    assert done == "[DONE]"
    assert [chunk["choices"][0]["delta"] for chunk in chunks[:-1]] == [
        {"role": "assistant", "content": ""},
        {"reasoning": "t", "content": "a"},
        {"content": "b"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None, None, None, "stop"]
    assert ["diffusiongemma" in chunk for chunk in chunks] == [False, False, False, True, False]
    assert chunks[-2]["warnings"] == ["Weights were chosen."]
    assert chunks[-1]["usage"]["total_tokens"] == 12


async def test_a_stream_that_tells_how_it_goes(client: httpx2.AsyncClient) -> None:
    *chunks, done = events_of(await client.post(COMPLETIONS, json=WATCHED))
    assert done == "[DONE]"
    states = [chunk["diffusiongemma"]["state"] for chunk in chunks if not chunk["choices"]]
    assert states[-1] == "reading"
    blocks = [chunk for chunk in chunks if chunk["choices"] and "diffusiongemma" in chunk]
    reasons = [report_from_wire(chunk["diffusiongemma"]["report"]).finish_reason for chunk in blocks]
    assert reasons == ["interrupted", "interrupted", "stop"]
    # Who breaks it off before its first block has heard what it was.
    assert [chunk["choices"][0]["delta"] for chunk in blocks[:2]] == [{}, {"content": "Yes."}]
    assert report_from_wire(blocks[0]["diffusiongemma"]["report"]).seed == 1


async def test_who_watches_a_stream_is_shown_what_there_is_to_be_seen(
    client: httpx2.AsyncClient, scripted: Scripted
) -> None:
    scripted.blocks = [[StreamEvent("text", "a")], [StreamEvent("text", "b")]]
    scripted.seen = [Reading(3, 3), DRAFT]
    request = {**STREAMED, "diffusiongemma": {"watch": "drafts"}}
    *chunks, done = events_of(await client.post(COMPLETIONS, json=request))
    assert done == "[DONE]"
    told = [chunk["choices"][0]["delta"] if chunk["choices"] else chunk["diffusiongemma"] for chunk in chunks]
    seen = [{"reading": {"tokens": 3, "of": 3}}, json.loads(json.dumps(seen_to_wire(DRAFT)))]
    assert told[1:] == [*seen, {"content": "a"}, *seen, {"content": "b"}, {}]
    # Nobody else notices anything of it.
    *unwatched, done = events_of(await client.post(COMPLETIONS, json=STREAMED))
    assert done == "[DONE]"
    assert [chunk["choices"] for chunk in unwatched] == [chunk["choices"] for chunk in chunks if chunk["choices"]]
    assert ["diffusiongemma" in chunk for chunk in unwatched] == [False, False, False, True]


async def test_who_takes_nothing_has_the_newest_draft_when_it_does(
    app: Any, desk: Desk, scripted: Scripted
) -> None:
    scripted.seen = [replace(DRAFT, step=step) for step in range(1, 49)]
    caller = Caller(app, {**STREAMED, "diffusiongemma": {"watch": "drafts"}})
    caller.taking.clear()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while desk.status()["replies"] < 1:
            await asyncio.sleep(0.001)
        caller.taking.set()
        await caller.call
    steps = [
        json.loads(line)["diffusiongemma"]["snapshot"]["step"] for line in caller.lines if b"snapshot" in line
    ]
    assert steps == [48]


async def test_what_is_silent_for_long_is_still_there(
    client: httpx2.AsyncClient, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replying, "ACCEPT_SECONDS", 0.01)
    monkeypatch.setattr(replying, "COMMENT_SECONDS", 0.01)
    scripted.accepting = asyncio.Semaphore(0)
    asyncio.get_running_loop().call_later(0.1, scripted.accepting.release)
    events = events_of(await client.post(COMPLETIONS, json=STREAMED))
    assert events.count(": waiting") >= 2
    assert events[-1] == "[DONE]"


FAILURES = {
    errors.PromptError: 400,
    errors.ImageError: 400,
    errors.ContextLengthError: 400,
    errors.ContextMemoryError: 400,
    errors.OptionError: 400,
    errors.ConstraintError: 400,
    errors.ServerAccessError: 401,
    errors.ServerBusyError: 429,
    errors.ServerError: 503,
    errors.DeviceMemoryError: 503,
    errors.CheckpointNotFoundError: 503,
    errors.HubConnectionError: 503,
    errors.HubAccessError: 503,
    errors.DownloadError: 503,
    errors.DiskSpaceError: 503,
}


def kinds(base: type[DiffusionGemmaError] = DiffusionGemmaError) -> Iterator[type[DiffusionGemmaError]]:
    for kind in base.__subclasses__():
        yield kind
        yield from kinds(kind)


def made(kind: type[DiffusionGemmaError]) -> DiffusionGemmaError:
    error = error_from_wire({"code": kind.__name__, "message": "It can't be done."})
    assert error is not None
    return error


def test_each_error_has_its_status_and_keeps_its_name() -> None:
    for kind in {each for each in kinds() if each.__module__ == errors.__name__}:
        refusal = refusal_of(made(kind))
        expected = next((FAILURES[each] for each in kind.__mro__ if each in FAILURES), 500)
        assert (kind, refusal.status) == (kind, expected)
        assert type(error_from_wire(refusal.error)) is kind


@pytest.mark.parametrize("request_", [REQUEST, STREAMED, WATCHED], ids=["whole", "streamed", "watched"])
@pytest.mark.parametrize("kind", [errors.ImageError, errors.DeviceMemoryError, errors.CheckpointError])
async def test_a_refused_prompt_has_a_status(
    client: httpx2.AsyncClient, scripted: Scripted, kind: type[DiffusionGemmaError], request_: dict[str, Any]
) -> None:
    scripted.refusal = made(kind)
    response = await client.post(COMPLETIONS, json=request_)
    assert response.status_code == FAILURES.get(kind, 500)
    assert error_of(response) == "It can't be done."
    assert type(error_from_wire(response.json()["error"])) is kind


async def test_a_reply_that_breaks_off_is_no_reply(client: httpx2.AsyncClient, scripted: Scripted) -> None:
    scripted.failure = made(errors.DeviceMemoryError)
    whole = await client.post(COMPLETIONS, json=REQUEST)
    assert whole.status_code == 503
    assert error_of(whole) == "It can't be done."
    *chunks, error = events_of(await client.post(COMPLETIONS, json=STREAMED))
    assert chunks[-1]["choices"][0]["delta"] == {"content": "Yes."}
    assert chunks[-1]["choices"][0]["finish_reason"] is None
    assert type(error_from_wire(error["error"])) is errors.DeviceMemoryError


async def test_what_nobody_has_foreseen_is_in_the_log_only(
    client: httpx2.AsyncClient, scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    scripted.failure = ZeroDivisionError("a secret")
    for request in (REQUEST, STREAMED):
        with caplog.at_level(logging.ERROR):
            response = await client.post(COMPLETIONS, json=request)
        assert "a secret" not in response.text
        assert "ZeroDivisionError" in response.text
        assert "Traceback" not in response.text
    assert "a secret" in caplog.text
    assert "[DONE]" not in response.text


async def test_busy(client: httpx2.AsyncClient, desk: Desk, scripted: Scripted) -> None:
    scripted.let(0)
    posts = [asyncio.create_task(client.post(COMPLETIONS, json=REQUEST)) for _ in range(9)]
    async with asyncio.timeout(PATIENCE_SECONDS):
        while desk.status()["waiting"] < 8:
            await asyncio.sleep(0.001)
    response = await client.post(COMPLETIONS, json=REQUEST)
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    assert "8 others wait" in error_of(response)
    scripted.let(100)
    scripted.writing.release()
    for task in posts:
        task.cancel()


# --- clients that go away ------------------------------------------------------------------------------------


class Caller:
    """Somebody who asks the application itself, and may go away."""

    def __init__(self, app: Any, body: dict[str, Any]) -> None:
        self._body = json.dumps(body).encode()
        self._gone = asyncio.Event()
        self.lines: list[bytes] = []
        """What it has taken of a stream, while it takes anything."""
        self.taking = asyncio.Event()
        self.taking.set()
        headers = {"host": "localhost", "content-type": "application/json", **AUTHORIZATION}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "path": COMPLETIONS,
            "query_string": b"",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }
        self.call = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._body:
            body, self._body = self._body, b""
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        await self.taking.wait()
        self.lines += [line.removeprefix(b"data: ") for line in message.get("body", b"").split(b"\n\n")]

    async def leave(self) -> None:
        self._gone.set()
        await asyncio.wait_for(self.call, PATIENCE_SECONDS)


@pytest.mark.parametrize("request_", [REQUEST, STREAMED], ids=["whole", "streamed"])
async def test_who_goes_away_leaves_the_queue_or_stops_the_reply(
    app: Any, desk: Desk, scripted: Scripted, request_: dict[str, Any]
) -> None:
    scripted.let(0)
    answered, waiting = Caller(app, request_), Caller(app, request_)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while desk.status()["waiting"] < 1 or not scripted.begun:
            await asyncio.sleep(0.001)
    await waiting.leave()
    assert desk.status()["waiting"] == 0
    assert desk.status()["running_since"] is not None
    await answered.leave()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while desk.status()["running_since"] is not None:
            await asyncio.sleep(0.001)
    assert len(scripted.begun) == len(scripted.stopped) == 1
