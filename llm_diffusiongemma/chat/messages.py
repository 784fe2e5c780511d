"""From llm's messages to what a chat template is given, and to the pictures in them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from llm import Attachment, ToolResult
from llm.parts import AttachmentPart, Message, Part, ReasoningPart, TextPart, ToolCallPart, ToolResultPart

from ..errors import ImageError, PromptError
from ..wording import quoted, tell
from .images import Picture, pictures, what_is
from .texts import is_text, whole_text

TemplateMessage = dict[str, Any]


class Shown(Protocol):
    """A picture, in whatever form."""

    @property
    def timestamp(self) -> str | None:
        """`mm:ss` of a video's frame."""


AnyShown = TypeVar("AnyShown", bound=Shown)
# What a message of the model says of itself that is an answer whatever it holds.
ANSWERED = {"diffusiongemma": {"answered": True}}
# Reads attachments, and makes parts of them.
Show = Callable[[Iterable[Attachment]], list[dict[str, str]]]


@dataclass(frozen=True)
class Conversation:
    """llm's messages in the shape that `PromptEncoder` reads, and the pictures that they show, in order.

    Content is a text or a list of parts: `text`, `image`, and for an image of a video `frame`, whose text is its
    time stamp.
    """

    messages: list[TemplateMessage]
    pictures: list[Picture]

    def with_request(self, text: str) -> Conversation:
        """The same with a paragraph more at the end of what the user said last."""
        messages = list(self.messages)
        last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=None)
        if last is None:
            return self
        content = messages[last]["content"]
        if isinstance(content, str):
            content = f"{content}\n\n{text}"
        elif content[-1]["type"] == "text":
            content = [*content[:-1], {"type": "text", "text": f"{content[-1]['text']}\n\n{text}"}]
        else:
            content = [*content, {"type": "text", "text": text}]
        messages[last] = {**messages[last], "content": content}
        return Conversation(messages, self.pictures)


def settle_results(messages: Sequence[Message], results: Sequence[ToolResult]) -> None:
    """Makes the results of this turn's tools what the model can be shown and llm can log.

    What each tool has attached is put into the message's part for its result: llm's chain of calls leaves the
    parts' lists empty and puts all attachments into one user's message behind them. What is no text (a file name
    with a broken byte) is replaced in the outputs, or llm could not keep the turn.

    Both are done to llm's own records: the next turn and the log know no more than these.
    """
    tool_messages = [message for message in messages if message.role == "tool"]
    parts = [part for part in tool_messages[-1].parts if isinstance(part, ToolResultPart)] if tool_messages else []
    if len(parts) == len(results):
        for part, result in zip(parts, results, strict=True):
            part.attachments = part.attachments or list(result.attachments)
            part.output = result.output = _whole_text(result.output, result.name)


def _whole_text(output: str, tool: str) -> str:
    """What a tool has returned, with U+FFFD for each byte or half of a surrogate pair that is no text."""
    if is_text(output):
        return output
    tell(f"What the tool {quoted(tool)} returned is not all text: what is none of it is shown as \ufffd.")
    return whole_text(output)


def read_conversation(messages: Sequence[Message]) -> Conversation:
    """Converts messages, and reads and decodes what is attached to them.

    Raises `PromptError` if there is nothing to answer, or for a part that the model can't read; for an
    attachment its subclass `ImageError`.
    """
    return Conversation(*convert(messages, pictures))


def convert(
    messages: Sequence[Message], look: Callable[[Attachment], Iterable[AnyShown]]
) -> tuple[list[TemplateMessage], list[AnyShown]]:
    """What a `Conversation` is made of, with what `look` finds to be seen in attachments. Raises the same."""
    converted: list[TemplateMessage] = []
    shown: list[AnyShown] = []

    def show(attachments: Iterable[Attachment]) -> list[dict[str, str]]:
        """The parts for attachments, one for each picture."""
        parts: list[dict[str, str]] = []
        for picture in itertools.chain.from_iterable(map(look, attachments)):
            shown.append(picture)
            parts.append({"type": "frame", "text": picture.timestamp} if picture.timestamp else {"type": "image"})
        return parts

    for message in without_unanswered(_settled(messages)):
        if message.role == "tool":
            converted += [_tool_message(part, show) for part in message.parts]
        else:
            converted.append(_message(message, show))
    if kind := piped_picture(converted):
        raise PromptError(
            f"What was piped in is {kind}, not text. Attach it instead: -a - reads it from standard input, -a and "
            "a name from a file."
        )
    if not is_text(converted):
        raise PromptError(
            "The prompt holds bytes that are no valid UTF-8. Convert it first, for example with iconv."
        )
    if not converted or converted[-1]["role"] not in ("user", "tool"):
        raise PromptError("There is no question to answer. Give a prompt, or pipe text into the command.")
    content = converted[-1]["content"]
    if converted[-1]["role"] == "user" and isinstance(content, str) and not content.strip():
        raise PromptError("The prompt is empty. Give a prompt, or pipe text into the command.")
    return converted, shown


def _settled(messages: Sequence[Message]) -> list[Message]:
    """The messages with what tools have attached where it belongs: to their results.

    llm shows it as a user's message with nothing else in it, right behind that of the tools. If nobody has said
    what belongs to which result (`settle_results`), it is the last one's.
    """
    settled: list[Message] = []
    for message in messages:
        before = settled[-1] if settled else None
        attachments = _attachments(message.parts)
        if (
            before
            and before.role == "tool"
            and before.parts
            and message.role == "user"
            and len(attachments) == len(message.parts) > 0
        ):
            of_results = [each for part in before.parts for each in getattr(part, "attachments", ())]
            if of_results == attachments:
                continue
            if not of_results and isinstance(last := before.parts[-1], ToolResultPart):
                parts = [*before.parts[:-1], replace(last, attachments=attachments)]
                settled[-1] = replace(before, parts=parts)
                continue
        settled.append(message)
    return settled


def without_unanswered(messages: Sequence[Message]) -> list[Message]:
    """A conversation without the turns that never had an answer, such as those that were interrupted.

    At the end of such a turn stands a message of the model with nothing but a thought, maybe an empty one, or
    with calls that nobody has run. Its question, asked again together with the next one, would be a part of that.
    """
    kept: list[Message] = []
    for message, following in itertools.zip_longest(messages, messages[1:]):
        kept.append(message)
        if message.role == "assistant" and not _goes_on(message, following):
            questions = [number for number, each in enumerate(kept) if each.role == "user"]
            del kept[questions[-1] if questions else -1 :]
    return kept


def _goes_on(message: Message, following: Message | None) -> bool:
    """Whether a message of the model is an answer, or calls that have results."""
    if message.provider_metadata == ANSWERED:
        return True
    if any(isinstance(part, ToolCallPart) and not part.server_executed for part in message.parts):
        return following is None or following.role == "tool"
    return any(
        part.text.strip() if isinstance(part, TextPart) else not isinstance(part, ReasoningPart)
        for part in message.parts
    )


def piped_picture(messages: Sequence[TemplateMessage]) -> str | None:
    """What kind of picture or video was read as the text of a prompt, if one was."""
    for message in messages:
        content = message["content"]
        start = content[:16] if isinstance(content, str) else ""
        try:
            # llm reads its standard input with this, which keeps the bytes of what is no text.
            kind = what_is(start.encode(errors="surrogateescape"))
        except UnicodeEncodeError:  # half of a surrogate pair is no byte of a file
            continue
        # A question may well begin with "BM" or "GIF89a".
        if kind and not (is_text(content) and "\0" not in content):
            return kind
    return None


def _attachments(parts: Iterable[Part]) -> list[Attachment]:
    return [part.attachment for part in parts if isinstance(part, AttachmentPart) and part.attachment is not None]


def _content(message: Message, show: Show) -> str | list[dict[str, str]]:
    """What a message says and shows, in its order.

    But a text that nothing but attachments follow stands behind them: that is llm's form of a prompt with
    attachments, and the model was taught with images before the text.
    """
    if not _attachments(message.parts):
        return _text(message.parts)

    def is_text_part(part: Part) -> bool:
        return isinstance(part, TextPart)

    parts = [part for part in message.parts if isinstance(part, (TextPart, AttachmentPart))]
    if parts == sorted(parts, key=is_text_part, reverse=True):
        parts.sort(key=is_text_part)
    content: list[dict[str, str]] = []
    for _, group in itertools.groupby(parts, is_text_part):
        run = list(group)
        content += show(_attachments(run))
        if text := _text(run):
            content.append({"type": "text", "text": text})
    return content


def _text(parts: Iterable[Part]) -> str:
    return "".join(part.text for part in parts if isinstance(part, TextPart))


def _message(message: Message, show: Show) -> TemplateMessage:
    content = _content(message, show) if message.role == "user" else _text(message.parts)
    converted: TemplateMessage = {"role": message.role, "content": content}
    reasoning = "".join(part.text for part in message.parts if isinstance(part, ReasoningPart))
    if reasoning:
        # Apart from the content: the template shows it in a running tool loop and drops it later.
        converted["reasoning_content"] = reasoning
    # What another model's provider has run itself, such as a search, was done with when it answered.
    parts = [part for part in message.parts if not getattr(part, "server_executed", False)]
    calls = [part for part in parts if isinstance(part, ToolCallPart)]
    if calls:
        # The template would put text beside calls behind their results, with no model turn after it.
        converted["content"] = ""
        converted["tool_calls"] = [
            {
                "id": part.tool_call_id,
                "type": "function",
                "function": {"name": part.name, "arguments": part.arguments},
            }
            for part in calls
        ]
    readable = (TextPart, ReasoningPart, ToolCallPart) + ((AttachmentPart,) if message.role == "user" else ())
    for part in parts:
        if not isinstance(part, readable):
            raise PromptError(f"This conversation holds {_describe(part)}, which this model can't read.")
    return converted


def _tool_message(part: Part, show: Show) -> TemplateMessage:
    if not isinstance(part, ToolResultPart):
        raise PromptError(f"A tool's message holds {_describe(part)}, which this model can't read.")
    output = _whole_text(part.output, part.name)
    content: str | list[dict[str, str]] = output
    if part.attachments:
        text = [{"type": "text", "text": output}] if output else []
        try:
            content = [*text, *show(part.attachments)]
        except ImageError as error:
            raise ImageError(
                f"The tool {quoted(part.name)} returned what the model can't be shown. {error}"
            ) from error
    return {"role": "tool", "name": part.name, "tool_call_id": part.tool_call_id, "content": content}


def _describe(part: Part) -> str:
    attachment = getattr(part, "attachment", None)
    if attachment is not None:
        return f"an attachment of type {quoted(attachment.type or 'unknown')}"
    return f"a part of type {type(part).__name__}"
