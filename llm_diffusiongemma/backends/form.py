"""What a reply is held to: a JSON schema, a regular expression, a choice of texts or a text with blanks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..chat.texts import is_text
from ..errors import ConstraintError
from ..wording import quoted

if TYPE_CHECKING:
    from ..grammar.blanks import BlankText
    from ..grammar.dfa import ByteDFA
    from ..grammar.records import Lowered
    from ..grammar.schema import CompiledSchema
    from .turn import ChoicesReport

# nats. Of what a network would write less than this is next to nothing: docs/canvas.md has what was measured.
LEAST_LOG_MASS = -16.0


@dataclass(frozen=True)
class Form:
    """The texts that a reply can be."""

    language: ByteDFA
    request: str
    """What the prompt says of it: a constraint only re-weights what the model would write anyhow."""
    is_met: Callable[[str], bool]
    """Whether a text is of this form, by other means than `language`."""
    lowered: tuple[Lowered, ...] = ()
    """What the form allows, and the reply won't have."""
    choices: tuple[str, ...] = ()
    """What it is one of, if it is one of several texts."""
    blanks: BlankText | None = None
    """What it fills, if it is a text with blanks."""

    def check(self, text: str) -> None:
        """Raises `ConstraintError` for a finished reply that is not what was promised."""
        if not self.is_met(text):
            raise ConstraintError(
                f"The reply does not have the form that it was held to. That is a bug of llm-diffusiongemma: "
                f"please report it with the prompt, the seed and this text: {text!r}"
            )


@dataclass(frozen=True)
class Question:
    """Texts of which each is to get its probability."""

    choices: tuple[str, ...]
    request: str
    """What the prompt says of it: without it hardly any of what the model would write falls on them."""


def read_form(
    schema: dict[str, Any] | None, regex: str | None, choices: str | None, fill: str | None = None
) -> Form | None:
    """The form that a request asks for, if it asks for any.

    Raises `ConstraintError` if it asks for several, or for one that can't be guaranteed.
    """
    _check_one(schema=schema, regex=regex, choices=choices, fill=fill)
    if schema is not None:
        return _json(schema)
    if regex is not None:
        return _matching(regex)
    if choices is not None:
        return _one_of(choices)
    return None if fill is None else _filled(fill)


def read_question(schema: dict[str, Any] | None, regex: str | None, choices: str, fill: str | None) -> Question:
    """The choices whose probabilities a request asks for. Raises `ConstraintError` if there can be none."""
    from ..grammar.choices import check_sizes
    from ..grammar.pattern import check_choices

    _check_one(schema=schema, regex=regex, choices=choices, fill=fill)
    texts = _choices(choices)
    check_choices(texts)
    check_sizes([each.encode() for each in texts])
    if len(texts) == 1:
        raise ConstraintError(
            f"A decision needs two choices at least, and {quoted(repr(texts[0]), 60)} is one. Name another, as "
            "with -o choices 'yes,no'."
        )
    return Question(tuple(texts), choices_request(texts))


def _check_one(**asked: object) -> None:
    names = [name for name, value in asked.items() if value is not None]
    if len(names) > 1:
        raise ConstraintError(f"A reply can have one form only, but {' and '.join(names)} were given. Keep one.")


def _json(schema: dict[str, Any]) -> Form:
    from ..grammar.habits import unwrapped

    compiled = _compiled(schema)

    def is_valid(text: str) -> bool:
        try:
            document = json.loads(text)
        except ValueError:
            return False
        try:
            return bool(compiled.validator.is_valid(document))
        except Exception:
            # A validator that breaks down has said nothing about the reply, which the automaton knows.
            return compiled.dfa.accepts(text.encode())

    return Form(compiled.dfa, json_request(unwrapped(schema)), is_valid, compiled.lowered)


def _compiled(schema: dict[str, Any]) -> CompiledSchema:
    from ..grammar.schema import compile_schema

    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return compile_schema(schema)  # which says what is wrong with it
    return _compiled_text(text)


@lru_cache(maxsize=8)
def _compiled_text(schema: str) -> CompiledSchema:
    """Each turn of a conversation comes with the same schema; a large one takes a second."""
    from ..grammar.schema import compile_schema

    return compile_schema(json.loads(schema))


def lowered_note(lowered: Sequence[Lowered]) -> str:
    """For people: what a reply keeps to although its schema allows more."""
    asked: dict[tuple[str, int], list[int]] = {}
    for each in lowered:
        asked.setdefault((each.keyword, each.given), []).extend([] if each.asked is None else [each.asked])
    changes = [
        f"{keyword} {', '.join(map(str, sorted(values))) or 'without end'} → {given}"
        for (keyword, given), values in asked.items()
    ]
    return f"The reply keeps to less than the schema allows: {'; '.join(changes)}."


def mass_note(choices: ChoicesReport) -> str | None:
    """For people: that probabilities say little, where the model would hardly have written any of the choices."""
    if choices.reads is None or choices.log_mass >= LEAST_LOG_MASS:
        return None
    return (
        f"The choices are hardly what the model would write (e^{choices.log_mass:.0f} of it), so their order says "
        "little: ask so that one of them is the whole answer."
    )


def json_request(schema: dict[str, Any]) -> str:
    """What a prompt says that is to be answered by a schema."""
    text = json.dumps(schema, ensure_ascii=False)
    # Half a surrogate pair is valid in JSON, but no text can be made of it.
    return f"Answer in JSON by this schema: {text if is_text(text) else json.dumps(schema)}"


def _matching(pattern: str) -> Form:
    from ..grammar.pattern import regex_language

    if not pattern:
        raise ConstraintError("The regular expression is empty, and a reply can't be. Say what it should match.")
    if not is_text(pattern):
        raise ConstraintError("The regular expression holds bytes that are no valid UTF-8. Convert it first.")
    language = regex_language(pattern)
    request = f"Answer with a text that matches this regular expression: {pattern}"

    return Form(language, request, lambda text: language.accepts(text.encode()))


def _one_of(text: str) -> Form:
    from ..grammar.pattern import choices_language

    choices = _choices(text)
    request = choices_request(choices)
    return Form(choices_language(choices), request, choices.__contains__, choices=tuple(choices))


def _choices(text: str) -> list[str]:
    if not is_text(text):
        raise ConstraintError("The choices hold bytes that are no valid UTF-8. Convert them first.")
    return parse_choices(text)


def choices_request(choices: Sequence[str]) -> str:
    """What a prompt says that is to be answered by one of several texts."""
    return f"Answer with one of: {', '.join(choices)}"


def parse_choices(text: str) -> list[str]:
    """`yes,no` or, where a choice has a comma in it, a JSON list of strings. Raises `ConstraintError`."""
    if not text.lstrip().startswith("["):
        return [choice.strip() for choice in text.split(",")] if text.strip() else []
    try:
        choices = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConstraintError(f"The choices begin like a JSON list, but are none: {error}.") from error
    if not all(isinstance(choice, str) for choice in choices):
        raise ConstraintError('Choices are texts: give a JSON list of strings, such as ["1", "2"].')
    return list(choices)


def _filled(text: str) -> Form:
    from ..grammar.blanks import parse_blanks

    blanks = parse_blanks(text)
    request = f"Answer with this text, its blanks filled in: {blanks}"
    return Form(blanks.language(), request, lambda filled: blanks.read(filled) is not None, blanks=blanks)
