"""A reply as a replay shows it. Plain values; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..records import Snapshot


@dataclass(frozen=True)
class RecordedReply:
    """What there is to be shown of one reply. Nothing in here is safe for a page."""

    model: str
    prompt: tuple[tuple[str, str], ...]
    """(role, text) of each message, oldest first. Roles are those of llm: system, user, assistant, tool. What is
    attached is named in brackets, and calls of tools are written out."""
    settings: dict[str, Any]
    """What somebody has set, as JSON has it: options by their names, the reply's `seed`, with which it can be made
    again, `schema`, and `tools` by their names."""
    figures: dict[str, Any]
    """Plain values that JSON has, by the names that `llm logs --json` shows: `finish_reason`, `blocks`,
    `generate_seconds`, `device` and so on, and beside them `resolved_model`, `input_tokens`, `output_tokens`,
    `cached_tokens`. `finish_reason` is always there; a reply that was interrupted ("interrupted") or ended by an
    error ("error", with its sentence as `error`) may have no other.

    `blocks` are those of the last attempt among the snapshots, in their order. Entry i has `tokens`: so many
    positions at the start of canvas i are part of the reply, and what is behind them is not (its end of sequence,
    or the budget is used up). A canvas without an entry was not finished, and nothing of it is in the text."""
    snapshots: Sequence[Snapshot]
    """In the order in which they came: all steps of a canvas, then the next canvas, then another attempt. Going
    through them is quick, and picking one out may make it anew each time."""
    text: str
    """The answer as it was printed: without thoughts and calls of tools."""
