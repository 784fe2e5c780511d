"""A canvas as lines of a terminal: what stands there after a denoising step, and below it how far it is.

Noise is dim, what this step accepted is bold, what has settled is plain; thoughts are italic. There are no
colours. The text is broken where a terminal breaks it, so that what has settled lies as it will be printed.

Nothing in a text moves a cursor or turns what is beside it round. Writings from right to left stand in the order
of their letters: a terminal that reorders them does so within a line and no further, and one that doesn't shows
them as it shows the reply itself. Marks of direction would be obeyed by the one and take up room on the other.
What joins characters is left out, too: then each is as wide as it is by itself.
"""

from __future__ import annotations

import unicodedata
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from ..wording import OBEYED
from .records import ACCEPTED, CALL, CONTROL, NOISE, SETTLED, TEXT, THOUGHT, Snapshot

if TYPE_CHECKING:
    from rich.console import Console
    from rich.segment import Segment
    from rich.style import Style

# What stands for a position that has nothing to show, or nothing that may be shown.
DOT = "·"
# A line's end that is not accepted yet: if it broke lines they would jump.
UNSURE_LINE_END = "↵"
# What opens and closes thoughts and calls, which begin with the words "thought" and "call". Others are dots.
SIGNS = {
    "<|channel>": "‹",
    "<channel|>": "›",
    "<|tool_call>": "‹",
    "<tool_call|>": "›",
    "<|tool_response>": "‹",
    "<tool_response|>": "›",
    '<|"|>': '"',
}
# For a terminal of another encoding than UTF-8.
PLAIN = str.maketrans({DOT: ".", UNSURE_LINE_END: "\\", "‹": "<", "›": ">"})
TAB_CELLS = 8
# A vocabulary's worth of a reply.
MAX_CACHED_PIECES = 10_000


class Canvas:
    """The canvas at hand, as it was seen last. One thread sees, another may ask for the lines."""

    def __init__(self, *, hides_thoughts: bool = False, only_status: bool = False) -> None:
        self._hides_thoughts = hides_thoughts
        self._only_status = only_status
        self._snapshot: Snapshot | None = None
        self._tokens_a_second: float | None = None
        self._attempt_began = 0.0

    def see(self, snapshot: Snapshot) -> None:
        before, self._snapshot = self._snapshot, snapshot
        if before is None or before.attempt != snapshot.attempt:
            self._attempt_began = before.seconds if before is not None else 0.0
            self._tokens_a_second = None
        elif before.block != snapshot.block and before.seconds > self._attempt_began:
            self._tokens_a_second = snapshot.tokens_before / (before.seconds - self._attempt_began)

    def lines(self, console: Console) -> list[list[Segment]]:
        """What fits: of a canvas that doesn't, what is around the first position that has not settled. The last
        line says how far it is."""
        from rich.segment import Segment

        snapshot, (width, height) = self._snapshot, console.size
        if snapshot is None or width < 1:
            return []
        lines: list[list[Segment]] = []
        if (room := height - 1) > 0 and not self._only_status:
            lines, unsettled = _lines(snapshot, width, self._hides_thoughts)
            first = max(0, min(unsettled - room // 4, len(lines) - room))
            lines = lines[first : first + room]
        lines.append([Segment(_status(snapshot, self._tokens_a_second, width), _styles()[CONTROL, NOISE])])
        return lines if console.encoding.startswith("utf") else _encodable(lines, console.encoding)


def _lines(snapshot: Snapshot, width: int, hides_thoughts: bool) -> tuple[list[list[Segment]], int]:
    """All of a canvas, and the number of the line where the first position is that has not settled."""
    from rich.segment import Segment

    styles = _styles()
    lines: list[list[Segment]] = [[]]
    unsettled: int | None = None
    run: list[str] = []  # of one style, in the last line
    run_style = styles[TEXT, SETTLED]
    used = 0  # cells of that line

    def end_run() -> None:
        if run:
            lines[-1].append(Segment("".join(run), run_style))
            run.clear()

    for piece, kind, state in zip(snapshot.pieces[: snapshot.end], snapshot.kinds, snapshot.states, strict=False):
        if (style := styles[kind, state]) is not run_style:
            end_run()
            run_style = style
        if unsettled is None and state != SETTLED:
            unsettled = len(lines) - 1
        if kind == THOUGHT and hides_thoughts:
            piece = DOT
        elif kind == CONTROL:
            piece = SIGNS.get(piece, DOT)
        text, cells = _shown(piece)
        if cells is not None and used + cells <= width:
            run.append(text)
            used += cells
        else:
            for character in text:
                if character == "\n" and state != NOISE:
                    end_run()
                    lines.append([])
                    used = 0
                    continue
                character, cells = _cell(character, used, width)
                if used + cells > width:
                    end_run()
                    lines.append([])
                    used = 0
                run.append(character)
                used += cells
    end_run()
    if not used:
        lines.pop()  # nothing stands on it
    return lines, len(lines) - 1 if unsettled is None else unsettled


@lru_cache(maxsize=MAX_CACHED_PIECES)
def _shown(piece: str) -> tuple[str, int | None]:
    """What of a piece is shown, and its cells; None if that depends on where it stands."""
    from rich.cells import get_character_cell_size

    text = "".join(map(_harmless, piece))
    cells = [get_character_cell_size(character) for character in text]
    # A mark needs something to stand on.
    depends = "\n" in text or "\t" in text or cells[:1] == [0]
    return text, None if depends else sum(cells)


def _harmless(character: str) -> str:
    category = unicodedata.category(character)
    if category not in OBEYED or character in "\n\t":
        return character
    # Format characters have no width, and a line's end may begin with a carriage return.
    return "" if category == "Cf" or character == "\r" else DOT


def _cell(character: str, used: int, width: int) -> tuple[str, int]:
    """A character as it stands in a line of which so many cells are used, and its own."""
    from rich.cells import get_character_cell_size

    if character == "\n":
        return UNSURE_LINE_END, 1
    if character == "\t":
        cells = min(TAB_CELLS - used % TAB_CELLS, width - used)
        return " " * cells, cells
    cells = get_character_cell_size(character)
    if cells > width:
        return DOT, 1
    if cells == 0 and used == 0:
        return f" {character}", 1
    return character, cells


def _status(snapshot: Snapshot, tokens_a_second: float | None, width: int) -> str:
    """Where it is too long, its end goes."""
    states = snapshot.states[: snapshot.end] or snapshot.states
    settled = 100 * states.count(SETTLED) // max(1, len(states))
    draw = f", draw {snapshot.redrawn + 1}" if snapshot.redrawn else ""
    parts = [
        f"canvas {snapshot.block + 1:,}{draw}",
        f"step {snapshot.step} of {snapshot.max_steps}",
        f"{settled} % settled",
    ]
    if tokens_a_second is not None:
        parts.append(f"{tokens_a_second:,.0f} tokens/s")
    while len(parts) > 1 and len(f" {DOT} ".join(parts)) > width:
        parts.pop()
    return f" {DOT} ".join(parts)[:width]


@cache
def _styles() -> dict[tuple[str, str], Style]:
    """By kind and state."""
    from rich.style import Style

    by_state = {NOISE: Style(dim=True), ACCEPTED: Style(bold=True), SETTLED: Style()}
    styles: dict[tuple[str, str], Style] = {}
    for state, style in by_state.items():
        styles |= {(TEXT, state): style, (CALL, state): style, (CONTROL, state): by_state[NOISE]}
        styles[THOUGHT, state] = style + Style(italic=True)
    return styles


def _encodable(lines: list[list[Segment]], encoding: str) -> list[list[Segment]]:
    from rich.segment import Segment

    def plain(text: str) -> str:
        return text.translate(PLAIN).encode(encoding, "replace").decode(encoding)

    return [[Segment(plain(segment.text), segment.style) for segment in line] for line in lines]
