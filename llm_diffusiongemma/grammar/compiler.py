"""One schema under one set of limits: what is asked of a place, to the language of its values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ConstraintError
from .alternatives import expand
from .dialects import Schema, refs_stand_alone
from .language import NOTHING, Language, StateLimitError, embed, minimal_dfa, unite
from .layout import INDENTED_LEVELS
from .places import Alternative, Conjunction, Limits, Place
from .records import Lowered
from .values import value_language

# Places and choices that are looked at before a schema counts as too large. Each stands for some states.
MAX_VISITS = 1000

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
        self.judges: dict[int, tuple[Schema, Any]] = {}
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
        self.visit()
        free = all(schema is True or schema == {} for schema in conjunction)
        key = (place.free, min(place.nesting, INDENTED_LEVELS))
        if free and key in self.any_value:
            return self.any_value[key]
        branches = [value_language(self, parts, where) for parts, where in self.alternatives(conjunction, place)]
        language = unite(branches)
        if language is NOTHING and self.impossible is None:
            self.impossible = place.path
        if free:
            language = self.any_value[key] = embed(minimal_dfa(language))
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

    def is_valid(self, value: Any, parts: Sequence[Schema]) -> bool:
        """Whether a value fulfils all of these, by the judge of finished replies."""
        return all(part in (True, {}) or self._judge(part).is_valid(value) for part in parts)

    def _judge(self, part: Schema) -> Any:
        known = self.judges.get(id(part))
        if known is None:
            known = self.judges[id(part)] = (part, self.validator.evolve(schema=part))
        return known[1]
