"""What this room tells of its work, as plain values: they leave the process, too. No numpy, no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

# What has no end in a schema goes so deep, and hardly any deeper, however small the automaton is.
USUAL_RECURSION = 5
USUAL_NESTING = 3


@dataclass(frozen=True)
class Lowered:
    """A maximum that made the automaton too large, or the end of what has none in the schema."""

    keyword: str
    """or `recursion`, or `nesting` of what the schema says nothing about"""
    asked: int | None
    """None where the schema has no end"""
    given: int
    at: str
    """the first of the places in a document where it applies"""

    @property
    def by_size(self) -> bool:
        """Whether more would have been given if the schema were smaller."""
        return self.given < {"recursion": USUAL_RECURSION, "nesting": USUAL_NESTING}.get(self.keyword, math.inf)


@dataclass(frozen=True)
class ConstraintReport:
    """How much a constraint mattered to a committed canvas."""

    log_probability: float
    """nats: how much of what the network would have written here was allowed, in the last step. The positions
    behind the end of the text count as `constraint.TAIL_WEIGHT` says."""
    changed_positions: int
    """At how many positions of the text, its end of sequence included, the network preferred another token."""
