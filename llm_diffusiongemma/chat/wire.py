"""llm's messages and tools in OpenAI's format: what a server is asked. `server/messages.py` is the way back.

Pictures travel as their own bytes; who reads them decodes them.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import llm
from llm.parts import Message

from ..errors import PromptError
from ..wording import quoted
from .declarations import check_texts
from .images import VIDEO_TYPES, SentPicture, fetch, place_of
from .messages import TemplateMessage, convert
from .videos import frames

if TYPE_CHECKING:
    from PIL import Image

WireMessage = dict[str, Any]

#: The field of everything that OpenAI's format has no field for. `backends/protocol.py` says what stands in it.
EXTENSION = "diffusiongemma"

# A frame is sent without loss. More effort makes it a tenth smaller, in four times the time.
PNG_EFFORT = 1


@dataclass(frozen=True)
class _Picture:
    """As it is sent."""

    url: str
    """`data:image/png;base64,…`"""
    timestamp: str | None
    name: str | None
    """Where it is from, if that is known."""

    @property
    def part(self) -> WireMessage:
        """In OpenAI's format."""
        return {"type": "image_url", "image_url": {"url": self.url}}

    @property
    def extended_part(self) -> WireMessage:
        extension = {"timestamp": self.timestamp, "name": self.name}
        extension = {name: value for name, value in extension.items() if value is not None}
        return {**self.part, EXTENSION: extension} if extension else self.part


def to_wire(messages: Sequence[Message]) -> list[WireMessage]:
    """Messages for a server of ours, with what is attached to them, which is fetched here.

    Raises what `read_conversation` raises, but for what only decoding a picture shows.
    """
    converted, pictures = convert(messages, _look)
    remaining = iter(pictures)

    def part(part: TemplateMessage) -> WireMessage:
        return part if part["type"] == "text" else next(remaining).extended_part

    wire = []
    for message in converted:
        content = message["content"]
        if not isinstance(content, str):
            content = list(map(part, content))
            if message["role"] == "user" and content[-1]["type"] != "text":
                # Or a text before pictures would be read as the one that belongs behind them, and a user's
                # pictures as those of the tools before.
                content.append(_text_part(""))
        wire.append(_wire_message(message, content))
    return wire


def to_plain_wire(messages: Sequence[Message]) -> list[WireMessage]:
    """The same for any other server: what OpenAI's format has no field for is said in texts.

    A frame has its time stamp before it. What tools have attached is shown by the user behind their results, which
    are texts there.
    """
    converted, pictures = convert(messages, _look)
    remaining = iter(pictures)

    def parts(content: list[TemplateMessage]) -> Iterator[WireMessage]:
        for part in content:
            if part["type"] != "image":
                yield _text_part(part["text"])
            if part["type"] != "text":
                yield next(remaining).part

    wire: list[WireMessage] = []
    attached: list[WireMessage] = []
    for message, following in itertools.zip_longest(converted, converted[1:]):
        content = message["content"]
        if not isinstance(content, str):
            if message["role"] == "tool":
                text = content[0]["text"] if content[0]["type"] == "text" else ""
                attached += [_text_part(f"From the tool {message['name']}:"), *parts(content[bool(text) :])]
                content = text
            else:
                content = list(parts(content))
        wire.append(_wire_message(message, content))
        if attached and (following is None or following["role"] != "tool"):
            wire.append({"role": "user", "content": attached})
            attached = []
    return wire


def _wire_message(message: TemplateMessage, content: str | list[WireMessage]) -> WireMessage:
    """A message for a template as one of OpenAI's, with that content."""
    wire = {**message, "content": content}
    if "reasoning_content" in wire:
        wire["reasoning"] = wire.pop("reasoning_content")
    if "tool_calls" in wire:
        wire["tool_calls"] = list(map(_wire_call, wire["tool_calls"]))
    return {name: value for name, value in wire.items() if value is not None}


def _wire_call(call: TemplateMessage) -> WireMessage:
    function = call["function"]
    try:
        arguments = json.dumps(function["arguments"], ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:  # a program's own messages may hold anything
        raise PromptError(
            f"This conversation holds a call of the tool {quoted(function['name'])} with arguments that are no "
            f"JSON: {quoted(error)}"
        ) from error
    wire = {**call, "function": {**function, "arguments": arguments}}
    return {name: value for name, value in wire.items() if value is not None}


def _text_part(text: str) -> WireMessage:
    return {"type": "text", "text": text}


def _look(attachment: llm.Attachment) -> Iterator[_Picture]:
    file = fetch(attachment)
    name = place_of(attachment)
    if file.kind not in VIDEO_TYPES:
        timestamp = attachment.timestamp if isinstance(attachment, SentPicture) else None
        yield _Picture(_data_uri(file.kind, file.content), timestamp, name)
        return
    before, url = None, ""
    for image, timestamp in frames(file.content, file.name):
        if image is not before:  # one picture may stand at many instants
            before, url = image, _data_uri("image/png", _png(image))
        yield _Picture(url, timestamp, name)


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "png", compress_level=PNG_EFFORT)
    return out.getvalue()


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def tools_to_wire(tools: Sequence[llm.Tool]) -> list[WireMessage]:
    """Raises `PromptError` if a declaration holds what is no text, or no JSON."""
    wire = [{"type": "function", "function": _wire_function(tool)} for tool in tools]
    check_texts(wire)
    return wire


def _wire_function(tool: llm.Tool) -> WireMessage:
    function: WireMessage = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.input_schema:
        try:
            # What isn't JSON in it is shown as a text, as `declare` shows it.
            function["parameters"] = json.loads(json.dumps(tool.input_schema, default=str, allow_nan=False))
        except (ValueError, RecursionError) as error:
            raise PromptError(
                f"The declaration of the tool {quoted(tool.name)} holds parameters that are no JSON: "
                f"{quoted(error)}"
            ) from error
    return function
