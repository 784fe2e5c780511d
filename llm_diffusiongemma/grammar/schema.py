"""JSON schema → regular language.

Every text of the language is a document that is valid by the schema. The other way round not every valid
document is a text of it: no finite automaton can do all that JSON schema can. Each keyword is enforced, narrowed
to something stricter, or refused by name; docs/schemas.md says which.

A place in a document must fulfil several schemas at once: what stands there, what its $ref and allOf lead to, a
branch of its anyOf. `_Compiler` never merges them into one. It gathers them into a *conjunction* of plain
keyword dictionaries, one for each way through the choices, and reads each keyword from all of them together.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any

from ..errors import ConstraintError
from . import scalars
from .dfa import ByteDFA
from .dialects import Part, Schema, objects, read_schema, refs_stand_alone, refuse, resolve
from .language import (
    ALL_BYTES,
    EMPTY_TEXT,
    MAX_STATES,
    NOTHING,
    Language,
    Literal,
    OneByte,
    Repetition,
    Separated,
    StateLimitError,
    byte_range,
    byte_set,
    concatenate,
    embed,
    intersection,
    minimal_dfa,
    optional,
    same_language,
    unite,
)
from .pattern import is_found
from .records import Lowered
from .samples import random_texts

Conjunction = tuple[Schema, ...]
Alternative = tuple[Part, ...]

# Places and choices that are looked at before a schema counts as too large. Each stands for some states.
MAX_VISITS = 1000

# So many texts are checked before a model is asked for one.
NUM_SAMPLES = 8

# How often two ways through the choices are held against each other.
MAX_COMPARISONS = 10_000

# Keywords that jsonschema reads together with another one.
_READ_BESIDE = {"then", "else", "minContains", "maxContains", "exclusiveMinimum", "exclusiveMaximum"}

# Arrays and objects deeper than this stand on one line.
INDENTED_LEVELS = 6

# Multiples are counted by a state for each remainder.
MAX_MULTIPLE = 2000

TYPES = frozenset(("null", "boolean", "integer", "number", "string", "array", "object"))
SCALARS = TYPES - {"array", "object"}

# By type: what can't be narrowed to anything useful.
_REFUSED = {
    None: ("if",),
    "array": ("maxContains",),
}

# What these lead to is among the parts of every alternative.
_IN_PLACE = ("$ref", "allOf", "anyOf")

# In which order `uniqueItems` wants the first characters of strings and integers: the members of a row don't
# come twice. A letter's two cases are one member.
_FIRST_CHARACTERS = {
    "string": [
        byte_set(b'"'),
        byte_range(0, ord("A") - 1) & ~byte_set(b'"'),
        *(byte_set((letter, letter + 32)) for letter in range(ord("A"), ord("Z") + 1)),
        ALL_BYTES & ~byte_range(0, ord("Z")) & ~byte_range(ord("a"), ord("z")),
    ],
    "integer": [byte_set(b"-"), *(byte_set((digit,)) for digit in b"0123456789")],
}


@dataclass(frozen=True)
class Limits:
    """How much of an endless language is kept.

    - `depth`: how often a $ref may lead into itself, and how deep a value of any kind nests;
    - `length`: the longest string (code points) where a `maxLength` has to be counted at all;
    - `count`: the most items or properties where a maximum has to be counted at all;
    - `name`: the longest host name, and the longest name before the @ of an e-mail address.
    """

    depth: int
    length: int
    count: int
    name: int


# Tried in this order until the automaton is small enough.
LIMITS = (
    Limits(3, 256, 64, scalars.LONGEST_NAME),
    Limits(2, 128, 24, 48),
    Limits(2, 64, 12, 32),
    Limits(1, 32, 6, 24),
)


@dataclass(frozen=True)
class _Choice:
    """A value must fulfil one of the branches; exactly one where it is `exclusive` (oneOf)."""

    branches: tuple[Schema, ...]
    exclusive: bool = False


# What a place must fulfil besides.
_Pending = Schema | _Choice


@dataclass(frozen=True)
class _Place:
    """Where in a document we are.

    - `path`: for people; `$` is the document;
    - `nesting`: how many arrays and objects are open;
    - `free`: how many of them stand where the schema says nothing;
    - `references`: the $refs that led here; `here`: those that have been followed at this place.
    """

    path: str = "$"
    nesting: int = 0
    free: int = 0
    references: tuple[str, ...] = ()
    here: tuple[str, ...] = ()

    def inside(self, name: str, conjunction: Conjunction) -> _Place:
        """The place of a member or item."""
        return replace(
            self,
            path=self.path + name,
            nesting=self.nesting + 1,
            free=self.free + (not conjunction),
            references=self.references + self.here,
            here=(),
        )


@dataclass(frozen=True)
class CompiledSchema:
    """What a reply is held to, and what it is checked by."""

    dfa: ByteDFA
    """Documents that are valid, with `json.dumps`' separators, without spaces or indented by two."""
    validator: Any
    """Judges a document by other means."""
    lowered: tuple[Lowered, ...]


def schema_language(schema: dict[str, Any] | bool) -> ByteDFA:
    """`compile_schema`'s automaton."""
    return compile_schema(schema).dfa


def compile_schema(schema: dict[str, Any] | bool) -> CompiledSchema:
    """The documents that are valid by a schema.

    Raises `ConstraintError` for an invalid schema, one that nothing fulfils, a keyword that can't be guaranteed,
    and a schema that needs too large an automaton.
    """
    validator = read_schema(schema)
    for limits in LIMITS:
        compiler = _Compiler(validator, limits)
        try:
            dfa = minimal_dfa(compiler.language(({"$ref": "#"},), _Place()))
        except StateLimitError:
            continue
        except RecursionError:
            raise ConstraintError("The schema is nested too deeply. Make it flatter.") from None
        if dfa.dead == 0:
            raise compiler.unsatisfiable()
        _try_out(dfa, validator)
        return CompiledSchema(dfa, validator, tuple(compiler.lowered.values()))
    raise ConstraintError(
        f"The schema needs an automaton of more than {MAX_STATES:,} states{_largest_counter(schema)}. Use smaller "
        "bounds, fewer properties and choices, or less nesting."
    )


def _try_out(dfa: ByteDFA, validator: Any) -> None:
    """Holds some texts against the validator. It should never find anything; here that costs no reply."""
    for text in random_texts(dfa, NUM_SAMPLES):
        try:
            fault = None if validator.is_valid(json.loads(text)) else "is not valid by it"
        except Exception as error:  # whatever it is, the reply would meet it as well
            fault = f"can't be checked ({type(error).__name__}: {error})"
        if fault is not None:
            raise ConstraintError(
                f"The schema can't be guaranteed: the text {text[:100].decode(errors='replace')!r}, which ought "
                f"to be valid by it, {fault[:100]}. That is a bug of llm-diffusiongemma: please report the schema."
            )


def _largest_counter(schema: Any) -> str:
    """The largest bound in a schema that has to be counted up to, as part of a sentence."""
    counters = ("minLength", "minItems", "minProperties", "maxLength", "maxItems", "maxProperties", "multipleOf")
    found = [
        (node[name], name)
        for node in objects(schema)
        for name in counters
        if isinstance(node.get(name), int | float)
    ]
    largest = max(found, default=(1, ""))
    return f" (its largest counter is {largest[1]} {largest[0]})" if largest[1] else ""


class _Compiler:
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
        self.known: dict[Any, tuple[Conjunction, list[tuple[Alternative, _Place]], int]] = {}
        self.obeyed = _READ_BESIDE | set(validator.VALIDATORS)
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

    def _lower(self, keyword: str, asked: int, given: int, place: _Place) -> None:
        if given < asked:
            self.lowered.setdefault((keyword, asked, given), Lowered(keyword, asked, given, place.path))

    # The conjunctions of a place

    def language(self, conjunction: Conjunction, place: _Place) -> Language:
        """The texts of the values that fulfil all schemas of a conjunction."""
        self._visit()
        free = all(schema is True or schema == {} for schema in conjunction)
        key = (place.free, min(place.nesting, INDENTED_LEVELS))
        if free and key in self.any_value:
            return self.any_value[key]
        branches = [self._value(parts, where) for parts, where in self._alternatives(conjunction, place)]
        language = unite(branches)
        if language is NOTHING and self.impossible is None:
            self.impossible = place.path
        if free:
            language = self.any_value[key] = embed(minimal_dfa(language))
        return language

    def _visit(self) -> None:
        self.visits += 1
        if self.visits > MAX_VISITS:
            raise StateLimitError

    def _alternatives(self, conjunction: Conjunction, place: _Place) -> list[tuple[Alternative, _Place]]:
        """The ways to fulfil a conjunction, each as keyword dictionaries without choices left to make."""
        key = (tuple(map(id, conjunction)), place)
        if key not in self.known:
            cuts = self.cuts
            found = self._expand(conjunction, (), place)
            self.known[key] = (conjunction, found, self.cuts - cuts)
        else:
            self.cuts += self.known[key][2]
        return self.known[key][1]

    def _expand(
        self, pending: Sequence[_Pending], parts: Alternative, place: _Place
    ) -> list[tuple[Alternative, _Place]]:
        """The ways to fulfil `parts` and what is pending."""
        self._visit()
        if not pending:
            return [(parts, place)]
        first, *rest = pending
        if isinstance(first, _Choice):
            return self._choose(first, rest, parts, place)
        if first is False:
            return []
        if first is True:
            return self._expand(rest, parts, place)
        assert isinstance(first, dict)
        if "$ref" in first:
            reference = first["$ref"]
            if place.references.count(reference) >= self.limits.depth:
                self.cuts += 1
                self._lower("recursion", LIMITS[0].depth, self.limits.depth, place)
                return []
            if reference not in place.here:
                place = replace(place, here=(*place.here, reference))
            rest = [resolve(self.root, reference)[-1], *rest]
            if self.refs_stand_alone:
                return self._expand(rest, parts, place)
        # What another draft knows is a comment in this one.
        first = {keyword: value for keyword, value in first.items() if keyword in self.obeyed}
        parts = (*parts, first)
        if not _types(parts):
            return []
        # Choices come last: what is the same in all branches is then looked at once.
        return self._expand([*first.get("allOf", ()), *rest, *_choices(first)], parts, place)

    def _choose(
        self, choice: _Choice, rest: list[_Pending], parts: Alternative, place: _Place
    ) -> list[tuple[Alternative, _Place]]:
        found = []
        for index, branch in enumerate(choice.branches):
            others = choice.branches[:index] + choice.branches[index + 1 :]
            for alternative, where in self._expand([branch, *rest], parts, place):
                if choice.exclusive and _values(alternative) is None:
                    # A list of values is checked value by value, this keyword included.
                    for other in others:
                        alternative = self._exclude(other, alternative, place)
                found.append((alternative, where))
        return found

    def _exclude(self, other: Schema, parts: Alternative, place: _Place) -> Alternative:
        """`parts`, strengthened where needed so that nothing that fulfils them fulfils the other branch."""
        cuts = self.cuts
        for rival, _ in self._alternatives((other,), place):
            if self._disjoint(parts, rival, place):
                continue
            exclusion = self._exclusion(parts, rival, place)
            if exclusion is None:
                raise self._refused("oneOf", "its branches may both be fulfilled", place, "Use anyOf")
            parts = (*parts, exclusion)
        if self.cuts != cuts:
            raise self._refused("oneOf", "its branches recurse before they can be told apart", place, "Use anyOf")
        return parts

    def _exclusion(self, parts: Alternative, rival: Alternative, place: _Place) -> Part | None:
        """What an object must or must not have, so that it fulfils `parts` and not the rival; None if nothing."""
        if _types(parts) != {"object"}:
            return None
        declared = _declared(parts)
        missing = [name for name in _required(rival) if name not in _required(parts)]
        for name in missing:
            if name not in declared:
                return {"properties": {name: False}}
        for name in declared:
            if self._disjoint((*parts, {"required": [name]}), rival, place):
                return {"required": [name]}
        return {"properties": {missing[0]: False}} if missing else None

    def _disjoint(self, one: Alternative, two: Alternative, place: _Place) -> bool:
        """Whether it is certain that no value fulfils both."""
        self.comparisons += 1
        if self.comparisons > MAX_COMPARISONS:
            raise StateLimitError
        for first, second in ((one, two), (two, one)):
            values = _values(first)
            if values is not None:
                # What these lead to stands among the parts; the oneOf in question would exclude the value itself.
                plain = [_without(part, *_IN_PLACE, "oneOf") for part in (*first, *second)]
                return not any(self._valid(each, plain) for value in values for each in _spellings(value))
        return all(self._disjoint_as(kind, one, two, place) for kind in _types(one) & _types(two))

    def _disjoint_as(self, kind: str, one: Alternative, two: Alternative, place: _Place) -> bool:
        for first, second in ((one, two), (two, one)):
            if kind in ("integer", "number"):
                high, low = _bounds(first)[1], _bounds(second)[0]
                if high is not None and low is not None and high < low:
                    return True
            if kind == "array" and _most(first, "maxItems", math.inf) < _least(second, "minItems"):
                return True
            if kind == "string" and _most(first, "maxLength", math.inf) < _least(second, "minLength"):
                return True
            if kind == "object":
                for name in _required(first):
                    there, here = self._member(second, name, place), self._member(first, name, place)
                    inside = place.inside(f".{name}", here)
                    if there and all(
                        self._disjoint(a, b, inside)
                        for (a, _), (b, _) in itertools.product(
                            self._alternatives(here, inside), self._alternatives(there, inside)
                        )
                    ):
                        return True
        return False

    def _valid(self, value: Any, parts: Sequence[Schema]) -> bool:
        return all(part in (True, {}) or self.validator.evolve(schema=part).is_valid(value) for part in parts)

    def _refused(self, keyword: str, reason: str, place: _Place, way_out: str = "Leave it out") -> ConstraintError:
        return refuse(keyword, reason, place.path, way_out)

    # The values of a conjunction

    def _value(self, parts: Alternative, place: _Place) -> Language:
        values = _values(parts)
        if values is not None:
            # Where the values come from they need not be looked up again, nor what stands among the parts itself.
            first = next(part for part in parts if "enum" in part or "const" in part)
            source = "const" if "const" in first else "enum"
            others = [_without(part, *_IN_PLACE, *([source] if part is first else [])) for part in parts]
            return unite([self._literal(value) for value in values if self._valid(value, others)])
        types = _types(parts)
        if place.free >= self.limits.depth and types - SCALARS:
            types &= SCALARS
            self._lower("nesting", LIMITS[0].depth, self.limits.depth, place)
        for kind, keywords in _REFUSED.items():
            for keyword in keywords:
                if (kind is None or kind in types) and any(keyword in part for part in parts):
                    raise self._refused(keyword, "no finite automaton does it in general", place)
        if any(_excluded_types(part) is None for part in parts):
            raise self._refused("not", "only types, and values out of a list, can be excluded", place)
        branches: list[Language] = []
        if "null" in types:
            branches.append(Literal(b"null"))
        if "boolean" in types:
            branches.append(unite([Literal(b"true"), Literal(b"false")]))
        if types & {"integer", "number"}:
            branches.append(self._number(parts, "number" in types, place))
        if "string" in types:
            branches.append(self._string(parts, place))
        if "array" in types:
            branches.append(self._array(parts, place))
        if "object" in types:
            branches.append(self._object(parts, place))
        return unite(branches)

    def _literal(self, value: Any) -> Language:
        try:
            return Literal(scalars.json_text(value))
        except ValueError:
            return NOTHING

    def _number(self, parts: Alternative, fractions: bool, place: _Place) -> Language:
        low, high, above, below = _bounds(parts)
        multiple = self._multiple(parts, place)
        if fractions and multiple == 1 and not any("multipleOf" in part for part in parts):
            if (low, high, above, below) == (None, None, None, None):
                return scalars.number()
            largest = 10**scalars.SIGNIFICANT_DIGITS
            if any(bound is not None and bound >= largest for bound in (low, above)) or any(
                bound is not None and bound <= -largest for bound in (high, below)
            ):
                raise self._refused("minimum or maximum", "it leaves only numbers of 16 digits or more", place)
            return scalars.bounded_number(low, above, high, below)
        lows = [math.ceil(low)] if low is not None else []
        lows += [math.floor(above) + 1] if above is not None else []
        highs = [math.floor(high)] if high is not None else []
        highs += [math.ceil(below) - 1] if below is not None else []
        if any(isinstance(part.get("multipleOf"), float) for part in parts):
            # Larger ones are rounded before they are divided.
            largest = 10**scalars.SIGNIFICANT_DIGITS - 1
            if max(lows, default=0) > largest or min(highs, default=0) < -largest:
                reason = "floating point, which a factor with a point means, is exact up to 15 digits only"
                raise self._refused("multipleOf", reason, place)
            lows, highs = [*lows, -largest], [*highs, largest]
        if any(abs(bound) >= 10**300 for bound in lows + highs):
            raise self._refused("minimum or maximum", "it has more than 300 digits", place)
        try:
            return scalars.integer(max(lows, default=None), min(highs, default=None), multiple)
        except StateLimitError:
            raise self._refused("multipleOf", "it needs too large an automaton", place) from None

    def _multiple(self, parts: Alternative, place: _Place) -> int:
        """The integer of which all numbers are made multiples."""
        multiple = 1
        for part in parts:
            if "multipleOf" not in part:
                continue
            factor = part["multipleOf"]
            exact = Fraction(str(factor))
            # Multiples of p/q that are integers: those of p. jsonschema divides in floating point, which is exact
            # for integers if the double next to p/q is so near that the quotient is rounded back.
            error = abs(Fraction(factor) / exact - 1)
            if exact.numerator > MAX_MULTIPLE or error > Fraction(1, 1 << 54) or exact.denominator > 1000:
                raise self._refused("multipleOf", f"{factor} is no factor that can be counted by", place)
            multiple = math.lcm(multiple, exact.numerator)
        if multiple > MAX_MULTIPLE:
            raise self._refused("multipleOf", "the common multiple is too large to be counted by", place)
        return multiple

    def _string(self, parts: Alternative, place: _Place) -> Language:
        least = _least(parts, "minLength")
        asked = _most(parts, "maxLength", None)
        most = None if asked is None else min(asked, max(least, self.limits.length))
        if most is not None and most < least:
            return NOTHING
        if least > MAX_STATES:
            raise self._refused("minLength", f"{least:,} is too much to be counted", place)
        patterns = frozenset(part["pattern"] for part in parts if "pattern" in part)
        formats = frozenset(part["format"] for part in parts if part.get("format") in scalars.FORMATS)
        try:
            text = scalars.string(least, most, patterns, formats, self.limits.name)
        except ConstraintError as error:
            raise ConstraintError(f"The keyword pattern at {place.path} can't be guaranteed: {error}") from None
        if asked is not None and most is not None and most < asked:
            unbounded = scalars.string(least, None, patterns, formats, self.limits.name)
            if not same_language(text, unbounded):
                self._lower("maxLength", asked, most, place)
        for name in sorted(formats & scalars.FORMATS_WITH_NAMES):
            self._lower(f"format {name}", LIMITS[0].name, self.limits.name, place)
        return text

    # Arrays

    def _array(self, parts: Alternative, place: _Place) -> Language:
        least = _least(parts, "minItems")
        asked = _most(parts, "maxItems", None)
        contained: Conjunction = ()
        for part in parts:
            needed = _min_contains(part)
            if needed > 0:
                # They come first.
                if contained and needed != 1:
                    raise self._refused("minContains", "it stands beside another contains", place)
                contained = (*contained, part["contains"])
        leading = max(map(_min_contains, parts), default=0)
        least = max(least, leading)
        if least > MAX_STATES:
            raise self._refused("minItems", f"{least:,} is too much to be counted", place)
        most = None if asked is None else min(asked, max(least, self.limits.count))
        if most is not None and most < least:
            return NOTHING
        if any(part.get("uniqueItems") for part in parts) and most not in (0, 1):
            return self._unique_array(parts, least, asked, most, place)
        fixed = max([leading, *(len(_prefix(part)) for part in parts)])
        rest = self._item(parts, fixed, place) if most is None or most > fixed else NOTHING
        if asked is not None and most is not None and (rest is not NOTHING or most < fixed):
            self._lower("maxItems", asked, most, place)
        comma, opening, closing = _gaps(place.nesting)
        if fixed == 0:
            items: Language = Separated((), rest, comma, least, most)
        else:
            more = None if most is None else max(0, most - fixed)
            items = Repetition(concatenate(comma, rest), max(0, least - fixed), more)
            if rest is NOTHING:
                items = EMPTY_TEXT if least <= fixed else NOTHING
            for index in reversed(range(fixed if most is None else min(fixed, most))):
                item = self._item(parts, index, place, contained if index < leading else ())
                items = concatenate(comma, item, items) if index else concatenate(item, items)
                if index >= least:
                    items = EMPTY_TEXT if items is NOTHING else optional(items)
        if items is NOTHING:
            return NOTHING
        return concatenate(Literal(b"["), opening, items, closing, Literal(b"]"))

    def _item(self, parts: Alternative, index: int, place: _Place, extra: Conjunction = ()) -> Language:
        conjunction = _item_schemas(parts, index) + extra
        for part in parts:
            if "unevaluatedItems" in part and not any(
                index < len(_prefix(beside)) or _other_items(beside) is not None
                for beside in self._in_place(part, parts, place)
            ):
                conjunction = (*conjunction, part["unevaluatedItems"])
        return self.language(conjunction, place.inside("[]", conjunction))

    def _unique_array(
        self, parts: Alternative, least: int, asked: int | None, most: int | None, place: _Place
    ) -> Language:
        """Arrays whose items come in one fixed order, which keeps them different from each other."""
        if any(_prefix(part) or "contains" in part or "unevaluatedItems" in part for part in parts):
            raise self._refused("uniqueItems", "it stands beside prefixItems, contains or unevaluatedItems", place)
        conjunction = _item_schemas(parts, 0)
        inside = place.inside("[]", conjunction)
        members: list[Language] = []
        alternatives = self._alternatives(conjunction, inside)
        kinds = frozenset[str]().union(*(_types(alternative) for alternative, _ in alternatives))
        listed = [_values(alternative) for alternative, _ in alternatives]
        if kinds <= {"null", "boolean"}:
            listed = [[None, False, True]]
        if None not in listed:
            # By Python's equality, which is coarser than JSON schema's: 1 is True.
            distinct: dict[Any, Any] = {}
            for value in itertools.chain(*(values for values in listed if values is not None)):
                if self._valid(value, conjunction):
                    distinct.setdefault(_frozen(value), value)
            members = [self._literal(value) for value in distinct.values()]
        elif kinds <= {"string"} or kinds <= {"integer"}:
            kind = next(iter(kinds))
            members = list(_by_first_character(kind, self.language(conjunction, inside)))
        elif least > 1:
            raise self._refused("uniqueItems", "items of this kind can't be kept different", place)
        else:
            members = [self.language(conjunction, inside)]
        if asked is not None and most is not None and most < len(members):
            self._lower("maxItems", asked, most, place)
        comma, opening, closing = _gaps(place.nesting)
        items = Separated(tuple((member, False) for member in members), None, comma, least, most)
        return concatenate(Literal(b"["), opening, items, closing, Literal(b"]"))

    # Objects

    def _object(self, parts: Alternative, place: _Place) -> Language:
        least = _least(parts, "minProperties")
        most = _most(parts, "maxProperties", None)
        required = _required(parts)
        names = _declared(parts) | required
        if names:
            members: list[tuple[Language, bool]] = []
            for name in names:
                conjunction = self._member(parts, name, place)
                value = self.language(conjunction, place.inside(f".{name}", conjunction))
                if value is NOTHING and name in required:
                    return NOTHING
                key = scalars.json_text(name)
                members.append((concatenate(Literal(key + b":"), _SPACE, value), name in required))
            rest = None
            most = None if most is None or most >= len(members) else most
            # Counting is free where it can't matter.
            least = 0 if least <= len(required) else least
            if least > len(members):
                raise self._refused("minProperties", "there are fewer properties than it demands", place)
        else:
            members = []
            rest = self._entry(parts, place)
            if least > 1:
                raise self._refused("minProperties", "names that the schema doesn't list may repeat", place)
            if most is not None:
                asked, most = most, min(most, max(least, self.limits.count))
                self._lower("maxProperties", asked, most, place)
        if most is not None and most < least:
            return NOTHING
        comma, opening, closing = _gaps(place.nesting)
        content = Separated(tuple(members), rest, comma, least, most)
        return concatenate(Literal(b"{"), opening, content, closing, Literal(b"}"))

    def _member(self, parts: Alternative, name: str, place: _Place) -> Conjunction:
        """What the value of a property must fulfil."""
        schemas: list[Schema] = []
        for part in parts:
            found = [schema for pattern, schema in _patterns(part).items() if is_found(pattern, name)]
            if name in part.get("properties", {}):
                found.append(part["properties"][name])
            if not found and "additionalProperties" in part:
                found.append(part["additionalProperties"])
            if "propertyNames" in part and not self._valid(name, [part["propertyNames"]]):
                found.append(False)
            if "unevaluatedProperties" in part and not any(
                name in beside.get("properties", {})
                or self._takes_additional_properties(beside)
                or any(is_found(pattern, name) for pattern in _patterns(beside))
                for beside in self._in_place(part, parts, place)
            ):
                found.append(part["unevaluatedProperties"])
            schemas += found
        return tuple(schemas)

    def _takes_additional_properties(self, part: Part) -> bool:
        """Whether a property that a schema doesn't list counts as evaluated by it."""
        others = part.get("additionalProperties", False)
        # In draft 2019-09 jsonschema overlooks a schema there. What is written must be valid to it as well.
        return others is True if "additionalItems" in self.obeyed else others is not False

    def _in_place(self, part: Part, parts: Alternative, place: _Place) -> list[Part]:
        """Those of `parts` that `part` itself leads to, which is what its `unevaluated...` keywords look at."""
        return [
            beside
            for alternative, _ in self._alternatives((part,), place)
            if all(beside in parts for beside in alternative)
            for beside in alternative
        ]

    def _entry(self, parts: Alternative, place: _Place) -> Language:
        """A property of an object whose properties the schema doesn't list."""
        keys: list[Schema] = [{"type": "string"}, *(p["propertyNames"] for p in parts if "propertyNames" in p)]
        values: list[Schema] = []
        for part in parts:
            patterns = _patterns(part)
            if len(patterns) > 1:
                raise self._refused("patternProperties", "a name may match several of its patterns", place)
            if patterns:
                [(pattern, schema)] = patterns.items()
                keys.append({"pattern": pattern})
                values.append(schema)
            elif "additionalProperties" in part:
                values.append(part["additionalProperties"])
            if "unevaluatedProperties" in part:
                values.append(part["unevaluatedProperties"])
        inside = place.inside(".*", tuple(values))
        value = self.language(tuple(values), inside)
        if value is NOTHING:
            return NOTHING
        return concatenate(self.language(tuple(keys), inside), Literal(b":"), _SPACE, value)


@lru_cache(maxsize=64)
def _by_first_character(kind: str, item: Language) -> tuple[Language, ...]:
    """The texts of strings or integers in groups that have none in common. Raises `StateLimitError`."""
    dfa = minimal_dfa(item)
    quote = Literal(b'"' if kind == "string" else b"")
    anything = Repetition(OneByte(ALL_BYTES), 0, None)
    groups = [minimal_dfa(concatenate(quote, OneByte(first), anything)) for first in _FIRST_CHARACTERS[kind]]
    return tuple(embed(intersection(dfa, group)) for group in groups)


_SPACE = optional(Literal(b" "))


def _gaps(nesting: int) -> tuple[Language, Language, Language]:
    """The separator, what follows the opening and what precedes the closing bracket of an array or object.

    On one line with or without spaces, or on lines of their own that are indented by two spaces a level.
    """
    if nesting >= INDENTED_LEVELS:
        return concatenate(Literal(b","), _SPACE), EMPTY_TEXT, EMPTY_TEXT
    inner, outer = b"\n" + b"  " * (nesting + 1), b"\n" + b"  " * nesting
    comma = concatenate(Literal(b","), unite([_SPACE, Literal(inner)]))
    return comma, optional(Literal(inner)), optional(Literal(outer))


# Keywords, read from all parts of a conjunction


def _without(part: Part, *keywords: str) -> Part:
    return {keyword: value for keyword, value in part.items() if keyword not in keywords}


def _choices(part: Part) -> Iterator[_Choice]:
    """The choices that a schema leaves."""
    if "anyOf" in part:
        yield _Choice(tuple(part["anyOf"]))
    if "oneOf" in part:
        yield _Choice(tuple(part["oneOf"]), exclusive=len(part["oneOf"]) > 1)
    conditions = [part.get(keyword, {}) for keyword in ("dependentRequired", "dependentSchemas", "dependencies")]
    for name, consequence in itertools.chain(*(each.items() for each in conditions)):
        if isinstance(consequence, str):
            consequence = [consequence]
        if isinstance(consequence, list):
            consequence = {"required": [name, *consequence]}
        absent = {"properties": {name: False}}
        yield _Choice((absent, {"allOf": [{"required": [name]}, consequence]}))


def _spellings(value: Any) -> Iterator[Any]:
    """A value, and the same in other numbers: 1 and 1.0 are equal, but of two types in draft 4."""
    yield value
    yield _with_numbers(value, lambda number: int(number) if float(number).is_integer() else number)
    yield _with_numbers(value, float)


def _with_numbers(value: Any, change: Callable[[float], float]) -> Any:
    if isinstance(value, list):
        return [_with_numbers(item, change) for item in value]
    if isinstance(value, dict):
        return {name: _with_numbers(item, change) for name, item in value.items()}
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    try:
        return change(value)
    except OverflowError:  # an integer that no double holds
        return value


def _types(parts: Sequence[Part]) -> frozenset[str]:
    """The types that a value may have. Of a number that may have a fraction both number and integer are."""
    types = TYPES
    for part in parts:
        if "type" in part:
            named = frozenset([part["type"]] if isinstance(part["type"], str) else part["type"])
            types &= named | {"integer"} if "number" in named else named
        types -= _excluded_types(part) or frozenset()
    return types


def _excluded_types(part: Part) -> frozenset[str] | None:
    """What `not` excludes; None if that is more than types."""
    excluded = part.get("not", False)
    if excluded is False:
        return frozenset()
    if excluded is True or excluded.keys() - {"title", "description", "$comment"} != {"type"}:
        return None
    types = frozenset([excluded["type"]] if isinstance(excluded["type"], str) else excluded["type"])
    if "number" in types:
        return types | {"integer"}
    return None if "integer" in types else types


def _values(parts: Sequence[Part]) -> list[Any] | None:
    """The values that an enum or const leaves, not yet held against the other keywords; None without either."""
    for part in parts:
        if "const" in part:
            return [part["const"]]
        if "enum" in part:
            return list(part["enum"])
    return None


def _frozen(value: Any) -> Any:
    """What is equal for equal JSON values, and can be looked up."""
    if isinstance(value, dict):
        return frozenset((name, _frozen(item)) for name, item in value.items())
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _min_contains(part: Part) -> int:
    return int(part.get("minContains", 1)) if "contains" in part else 0


def _least(parts: Sequence[Part], keyword: str) -> int:
    return max((int(part[keyword]) for part in parts if keyword in part), default=0)


def _most(parts: Sequence[Part], keyword: str, default: Any) -> Any:
    return min((int(part[keyword]) for part in parts if keyword in part), default=default)


def _bounds(parts: Sequence[Part]) -> tuple[Decimal | None, Decimal | None, Decimal | None, Decimal | None]:
    """The strictest minimum, maximum, exclusiveMinimum and exclusiveMaximum."""
    found: dict[str, list[Decimal]] = {}
    for part in parts:
        for inclusive, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            strict = part.get(exclusive, False)
            if inclusive in part:
                # Draft 4 says by a boolean that the bound itself is excluded.
                found.setdefault(exclusive if strict is True else inclusive, []).append(_decimal(part[inclusive]))
            if not isinstance(strict, bool):
                found.setdefault(exclusive, []).append(_decimal(strict))
    return (
        max(found.get("minimum", ()), default=None),
        min(found.get("maximum", ()), default=None),
        max(found.get("exclusiveMinimum", ()), default=None),
        min(found.get("exclusiveMaximum", ()), default=None),
    )


def _decimal(bound: float) -> Decimal:
    # By its text, not its double: 0.1 must not exclude what is written 0.1.
    return Decimal(repr(bound))


def _prefix(part: Part) -> list[Schema]:
    """The schemas of the first items; before 2020-12 a list under `items`."""
    items = part.get("items")
    prefix: list[Schema] = items if isinstance(items, list) else part.get("prefixItems", [])
    return prefix


def _item_schemas(parts: Sequence[Part], index: int) -> Conjunction:
    """What the item at an index must fulfil."""
    schemas: list[Schema] = []
    for part in parts:
        prefix = _prefix(part)
        others = _other_items(part)
        if index < len(prefix):
            schemas.append(prefix[index])
        elif others is not None:
            schemas.append(others)
    return tuple(schemas)


def _other_items(part: Part) -> Schema | None:
    """The schema of the items that follow the first ones."""
    others: Schema | None = part.get("additionalItems" if isinstance(part.get("items"), list) else "items")
    return others


def _required(parts: Sequence[Part]) -> dict[str, None]:
    """The names of the properties that must be there, in order."""
    names: dict[str, None] = {}
    for part in parts:
        names |= dict.fromkeys(part.get("required", ()))
    return names


def _declared(parts: Sequence[Part]) -> dict[str, None]:
    """The names of the properties that the schemas list, in their order."""
    names: dict[str, None] = {}
    for part in parts:
        names |= dict.fromkeys(part.get("properties", {}))
    return names


def _patterns(part: Part) -> dict[str, Schema]:
    patterns: dict[str, Schema] = part.get("patternProperties", {})
    return patterns
