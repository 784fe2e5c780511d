"""How much of a schema's endless language is kept, so that its automaton is small enough.

Nothing is lowered if everything fits. Else what is far beyond use goes first, then recursion, then what people
notice (`places.LIMITS` has the order); and then each kind of maximum is raised again as far as there is room, for
it may be another one that took it.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import fields, replace
from functools import cached_property
from typing import Any, NamedTuple

from ..errors import ConstraintError
from .compiler import MAX_VISITS, MAX_VISITS_OF_TRY, Compiler
from .dfa import ByteDFA
from .dialects import objects
from .formats import LONGEST_NAMES
from .language import (
    MAX_DRAWN_STATES,
    MAX_ESTIMATED_STATES,
    MAX_STATES,
    Drawn,
    Language,
    StateLimitError,
    estimated_states,
)
from .layout import Layout
from .places import LIMITS, Conjunction, Limits, Place

DOCUMENT: Conjunction = ({"$ref": "#"},)

# Each denoising step pays for states, and so does who waits for the compiler. A schema that says more than anybody
# writes (`maxLength: 100000`) gets so many for it, one whose maxima are of use so many, and one of which nothing
# has to be lowered so many. What is left is for schemas that are large whatever is lowered.
GENEROUS_STATES = 1 << 14
USEFUL_STATES = 1 << 15
WHOLE_STATES = 3 << 14

# What is beyond any of these is beyond use.
USEFUL = Limits(depth=3, nesting=3, length=1024, count=128, name=63, others=1500, distinct=4096)

# Where strings are this short already, the schema itself is what is large.
SHORT = 128

# What holds so many schemas is rather too large than not, so that is looked at first.
LARGE = 200

# States drawn in all tries together, and places looked at, each for so many, before no more is raised again.
MAX_STATES_OF_TRIES = 3 << 16
STATES_OF_VISIT = 50

# The limit that a lowered keyword is held to, in the order in which they are raised again.
_LIMIT_OF = {
    "length": ("maxLength",),
    "count": ("maxItems", "maxProperties"),
    "depth": ("recursion",),
    "distinct": ("uniqueItems",),
    "nesting": ("nesting",),
    "name": ("format",),
}


class _Found(NamedTuple):
    limits: Limits
    compiler: Compiler
    drawn: Drawn


class _Tries:
    """Attempts at one schema. The same is not tried twice, nor more than what has been too much."""

    def __init__(self, validator: Any) -> None:
        self.validator = validator
        self.work = 0
        self.most = _most_that_matters(validator.schema)
        self.compiled: dict[Limits, tuple[Compiler, Language]] = {}
        self.failed: list[tuple[Limits, int]] = []
        # As many states are drawn under the tightest limits, if that is known.
        self.least = 0

    @cached_property
    def tightest(self) -> tuple[Compiler, Language, Drawn]:
        """What is hopeless under the tightest limits is so under all others. Merging seldom takes half of it away.

        Raises `StateLimitError`.
        """
        compiler, language = self.compile(LIMITS[-1])
        drawn = Drawn(language, 2 * MAX_STATES)
        self.least = drawn.num_states
        return compiler, language, drawn

    def compile(self, limits: Limits) -> tuple[Compiler, Language]:
        """Raises `StateLimitError`."""
        limits = self.that_matter(limits)
        if limits not in self.compiled:
            last = limits == self.that_matter(LIMITS[-1])
            most = MAX_VISITS if last else MAX_VISITS_OF_TRY
            compiler = Compiler(self.validator, limits, Layout.ONE_LINE, most)
            try:
                self.compiled[limits] = compiler, compiler.language(DOCUMENT, Place())
            finally:
                self.work += compiler.visits * STATES_OF_VISIT
        return self.compiled[limits]

    def fit(self, limits: Limits) -> _Found | None:
        """What is kept within limits, if it is small enough by what is drawn of it."""
        most = _most_states(limits)
        mattering = self.that_matter(limits)
        if self.least > max(most, WHOLE_STATES):
            self.work += most
            return None
        if any(_is_within(each, mattering) and most <= tried for each, tried in self.failed):
            return None
        states = MAX_STATES
        try:
            compiler, language = self.compile(limits)
            if not compiler.lowered and not compiler.cuts:
                most = WHOLE_STATES
            states = most
            drawn = Drawn(language, most)
            states = drawn.num_states
        except StateLimitError:
            self.failed.append((mattering, states))
            return None
        finally:
            self.work += states
        return _Found(limits, compiler, drawn)

    def that_matter(self, limits: Limits) -> Limits:
        """The same without what nothing in the schema goes beyond: those that are equal then keep the same."""
        return replace(limits, **{name: min(getattr(limits, name), most) for name, most in self.most.items()})


def _most_that_matters(schema: Any) -> dict[str, int]:
    """Up to where a limit makes any difference to a schema. One is left where there is nothing to limit."""
    bounds: dict[str, list[int]] = {"length": [1], "count": [1]}
    said: set[str] = set()
    for node in objects(schema):
        said |= node.keys()
        if any(node.get("format") == each for each in LONGEST_NAMES):
            said.add("name")
        for name, keywords in (
            ("length", ("minLength", "maxLength")),
            ("count", ("minItems", "maxItems", "minProperties", "maxProperties")),
        ):
            asked = (node.get(keyword) for keyword in keywords)
            bounds[name] += [math.ceil(each) for each in asked if isinstance(each, int | float) and each < 1 << 30]
            # A minimum of one more is what the complement of a maximum comes to, and the other way round.
    most = {name: max(each) + 1 for name, each in bounds.items()}
    if "uniqueItems" not in said:
        most["distinct"] = 1
    if "$ref" not in said:
        most["depth"] = 1
    if "name" not in said:
        most["name"] = 1
    return most


def _is_within(limits: Limits, others: Limits) -> bool:
    return all(getattr(limits, each.name) <= getattr(others, each.name) for each in fields(Limits))


def _most_states(limits: Limits) -> int:
    """How many states a schema gets of which these limits have lowered something."""
    if any(getattr(limits, name) > getattr(USEFUL, name) for name in _LIMIT_OF):
        return GENEROUS_STATES
    return USEFUL_STATES if limits.length > SHORT else MAX_STATES


def fit(validator: Any) -> tuple[Compiler, ByteDFA]:
    """The largest part of a schema's language that has an automaton. Raises `StateLimitError` if none has."""
    tries = _Tries(validator)
    if sum(1 for _ in objects(validator.schema)) >= LARGE:
        with contextlib.suppress(ConstraintError):  # others may have room for what the tightest refuse
            _ = tries.tightest
    found = tries.fit(LIMITS[0])
    if found is None:
        compiler, language, tightest = tries.tightest
        if tries.least <= MAX_STATES:
            found = _first_that_fits(tries)
        if found is None:
            # What is drawn may be more than what comes of it ...
            _check_estimate(language)
            return compiler, tightest.dfa()
        found = _raised(tries, found)
    # ... or less.
    with contextlib.suppress(StateLimitError):
        return found.compiler, found.drawn.dfa()
    compiler, language = tries.compile(LIMITS[-1])
    _check_estimate(language)
    tightest = Drawn(language, MAX_DRAWN_STATES)
    if tightest.num_states == found.drawn.num_states:
        # Nothing is lowered any further, so it would fail in the same way.
        raise StateLimitError
    return compiler, tightest.dfa()


def _check_estimate(language: Language) -> None:
    if estimated_states(language) > MAX_ESTIMATED_STATES:
        raise StateLimitError


def _first_that_fits(tries: _Tries) -> _Found | None:
    """The most generous limits but the first under which the schema fits, by halving: what fits under some fits
    under all that follow."""
    limits = list({(tries.that_matter(each), _most_states(each)): each for each in reversed(LIMITS)}.values())[
        ::-1
    ]
    too_much, enough = 0, len(limits)
    best = None
    while enough - too_much > 1:
        middle = (too_much + enough) // 2
        found = tries.fit(limits[middle])
        if found is None:
            too_much = middle
        else:
            enough, best = middle, found
    return best


def _raised(tries: _Tries, found: _Found) -> _Found:
    """The same with each limit that has lowered something raised to what is of use, if there is room."""
    for name, keywords in _LIMIT_OF.items():
        lowered = {keyword.split(" ")[0] for keyword, _, _ in found.compiler.lowered}
        useful = getattr(USEFUL, name)
        if lowered.isdisjoint(keywords) or getattr(found.limits, name) >= useful:
            continue
        if tries.work > MAX_STATES_OF_TRIES:
            break
        found = tries.fit(replace(found.limits, **{name: useful})) or found
    return found
