"""One schema under one set of limits: what is asked of a place, to the language of its values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

from ..errors import ConstraintError
from .alternatives import expand, independent
from .dialects import Schema, refs_stand_alone
from .language import NOTHING, Language, StateLimitError, embed, intersection, minimal_dfa, unite
from .layout import INDENTED_LEVELS
from .negation import negate
from .places import Alternative, Conjunction, Limits, Place, refused
from .records import Lowered
from .values import value_language

# Places and choices that are looked at before a schema counts as too large. Each stands for some states.
MAX_VISITS = 1000

# What leaves several ways, of which one that is refused is left out.
CHOICES = ("anyOf", "oneOf", "if", "not")

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
        self.any_value: dict[tuple[int, int], Language] = {}
        # By identity, of which the first value of each entry takes care: as long as it lives no other has it.
        self.known: dict[Any, tuple[Conjunction, list[tuple[Alternative, Place]], int]] = {}
        # Likewise: the complement of a schema among objects of some properties, and the values of properties.
        self.complements: dict[tuple[int, tuple[str, ...]], tuple[Schema, list[Schema]]] = {}
        self.settled: dict[tuple[int, ...], tuple[Conjunction, list[Any] | None]] = {}
        # The first place where each branch of a oneOf is part of the others.
        self.exhausted: Place | None = None
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
        if self.exhausted is not None:
            return refused(
                "oneOf",
                "what fulfils one of its branches fulfils another one as well",
                self.exhausted,
                "Use anyOf",
            )
        return ConstraintError(
            f"Nothing that can be guaranteed fulfils the schema at {self.impossible or '$'}. Look there for "
            "keywords that contradict each other."
        )

    def lower(self, keyword: str, asked: int, given: int, place: Place) -> None:
        """Note that a maximum is held to less than what the schema asks for."""
        if given < asked and not place.spare:
            self.lowered.setdefault((keyword, asked, given), Lowered(keyword, asked, given, place.path))

    def language(self, conjunction: Conjunction, place: Place) -> Language:
        """The texts of the values that fulfil all schemas of a conjunction."""
        self.visit()
        free = all(schema is True or schema == {} for schema in conjunction)
        key = (place.free, min(place.nesting, INDENTED_LEVELS))
        if free and key in self.any_value:
            return self.any_value[key]
        groups = () if free else independent(self, conjunction, place)
        if groups:
            ways = [minimal_dfa(self._any_way(group, place)) for group in groups]
            language = embed(reduce(intersection, ways))
        else:
            language = self._any_way(self.alternatives(conjunction, place), place)
        if language is NOTHING and self.impossible is None:
            self.impossible = place.path
        if free:
            language = self.any_value[key] = embed(minimal_dfa(language))
        return language

    def _any_way(self, ways: Sequence[tuple[Alternative, Place]], place: Place) -> Language:
        """The values of all ways. One that is refused is left out if there are others."""
        found: list[Language] = []
        refusals: list[tuple[ConstraintError, Alternative]] = []
        for parts, where in ways:
            lowered = dict(self.lowered)
            try:
                found.append(value_language(self, parts, where))
            except ConstraintError as error:
                self.lowered = lowered
                refusals.append((error, parts))
        language = unite(found)
        if not refusals:
            return language
        refusal, parts = refusals[0]
        if language is NOTHING:
            raise refusal
        keyword = next((each for each in CHOICES if any(each in part for part in parts)), CHOICES[0])
        self.lower(keyword, len(ways), len(found), place)
        return language

    def visit(self) -> None:
        """Count one more place or choice. Raises `StateLimitError` if there are too many."""
        self.visits += 1
        if self.visits > MAX_VISITS:
            raise StateLimitError

    def alternatives(self, conjunction: Conjunction, place: Place) -> list[tuple[Alternative, Place]]:
        """The ways to fulfil a conjunction, each as keyword dictionaries without choices left to make."""
        key = (tuple(map(id, conjunction)), place)
        if key not in self.known:
            cuts = self.cuts
            found = expand(self, conjunction, (), place)
            self.known[key] = (conjunction, found, self.cuts - cuts)
        else:
            self.cuts += self.known[key][2]
        return self.known[key][1]

    def complement(self, schema: Schema, names: tuple[str, ...]) -> list[Schema]:
        """What the schema does not take, for objects of these properties: see `negate`."""
        key = (id(schema), names)
        if key not in self.complements:
            self.complements[key] = (schema, negate(self, schema, names))
        return self.complements[key][1]

    def is_valid(self, value: Any, parts: Sequence[Schema]) -> bool:
        """Whether a value fulfils all of these, by the judge of finished replies."""
        return all(part in (True, {}) or self.validator.evolve(schema=part).is_valid(value) for part in parts)
