"""llm's messages and tools in OpenAI's format. That they come back the same: tests/server/test_messages.py."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import llm
import pytest
from llm.parts import AttachmentPart, Message, ReasoningPart, TextPart, ToolCallPart, ToolResultPart
from PIL import Image

from llm_diffusiongemma.chat import wire
from llm_diffusiongemma.chat.wire import EXTENSION, to_plain_wire, to_wire, tools_to_wire
from llm_diffusiongemma.errors import ImageError, PromptError

Wire = dict[str, Any]


def png(width: int) -> bytes:
    """It can be told by its width from others."""
    out = io.BytesIO()
    Image.new("RGB", (width, 10)).save(out, "png")
    return out.getvalue()


def image(width: int = 10) -> llm.Attachment:
    return llm.Attachment(type="image/png", content=png(width))


VIDEO = llm.Attachment(type="video/mp4", content=b"two frames", path="film.mp4")
FRAMES = [(Image.new("RGB", (100, 10)), "00:00"), (Image.new("RGB", (101, 10)), "61:05")]


@pytest.fixture(autouse=True)
def _a_video_without_a_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "frames", lambda content, name: FRAMES)


def readable(messages: list[Wire]) -> list[Wire]:
    """With a word for each picture: its width."""
    return json.loads(json.dumps(messages), object_hook=_readable_part)


def _readable_part(value: Wire) -> Any:
    if value.get("type") != "image_url":
        return value
    head, content = value["image_url"]["url"].split(",")
    assert head == "data:image/png;base64"
    width = Image.open(io.BytesIO(base64.b64decode(content, validate=True))).width
    extension = value.get(EXTENSION, {})
    assert value.keys() == {"type", "image_url", *([EXTENSION] if extension else [])}
    return " ".join(["image", str(width), *extension.values()])


def text(text: str) -> Wire:
    return {"type": "text", "text": text}


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1, null, "é"]}'}}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (
            [llm.system("Be brief."), llm.user("Hi"), llm.assistant("Hello"), llm.user("Bye")],
            [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"},
                {"role": "user", "content": "Bye"},
            ],
        ),
        (
            [
                llm.user("Hi"),
                Message("assistant", [ReasoningPart("hm"), TextPart("Hello")]),
                llm.user("lost"),
                Message("assistant", [ReasoningPart("")]),
                llm.user("Bye"),
            ],
            [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello", "reasoning": "hm"},
                {"role": "user", "content": "Bye"},
            ],
        ),
        (
            [
                llm.user("Look"),
                Message("assistant", [TextPart("So."), ToolCallPart("f", {"a": [1, None, "é"]}, "1")]),
                Message("tool", [ToolResultPart("f", "42", "1")]),
            ],
            [
                {"role": "user", "content": "Look"},
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
                {"role": "tool", "name": "f", "tool_call_id": "1", "content": "42"},
            ],
        ),
        (
            [
                llm.user("Look"),
                Message("assistant", [ToolCallPart("f", {})]),
                Message("tool", [ToolResultPart("f")]),
            ],
            [
                {"role": "user", "content": "Look"},
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}],
                },
                {"role": "tool", "name": "f", "content": ""},
            ],
        ),
    ],
)
def test_text(messages: list[Message], expected: list[Wire]) -> None:
    """The same for any server."""
    assert to_wire(messages) == to_plain_wire(messages) == expected


@pytest.mark.parametrize(
    ("parts", "ours", "plain"),
    [
        # Where a text belongs that pictures follow is decided here.
        (["What?", image(11)], ["image 11", text("What?")], ["image 11", text("What?")]),
        ([image(11), "What?"], ["image 11", text("What?")], ["image 11", text("What?")]),
        ([image(11)], ["image 11", text("")], ["image 11"]),
        (["a", image(11), ""], [text("a"), "image 11", text("")], [text("a"), "image 11"]),
        (
            ["a", image(11), "b", image(12)],
            [text("a"), "image 11", text("b"), "image 12", text("")],
            [text("a"), "image 11", text("b"), "image 12"],
        ),
        (
            ["What?", VIDEO],
            ["image 100 00:00 film.mp4", "image 101 61:05 film.mp4", text("What?")],
            [text("00:00"), "image 100", text("61:05"), "image 101", text("What?")],
        ),
    ],
)
def test_pictures(parts: list[object], ours: list[object], plain: list[object]) -> None:
    assert readable(to_wire([llm.user(*parts)])) == [{"role": "user", "content": ours}]
    assert readable(to_plain_wire([llm.user(*parts)])) == [{"role": "user", "content": plain}]


def test_pictures_of_tools() -> None:
    """Where results are texts, the user shows what belongs to them."""
    results = [
        ToolResultPart("a", "taken", "1", attachments=[image(11), VIDEO]),
        ToolResultPart("b", "", "2", attachments=[image(12)]),
        ToolResultPart("c", "none", "3"),
    ]
    calls = [ToolCallPart(name, {}, number) for number, name in enumerate("abc", 1)]
    messages = [llm.user("Look"), Message("assistant", calls), Message("tool", results)]
    video = ["image 100 00:00 film.mp4", "image 101 61:05 film.mp4"]
    contents = [message["content"] for message in readable(to_wire(messages))[2:]]
    assert contents == [[text("taken"), "image 11", *video], ["image 12"], "none"]
    for more in ([], [llm.assistant("ok"), llm.user("And?")]):
        *results, shown = readable(to_plain_wire([*messages, *more]))[2:6]
        assert [each["content"] for each in results] == ["taken", "", "none"]
        assert shown == {
            "role": "user",
            "content": [
                *(text("From the tool a:"), "image 11", text("00:00"), "image 100", text("61:05"), "image 101"),
                *(text("From the tool b:"), "image 12"),
            ],
        }


def test_an_image_goes_as_its_own_bytes(tmp_path: Path) -> None:
    """From a file, whose name goes with it to a server of ours: what is said of it names it."""
    path = tmp_path / "a.png"
    path.write_bytes(b"GIF89a, and broken")
    [message] = to_wire([llm.user("What?", llm.Attachment(type="image/PNG; q=1", path=str(path)))])
    assert message["content"][0] == {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(b'GIF89a, and broken').decode()}"},
        EXTENSION: {"name": str(path)},
    }


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (llm.user(""), "The prompt is empty"),
        (llm.user("\udcff"), "no valid UTF-8"),
        (llm.user("\udc89PNG\r\n\x1a\n\0\0"), "What was piped in is a PNG image"),
        (Message("user", [AttachmentPart(llm.Attachment(type="audio/wav", content=b"RIFF"))]), "audio/wav"),
        (llm.user("a", llm.Attachment(type="image/png", path="nowhere.png")), "nowhere.png can't be read"),
        (llm.assistant("Hello"), "no question"),
    ],
)
def test_what_cannot_be_sent_is_refused(message: Message, reason: str) -> None:
    """In the words of this process's own replies."""
    for refused in (to_wire, to_plain_wire):
        with pytest.raises(PromptError, match=reason):
            refused([message])


def test_a_call_that_is_no_json() -> None:
    calls = Message("assistant", [ToolCallPart("f", {"a": {1, 2}}, "1")])
    with pytest.raises(PromptError, match="a call of the tool f with arguments that are no JSON"):
        to_wire([llm.user("Hi"), calls, Message("tool", [ToolResultPart("f", "42", "1")])])


def test_a_broken_image_of_a_type_that_is_not_read() -> None:
    with pytest.raises(ImageError, match="image/tiff"):
        to_wire([llm.user("Hi", llm.Attachment(type="image/tiff", content=b"II"))])


SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer", "default": 1}}}


def test_tools() -> None:
    tools = [llm.Tool("f", "Does it.", SCHEMA), llm.Tool("g")]
    assert json.dumps(tools_to_wire(tools)) == json.dumps(
        [
            {"type": "function", "function": {"name": "f", "description": "Does it.", "parameters": SCHEMA}},
            {"type": "function", "function": {"name": "g"}},
        ]
    )


def test_a_tool_that_is_no_text() -> None:
    with pytest.raises(PromptError, match="The declaration of the tool f holds half of a surrogate pair"):
        tools_to_wire([llm.Tool("f", "half \ud83d", {})])
