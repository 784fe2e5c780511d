"""A request's messages and tools as llm has them. `chat/wire.py` is the way there.

**Invariant**: `read_conversation(from_wire(to_wire(messages)))` is `read_conversation(messages)`, picture by
picture.

What a client says is taken as it is: none of it is left out as never answered. But the order of a text and the
pictures behind it means what it means with llm.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import llm
from llm.parts import AttachmentPart, Message, Part, ReasoningPart, TextPart, ToolCallPart, ToolResultPart
from pydantic import BeforeValidator, Field

from ..chat.images import IMAGE_TYPES, VIDEO_TYPES, SentPicture, media_type
from ..chat.messages import ANSWERED
from ..documents import DocumentError, conform, parse_object, refuse_unless
from ..wording import quoted
from .objects import Object, check_depth

# Frames of ten videos. With the fewest soft tokens for each they fill a fifth of the context.
MAX_PICTURES = 600
# Of a data URI before its content.
MAX_HEAD_CHARACTERS = 200

#: What isn't used of a request is named to this, field by field.
Ignore = Callable[[str], None]


def _as_parts(value: Any) -> Any:
    refuse_unless(isinstance(value, (str, list)), "it has to be a text or a list of parts")
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


Content = Annotated[list[Any], BeforeValidator(_as_parts)]


class _TextPart(Object):
    type: Literal["text"]
    text: str


class _ImageUrl(Object):
    url: str
    detail: str = "auto"


class _ImageExtension(Object):
    timestamp: str | None = Field(default=None, pattern=r"^\d{2,6}:[0-5]\d$")
    name: str | None = None


class _ImagePart(Object):
    type: Literal["image_url"]
    image_url: _ImageUrl
    diffusiongemma: _ImageExtension | None = None


class _Said(Object):
    """By a system prompt or a user; of the other roles there is more."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content
    name: str | None = None


class _CalledFunction(Object):
    name: str
    arguments: str = ""


class _Call(Object):
    id: str | None = None
    type: Literal["function"] = "function"
    function: _CalledFunction
    # Clients that have put a call together from a stream leave it there.
    index: int | None = None


class _Answered(Object):
    role: Literal["assistant"]
    content: Content = Field(default_factory=list)
    name: str | None = None
    reasoning: str | None = None
    # Its older name.
    reasoning_content: str | None = None
    tool_calls: list[_Call] = Field(default_factory=list)
    # Links in other models' answers.
    annotations: list[Any] = Field(default_factory=list)


class _Returned(Object):
    role: Literal["tool"]
    content: Content
    tool_call_id: str | None = None
    name: str | None = None


class _DeclaredFunction(Object):
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    strict: bool = False


class _Tool(Object):
    type: Literal["function"]
    function: _DeclaredFunction


def from_wire(values: Sequence[Any], ignore: Ignore = lambda field: None) -> list[Message]:
    """Raises `DocumentError` that names the field which isn't as it has to be."""
    reader = _MessageReader(ignore)
    for number, value in enumerate(values):
        reader.read(value, f"messages.{number}")
    return reader.messages


class _MessageReader:
    """Reads one message after the other."""

    def __init__(self, ignore: Ignore) -> None:
        self.messages: list[Message] = []
        self._ignore = ignore
        self._called: dict[str, str] = {}
        """The names of the tools, by the ids of their calls."""
        self._pictures = 0

    def read(self, value: Any, where: str) -> None:
        role = value.get("role") if isinstance(value, dict) else None
        if role == "assistant":
            self.messages.append(self._answered(conform(_Answered, value, where), where))
        elif role == "tool":
            result = self._returned(conform(_Returned, value, where), where)
            # One turn's results stand in one message.
            if not self.messages or self.messages[-1].role != "tool":
                self.messages.append(Message("tool"))
            self.messages[-1].parts.append(result)
        else:
            said = conform(_Said, value, where)
            self._ignore_name(said.name, where)
            is_user = said.role == "user"
            parts = self._parts(said.content, where, with_pictures=is_user)
            self.messages.append(Message("user" if is_user else "system", parts))

    def _answered(self, message: _Answered, where: str) -> Message:
        self._ignore_name(message.name, where)
        if message.annotations:
            self._ignore(f"{where}.annotations")
        parts: list[Part] = []
        if reasoning := message.reasoning or message.reasoning_content:
            parts.append(ReasoningPart(reasoning))
        parts += self._parts(message.content, where, with_pictures=False)
        for number, call in enumerate(message.tool_calls):
            arguments = _arguments(call.function.arguments, f"{where}.tool_calls.{number}.function.arguments")
            parts.append(ToolCallPart(call.function.name, arguments, call.id))
            if call.id is not None:
                self._called[call.id] = call.function.name
        return Message("assistant", parts, ANSWERED)

    def _returned(self, message: _Returned, where: str) -> ToolResultPart:
        name = message.name
        if name is None:
            name = self._called.get(message.tool_call_id or "")
        if name is None:
            raise DocumentError(
                f"{where} is the result of no call before it: give its tool_call_id, or the tool's name",
                f"{where}.tool_call_id",
            )
        parts = self._parts(message.content, where, with_pictures=True)
        return ToolResultPart(
            name,
            "".join(part.text for part in parts if isinstance(part, TextPart)),
            message.tool_call_id,
            attachments=[part.attachment for part in parts if isinstance(part, AttachmentPart)],
        )

    def _parts(self, content: list[Any], where: str, *, with_pictures: bool) -> list[Part]:
        return [
            self._part(value, f"{where}.content.{number}", with_pictures) for number, value in enumerate(content)
        ]

    def _part(self, value: Any, where: str, with_pictures: bool) -> Part:
        kind = value.get("type") if isinstance(value, dict) else None
        if kind == "image_url" and with_pictures:
            return AttachmentPart(self._picture(conform(_ImagePart, value, where), where))
        if kind in (None, "text"):
            return TextPart(conform(_TextPart, value, where).text)
        kinds = "text and image_url" if with_pictures else "text"
        advice = ": of a video send frames" if kind == "video_url" and with_pictures else ""
        raise DocumentError(
            f"{where} is of type {quoted(kind)}, but only {kinds} can be read there{advice}", f"{where}.type"
        )

    def _picture(self, part: _ImagePart, where: str) -> SentPicture:
        self._pictures += 1
        if self._pictures > MAX_PICTURES:
            raise DocumentError(f"it has more than {MAX_PICTURES} pictures", where)
        if part.image_url.detail != "auto":
            self._ignore(f"{where}.image_url.detail")
        kind, content = _from_data_uri(part.image_url.url, f"{where}.image_url.url")
        extension = part.diffusiongemma or _ImageExtension()
        return SentPicture(kind, content=content, name=extension.name, timestamp=extension.timestamp)

    def _ignore_name(self, name: str | None, where: str) -> None:
        if name is not None:
            self._ignore(f"{where}.name")


def _arguments(text: str, where: str) -> dict[str, Any]:
    try:
        arguments = parse_object(text.encode()) if text.strip() else {}
        check_depth(arguments)
    except (DocumentError, UnicodeEncodeError) as error:
        raise DocumentError(f"{where} is no JSON object in a text: {quoted(error)}", where) from error
    return arguments


def _from_data_uri(url: str, where: str) -> tuple[str, bytes]:
    """Media type and content. Raises `DocumentError`."""
    head, comma, _ = url[:MAX_HEAD_CHARACTERS].partition(",")
    scheme, _, rest = head.partition(":")
    if scheme.lower() != "data" or not comma:
        raise DocumentError(
            f"{where} is {quoted(url, 60)}, and a server fetches nothing: send the picture itself, in the form "
            "data:image/png;base64,…",
            where,
        )
    kind = media_type(rest)
    if kind not in IMAGE_TYPES:
        advice = ": of a video send frames" if kind in VIDEO_TYPES else ""
        raise DocumentError(
            f"{where} is of type {quoted(kind or 'unknown')}, which is no image that can be read{advice}", where
        )
    if not rest.lower().endswith(";base64"):
        raise DocumentError(f"{where} is no base64: it has to begin with data:{kind};base64,", where)
    try:
        return kind, base64.b64decode(url[len(head) + 1 :], validate=True)
    except (ValueError, binascii.Error) as error:
        raise DocumentError(f"{where} has something behind the comma that is no base64", where) from error


def tools_from_wire(values: Sequence[Any], ignore: Ignore = lambda field: None) -> list[llm.Tool]:
    """Raises `DocumentError` that names the field which isn't as it has to be."""
    tools = []
    for number, value in enumerate(values):
        where = f"tools.{number}"
        function = conform(_Tool, value, where).function
        if function.strict:
            ignore(f"{where}.function.strict")
        tools.append(llm.Tool(function.name, function.description, function.parameters))
    return tools
