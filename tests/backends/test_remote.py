"""A reply by an OpenAI-compatible server, sync and async: what comes of a stream, and of all that isn't one."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import socket
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import llm
import pytest
from llm.parts import Message, StreamEvent, TextPart

from llm_diffusiongemma.backends import connection, remote, running
from llm_diffusiongemma.backends.address import LOCAL_SERVER, Address
from llm_diffusiongemma.backends.protocol import EXTENSION, OWNER, error_to_wire, report_to_wire
from llm_diffusiongemma.backends.remote import AsyncRemoteReply, RemoteReply
from llm_diffusiongemma.backends.stream import ReplyStream
from llm_diffusiongemma.backends.turn import ALWAYS_WANTED, BlockReport, Outcome, Report, Stop, StoppedError, Turn
from llm_diffusiongemma.backends.watched import seen_to_wire
from llm_diffusiongemma.errors import (
    ConstraintError,
    DiffusionGemmaError,
    ServerAccessError,
    ServerBusyError,
    ServerError,
    ServerUnreachableError,
    UnsupportedByServerError,
)
from llm_diffusiongemma.interrupts import Interrupts
from llm_diffusiongemma.options import Options
from llm_diffusiongemma.view.records import Reading, Snapshot, Watch

from .scripted_server import JSON, STREAM, Answer, ScriptedServer, call, delta, free_port, models, sse, usage

TOOL = llm.Tool(name="add", description="Adds", input_schema={"type": "object", "properties": {"a": {}, "b": {}}})


@pytest.fixture(scope="module")
def _server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server(_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> ScriptedServer:
    monkeypatch.setattr(remote, "_known", {})
    _server.requests.clear()
    _server.left.clear()
    _server.models = models("vllm", "tiny")
    return _server


def address_of(server: ScriptedServer, **fields: Any) -> Address:
    named = Address(server.url, None, None, None, False, "box", wanted=("dg-box",), takes_any=True)
    return replace(named, **fields)


def turn(text: str = "Hi", tools: bool = False, **options: Any) -> Turn:
    message = Message(role="user", parts=[TextPart(text=text)])
    return Turn([message], Options(**options), [TOOL] if tools else [])


@dataclass
class Reply:
    events: list[StreamEvent]
    outcome: Outcome

    @property
    def said(self) -> list[tuple[str, str]]:
        """Neighbours of a kind as one."""
        said: list[tuple[str, str]] = []
        for event in self.events:
            if said and said[-1][0] == event.type:
                said[-1] = (event.type, said[-1][1] + event.chunk)
            else:
                said.append((event.type, event.chunk))
        return said


def reply_of(address: Address, asked: Turn) -> Reply:
    reply = RemoteReply(address, asked, ALWAYS_WANTED)
    return Reply([event for events in reply.steps() for event in events], reply)


def async_reply_of(address: Address, asked: Turn) -> Reply:
    async def whole() -> Reply:
        reply = AsyncRemoteReply(address, asked)
        return Reply([event async for events in reply.steps() for event in events], reply)

    return asyncio.run(whole())


WAYS = {"sync": reply_of, "async": async_reply_of}

# --- streams of replies --------------------------------------------------------------------------------------

BLOCK = BlockReport(tokens=7, denoising_steps=5, converged=True, encoded_tokens=9, seconds=0.5, constraint=None)
REPORTED = Report("stop", "tiny@sha", 9, 7, 2, 1, 0.0, 0.5, blocks=(BLOCK,))


def ours(report: Report = REPORTED, **more: Any) -> dict[str, Any]:
    return {EXTENSION: {"report": report_to_wire(report)}, **more}


# What comes, what is said of it, and fields of the report.
STREAMS: dict[str, tuple[str, list[Any], list[tuple[str, str]], dict[str, Any]]] = {
    "several canvases on vLLM": (
        "vllm",
        [
            delta(role="assistant", content=""),
            delta(content="One ", reasoning=None, tool_calls=[]),
            delta(content="two"),
            delta("stop", content="."),
            usage(9, 5, prompt_tokens_details={"cached_tokens": 4}),
        ],
        [("text", "One two.")],
        {"finish_reason": "stop", "input_tokens": 9, "output_tokens": 5, "cached_tokens": 4, "blocks": ()},
    ),
    "thought, answer and calls in one delta": (
        "vllm",
        [
            delta(
                "tool_calls",
                reasoning="Hm.",
                content="So:",
                tool_calls=[call(0, "add", '{"a": 1, '), call(0, None, '"b": 2}', None), call(1, "add", "{}")],
            )
        ],
        [
            ("reasoning", "Hm."),
            ("text", "So:"),
            ("tool_call_name", "add"),
            ("tool_call_args", '{"a": 1, "b": 2}'),
            ("tool_call_name", "add"),
            ("tool_call_args", "{}"),
        ],
        {"finish_reason": "tool_calls", "input_tokens": None},
    ),
    "the older name for thoughts": (
        "somebody",
        [delta(reasoning_content="Hm."), delta(content="Yes"), delta("stop")],
        [("reasoning", "Hm."), ("text", "Yes")],
        {"finish_reason": "stop"},
    ),
    "a thought that was never closed": (
        "somebody",
        [delta(reasoning="It is "), delta("stop", reasoning="5.")],
        [("reasoning", "It is 5."), ("text", "It is 5.")],
        {"finish_reason": "stop"},
    ),
    "a thought that was cut": (
        "somebody",
        [delta("length", reasoning="It is")],
        [("reasoning", "It is")],
        {"finish_reason": "length"},
    ),
    "both names for the same thought": (
        "somebody",
        [delta(reasoning="Hm.", reasoning_content="Hm."), delta("stop", content="Yes")],
        [("reasoning", "Hm."), ("text", "Yes")],
        {},
    ),
    "a call in pieces, without an index, that ends with stop": (
        "somebody",
        [delta(tool_calls=[call(None, "add", "", None)]), delta("stop")],
        [("tool_call_name", "add"), ("tool_call_args", "{}")],
        {"finish_reason": "tool_calls"},
    ),
    "two calls by one index, and one that has another id in each piece": (
        "somebody",
        [
            delta(tool_calls=[call(0, "add", '{"a": ', "1"), call(0, None, "1}", "2"), call(0, "add", "{", "3")]),
            delta("tool_calls", tool_calls=[call(0, None, "}", None)]),
        ],
        [
            ("tool_call_name", "add"),
            ("tool_call_args", '{"a": 1}'),
            ("tool_call_name", "add"),
            ("tool_call_args", "{}"),
        ],
        {"finish_reason": "tool_calls"},
    ),
    "a call with half of a surrogate pair": (
        "somebody",
        [delta("tool_calls", tool_calls=[call(0, "add", '{"a": "\\ud83d"}')])],
        [("tool_call_name", "add"), ("tool_call_args", '{"a": "\\ufffd"}')],
        {},
    ),
    "a call that was cut, and closed": (
        "vllm",
        [delta("length", tool_calls=[call(0, "add", '{"a": 1}')])],
        [("text", 'call:add{"a": 1}')],
        {"finish_reason": "length"},
    ),
    "calls whose arguments are no JSON object": (
        "vllm",
        [
            delta(
                "tool_calls",
                tool_calls=[call(0, "add", '{"a": '), call(1, "add", "[1]"), call(2, "add", '{"a": NaN}')],
            )
        ],
        [("text", 'call:add{"a": call:add[1]call:add{"a": NaN}')],
        {"finish_reason": "stop"},
    ),
    "cut": (
        "vllm",
        [delta("length", content="One"), usage(1, 1)],
        [("text", "One")],
        {"finish_reason": "length", "output_tokens": 1},
    ),
    "halves of a surrogate pair": (
        "somebody",
        ['data: {"choices": [{"delta": {"content": "a\\ud83d b"}, "finish_reason": "stop"}]}'],
        [("text", "a\ufffd b")],
        {},
    ),
    "comments, other events, odd line ends": (
        "somebody",
        [": waiting", f"retry: 5\r\nevent: message\r\ndata: {json.dumps(delta('stop', content='Yes'))}"],
        [("text", "Yes")],
        {},
    ),
    "events with ids and of other kinds, a mark of the byte order": (
        "somebody",
        [
            "\ufeffretry: 5",
            f"id: 1\nevent: thread.message\ndata: {json.dumps(delta(content='Y'))}",
            ": waiting",
            f"id: 2\rdata:{json.dumps(delta('stop', content='es'))}",
        ],
        [("text", "Yes")],
        {},
    ),
    "ours": (
        OWNER,
        [
            {"choices": [], EXTENSION: {"state": "queued"}},
            {**delta(role="assistant", content="One "), **ours(replace(REPORTED, finish_reason="interrupted"))},
            delta(content="two", tool_calls=[call(0, "add", '{"a": 1}', "tc_1")]),
            delta(content="!"),
            {**delta("tool_calls"), **ours(replace(REPORTED, finish_reason="tool_calls"))},
            usage(9, 7),
        ],
        [("text", "One two"), ("tool_call_name", "add"), ("tool_call_args", '{"a": 1}'), ("text", "!")],
        {**asdict(REPORTED), "blocks": (BLOCK,), "finish_reason": "tool_calls", "server": "box"},
    ),
    "ours, empty": (OWNER, [delta("stop"), ours(choices=[])], [], {"finish_reason": "stop"}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", STREAMS)
def test_a_stream(server: ScriptedServer, name: str, way: str) -> None:
    owner, chunks, said, report = STREAMS[name]
    server.models = models(owner, "tiny")
    server.reply = Answer(sse(*chunks))
    reply = WAYS[way](address_of(server), turn(tools=True))
    assert reply.said == said
    got = reply.outcome.report
    assert {field: getattr(got, field) for field in report} == report
    assert got.server == "box"
    assert reply.outcome.has_text == any(kind == "text" for kind, _ in said)
    calls = [event for event in reply.events if event.type == "tool_call_args"]
    assert [(c.tool_call_id, c.arguments) for c in reply.outcome.tool_calls] == [
        (event.tool_call_id, json.loads(event.chunk)) for event in calls
    ]
    ids = [event.tool_call_id for event in calls]
    assert len(set(ids)) == len(ids)
    # Of ours the ids that its log has; the others' may come again in the next reply.
    assert all(str(each).startswith("tc_") and (each == "tc_1") == (owner == OWNER) for each in ids)


def test_without_tools_a_call_is_text(server: ScriptedServer) -> None:
    server.reply = Answer(sse(delta("tool_calls", tool_calls=[call(0, "add", "{}")])))
    reply = reply_of(address_of(server), turn())
    assert reply.said == [("text", "call:add{}")]
    assert not reply.outcome.tool_calls


def test_what_ours_has_to_say_beside_the_reply(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    chunk = {**delta("stop", content="Yes"), **ours(), "warnings": ["It runs on the CPU.\x1b[2J"]}
    server.models = models(OWNER, "tiny")
    server.reply = Answer(sse(chunk))
    reply_of(address_of(server), turn())
    assert capsys.readouterr().err == "It runs on the CPU.\\x1b[2J\n"


SEEN: list[Reading | Snapshot] = [
    Reading(1024, 2048),
    Reading(2048, 2048),
    Snapshot(0, 0, 1, 48, ("One",), "t", "n", None, 1.0, 0, 0.5),
]


def seen_in(seen: Reading | Snapshot) -> dict[str, Any]:
    return {"choices": [], EXTENSION: seen_to_wire(seen)}


@pytest.mark.parametrize("way", WAYS)
def test_who_watches_sees_it_in_the_order_in_which_it_comes(
    server: ScriptedServer, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[object] = []

    @contextmanager
    def indicate(what: str) -> Iterator[Any]:
        yield SimpleNamespace(describe=noted.append)
        noted.append("over")

    def see(seen: Reading | Snapshot) -> None:
        assert threading.current_thread() is threading.main_thread()
        noted.append(seen)

    monkeypatch.setattr(remote, "indicate", indicate)
    said = ReplyStream._said
    monkeypatch.setattr(ReplyStream, "_said", lambda self, text: (noted.append(text), said(self, text))[1])
    state = {"choices": [], EXTENSION: {"state": "reading"}}
    not_understood = {"choices": [], EXTENSION: {"snapshot": {"pieces": 5}}}
    chunks = [state, seen_in(SEEN[0]), not_understood, *map(seen_in, SEEN[1:]), delta(content="One")]
    server.reply = Answer(sse(*chunks, *map(seen_in, SEEN[:1]), {**delta("stop", content="Two"), **ours()}))
    watched = replace(turn(), watch=Watch(see, "drafts"))
    asked = {"progress": True, "watch": "drafts"}
    server.models = models(OWNER, "tiny", **{EXTENSION: {"watch": ["drafts"]}})
    reply = WAYS[way](address_of(server), watched)
    assert server.prompts[-1].body[EXTENSION] == asked
    assert noted == ["Waiting for the first canvas", *SEEN, "over", "One", SEEN[0], "Two"]
    noted.clear()
    # What comes to who doesn't watch is nothing.
    assert WAYS[way](address_of(server), turn()).said == reply.said
    assert noted == ["Waiting for the first canvas", "One", "over", "Two"]
    # One that was found is of this version.
    assert WAYS[way](address_of(server, model="tiny", is_ours=True), watched).said == reply.said
    assert server.prompts[-1].body[EXTENSION] == asked


async def test_what_is_seen_of_the_next_canvas_comes_behind_the_text_of_this_one(server: ScriptedServer) -> None:
    """However much of the stream is there already when the text is handed over."""
    noted: list[object] = []
    server.models = models(OWNER, "tiny", **{EXTENSION: {"watch": ["drafts"]}})
    server.reply = Answer(sse(delta(content="One"), seen_in(SEEN[-1]), {**delta("stop", content="Two"), **ours()}))
    reply = AsyncRemoteReply(address_of(server), replace(turn(), watch=Watch(noted.append, "drafts")))
    async for events in reply.steps():
        await asyncio.sleep(0.05)
        noted += [event.chunk for event in events]
    assert noted == ["One", SEEN[-1], "Two"]


@pytest.mark.parametrize("way", WAYS)
def test_others_show_nothing(server: ScriptedServer, way: str) -> None:
    server.reply = Answer(sse(*map(seen_in, SEEN), delta("stop", content="Yes")))
    watched = replace(turn(watch=True), watch=Watch(lambda seen: pytest.fail("seen"), "drafts"))
    assert WAYS[way](address_of(server), watched).said == [("text", "Yes")]
    assert EXTENSION not in server.prompts[-1].body
    server.requests.clear()
    with pytest.raises(UnsupportedByServerError, match="the option replay"):
        WAYS[way](address_of(server), turn(replay="out.html"))
    assert not server.prompts


@pytest.mark.parametrize("way", WAYS)
def test_what_it_waits_for_is_shown_until_something_comes(
    server: ScriptedServer, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    @contextmanager
    def indicate(what: str) -> Iterator[Any]:
        shown.append(what)
        yield SimpleNamespace(describe=shown.append)
        shown.append("over")

    monkeypatch.setattr(remote, "indicate", indicate)
    said = ReplyStream._said
    monkeypatch.setattr(ReplyStream, "_said", lambda self, text: (shown.append(text), said(self, text))[1])
    states = [
        {"choices": [], EXTENSION: {"state": state}} for state in ("queued", "loading", "dreaming", "reading")
    ]
    server.models = models(OWNER, "tiny")
    server.reply = Answer(sse(*states, delta(content="One"), {**delta("stop", content="Two"), **ours()}))
    WAYS[way](address_of(server), turn())
    assert shown == [
        "Waiting for box",
        "Waiting for other replies",
        "Loading the model",
        "Waiting for box",
        "Waiting for the first canvas",
        "One",
        "over",
        "Two",
    ]


# --- streams that are no reply -------------------------------------------------------------------------------

PAGE = b"<!DOCTYPE html><title>Welcome</title>"
TEXT = {"Content-Type": "text/html"}


def error(message: Any, status: int, **headers: str) -> Answer:
    return Answer(json.dumps({"error": message}).encode(), {**JSON, **headers}, status)


# What comes, the error's class, and words of its sentence.
FAILURES: dict[str, tuple[Answer, type[DiffusionGemmaError], str]] = {
    "an error inside a stream": (
        Answer(sse({"error": {"message": "too long\x1b[2J", "type": "x", "code": 400}})),
        ServerError,
        "failed: too long\\x1b[2J",
    ),
    "an error behind a text": (Answer(sse(delta(content="One"), {"error": "gone"})), ServerError, "failed: gone"),
    "an error behind the end": (
        Answer(sse(delta("stop", content="One"), {"error": {"message": "gone"}})),
        ServerError,
        "failed: gone",
    ),
    "nothing but an end": (Answer(sse()), ServerError, "before there was an answer"),
    "an empty stream": (Answer(b""), ServerError, "before there was an answer"),
    "a stream that ends early": (
        Answer(sse(delta(content="One"), ends=False)),
        ServerError,
        "what is above is not all of it",
    ),
    "a stream that ends early, with an end": (Answer(sse(delta(content="One"))), ServerError, "not all of it"),
    "a reply of nothing": (Answer(sse(delta("stop", content=""))), ServerError, "there is nothing in it"),
    "an unknown end": (
        Answer(sse(delta("content_filter", content="One"))),
        ServerError,
        "ended the reply with 'content_filter'",
    ),
    "a connection that is lost": (
        Answer(sse(delta(content="One"), ends=False), is_cut=True),
        ServerError,
        "broke off in the middle of the reply",
    ),
    "no answer at all": (Answer(b"", status=0), ServerUnreachableError, "broke off before it had answered"),
    "no JSON": (Answer(b'data: {"choices": [\n\n'), ServerError, "can't be understood"),
    "no UTF-8": (Answer(b'data: "\xff"\n\n'), ServerError, "can't be understood"),
    "nested deeply": (Answer(b"data: " + b"[" * 100_000 + b"\n\n"), ServerError, "can't be understood"),
    "a list": (Answer(sse([1])), ServerError, "no part of a reply"),
    "choices that are none": (Answer(sse({"choices": ["One"]})), ServerError, "no part of a reply"),
    "a delta that is none": (Answer(sse({"choices": [{"delta": "One"}]})), ServerError, "no part of a reply"),
    "a text that is none": (Answer(sse(delta(content=["One"]))), ServerError, "no part of a reply: ['One']"),
    "calls that are none": (Answer(sse(delta(tool_calls=["add"]))), ServerError, "no part of a reply"),
    "a page": (Answer(PAGE, TEXT), ServerError, "text/html in place of text/event-stream"),
    "a reply that is not streamed": (Answer(b"{}", JSON), ServerError, "application/json in place of"),
    "compressed": (Answer(b"", {**STREAM, "Content-Encoding": "gzip"}), ServerError, "compresses"),
    "an error that is compressed": (
        Answer(gzip.compress(b"x"), {**JSON, "Content-Encoding": "gzip"}, 500),
        ServerError,
        "compresses",
    ),
    "no key": (error("Unauthorized", 401), ServerAccessError, "wants a key. Keep it with `llm keys set NAME`"),
    "forbidden": (error({"message": "No"}, 403), ServerAccessError, "(403: No)"),
    "unknown": (error({"message": "no such"}, 404), ServerError, "no such). It has: tiny. Is the URL right?"),
    "unknown, it says what": (
        error({"message": "no such model", "param": "model"}, 404),
        ServerError,
        "no such model). It has: tiny. Add it with --served-model",
    ),
    "a page of an error": (Answer(PAGE, TEXT, 404), ServerError, "a page of HTML"),
    "busy": (error({"message": "full"}, 429, **{"Retry-After": "7"}), ServerBusyError, "Try again in 7 s."),
    "busy for long": (error({"message": "full"}, 429, **{"Retry-After": "soon"}), ServerBusyError, "later."),
    "refused": (error({"message": "max_tokens is too large"}, 400), ServerError, "(400): max_tokens is too large"),
    "refused by FastAPI": (
        Answer(b'{"detail": [{"loc": ["x"]}]}', JSON, 422),
        ServerError,
        "(422): [{'loc': ['x']}]",
    ),
    "failed": (error({"message": "engine is dead"}, 500), ServerError, "failed (500): engine is dead"),
    "failed without words": (Answer(b"", status=503), ServerError, "(503): it doesn't say why"),
    "sent on": (
        Answer(b"", {"Location": "http://elsewhere/v1"}, 307),
        ServerError,
        "sends on to http://elsewhere",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_is_no_reply(server: ScriptedServer, name: str) -> None:
    """Never a finished reply, and a sentence that a terminal can be shown."""
    server.reply, kind, words = FAILURES[name]
    sentences = []
    for way in WAYS.values():
        with pytest.raises(DiffusionGemmaError) as caught:
            way(address_of(server), turn())
        assert type(caught.value) is kind
        sentences.append(str(caught.value))
    assert words in sentences[0]
    assert sentences[0].isprintable()
    assert "box" in sentences[0]
    assert sentences[0] == sentences[1]
    # Asked once for its reply, and nowhere else.
    assert [asked.path for asked in server.prompts] == ["/v1/chat/completions"] * 2


ENDLESS = {
    "an answer": Answer(b"x" * 500_000, JSON, 500),
    "a line": Answer(b"x" * 500_000),
    "an event": Answer(b"data: {}\n" * 50_000),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_never_ends(server: ScriptedServer, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream may, but no event of it."""
    most = 100_000  # comes in several pieces
    monkeypatch.setattr(connection, "MAX_EVENT_BYTES", most)
    monkeypatch.setattr(connection, "MAX_ANSWER_BYTES", most)
    server.reply = replace(ENDLESS[name], body=b"data: {}\n\n" * (most // 10) + ENDLESS[name].body)
    for way in WAYS.values():
        with pytest.raises(ServerError, match="more at once"):
            way(address_of(server), turn())


def test_an_error_of_ours_is_the_same_as_here(server: ScriptedServer) -> None:
    raised = ConstraintError("The regular expression is empty.")
    server.models = models(OWNER, "tiny")
    for answer in (
        error(error_to_wire(raised, 400), 400),
        Answer(sse({"error": error_to_wire(raised, 400)})),
    ):
        server.reply = answer
        with pytest.raises(ConstraintError) as caught:
            reply_of(address_of(server), turn())
        assert str(caught.value) == str(raised)
    # Others have no say in what is raised here.
    server.models = models("vllm", "tiny")
    with pytest.raises(ServerError):
        reply_of(replace(address_of(server), name="other"), turn())


def test_an_option_that_an_earlier_version_does_not_have(server: ScriptedServer) -> None:
    says = "The request can't be answered: diffusiongemma.draft is none of the options choices, regex."
    refusal = {"message": says, "type": "invalid_request_error", "param": "diffusiongemma.draft", "code": None}
    server.models = models(OWNER, "tiny")
    server.reply = error(refusal, 400)
    with pytest.raises(UnsupportedByServerError, match="the option draft: it is of an earlier version"):
        reply_of(address_of(server), turn(draft="One."))
    # What has no such option at all is said as it comes.
    server.reply = error(refusal | {"param": "diffusiongemma.dr"}, 400)
    with pytest.raises(ServerError, match="none of the options choices, regex") as caught:
        reply_of(address_of(server), turn(draft="One."))
    assert not isinstance(caught.value, UnsupportedByServerError)


# --- servers that can't be reached ---------------------------------------------------------------------------


def test_nobody_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    known = Address(f"http://127.0.0.1:{port}/v1", None, None, "tiny", True, "box")
    unknown = replace(known, is_ours=False)
    for address in (known, unknown):
        with pytest.raises(ServerUnreachableError, match="nothing listens there"):
            reply_of(address, turn())
        with pytest.raises(ServerUnreachableError, match="nothing listens there"):
            async_reply_of(address, turn())
    with pytest.raises(ServerUnreachableError, match=r"address\? LLM_DIFFUSIONGEMMA_SERVER names it\."):
        reply_of(replace(known, variable="LLM_DIFFUSIONGEMMA_SERVER"), turn())
    with pytest.raises(ServerUnreachableError, match="nothing listens there"):
        reply_of(replace(known, socket=str(tmp_path / "socket")), turn())

    def no_such_host(*arguments: object, **settings: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_such_host)
    with pytest.raises(ServerUnreachableError, match="no host of that name"):
        reply_of(replace(known, url="http://nowhere.invalid/v1"), turn())


def test_a_proxy_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "nonsense://127.0.0.1:1")
    address = Address("http://192.0.2.1/v1", None, None, "tiny", True, "box")
    for way in WAYS.values():
        with pytest.raises(ServerError, match="See what HTTP_PROXY"):
            way(address, turn())


def test_a_proxy_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    address = Address("http://192.0.2.1/v1", None, None, "tiny", True, "box")
    with pytest.raises(ServerUnreachableError, match=r"nothing listens there.* Or is it a proxy"):
        reply_of(address, turn())


def test_no_tls_there(server: ScriptedServer) -> None:
    address = address_of(server)
    with pytest.raises(ServerUnreachableError, match="encrypted connection fails"):
        reply_of(replace(address, url=address.url.replace("http:", "https:")), turn())


def test_a_server_that_goes_silent(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "FOREIGN_SILENCE_SECONDS", 0.05)
    server.reply = Answer(sse(delta(content="One"), ends=False), stays=True)
    for way in WAYS.values():
        with pytest.raises(ServerError, match="went silent"):
            way(address_of(server), turn())


def test_without_a_server_that_was_found(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it refuses or can't do, this process may."""
    monkeypatch.setattr(connection, "SILENCE_SECONDS", 0.05)
    found = address_of(server, is_ours=True, model="tiny", name=LOCAL_SERVER)
    server.reply = error("larger than 64 MiB.", 413)
    with pytest.raises(
        ServerError,
        match=r"^The local server refused .*64 MiB\. Set LLM_DIFFUSIONGEMMA_SERVER=off to have this process",
    ):
        reply_of(found, turn())
    server.reply = Answer(b"", stays=True)
    with pytest.raises(ServerError, match=r"llm diffusiongemma stop ends it\. Set LLM_DIFFUSIONGEMMA_SERVER=off"):
        reply_of(found, turn())


# --- what is sent --------------------------------------------------------------------------------------------


def test_nothing_of_openai_is_sent(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client would read its key and more from the environment of whoever asks OpenAI, too."""
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Mine: secret\nAuthorization: Bearer secret")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    server.reply = Answer(sse(delta("stop", content="Yes")))
    for way in WAYS.values():
        way(address_of(server), turn())
        way(address_of(server, key="mine"), turn())
    assert len(server.requests) == 6
    assert "secret" not in str(server.requests)
    assert {asked.headers.get("authorization") for asked in server.requests} == {None, "Bearer mine"}


def test_a_key_is_not_shown_again(server: ScriptedServer) -> None:
    for answer in (error("Who is mine?", 401), Answer(sse({"error": "Who is mine?"}))):
        server.reply = answer
        with pytest.raises(DiffusionGemmaError, match=r"Who is …\?"):
            reply_of(address_of(server, key="mine"), turn())


def test_whose_key_is_not_accepted(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.reply = error("No", 401)
    of_the_environment = address_of(
        server, key="x", key_name="diffusiongemma", key_variable="LLM_DIFFUSIONGEMMA_KEY", variable="LLM_D_SERVER"
    )
    with pytest.raises(ServerAccessError, match=r"doesn't accept the key of LLM_DIFFUSIONGEMMA_KEY\. \(401: No\)"):
        reply_of(of_the_environment, turn())
    with pytest.raises(ServerAccessError, match="the key that `llm keys` has as mine"):
        reply_of(address_of(server, key="x", key_name="mine"), turn())
    # That of this user would have been found, and shown its token.
    mine = SimpleNamespace(url=server.url, identity=SimpleNamespace(model_id="tiny"))
    monkeypatch.setattr(running, "recorded", lambda: mine)
    monkeypatch.setattr(running, "answers", lambda server: server is mine)
    with pytest.raises(
        ServerAccessError,
        match=r"wants its token\. It is your own server: `llm -m tiny` finds it by itself, without LLM_",
    ):
        reply_of(replace(of_the_environment, key=None, key_variable=None), turn())


def test_a_server_is_asked_once_what_it_is(server: ScriptedServer) -> None:
    server.reply = Answer(sse(delta("stop", content="Yes")))
    for _ in range(2):
        reply_of(address_of(server), turn())
    assert [asked.method for asked in server.requests] == ["GET", "POST", "POST"]
    # One that is known to be ours never.
    server.requests.clear()
    reply_of(address_of(server, is_ours=True, model="mine"), turn())
    assert [asked.body["model"] for asked in server.requests] == ["mine"]
    # And one that failed may be another by now.
    server.reply = error({"message": "no such model"}, 404)
    with pytest.raises(ServerError):
        reply_of(address_of(server), turn())
    with pytest.raises(ServerError, match=r"It has: tiny\. Add it with --served-model"):
        reply_of(address_of(server, model="mine"), turn())
    server.models, server.reply = models("vllm", "other"), Answer(sse(delta("stop", content="Yes")))
    reply_of(address_of(server), turn())
    assert server.prompts[-1].body["model"] == "other"


def test_a_server_without_a_list_of_models(server: ScriptedServer) -> None:
    server.models = Answer(b'{"detail": "Not Found"}', JSON, 404)
    server.reply = Answer(sse(delta("stop", content="Yes")))
    assert reply_of(address_of(server, model="mine"), turn()).said == [("text", "Yes")]
    assert server.prompts[0].body["model"] == "mine"
    with pytest.raises(ServerError, match="404: Not Found"):
        reply_of(address_of(server), turn())
    for answer in (Answer(PAGE, TEXT), Answer(PAGE, JSON), Answer(b"[]", JSON)):
        server.models = answer
        with pytest.raises(ServerError, match="Is the URL right"):
            reply_of(address_of(server, model="other"), turn())


# --- replies that nobody wants any more ----------------------------------------------------------------------


def test_a_reply_that_is_closed_is_let_go(server: ScriptedServer) -> None:
    server.reply = Answer(sse(delta(content="One"), ends=False), stays=True)
    reply = RemoteReply(address_of(server), turn(), ALWAYS_WANTED)
    steps = reply.steps()
    assert [event.chunk for event in next(steps)] == ["One"]
    assert not server.left.is_set()
    steps.close()
    assert server.left.wait(30)
    assert reply.report.finish_reason == "interrupted"


async def test_an_async_reply_that_is_cancelled_is_let_go(server: ScriptedServer) -> None:
    server.reply = Answer(sse(delta(content="One"), ends=False), stays=True)
    came = asyncio.Event()
    reply = AsyncRemoteReply(address_of(server), turn())

    async def read() -> None:
        async for _ in reply.steps():
            came.set()

    reading = asyncio.create_task(read())
    await asyncio.wait_for(came.wait(), 30)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await asyncio.to_thread(server.left.wait, 30)
    assert reply.report.finish_reason == "interrupted"


def test_a_loop_may_end_while_a_server_thinks_about_what_it_is(server: ScriptedServer) -> None:
    """Or while something that is attached is fetched: nobody waits for that any more."""
    server.models = Answer(b"", JSON, stays=True)
    threads: list[threading.Thread] = []

    def employ(thread: threading.Thread) -> None:
        threads.append(thread)
        thread.start()

    async def give_up() -> None:
        asking = asyncio.ensure_future(AsyncRemoteReply(address_of(server), turn(), employ).start())
        while not server.requests:
            await asyncio.sleep(0.01)
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking

    asyncio.run(give_up())
    assert not server.left.is_set()
    (thread,) = threads
    assert thread.is_alive()
    server.over.set()
    thread.join(30)
    server.over.clear()


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_loop_may_end_behind_an_async_reply(
    server: ScriptedServer, is_closed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It complains of generators that are left open within each other, as the client leaves them, and of those
    that wait as they are closed."""
    server.reply = Answer(sse(delta(content="One"), delta(content="Two"), ends=False), stays=True)

    async def within(steps: AsyncGenerator[list[StreamEvent], None]) -> AsyncGenerator[list[StreamEvent], None]:
        async with aclosing(steps):
            async for events in steps:
                yield events

    async def first() -> None:
        steps = within(AsyncRemoteReply(address_of(server), turn()).steps())
        async for _ in steps:
            break
        if is_closed:
            await steps.aclose()

    asyncio.run(first())
    assert not caplog.records
    assert server.left.wait(30)


def test_a_stop_is_heard_between_chunks(server: ScriptedServer) -> None:
    class Once(Stop):
        asked = 0

        def is_set(self) -> bool:
            return came

    came = False
    server.reply = Answer(sse(delta(content="One"), delta(content="Two"), ends=False), stays=True)
    reply = RemoteReply(address_of(server), turn(), Once())
    steps = reply.steps()
    next(steps)
    came = True
    with pytest.raises(StoppedError):
        next(steps)
    assert server.left.wait(30)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
def test_ctrl_c_while_nothing_comes(server: ScriptedServer) -> None:
    """In the middle of a read, where only the signal's handler runs."""
    server.models = models(OWNER, "tiny")
    before = {**delta(content="One"), **ours(replace(REPORTED, finish_reason="interrupted"))}
    server.reply = Answer(sse(before, ends=False), stays=True)
    interrupts = Interrupts(None)
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    with interrupts:
        reply = RemoteReply(address_of(server), turn(), interrupts)
        steps = reply.steps()
        next(steps)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            next(steps)
    assert reply.cut_short() == []
    assert (reply.report.finish_reason, reply.report.blocks) == ("interrupted", (BLOCK,))
    assert server.left.wait(30)
    timer.join()
