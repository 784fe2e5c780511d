"""What this room tells of its work, as plain values: they leave the process, too. No numpy, no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Lowered:
    """A maximum that made the automaton too large."""

    keyword: str
    """or `recursion`, or `nesting` of what the schema says nothing about"""
    asked: int
    given: int
    at: str
    """the first of the places in a document where it applies"""


@dataclass(frozen=True)
class ConstraintReport:
    """How much a constraint mattered to a committed canvas."""

    log_probability: float
    """nats: how much of what the network would have written here was allowed, in the last step. The positions
    behind the end of the text count as `constraint.TAIL_WEIGHT` says."""
    changed_positions: int
    """At how many positions of the text, its end of sequence included, the network preferred another token."""
