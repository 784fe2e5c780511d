"""What is asked of a place in a document, and how much of an endless language is kept there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..errors import ConstraintError
from . import scalars
from .dialects import Part, Schema, refuse
from .records import USUAL_NESTING, USUAL_RECURSION
from .recursion import Passed


class Aside(dict[str, Any]):
    """Keywords that a place must fulfil, but in which nothing counts as evaluated: what a `not` comes to.

    The judge never sees them: the keyword that they come from is among the parts as well. So they are read as by
    no draft in particular.
    """


Conjunction = tuple[Schema, ...]
Alternative = tuple[Part, ...]


@dataclass(frozen=True)
class Limits:
    """How much of an endless language is kept.

    - `depth`: how often a $ref may lead into itself (see `recursion.py`);
    - `nesting`: how deep a value of any kind nests, where the schema says nothing;
    - `length`: the longest string (code points) where a `maxLength` has to be counted at all;
    - `count`: the most items or properties where a maximum has to be counted at all;
    - `name`: the longest host name, and the longest name before the @ of an e-mail address;
    - `others`: about how many states the properties that an object doesn't list may cost before the first and,
      in each place, between those that it lists; they can always stand behind them;
    - `distinct`: about how many states the items of an array may cost to be kept different in any order;
    - `order`: about how many states an object may take for its properties to come in any order. None but what is
      small anyway has room for that (see `schema.py`).
    """

    depth: int
    nesting: int
    length: int
    count: int
    name: int
    others: int
    distinct: int
    order: int = 0


# From the most generous ones on, until the automaton is small enough: first what is far beyond use is lowered,
# then recursion, then what people notice.
LIMITS = (
    Limits(USUAL_RECURSION, USUAL_NESTING, 1024, 512, scalars.LONGEST_NAME, 1500, 12_288),
    Limits(4, 3, 1024, 256, scalars.LONGEST_NAME, 1500, 8192),
    Limits(3, 3, 1024, 128, 127, 1500, 4096),
    Limits(3, 3, 768, 96, 63, 0, 4096),
    Limits(3, 3, 512, 64, 63, 0, 2048),
    Limits(3, 3, 384, 48, 63, 0, 2048),
    Limits(2, 2, 300, 40, 63, 0, 1024),
    Limits(2, 2, 256, 32, 63, 0, 1024),
    Limits(1, 2, 256, 24, 63, 0, 1024),
    Limits(1, 1, 192, 20, 63, 0, 512),
    Limits(1, 1, 128, 16, 63, 0, 512),
    Limits(1, 1, 96, 12, 48, 0, 512),
    Limits(1, 1, 64, 10, 32, 0, 512),
    Limits(1, 1, 48, 8, 32, 0, 256),
    Limits(1, 1, 32, 6, 24, 0, 256),
)


@dataclass(frozen=True)
class Place:
    """Where in a document we are.

    - `path`: for people; `$` is the document;
    - `nesting`: how many arrays and objects are open;
    - `free`: how many of them stand where the schema says nothing;
    - `here`: the $refs that have been followed at this place;
    - `passed`: how the way here went through the groups of $refs that lead back to themselves; `entered`: how it
      goes on from here, where one of them has been followed;
    - `spare`: how often more than elsewhere one may lead on: where ways are compared and nothing is written.
    """

    path: str = "$"
    nesting: int = 0
    free: int = 0
    here: tuple[str, ...] = ()
    passed: tuple[Passed, ...] = ()
    entered: tuple[Passed, ...] = ()
    spare: int = 0

    def inside(self, name: str, conjunction: Conjunction) -> Place:
        """The place of a member or item."""
        groups = {each.group for each in self.entered}
        return replace(
            self,
            path=self.path + name,
            nesting=self.nesting + 1,
            free=self.free + (not conjunction),
            here=(),
            passed=tuple(sorted((*(each for each in self.passed if each.group not in groups), *self.entered))),
            entered=(),
        )


def refused(keyword: str, reason: str, place: Place, way_out: str = "Leave it out") -> ConstraintError:
    """The error that names a keyword."""
    return refuse(keyword, reason, place.path, way_out)
