"""What is asked of a place in a document, and how much of an endless language is kept there."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import ConstraintError
from . import scalars
from .dialects import Part, Schema, refuse

Conjunction = tuple[Schema, ...]
Alternative = tuple[Part, ...]


@dataclass(frozen=True)
class Limits:
    """How much of an endless language is kept.

    - `depth`: how often a $ref may lead into itself;
    - `nesting`: how deep a value of any kind nests, where the schema says nothing;
    - `length`: the longest string (code points) where a `maxLength` has to be counted at all;
    - `count`: the most items or properties where a maximum has to be counted at all;
    - `name`: the longest host name, and the longest name before the @ of an e-mail address;
    - `distinct`: about how many states the items of an array may cost to be kept different in any order.
    """

    depth: int
    nesting: int
    length: int
    count: int
    name: int
    distinct: int


# From the most generous ones on, until the automaton is small enough: first what is far beyond use is lowered,
# then recursion, then what people notice.
LIMITS = (
    Limits(5, 3, 1024, 512, scalars.LONGEST_NAME, 12_288),
    Limits(4, 3, 1024, 256, scalars.LONGEST_NAME, 8192),
    Limits(3, 3, 1024, 128, scalars.LONGEST_NAME, 4096),
    Limits(3, 3, 768, 96, scalars.LONGEST_NAME, 4096),
    Limits(3, 3, 512, 64, scalars.LONGEST_NAME, 2048),
    Limits(3, 3, 384, 48, scalars.LONGEST_NAME, 2048),
    Limits(2, 2, 300, 40, scalars.LONGEST_NAME, 1024),
    Limits(2, 2, 256, 32, scalars.LONGEST_NAME, 1024),
    Limits(1, 2, 256, 24, scalars.LONGEST_NAME, 1024),
    Limits(1, 1, 192, 20, scalars.LONGEST_NAME, 512),
    Limits(1, 1, 128, 16, scalars.LONGEST_NAME, 512),
    Limits(1, 1, 96, 12, 48, 512),
    Limits(1, 1, 64, 10, 32, 512),
    Limits(1, 1, 48, 8, 32, 256),
    Limits(1, 1, 32, 6, 24, 256),
)


@dataclass(frozen=True)
class Place:
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

    def inside(self, name: str, conjunction: Conjunction) -> Place:
        """The place of a member or item."""
        return replace(
            self,
            path=self.path + name,
            nesting=self.nesting + 1,
            free=self.free + (not conjunction),
            references=self.references + self.here,
            here=(),
        )


def refused(keyword: str, reason: str, place: Place, way_out: str = "Leave it out") -> ConstraintError:
    """The error that names a keyword."""
    return refuse(keyword, reason, place.path, way_out)
