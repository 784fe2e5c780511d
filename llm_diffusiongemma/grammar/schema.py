"""JSON schema → regular language.

Every text of the language is a document that is valid by the schema. The other way round not every valid
document is a text of it: no finite automaton can do all that JSON schema can. Each keyword is enforced, narrowed
to something stricter, or refused by name; docs/schemas.md says which.

A place in a document must fulfil several schemas at once: what stands there, what its $ref and allOf lead to, a
branch of its anyOf. The compiler never merges them into one. It gathers them into a *conjunction* of plain
keyword dictionaries, one for each way through the choices, and reads each keyword from all of them together.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ConstraintError
from .compiler import Compiler
from .dfa import ByteDFA
from .dialects import objects, read_schema
from .fitting import DOCUMENT, fit
from .garbage import without_collecting
from .language import MAX_STATES, StateLimitError, drawn_dfa, embed, unite
from .layout import Layout
from .places import Limits, Place
from .records import Lowered
from .samples import random_texts

# A minimum that is counted by a thousand states, or more.
LARGE_MINIMUM = 100

# So many texts are checked before a model is asked for one.
NUM_SAMPLES = 8

# What takes more than this on one line is written on one line only: with what is indented it would be more than
# twice as much, and every step of a reply pays for that.
MOST_INDENTED_STATES = 6000

# What took more places and choices to be looked at has no room for more documents.
MOST_VISITS_OF_FREER = 300

# What is tried where that leaves room: how much deeper than elsewhere a value of any kind may nest, and how many
# states an object may take for its properties to come in any order.
FREER = ((1, 1024), (0, 1024), (0, 256))

# What comes of trying more than what is known to fit. It takes more of the stack, too.
TOO_MUCH = (StateLimitError, ConstraintError, RecursionError)


@dataclass(frozen=True)
class CompiledSchema:
    """What a reply is held to, and what it is checked by."""

    dfa: ByteDFA
    """Documents that are valid, on one line or, where that fits as well, indented by two."""
    validator: Any
    """Judges a document by other means."""
    lowered: tuple[Lowered, ...]


def schema_language(schema: dict[str, Any] | bool) -> ByteDFA:
    """`compile_schema`'s automaton."""
    return compile_schema(schema).dfa


@without_collecting()
def compile_schema(schema: dict[str, Any] | bool) -> CompiledSchema:
    """The documents that are valid by a schema.

    Raises `ConstraintError` for an invalid schema, one that nothing fulfils, a keyword that can't be guaranteed,
    and a schema that needs too large an automaton.
    """
    validator = read_schema(schema)
    try:
        compiler, dfa = fit(validator)
    except StateLimitError as error:
        raise ConstraintError(
            f"The schema takes {error}{_largest_minimum(schema)}. Use smaller bounds, fewer properties and "
            "choices, or less nesting."
        ) from None
    except RecursionError:
        raise ConstraintError("The schema is nested too deeply. Make it flatter.") from None
    if dfa.dead == 0:
        raise compiler.unsatisfiable()
    dfa, compiler = _freer(dfa, compiler)
    dfa = _with_indented(dfa, validator, compiler.limits)
    _try_out(dfa, validator)
    return CompiledSchema(dfa, validator, (*compiler.lowered.values(), *compiler.ended.values()))


def _freer(kept: ByteDFA, compiler: Compiler) -> tuple[ByteDFA, Compiler]:
    """More documents than the limits keep, and what compiles them, if there is room for both layouts.

    Of smaller objects the properties come in any order, of all others in that of the schema's text.
    """
    limits = compiler.limits
    if len(kept.accepting) <= MOST_INDENTED_STATES and compiler.visits <= MOST_VISITS_OF_FREER:
        for deeper, order in FREER:
            if deeper and "nesting" not in compiler.ended:
                continue
            freer = replace(limits, nesting=limits.nesting + deeper, order=order)
            with contextlib.suppress(*TOO_MUCH):
                another = Compiler(compiler.validator, freer, Layout.ONE_LINE)
                language = another.language(DOCUMENT, Place())
                # What is larger may leave less room for what its items have to be told apart by.
                if another.lowered == compiler.lowered:
                    return drawn_dfa(language, MOST_INDENTED_STATES), another
    return kept, compiler


def _with_indented(on_one_line: ByteDFA, validator: Any, limits: Limits) -> ByteDFA:
    """The documents on one line, and the indented ones, if there is room for both."""
    if len(on_one_line.accepting) > MOST_INDENTED_STATES:
        return on_one_line
    try:
        indented = Compiler(validator, limits, Layout.INDENTED).language(DOCUMENT, Place())
        return drawn_dfa(unite([embed(on_one_line), indented]), MAX_STATES)
    except TOO_MUCH:
        # What fits on one line, properties kept different for one, may be too much indented.
        return on_one_line


def _try_out(dfa: ByteDFA, validator: Any) -> None:
    """Holds some texts against the validator. It should never find anything; here that costs no reply."""
    for text in random_texts(dfa, NUM_SAMPLES):
        try:
            fault = None if validator.is_valid(json.loads(text)) else "is not valid by it"
        except ConstraintError:
            # The validator came by a pattern that can't be read, in a branch that this text is none of.
            continue
        except Exception as error:  # whatever it is, the reply would meet it as well
            fault = f"can't be checked ({type(error).__name__}: {error})"
        if fault is not None:
            raise ConstraintError(
                f"The schema can't be guaranteed: the text {text[:100].decode(errors='replace')!r}, which ought "
                f"to be valid by it, {fault[:100]}. That is a bug of llm-diffusiongemma: please report the schema."
            )


def _largest_minimum(schema: Any) -> str:
    """The largest bound in a schema that can't be lowered, as part of a sentence, if it may well be the cause."""
    keywords = ("minLength", "minItems", "minProperties")
    found = [
        (node[keyword], keyword)
        for node in objects(schema)
        for keyword in keywords
        if isinstance(node.get(keyword), int | float) and node[keyword] >= LARGE_MINIMUM
    ]
    largest = max(found, default=None)
    return "" if largest is None else f" (it has a {largest[1]} of {largest[0]:,})"
