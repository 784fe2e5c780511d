"""One schema under one set of limits: what is asked of a place, to the language of its values."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

from ..errors import ConstraintError
from .alternatives import expand, independent
from .dfa import ByteDFA
from .dialects import Schema, refs_stand_alone
from .language import NOTHING, Language, StateLimitError, embed, intersection, minimal_dfa, unite
from .layout import Layout
from .negation import negate
from .places import Alternative, Aside, Conjunction, Limits, Place, refused
from .records import Lowered
from .recursion import ranks, references
from .references import resolve
from .values import value_language

# Places and choices that are looked at before a schema counts as too large. Each stands for some states.
MAX_VISITS = 5000

# Where something can still be lowered there is no point in so many.
MAX_VISITS_OF_TRY = 3000

# What is made of automata, by their difference and intersection, takes so many states for as long as one place.
MADE_STATES_OF_VISIT = 8

# What leaves several ways, of which one that is refused is left out.
CHOICES = ("anyOf", "oneOf", "if", "not")

# Keywords that jsonschema reads together with another one.
READ_BESIDE = {"then", "else", "minContains", "maxContains", "exclusiveMinimum", "exclusiveMaximum"}


class Compiler:
    """One schema under one set of limits, in one layout."""

    def __init__(self, validator: Any, limits: Limits, layout: Layout, max_visits: int = MAX_VISITS) -> None:
        self.validator = validator
        self.root: Schema = validator.schema
        self.limits = limits
        self.layout = layout
        self.visits = 0
        self.max_visits = max_visits
        self.comparisons = 0
        # How often recursion was cut, and the first place where nothing is possible.
        self.cuts = 0
        self.impossible: str | None = None
        self.lowered: dict[tuple[str, int | None, int], Lowered] = {}
        # What has no end in the schema and was given as much as anything is.
        self.ended: dict[str, Lowered] = {}
        # By identity, of which the first value of each entry takes care: as long as it lives no other has it.
        self.known: dict[Any, tuple[Conjunction, list[tuple[Alternative, Place]], int]] = {}
        self.languages: dict[Any, tuple[Conjunction, Language]] = {}
        self.ranks = ranks(self.root)
        self.met: dict[int, tuple[Schema, frozenset[int]]] = {}
        self.met_behind: dict[str, frozenset[int]] = {}
        self.judges: dict[int, tuple[Schema, Any]] = {}
        # Of scalars, by the schema's identity, which `judges` takes care of.
        self.verdicts: dict[tuple[int, type, Any], bool] = {}
        # Likewise: the complement of a schema among objects of some properties, and the values of properties.
        self.complements: dict[tuple[int, tuple[str, ...]], tuple[Schema, list[Schema]]] = {}
        self.settled: dict[tuple[int, ...], tuple[Conjunction, list[Any] | None]] = {}
        # What has been made of automata and counted.
        self.paid: set[Any] = set()
        self.both: dict[tuple[ByteDFA, ByteDFA], ByteDFA] = {}
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

    def end(self, keyword: str, given: int, place: Place) -> None:
        """Note where what has no end in the schema is given one."""
        end = Lowered(keyword, None, given, place.path)
        if place.spare:
            return
        if end.by_size:
            self.lowered.setdefault((keyword, None, given), end)
        else:
            self.ended.setdefault(keyword, end)

    def language(self, conjunction: Conjunction, place: Place) -> Language:
        """The texts of the values that fulfil all schemas of a conjunction."""
        free = all(schema is True or schema == {} for schema in conjunction)
        key = () if free else tuple(map(self._identity, conjunction)), self._what_matters(conjunction, place)
        if key in self.languages:
            return self.languages[key][1]
        self.visit()
        visits = self.visits
        groups = () if free else independent(self, conjunction, place)
        if groups:
            language = embed(reduce(self._in_both, [self._made(self._any_way(group, place)) for group in groups]))
        else:
            # What has been looked at in vain is looked at once more, and counted then.
            self.visits = visits
            language = self._any_way(self.alternatives(conjunction, place), place)
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
        passed = place.passed
        if passed:
            again = frozenset[int]().union(*map(self._groups, conjunction))
            passed = tuple(each for each in passed if each.group in again)
        level = self.layout.level(place.nesting)
        return level, place.free, place.here, place.entered, place.spare, passed

    def _identity(self, schema: Schema) -> int | str:
        """What is the same for schemas that ask for the same: by the reference where that is all there is."""
        if isinstance(schema, bool | Aside) or "$ref" not in schema:
            return id(schema)
        alone = self.refs_stand_alone or schema.keys() & self.obeyed == {"$ref"}
        reference: str = schema["$ref"]
        return reference if alone else id(schema)

    def _groups(self, schema: Schema) -> frozenset[int]:
        """The groups of references that can be met at a schema's place and further inside, directly or not."""
        if id(schema) not in self.met:
            found = set(references(schema))
            own = frozenset(self.ranks[reference].group for reference in found if reference in self.ranks)
            self.met[id(schema)] = schema, own.union(*map(self._groups_behind, found))
        return self.met[id(schema)][1]

    def _groups_behind(self, reference: str) -> frozenset[int]:
        if reference not in self.met_behind:
            seen: set[str] = set()
            stack = [reference]
            while stack:
                # An example may have a "$ref" that leads nowhere.
                with contextlib.suppress(ConstraintError):
                    fresh = set(references(resolve(self.root, stack.pop())[-1])) - seen
                    seen |= fresh
                    stack += fresh
            self.met_behind[reference] = frozenset(
                self.ranks[reference].group for reference in seen if reference in self.ranks
            )
        return self.met_behind[reference]

    def _any_way(self, ways: Sequence[tuple[Alternative, Place]], place: Place) -> Language:
        """The values of all ways. One that is refused is left out if there are others."""
        found: list[Language] = []
        refusals: list[tuple[ConstraintError, Alternative]] = []
        for parts, where in ways:
            lowered, ended = dict(self.lowered), dict(self.ended)
            try:
                found.append(value_language(self, parts, where))
            except ConstraintError as error:
                self.lowered, self.ended = lowered, ended
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

    def _made(self, language: Language) -> ByteDFA:
        dfa = minimal_dfa(language)
        self.made(dfa, dfa.dead)
        return dfa

    def _in_both(self, first: ByteDFA, second: ByteDFA) -> ByteDFA:
        # Strings of the same pattern are the same automaton, in whatever place.
        if (first, second) not in self.both:
            self.both[first, second] = intersection(first, second)
        both = self.both[first, second]
        self.made(both, both.dead)
        return both

    def visit(self) -> None:
        """Count one more place or choice. Raises `StateLimitError` if there are too many."""
        self.visits += 1
        self._check_visits()

    def _check_visits(self) -> None:
        if self.visits > self.max_visits:
            raise StateLimitError(f"more than {self.max_visits:,} places and choices to be looked at")

    def made(self, what: Any, states: int) -> None:
        """Count the states of what is made before anything is drawn, once for the same `what`.

        Raises `StateLimitError` if there are too many.
        """
        if what not in self.paid:
            self.paid.add(what)
            self.visits += states // MADE_STATES_OF_VISIT
            self._check_visits()

    def alternatives(self, conjunction: Conjunction, place: Place) -> list[tuple[Alternative, Place]]:
        """The ways to fulfil a conjunction, each as keyword dictionaries without choices left to make."""
        key = tuple(map(self._identity, conjunction)), self._what_matters(conjunction, place)
        if key not in self.known:
            cuts = self.cuts
            self.known[key] = (conjunction, expand(self, conjunction, (), place), self.cuts - cuts)
        else:
            self.cuts += self.known[key][2]
        return [
            (parts, replace(place, here=where.here, entered=where.entered)) for parts, where in self.known[key][1]
        ]

    def complement(self, schema: Schema, names: tuple[str, ...]) -> list[Schema]:
        """What the schema does not take, for objects of these properties: see `negate`."""
        key = (id(schema), names)
        if key not in self.complements:
            self.complements[key] = (schema, negate(self, schema, names))
        return self.complements[key][1]

    def is_valid(self, value: Any, parts: Sequence[Schema]) -> bool:
        """Whether a value fulfils all of these, by the judge of finished replies."""
        return all(part in (True, {}) or self._fulfils(value, part) for part in parts)

    def _fulfils(self, value: Any, part: Schema) -> bool:
        if isinstance(value, list | dict):
            return bool(self._judge(part).is_valid(value))
        key = id(part), type(value), value
        if key not in self.verdicts:
            self.verdicts[key] = bool(self._judge(part).is_valid(value))
        return self.verdicts[key]

    def _judge(self, part: Schema) -> Any:
        known = self.judges.get(id(part))
        if known is None:
            known = self.judges[id(part)] = (part, self.validator.evolve(schema=part))
        return known[1]
