"""Messages and tools that a client sends, and that those of llm come back as they were."""

from __future__ import annotations

import base64
import io
import json
from functools import partial
from typing import Any

import llm
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm.parts import AttachmentPart, Message, Part, ReasoningPart, TextPart, ToolCallPart, ToolResultPart
from PIL import Image

from llm_diffusiongemma.chat import images, wire
from llm_diffusiongemma.chat.declarations import declare
from llm_diffusiongemma.chat.messages import Conversation, read_conversation
from llm_diffusiongemma.chat.wire import to_wire, tools_to_wire
from llm_diffusiongemma.documents import DocumentError
from llm_diffusiongemma.errors import ImageError, PromptError
from llm_diffusiongemma.server import messages as messages_module
from llm_diffusiongemma.server.messages import from_wire, tools_from_wire

from ..chat.test_videos import film


def png(width: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, 10)).save(out, "png")
    return out.getvalue()


def image(width: int = 10) -> llm.Attachment:
    return llm.Attachment(type="image/png", content=png(width))


def sent(messages: list[Message]) -> list[Message]:
    """Through JSON, as a server gets them."""
    return from_wire(json.loads(json.dumps(to_wire(messages))))


def read(messages: list[Message]) -> Conversation | str:
    try:
        return read_conversation(messages)
    except PromptError as error:
        return str(error)


def read_through_wire(messages: list[Message]) -> Conversation | str:
    try:
        return read(sent(messages))
    except PromptError as error:
        return str(error)


# --- the invariant --------------------------------------------------------------------------------------------

FRAMES = [(Image.new("RGB", (100, 10)), "00:00"), (Image.new("RGB", (101, 10)), "61:05")]
VIDEO = llm.Attachment(type="video/mp4", content=b"two frames")
BROKEN = llm.Attachment(type="image/png", content=b"broken")

TEXTS = st.sampled_from(["", " ", "a", "b\n", "half \ud83d"])
NAMES = st.sampled_from(["f", "g", "", "naïve"])
IDS = st.sampled_from(["1", "2", "", None])
ATTACHMENTS = st.sampled_from([image(11), image(12), VIDEO])
ARGUMENTS = st.sampled_from([{}, {"a": [1, None, -2.5, {"é": True}]}, {"": "\ud83d"}])


def parts(*kinds: st.SearchStrategy[Part]) -> st.SearchStrategy[list[Part]]:
    return st.lists(st.one_of(*kinds), max_size=4)


RESULTS = st.builds(
    ToolResultPart, NAMES, TEXTS, IDS, st.just(value=False), st.lists(ATTACHMENTS, max_size=2), st.none()
)
USERS = st.builds(
    Message, st.just("user"), parts(st.builds(TextPart, TEXTS), st.builds(AttachmentPart, ATTACHMENTS))
)
ASSISTANTS = st.builds(
    Message,
    st.just("assistant"),
    parts(
        st.builds(TextPart, TEXTS),
        st.builds(ReasoningPart, TEXTS),
        st.builds(ToolCallPart, NAMES, ARGUMENTS, IDS, st.booleans()),
    ),
)
MESSAGES = st.one_of(
    USERS,
    ASSISTANTS,
    st.builds(Message, st.just("tool"), parts(RESULTS)),
    st.builds(Message, st.just("system"), parts(st.builds(TextPart, TEXTS))),
)
CONVERSATIONS = st.lists(MESSAGES, max_size=6).flatmap(
    lambda messages: st.sampled_from([messages, [*messages, llm.user("Why?")]])
)


@settings(max_examples=50, deadline=None)
@given(CONVERSATIONS)
def test_what_a_server_reads_is_what_this_process_would(messages: list[Message]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for module in (images, wire):
            patch.setattr(module, "frames", lambda content, name: FRAMES)
        assert read_through_wire(messages) == read(messages)


def attached(*attachments: llm.Attachment) -> ToolResultPart:
    return ToolResultPart("f", "taken", "1", attachments=list(attachments))


CALLS = [llm.user("Look"), Message("assistant", [ToolCallPart("f", {}, "1")])]


@pytest.mark.parametrize(
    "messages",
    [
        # A text before a picture that an empty one follows stays there.
        [llm.user("a", image(11), "")],
        # The same picture twice: once of the tool, from elsewhere of the user.
        [
            *CALLS,
            Message("tool", [attached(image(11))]),
            llm.user(llm.Attachment("image/png", content=png(11)), ""),
        ],
        [*CALLS, Message("tool", [attached(image(11))]), llm.user(image(11))],
        [*CALLS, Message("tool", [attached()]), llm.user(image(11))],
        [
            *CALLS,
            Message("tool", [attached(image(11))]),
            Message("tool", [attached(image(12))]),
            llm.user(image(12)),
        ],
        # What another model's provider has run is an answer, and nothing of it is left.
        [llm.user("a"), Message("assistant", [ToolCallPart("f", {}, "1", server_executed=True)]), llm.user("b")],
        # A question that has no answer.
        [llm.user("a"), Message("assistant", [ReasoningPart("hm")]), llm.user("b")],
        [llm.user("a"), Message("assistant", [ToolCallPart("f", {}, "1")]), llm.user("b")],
        [*CALLS, Message("tool", []), llm.user("b")],
        [*CALLS, Message("tool", []), llm.user(image(11))],
        # A video, whose frames have all their pixels.
        [llm.user("a", film([0, 1, 2.5]))],
        [*CALLS, Message("tool", [attached(film([0, 1]), image(11))])],
        # What only a server sees.
        [llm.user("a", BROKEN)],
        [llm.user("a", llm.Attachment("image/png", path=__file__))],
        [*CALLS, Message("tool", [attached(BROKEN)])],
    ],
)
def test_conversations_that_have_come_back_otherwise(messages: list[Message]) -> None:
    assert read_through_wire(messages) == read(messages)


def test_tools_come_back() -> None:
    def weather(city: str, days: int = 3) -> str:
        """What the weather will be."""
        return city

    tools = [
        llm.Tool.function(weather),
        llm.Tool("g", None, {}),
        llm.Tool("h", "", {"type": "object", "properties": {"b": {"const": 1}, "a": {"default": object}}}),
    ]
    received = tools_from_wire(json.loads(json.dumps(tools_to_wire(tools))))
    assert json.dumps(declare(received)) == json.dumps(declare(tools))
    assert [tool.input_schema for tool in received][:2] == [tool.input_schema for tool in tools][:2]


# --- what other clients send ----------------------------------------------------------------------------------

URL = f"data:image/png;base64,{base64.b64encode(png(11)).decode()}"


def picture(url: object = URL, **more: object) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def said(content: object, role: str = "user", **more: object) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def call(arguments: object = "{}", **more: object) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}, **more}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (said("Hi"), llm.user("Hi")),
        (said([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), llm.user("a", "b")),
        (said("Be brief.", "system"), llm.system("Be brief.")),
        (said("Be brief.", "developer"), llm.system("Be brief.")),
        (said([{"type": "text", "text": "Be brief."}], "system"), llm.system("Be brief.")),
    ],
)
def test_what_is_said(value: dict[str, Any], expected: Message) -> None:
    assert from_wire([value]) == [expected]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (said("Hello", "assistant"), [TextPart("Hello")]),
        (said("Hello", "assistant", reasoning="hm"), [ReasoningPart("hm"), TextPart("Hello")]),
        (said("Hello", "assistant", reasoning_content="hm"), [ReasoningPart("hm"), TextPart("Hello")]),
        # As the openai package's own client gives back what it got.
        (
            said(
                None, "assistant", tool_calls=[call(index=0)], refusal=None, annotations=None, function_call=None
            ),
            [ToolCallPart("f", {}, "1")],
        ),
        ({"role": "assistant", "tool_calls": [call("")]}, [ToolCallPart("f", {}, "1")]),
        (
            said("", "assistant", tool_calls=[call('{"a": [1]}')]),
            [TextPart(""), ToolCallPart("f", {"a": [1]}, "1")],
        ),
    ],
)
def test_what_was_answered(value: dict[str, Any], expected: list[Part]) -> None:
    [message] = from_wire([value])
    assert (message.role, message.parts) == ("assistant", expected)


def test_what_a_client_says_was_answered_is_not_left_out() -> None:
    """Even if it was answered with nothing."""
    values = [said("a"), said("", "assistant"), said("b")]
    assert [message["role"] for message in read_conversation(from_wire(values)).messages] == [
        "user",
        "assistant",
        "user",
    ]


def test_results_have_the_names_of_their_calls() -> None:
    calls = said(None, "assistant", tool_calls=[call(), {**call(), "id": "2", "function": {"name": "g"}}])
    results = [said("4", "tool", tool_call_id="2"), said([picture()], "tool", tool_call_id="1", name="other")]
    message = from_wire([calls, *results])[1]
    assert [(part.name, part.output, len(part.attachments)) for part in message.parts] == [
        ("g", "4", 0),
        ("other", "", 1),
    ]


def test_a_text_with_pictures_behind_it_comes_last() -> None:
    """As it does with llm: most examples of OpenAI's format have it first."""
    content = [{"type": "text", "text": "What?"}, picture()]
    [message] = read_conversation(from_wire([said(content)])).messages
    assert [part["type"] for part in message["content"]] == ["image", "text"]


def test_what_is_not_used_is_named() -> None:
    named: list[str] = []
    values = [
        said("a", "system", name="x"),
        said([picture(detail="high"), picture(detail="auto")], name="y"),
        said("b", "assistant", name="z", annotations=[{"type": "url_citation"}]),
    ]
    from_wire(values, named.append)
    strict = {"name": "f", "strict": True}
    tools_from_wire([{"type": "function", "function": strict}], named.append)
    assert named == [
        "messages.0.name",
        "messages.1.name",
        "messages.1.content.0.image_url.detail",
        "messages.2.name",
        "messages.2.annotations",
        "tools.0.function.strict",
    ]


CONTENT = "messages.0.content.0"
ARGUMENTS_OF_CALL = "messages.0.tool_calls.0.function.arguments"
with_call = partial(said, None, "assistant")


@pytest.mark.parametrize(
    ("value", "where", "reason"),
    [
        (5, "messages.0", "is 5: it has to be an object"),
        ({}, "messages.0.role", "it has no messages.0.role"),
        (
            said("a", "function"),
            "messages.0.role",
            "has to be 'system', 'developer', 'user', 'assistant' or 'tool'",
        ),
        (said("a", ["user"]), "messages.0.role", "has to be"),
        ({"role": "user"}, "messages.0.content", "it has no"),
        (said(None), "messages.0.content", "it has no"),
        (said(5), "messages.0.content", "a text or a list of parts"),
        (said(["a"]), CONTENT, "is 'a': it has to be an object"),
        (said([{"type": "text"}]), f"{CONTENT}.text", "it has no"),
        (said([{"type": "text", "text": "a", "x": 1}]), f"{CONTENT}.x", "nothing of that name"),
        (said([{"type": "input_audio"}]), f"{CONTENT}.type", "only text and image_url can be read there"),
        (said([{"type": "video_url"}]), f"{CONTENT}.type", "of a video send frames"),
        (said([{"type": 5}]), f"{CONTENT}.type", "is of type 5"),
        (said([picture()], "system"), f"{CONTENT}.type", "only text can be read there"),
        (said([picture()], "assistant"), f"{CONTENT}.type", "only text can be read there"),
        (said([picture(5)]), f"{CONTENT}.image_url.url", "a text"),
        (said([picture("https://a/b.png")]), f"{CONTENT}.image_url.url", "a server fetches nothing"),
        (said([picture("file:///etc/passwd")]), f"{CONTENT}.image_url.url", "a server fetches nothing"),
        (said([picture("data:")]), f"{CONTENT}.image_url.url", "a server fetches nothing"),
        (said([picture("data:image/png,abc")]), f"{CONTENT}.image_url.url", "begin with data:image/png;base64,"),
        (said([picture("data:;base64,aaaa")]), f"{CONTENT}.image_url.url", "of type unknown"),
        (said([picture("data:image/tiff;base64,aaaa")]), f"{CONTENT}.image_url.url", "of type image/tiff"),
        (said([picture("data:video/mp4;base64,aaaa")]), f"{CONTENT}.image_url.url", "of a video send frames"),
        (said([picture("data:image/png;base64,aa aa")]), f"{CONTENT}.image_url.url", "no base64"),
        (said([picture("data:image/png;base64,aaa")]), f"{CONTENT}.image_url.url", "no base64"),
        (said([picture("data:image/png;base64,äää=")]), f"{CONTENT}.image_url.url", "no base64"),
        (said([{**picture(), "diffusiongemma": {"timestamp": "1"}}]), f"{CONTENT}.diffusiongemma.timestamp", "1"),
        (with_call(tool_calls=[call({})]), ARGUMENTS_OF_CALL, "it has to be a text"),
        (with_call(tool_calls=[call("[]")]), ARGUMENTS_OF_CALL, "no JSON object in a text"),
        (with_call(tool_calls=[call("{")]), ARGUMENTS_OF_CALL, "no JSON object in a text"),
        (with_call(tool_calls=[call("\ud83d")]), ARGUMENTS_OF_CALL, "no JSON object in a text"),
        (with_call(tool_calls=[call('{"a":' * 101 + "1" + "}" * 101)]), ARGUMENTS_OF_CALL, "100 levels deep"),
        (with_call(tool_calls=[call(type="custom")]), "messages.0.tool_calls.0.type", "'function'"),
        (with_call(function_call={"name": "f"}), "messages.0.function_call", "nothing of that name"),
        (said("4", "tool", tool_call_id="7"), "messages.0.tool_call_id", "the result of no call before it"),
        (said("4", "tool"), "messages.0.tool_call_id", "the result of no call before it"),
    ],
)
def test_what_is_no_message(value: object, where: str, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason) as caught:
        from_wire([value])
    assert caught.value.where == where


def test_pictures_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages_module, "MAX_PICTURES", 3)
    from_wire([said([picture()] * 2), said([picture()])])
    with pytest.raises(DocumentError, match="more than 3 pictures"):
        from_wire([said([picture()] * 2), said([picture()] * 2)])


def test_a_sent_picture_never_names_a_file_to_be_read() -> None:
    """What a client calls it is for sentences alone."""
    part = {**picture("data:image/png;base64,"), "diffusiongemma": {"name": __file__}}
    with pytest.raises(ImageError, match=r"test_messages\.py is empty"):
        read_conversation(from_wire([said([part])]))


@pytest.mark.parametrize(
    ("value", "where", "reason"),
    [
        (5, "tools.0", "an object"),
        ({"type": "web_search"}, "tools.0.type", "'function'"),
        ({"type": "function", "function": {"name": ""}}, "tools.0.function.name", "at least 1 long"),
        (
            {"type": "function", "function": {"name": "f", "parameters": []}},
            "tools.0.function.parameters",
            "object",
        ),
    ],
)
def test_what_is_no_tool(value: object, where: str, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason) as caught:
        tools_from_wire([value])
    assert caught.value.where == where
