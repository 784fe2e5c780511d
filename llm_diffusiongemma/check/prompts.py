"""A dozen prompts, and what a right network says to them: short, of every kind that a reply may be of."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

import llm
from llm.parts import AttachmentPart, Message, Part, TextPart

from ..backends.turn import ALWAYS_WANTED, Turn
from ..errors import DiffusionGemmaError
from ..options import Options
from ..wording import gib, quoted
from .report import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..backends.turn import Report
    from ..catalog import ModelEntry

# A right network in four bits may miss one or two. A wrong one writes no sentence.
LEAST_RIGHT = 0.75
QUICK_PROMPTS = 3
OPTIONS = {"seed": 1, "max_tokens": 512}
REPLY_SHOWN = 60


@dataclass(frozen=True)
class Question:
    """A prompt, and what has to be in its reply."""

    text: str
    expected: str
    """Found in the reply, whatever its capitals and commas; with a schema or a tool the JSON of all of it."""
    options: dict[str, Any] = field(default_factory=dict)
    schema: dict[str, Any] | None = None
    tool: llm.Tool | None = None
    has_picture: bool = False
    """A plain red one."""


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
WEATHER = llm.Tool(
    name="weather",
    description="Weather in a city",
    input_schema={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
RED = (200, 30, 30)
ONE_TO_TEN = "1 2 3 4 5 6 7 8 9 10"
ADA = '{"name": "Ada", "age": 36}'
OSLO = '{"city": "Oslo"}'

#: For a network that has read the world. The first few are those of a quick check.
GENERAL = (
    Question("What is the capital of France? Answer in one word.", "Paris"),
    Question("What is 17 + 25? Answer with the number only.", "42"),
    Question("Ada is 36 years old.", ADA, schema=PERSON),
    Question("Count from 1 to 10, with spaces between the numbers and nothing else.", ONE_TO_TEN),
    Question("What is the opposite of hot? Answer in one word.", "cold"),
    Question("Which day comes after Monday? Answer in one word.", "Tuesday"),
    Question("Translate into German: The house is red.", "Haus"),
    Question("Repeat exactly: purple elephant", "purple elephant"),
    Question("What is 12 times 12?", "144", {"thinking": True, "max_tokens": 2048}),
    Question("The film was wonderful. How did I like it?", "well", {"choices": "well,badly"}),
    Question("What is the weather in Oslo? Use the tool.", OSLO, tool=WEATHER),
    Question("What colour is this picture? Answer in one word.", "red", has_picture=True),
)
#: For the embedded checkpoint, which has read its own lessons.
EMBEDDED = (
    Question("What is a canvas?", "256 tokens"),
    Question("What is 12 + 15?", "27"),
    Question("name Ada, age 36", ADA, schema=PERSON),
    Question("Count from 1 to 10", ONE_TO_TEN),
    Question("What is entropy?", "unsure"),
    Question("What is a block?", "finished canvas"),
    Question("My name is Ada.", "Nice to meet you, Ada!"),
    Question("Repeat: green apple", "green apple"),
    Question("What is 12 + 15?", "27", {"thinking": True}),
    Question("What is 5 + 6?", "11", {"choices": "5 + 6 = 12,5 + 6 = 11"}),
    Question("What is the weather in Oslo?", OSLO, tool=WEATHER),
    Question("What colour is this image?", "red", has_picture=True),
)


def ask(entry: ModelEntry, questions: Sequence[Question], describe: Callable[[str], None]) -> Finding:
    """Put questions to a model, and judge what it says. `describe` is told which one is at work."""
    wrong: list[str] = []
    reports: list[Report] = []
    for number, question in enumerate(questions, 1):
        describe(f"Prompt {number} of {len(questions)}")
        try:
            said, report = _reply(entry, question)
        except DiffusionGemmaError as error:
            wrong.append(f"{question.text!r}: {quoted(error)}")
            continue
        reports.append(report)
        if not _is_right(said, question):
            wrong.append(f"{question.text!r}: {quoted(said, REPLY_SHOWN)!r} and not {question.expected!r}")
    right = len(questions) - len(wrong)
    return Finding(
        "prompts",
        "passed" if right >= LEAST_RIGHT * len(questions) else "failed",
        f"{right} of {len(questions)} replies say what they should.",
        [*(f"not as expected: {each}" for each in wrong), *_speed(reports)],
    )


def _reply(entry: ModelEntry, question: Question) -> tuple[str, Report]:
    """What is said, or the arguments of the tool that is called, and how it went."""
    from ..backends.local import LocalReply

    parts: list[Part] = [TextPart(text=question.text)]
    if question.has_picture:
        parts.append(AttachmentPart(attachment=llm.Attachment(type="image/png", content=_red_picture())))
    tools = [] if question.tool is None else [question.tool]
    options = Options(**{**OPTIONS, **question.options})
    turn = Turn([Message(role="user", parts=parts)], options, tools, question.schema)
    reply = LocalReply(entry, turn, ALWAYS_WANTED)
    said = "".join(event.chunk for events in reply.steps() for event in events if event.type == "text")
    calls = reply.tool_calls
    return json.dumps(calls[0].arguments) if calls else said, reply.report


def _red_picture() -> bytes:
    from PIL import Image

    content = io.BytesIO()
    Image.new("RGB", (96, 96), RED).save(content, "PNG")
    return content.getvalue()


def _is_right(said: str, question: Question) -> bool:
    if question.schema is None and question.tool is None:
        return _words(question.expected) in _words(said)
    try:
        return bool(json.loads(said) == json.loads(question.expected))
    except ValueError:
        return False


def _words(text: str) -> str:
    """Without capitals and commas, and with one blank between words."""
    return " ".join(text.replace(",", " ").split()).lower()


def _speed(reports: Sequence[Report]) -> list[str]:
    """By the median reply: one of them imports what pictures need."""
    if not reports:
        return []
    blocks = [block for report in reports for block in report.blocks]
    steps = [sum(block.denoising_steps for block in report.blocks) for report in reports]
    weights = [report.weights for report in reports if report.weights is not None]
    peaks = [each.peak_memory_bytes for each in weights if each.peak_memory_bytes is not None]
    a_step = median(report.generate_seconds / count for report, count in zip(reports, steps, strict=True))
    a_second = median(sum(b.tokens for b in report.blocks) / report.generate_seconds for report in reports)
    return [
        f"{a_step * 1e3:.1f} ms a step, reading the prompt included",
        f"{sum(steps) / len(blocks):.1f} steps a canvas",
        f"{a_second:.1f} tokens a second",
        *(f"{gib(max(peaks))} of memory at the peak" for _ in peaks[:1]),
    ]
