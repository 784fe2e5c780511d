"""A prompt as a reader of its replay sees it: texts, with names for what is none."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath

import llm
from llm.parts import AttachmentPart, Message, Part, ReasoningPart, TextPart, ToolCallPart, ToolResultPart


def prompt_of(messages: Sequence[Message]) -> tuple[tuple[str, str], ...]:
    """(role, text) of each message that says or shows something; each result of a tool is one.

    Thoughts are left out. A file goes by its name alone: a page may be given to others.
    """
    said: list[tuple[str, str]] = []
    for message in messages:
        if message.role == "tool":
            said += [(message.role, "\n".join(_lines(part))) for part in message.parts]
        elif text := "\n".join(line for part in message.parts for line in _lines(part)):
            said.append((message.role, text))
    return tuple(said)


def _lines(part: Part) -> Iterator[str]:
    if isinstance(part, TextPart):
        yield part.text
    elif isinstance(part, ToolCallPart):
        yield f"{part.name}({json.dumps(part.arguments, ensure_ascii=False)})"
    elif isinstance(part, ToolResultPart):
        yield f"{part.name}: {part.output}"
        yield from _names(part.attachments)
    elif isinstance(part, AttachmentPart) and part.attachment is not None:
        yield from _names([part.attachment])
    elif not isinstance(part, ReasoningPart):
        yield f"[{type(part).__name__}]"


def _names(attachments: Iterable[llm.Attachment]) -> Iterator[str]:
    for attachment in attachments:
        name = PurePath(attachment.path).name if attachment.path else attachment.url
        yield f"[{': '.join(filter(None, (attachment.type, name))) or 'attachment'}]"
