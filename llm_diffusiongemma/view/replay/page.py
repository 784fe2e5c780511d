"""Recorded replies as one HTML file that asks for nothing: it can be opened from a disk, sent and kept.

Whatever a model, a user or a tool has written is in it as compressed data only, and its script makes it text and
never markup. A content security policy allows that one script and that one style, and no request.

The data is a line for each reply. Before it is compressed: the length of the head in bytes as uint32; the head,
JSON; then the columns of every canvas, one after the other, numbers in little-endian order. `[256, steps]` is a
canvas with the steps of a position beside each other, which compresses best and is what the history of a token
needs:

    pieces         uint32 `[256, steps]`            which of the head's strings
    entropies      uint16 `[256, steps]`            thousandths of a nat
    kinds, states  one letter each, `[256, steps]`
    candidates     uint32 `[256, ranks, steps]`     which of the head's strings
    probabilities  uint16 `[256, ranks, steps]`     thousandths
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import sys
import zlib
from array import array
from collections.abc import Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from string import Template
from typing import Any, Literal

from ..records import Snapshot
from .recording import RecordedReply

HERE = Path(__file__).parent

# An entropy or a probability that nobody knows.
UNKNOWN = 0xFFFF
# Whole numbers above have gaps in JavaScript.
LARGEST_EXACT = 2**53


def page(replies: Sequence[str]) -> str:
    """The page of `packed` replies. It is the same for the same ones, and all ASCII but for our own words."""
    style, script = _part("page.css"), _part("page.js")
    return Template(_part("page.html")).substitute(
        policy="; ".join(
            (
                "default-src 'none'",
                f"script-src '{_digest(script)}'",
                f"style-src '{_digest(style)}'",
                "base-uri 'none'",
                "form-action 'none'",
            )
        ),
        style=style,
        script=script,
        data="\n".join(replies),
    )


def packed(reply: RecordedReply) -> str:
    """A reply as a page has it: a line of letters and digits."""
    return base64.b64encode(zlib.compress(_pack(reply))).decode("ascii")


def _part(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """As a content security policy names what it allows."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _pack(reply: RecordedReply) -> bytes:
    strings: dict[str, int] = {}
    columns = bytearray()
    described = {
        "model": reply.model,
        "prompt": reply.prompt,
        "settings": _pairs(reply.settings),
        "figures": _pairs(reply.figures),
        "blocks": _plain(reply.figures.get("blocks", [])),
        "text": reply.text,
        "canvases": [
            _pack_canvas(list(steps), strings, columns)
            for _, steps in itertools.groupby(reply.snapshots, key=attrgetter("attempt", "block", "redrawn"))
        ],
        "strings": list(strings),
    }
    # Halves of surrogate pairs are escapes in it, which JavaScript takes.
    head = json.dumps(described, separators=(",", ":")).encode("ascii")
    return len(head).to_bytes(4, "little") + head + columns


def _pack_canvas(steps: list[Snapshot], strings: dict[str, int], columns: bytearray) -> dict[str, Any]:
    """What the head says of a canvas, whose columns are put behind those that are there."""
    size = len(steps[0].pieces)
    likely = [step.likely for step in steps]
    ranks = max((len(each) for step in likely if step is not None for each in step.candidates), default=0)

    def number(text: str) -> int:
        return strings.setdefault(text, len(strings))

    columns += _numbers("I", map(number, _by_position(step.pieces for step in steps)))
    entropies = ([UNKNOWN] * size if each is None else map(_thousandths, each.entropies) for each in likely)
    columns += _numbers("H", _by_position(entropies))
    columns += "".join(_by_position(step.kinds for step in steps)).encode("ascii")
    columns += "".join(_by_position(step.states for step in steps)).encode("ascii")

    ids, probabilities = array("I"), array("H")
    nothing = (("", None),) * ranks
    for history in zip(*((nothing,) * size if each is None else each.candidates for each in likely), strict=True):
        for rank in range(ranks):
            for candidates in history:
                text, probability = candidates[rank] if rank < len(candidates) else ("", None)
                ids.append(number(text))
                probabilities.append(UNKNOWN if probability is None else _thousandths(probability))
    columns += _numbers("I", ids)
    columns += _numbers("H", probabilities)
    return {
        "attempt": steps[0].attempt,
        "block": steps[0].block,
        "redrawn": steps[0].redrawn,
        "size": size,
        "ranks": ranks,
        "maxSteps": steps[0].max_steps,
        "steps": _plain([[each.step, each.end, each.mean_entropy, each.seconds] for each in steps]),
    }


def _by_position(steps: Iterable[Iterable[Any]]) -> Iterable[Any]:
    """Steps of positions, `[steps, 256]`, one position after the other."""
    return itertools.chain.from_iterable(zip(*steps, strict=True))


def _thousandths(value: float) -> int:
    return min(round(1000 * value), UNKNOWN - 1)


def _numbers(kind: Literal["I", "H"], values: Iterable[int]) -> bytes:
    numbers = array(kind, values)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def _pairs(values: dict[str, Any]) -> list[tuple[str, Any]]:
    """Names and values, in a list: no name may mean something to JavaScript."""
    return [(name, _plain(value)) for name, value in values.items()]


def _plain(value: Any) -> Any:
    """What JavaScript reads as it is; numbers that it can't have are words."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, int):
        return value if abs(value) <= LARGEST_EXACT else str(value)
    return value if value is None or isinstance(value, str) else str(value)
