"""What is asked of a model that is measured: replies of several kinds, the same ones every time. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Of a long count that is four canvases, and no reply is longer.
MAX_TOKENS = 1024


@dataclass(frozen=True)
class Kind:
    """A kind of reply."""

    name: str
    text: str
    schema: dict[str, Any] | None = None
    choices: str | None = None
    """Of a decision: what the probabilities are asked of."""

    @property
    def is_free(self) -> bool:
        """Whether the reply may be any text."""
        return self.schema is None and self.choices is None


def _log(days: int) -> str:
    """A weather log to be read, a line for each day."""
    stations = ("Harbour", "Hilltop", "Old Mill", "Lighthouse", "North Gate", "Orchard", "Quarry")
    skies = ("clear", "cloudy", "light rain", "fog", "showers", "overcast")
    lines = (
        f"Day {day}, station {stations[day % 7]}: {7 + day * 37 % 19} degrees, wind {day * 53 % 61} km/h, "
        f"{skies[day * 5 % 6]}."
        for day in range(1, days + 1)
    )
    return "\n".join(lines)


_PEOPLE = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer"},
            "job": {"type": "string"},
            "languages": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["name", "age", "job", "languages"],
    },
}
_PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}

#: For a network that has read the world.
GENERAL = (
    Kind("question", "Why is the sky blue at noon and red in the evening? Answer in two or three sentences."),
    Kind("count", "Write the numbers from 1 to 300 in their order, with single spaces between them, and no more."),
    Kind(
        "code",
        "Write a Python class for a cache that holds the most recently used items up to a fixed number: get, put, "
        "and a count of hits and misses. With type hints, docstrings and three tests.",
    ),
    Kind("story", "Tell a story of about 300 words: a lighthouse keeper finds a letter in a bottle."),
    Kind(
        "reading",
        f"This is a weather log.\n\n{_log(250)}\n\nWhich weather is reported most often? Answer in a sentence.",
    ),
    Kind("schema", "Invent four people who work on a ship.", _PEOPLE),
    Kind(
        "decision",
        "The soup was cold, the waiter forgot us twice, and we stayed until midnight all the same. Was it a good "
        "evening?",
        choices="yes,no,unsure",
    ),
)
#: For the embedded checkpoint, which has read its own lessons.
EMBEDDED = (
    Kind("question", "What is a canvas?"),
    Kind("count", "Count from 1 to 400"),
    Kind("explanation", "Explain how diffusion writes text"),
    # Longer than all that it has learnt: it is for the time that reading takes, not for what it says.
    Kind("reading", f"{'What is a block? ' * 60}What is a canvas?"),
    Kind("schema", "name Ada, age 36", _PERSON),
    Kind("decision", "What is 17 + 25?", choices="41,42,43"),
)
