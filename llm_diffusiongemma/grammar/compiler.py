"""One schema under one set of limits: what is asked of a place, to the language of its values."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..errors import ConstraintError
from .alternatives import expand
from .dialects import Schema, references, refs_stand_alone, resolve
from .language import NOTHING, Language, StateLimitError, embed, minimal_dfa, unite
from .layout import INDENTED_LEVELS
from .places import Alternative, Conjunction, Limits, Place
from .records import Lowered
from .values import value_language

# Places and choices that are looked at before a schema counts as too large. Each stands for some states.
MAX_VISITS = 5000

# Keywords that jsonschema reads together with another one.
READ_BESIDE = {"then", "else", "minContains", "maxContains", "exclusiveMinimum", "exclusiveMaximum"}


class Compiler:
    """One schema under one set of limits."""

    def __init__(self, validator: Any, limits: Limits) -> None:
        self.validator = validator
        self.root: Schema = validator.schema
        self.limits = limits
        self.visits = 0
        self.comparisons = 0
        # How often recursion was cut, and the first place where nothing is possible.
        self.cuts = 0
        self.impossible: str | None = None
        self.lowered: dict[tuple[str, int, int], Lowered] = {}
        # By identity, of which the first value of each entry takes care: as long as it lives no other has it.
        self.known: dict[Any, tuple[Conjunction, list[tuple[Alternative, tuple[str, ...]]], int]] = {}
        self.languages: dict[Any, tuple[Conjunction, Language]] = {}
        self.met: dict[int, tuple[Schema, frozenset[str]]] = {}
        self.met_behind: dict[str, frozenset[str]] = {}
        self.obeyed = READ_BESIDE | set(validator.VALIDATORS)
        self.refs_stand_alone = refs_stand_alone(validator)
        if self.refs_stand_alone:
            self.obeyed -= {"minContains", "maxContains"}

    def unsatisfiable(self) -> ConstraintError:
        """Why the language is empty."""
        if self.cuts:
            return ConstraintError(
                f"The schema's recursion has no end within a depth of {self.limits.depth}: each level demands the "
                "next one. Make the property that leads on optional, or let it be null or an empty list."
            )
        return ConstraintError(
            f"Nothing that can be guaranteed fulfils the schema at {self.impossible or '$'}. Look there for "
            "keywords that contradict each other."
        )

    def lower(self, keyword: str, asked: int, given: int, place: Place) -> None:
        """Note that a maximum is held to less than what the schema asks for."""
        if given < asked:
            self.lowered.setdefault((keyword, asked, given), Lowered(keyword, asked, given, place.path))

    def language(self, conjunction: Conjunction, place: Place) -> Language:
        """The texts of the values that fulfil all schemas of a conjunction."""
        free = all(schema is True or schema == {} for schema in conjunction)
        key = () if free else tuple(map(id, conjunction)), self._what_matters(conjunction, place)
        if key in self.languages:
            return self.languages[key][1]
        self.visit()
        branches = [value_language(self, parts, where) for parts, where in self.alternatives(conjunction, place)]
        language = unite(branches)
        if language is NOTHING and self.impossible is None:
            self.impossible = place.path
        if free:
            language = embed(minimal_dfa(language))
        self.languages[key] = (conjunction, language)
        return language

    def _what_matters(self, conjunction: Conjunction, place: Place) -> tuple[Any, ...]:
        """What the language of a place depends on besides its schemas.

        A reference that led here matters where it may be met again.
        """
        passed = Counter((*place.references, *place.here))
        if passed:
            again = frozenset[str]().union(*map(self._references, conjunction))
            passed = Counter({reference: passed[reference] for reference in passed if reference in again})
        return min(place.nesting, INDENTED_LEVELS), place.free, place.here, frozenset(passed.items())

    def _references(self, schema: Schema) -> frozenset[str]:
        """The references that can be met at a schema's place and further inside, directly or by way of others."""
        if id(schema) not in self.met:
            found = references(schema)
            self.met[id(schema)] = schema, found.union(*map(self._references_behind, found))
        return self.met[id(schema)][1]

    def _references_behind(self, reference: str) -> frozenset[str]:
        if reference not in self.met_behind:
            seen: set[str] = set()
            stack = [reference]
            while stack:
                # An example may have a "$ref" that leads nowhere.
                with contextlib.suppress(ConstraintError):
                    fresh = references(resolve(self.root, stack.pop())[-1]) - seen
                    seen |= fresh
                    stack += fresh
            self.met_behind[reference] = frozenset(seen)
        return self.met_behind[reference]

    def visit(self) -> None:
        """Count one more place or choice. Raises `StateLimitError` if there are too many."""
        self.visits += 1
        if self.visits > MAX_VISITS:
            raise StateLimitError(f"more than {MAX_VISITS:,} places and choices to be looked at")

    def alternatives(self, conjunction: Conjunction, place: Place) -> list[tuple[Alternative, Place]]:
        """The ways to fulfil a conjunction, each as keyword dictionaries without choices left to make."""
        key = tuple(map(id, conjunction)), self._what_matters(conjunction, place)
        if key not in self.known:
            cuts = self.cuts
            found = [(parts, where.here) for parts, where in expand(self, conjunction, (), place)]
            self.known[key] = (conjunction, found, self.cuts - cuts)
        else:
            self.cuts += self.known[key][2]
        return [(parts, replace(place, here=here)) for parts, here in self.known[key][1]]

    def is_valid(self, value: Any, parts: Sequence[Schema]) -> bool:
        """Whether a value fulfils all of these, by the judge of finished replies."""
        return all(part in (True, {}) or self.validator.evolve(schema=part).is_valid(value) for part in parts)
