"""A dozen prompts, and what a right network says to them: short, of every kind that a reply may be of."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import llm

from ..errors import DiffusionGemmaError
from ..wording import gib, quoted
from .report import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..catalog import ModelEntry

# A right network in four bits may miss one or two. A wrong one writes no sentence.
LEAST_RIGHT = 0.75
QUICK_PROMPTS = 3
SEED = 1
MAX_TOKENS = 512
REPLY_SHOWN = 60


@dataclass(frozen=True)
class Question:
    """A prompt, and what has to be in its reply."""

    text: str
    expected: str
    """Found in the reply, whatever its capitals; of a JSON object all of it; of a tool's call its arguments."""
    kind: str = "text"
    """"text", "json", "tool" or "image" """
    more: dict[str, Any] = field(default_factory=dict)
    """Arguments of llm's `prompt`."""


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
# An image's colour, by RGB.
RED = (200, 30, 30)
ONE_TO_TEN = "1 2 3 4 5 6 7 8 9 10"

#: For a network that has read the world. The first few are those of a quick check.
GENERAL = (
    Question("What is the capital of France? Answer in one word.", "Paris"),
    Question("What is 17 + 25? Answer with the number only.", "42"),
    Question("Ada is 36 years old.", '{"name": "Ada", "age": 36}', "json", {"schema": PERSON}),
    Question("Count from 1 to 10, with spaces between the numbers and nothing else.", ONE_TO_TEN),
    Question("What is the opposite of hot? Answer in one word.", "cold"),
    Question("Which day comes after Monday? Answer in one word.", "Tuesday"),
    Question("Translate into German: The house is red.", "Haus"),
    Question("Repeat exactly: purple elephant", "purple elephant"),
    Question("What is 12 times 12? Think first.", "144", more={"thinking": True}),
    Question("The film was wonderful. How did I find it?", "good", more={"choices": "good,bad"}),
    Question("What is the weather in Oslo? Use the tool.", '{"city": "Oslo"}', "tool", {"tools": [WEATHER]}),
    Question("What colour is this picture? Answer in one word.", "red", "image"),
)
#: For the embedded checkpoint, which has read its own lessons.
EMBEDDED = (
    Question("What is a canvas?", "256 tokens"),
    Question("What is 12 + 15?", "27"),
    Question("name Ada, age 36", '{"name": "Ada", "age": 36}', "json", {"schema": PERSON}),
    Question("Count from 1 to 10", ONE_TO_TEN),
    Question("What is entropy?", "unsure"),
    Question("What is a block?", "finished canvas"),
    Question("My name is Ada.", "Nice to meet you, Ada!"),
    Question("Repeat: green apple", "green apple"),
    Question("What is 12 + 15?", "27", more={"thinking": True}),
    Question("What is 3 + 4?", "7", more={"choices": "3 + 4 = 7,3 + 4 = 8"}),
    Question("What is the weather in Oslo?", '{"city": "Oslo"}', "tool", {"tools": [WEATHER]}),
    Question("What colour is this image?", "red", "image"),
)


def ask(entry: ModelEntry, questions: Sequence[Question], describe: Callable[[str], None]) -> Finding:
    """Put questions to a model, and judge what it says. `describe` is told which one is at work."""
    from ..models import DiffusionGemma

    model = DiffusionGemma(entry)
    wrong: list[str] = []
    seconds, steps, tokens, blocks, peak_bytes = 0.0, 0, 0, 0, 0
    for number, question in enumerate(questions, 1):
        describe(f"Prompt {number} of {len(questions)}")
        try:
            response = model.prompt(question.text, **_arguments(question))
            said = _said(response, question)
        except DiffusionGemmaError as error:
            wrong.append(f"{question.text!r}: {quoted(error)}")
            continue
        if not _is_right(said, question):
            wrong.append(f"{question.text!r}: {quoted(said, REPLY_SHOWN)!r} and not {question.expected!r}")
        reported = response.response_json or {}
        for block in reported.get("blocks", []):
            seconds += block["seconds"]
            steps += block["denoising_steps"]
            tokens += block["tokens"]
            blocks += 1
        peak_bytes = max(peak_bytes, reported.get("peak_memory_bytes") or 0)
    right = len(questions) - len(wrong)
    passed = right >= LEAST_RIGHT * len(questions)
    figures = [f"not as expected: {each}" for each in wrong]
    if steps:
        figures.append(f"{seconds * 1e3 / steps:.1f} ms a step, {steps / blocks:.1f} steps a canvas")
        figures.append(f"{tokens / seconds:.1f} tokens a second, with what reads the prompts and the first step")
    if peak_bytes:
        figures.append(f"memory at the peak: {gib(peak_bytes)}")
    says = f"{right} of {len(questions)} replies say what they should."
    return Finding("prompts", "passed" if passed else "failed", says, figures)


def _arguments(question: Question) -> dict[str, Any]:
    arguments = {"seed": SEED, "max_tokens": MAX_TOKENS, **question.more}
    if question.kind != "image":
        return arguments
    from PIL import Image

    content = io.BytesIO()
    Image.new("RGB", (96, 96), RED).save(content, "PNG")
    return {**arguments, "attachments": [llm.Attachment(type="image/png", content=content.getvalue())]}


def _said(response: Any, question: Question) -> str:
    text: str = response.text()
    if question.kind != "tool":
        return text
    calls = response.tool_calls()
    return json.dumps(calls[0].arguments) if calls else text


def _is_right(said: str, question: Question) -> bool:
    if question.kind in ("json", "tool"):
        try:
            return bool(json.loads(said) == json.loads(question.expected))
        except ValueError:
            return False
    return _words(question.expected) in _words(said)


def _words(text: str) -> str:
    """Without capitals and commas, and with one blank between words."""
    return " ".join(text.replace(",", " ").split()).lower()
