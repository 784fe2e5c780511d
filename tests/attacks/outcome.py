"""What an attack records of each of its cases."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """One case: what was done, what came of it, and whether that is allowed."""

    kind: str
    """a row of the table, such as "SIGINT, plain" """
    result: str
    """a column of words, such as "130, partial turn in the log" """
    held: bool
    detail: str = ""
    """for a case that did not hold: what it takes to see it again"""
