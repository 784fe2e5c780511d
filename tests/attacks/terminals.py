"""Texts printed piece by piece, with something drawn below each, in a real terminal: tmux's."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..tmux import REASON, Drawing, Tmux, is_there
from .outcome import Outcome

ALPHABETS = {
    "letters": "abc def ",
    "accents": "aäöéßλж ",
    "wide": "a漢字かな。",
    "emoji": "a😀🎉👩\u200d💻❤\ufe0f🇩🇪👍🏽✔",
    "marks": "ae\u0301o\u0308नमस्ते한국어ก็",
    "right to left": "a שלום مرحبا",
    "tabs": "ab\t",
}
RESIZED = "letters, resized"
# Each not less than half as wide as the one before.
WIDTHS = (80, 41, 60, 33, 64)


def run(count: int, seed: int) -> Iterator[Outcome]:
    if not is_there():
        raise SystemExit(REASON)
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        tmux = Tmux(Path(folder))
        try:
            drawing = Drawing(tmux, Path(folder))
            for number in range(count):
                kind = draw.choice([*ALPHABETS, RESIZED])
                yield _resized(drawing, draw) if kind == RESIZED else _printed(drawing, draw, kind, number)
            drawing.close()
        finally:
            tmux.close()


def _printed(drawing: Drawing, draw: random.Random, kind: str, number: int) -> Outcome:
    columns, rows = draw.choice([(80, 24), (draw.randint(12, 60), draw.randint(2, 30))])
    drawing.resize(columns, rows)
    pieces = _pieces(draw, ALPHABETS[kind], columns)
    drawing.do("clear")
    num_drawn = 0
    for piece in pieces:
        drawing.do("print", piece)
        num_drawn += drawing.do("draw", draw.randint(1, 12))
    seen = drawing.printed()
    drawing.do("clear")
    for piece in pieces:
        drawing.do("print_alone", piece)
        drawing.tmux.flag("cursor_x")  # what comes at once tmux may join otherwise than what comes piece by piece
    held = seen == drawing.printed()
    drawn = "drawn below" if num_drawn else "nothing drawn"
    return Outcome(kind, f"as printed alone, {drawn}" if held else "another text", held, f"{columns=} {pieces=}")


def _resized(drawing: Drawing, draw: random.Random) -> Outcome:
    """At the bottom of the screen: what lies below a cursor further up can push it out of there."""
    drawing.resize(WIDTHS[0], 24)
    drawing.do("clear")
    drawing.do("print", 30 * "\n")
    pieces = [f"{draw.random()} " * draw.randint(1, 12) for _ in WIDTHS]
    for piece, columns in zip(pieces, WIDTHS, strict=True):
        drawing.do("print", piece)
        drawing.do("draw", draw.randint(1, 12))
        drawing.resize(columns, 24)
    drawing.printed()
    text = drawing.tmux.text("-J").rpartition("\n<end")[0]
    held = text.strip() == "".join(pieces).strip()
    return Outcome(RESIZED, "the same lines" if held else "another text", held, f"{pieces=} {text=}")


def _pieces(draw: random.Random, alphabet: str, columns: int) -> list[str]:
    """Most end about the edge, some with a line. The first corner of the screen is left alone: what is erased from
    there tmux keeps, as if all had been cleared."""
    pieces = ["\n"]
    for _ in range(draw.randint(2, 8)):
        length = draw.choice([columns // 2, columns, columns]) + draw.randint(-2, 2)
        pieces.append("".join(draw.choices(alphabet, k=max(1, length))) + draw.choice(["", "\n"]))
    return pieces
