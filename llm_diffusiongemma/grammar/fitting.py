"""How much of a schema's endless language is kept, so that its automaton is small enough.

Nothing is lowered if everything fits. Else what is far beyond use goes first, then recursion, then what people
notice (`places.LIMITS` has the order); and then each kind of maximum is raised again as far as there is room, for
it may be another one that took it.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

from .compiler import Compiler
from .dfa import ByteDFA
from .language import MAX_STATES, Language, StateLimitError, drawn_dfa, drawn_states, minimal_dfa
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

# Places and choices that are looked at in all tries together before no more is raised again.
MAX_VISITS_OF_TRIES = 8000

# The limit that a lowered keyword is held to, in the order in which they are raised again.
_LIMIT_OF = {
    "length": ("maxLength",),
    "count": ("maxItems", "maxProperties"),
    "depth": ("recursion",),
    "distinct": ("uniqueItems",),
    "nesting": ("nesting",),
    "name": ("format",),
}


class _Tries:
    def __init__(self, validator: Any) -> None:
        self.validator = validator
        self.visits = 0

    def compile(self, limits: Limits) -> tuple[Compiler, Language]:
        """Raises `StateLimitError`."""
        compiler = Compiler(self.validator, limits, Layout.ONE_LINE)
        try:
            return compiler, compiler.language(DOCUMENT, Place())
        finally:
            self.visits += compiler.visits

    def fit(self, limits: Limits) -> tuple[Compiler, Language] | None:
        """What is kept within limits, if it is small enough by what is drawn of it."""
        try:
            compiler, language = self.compile(limits)
            drawn_states(language, _most_states(compiler))
        except StateLimitError:
            return None
        return compiler, language


def _most_states(compiler: Compiler) -> int:
    limits = compiler.limits
    if not compiler.lowered and not compiler.cuts:
        return WHOLE_STATES
    if any(getattr(limits, name) > getattr(USEFUL, name) for name in _LIMIT_OF):
        return GENEROUS_STATES
    return USEFUL_STATES if limits.length > SHORT else MAX_STATES


def fit(validator: Any) -> tuple[Compiler, ByteDFA]:
    """The largest part of a schema's language that has an automaton. Raises `StateLimitError` if none has."""
    tries = _Tries(validator)
    found = tries.fit(LIMITS[0])
    if found is None:
        found = _first_that_fits(tries)
        if found is not None:
            found = _raised(tries, found)
    if found is not None:
        compiler, language = found
        # What is drawn may be less than what comes of it.
        with contextlib.suppress(StateLimitError):
            return compiler, drawn_dfa(language)
    # ... or more.
    compiler, language = tries.compile(LIMITS[-1])
    return compiler, minimal_dfa(language)


def _first_that_fits(tries: _Tries) -> tuple[Compiler, Language] | None:
    """The most generous limits but the first under which the schema fits, by halving: what fits under some fits
    under all that follow."""
    too_much, enough = 0, len(LIMITS)
    best = None
    while enough - too_much > 1:
        middle = (too_much + enough) // 2
        found = tries.fit(LIMITS[middle])
        if found is None:
            too_much = middle
        else:
            enough, best = middle, found
    return best


def _raised(tries: _Tries, found: tuple[Compiler, Language]) -> tuple[Compiler, Language]:
    """The same with each limit that has lowered something raised to what is of use, if there is room."""
    for name, keywords in _LIMIT_OF.items():
        compiler = found[0]
        lowered = {keyword.split(" ")[0] for keyword, _, _ in compiler.lowered}
        useful = getattr(USEFUL, name)
        if lowered.isdisjoint(keywords) or getattr(compiler.limits, name) >= useful:
            continue
        if tries.visits > MAX_VISITS_OF_TRIES:
            break
        found = tries.fit(replace(compiler.limits, **{name: useful})) or found
    return found
