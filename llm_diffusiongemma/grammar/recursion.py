"""Which references of a schema can lead back to themselves, and by which steps they do.

On the way into a document only steps back are counted, in a group of references that all lead to each other: those
that lead to a reference which stands before the one that was followed last, in an order in which every circle has
such a step. How often each reference has been followed would tell the same, and would keep a language for each
set of references that can have been met on the way: far too many where a dozen lead to each other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import ConstraintError
from .dialects import Schema
from .references import resolve


@dataclass(frozen=True)
class Rank:
    """Where a reference that can lead back to itself stands.

    - `group`: the references that it leads to and that lead to it;
    - `order`: from the top of the schema on; a step to a lower or the same one is a step back.
    """

    group: int
    order: int


@dataclass(frozen=True, order=True)
class Passed:
    """The way to a place within one group: the steps back, and the last reference that was followed."""

    group: int
    back: int
    order: int


def ranks(root: Schema) -> dict[str, Rank]:
    """The references that can lead back to themselves."""
    edges = {"#": _led_to(root, "#")}
    finished: list[str] = []
    stack = [("#", iter(edges["#"]))]
    while stack:
        reference, following = stack[-1]
        fresh = next((each for each in following if each not in edges), None)
        if fresh is None:
            finished.append(reference)
            stack.pop()
        else:
            edges[fresh] = _led_to(root, fresh)
            stack.append((fresh, iter(edges[fresh])))
    # The reverse of the order in which a search in depth is done with them: only what leads to a reference on the
    # way there is a step back.
    order = {reference: number for number, reference in enumerate(reversed(finished))}
    leading: dict[str, list[str]] = {reference: [] for reference in order}
    for reference, targets in edges.items():
        for each in targets:
            leading[each].append(reference)
    found: dict[str, Rank] = {}
    seen: set[str] = set()
    for reference in order:
        group: list[str] = []
        pending = [reference]
        while pending:
            each = pending.pop()
            if each not in seen:
                seen.add(each)
                group.append(each)
                pending += leading[each]
        if len(group) > 1 or reference in edges[reference]:
            found |= {each: Rank(order[reference], order[each]) for each in group}
    return found


def _led_to(root: Schema, reference: str) -> list[str]:
    """The references inside of what one leads to."""
    # An example may have a "$ref" that leads nowhere.
    with contextlib.suppress(ConstraintError):
        return list(dict.fromkeys(references(resolve(root, reference)[-1])))
    return []


def references(value: Any) -> Iterator[str]:
    """What the $refs inside of a JSON value say, and what only looks like them, in the order of the text; those of
    definitions come last."""
    definitions: list[Any] = []
    stack = [value]
    while stack or definitions:
        value = stack.pop() if stack else definitions.pop(0)
        if isinstance(value, dict):
            reference = value.get("$ref")
            if isinstance(reference, str):
                yield reference
            definitions += [value[name] for name in ("$defs", "definitions") if name in value]
            stack += [each for name, each in reversed(value.items()) if name not in ("$defs", "definitions")]
        elif isinstance(value, list):
            stack += reversed(value)
