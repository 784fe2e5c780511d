"""A terminal in which a reply of the embedded checkpoint converges, as an SVG that moves.

The snapshots are those of a real reply, laid out as the terminal shows them. They are slowed down, which is why it
doesn't say how many tokens a second there are. Text is text, in whatever monospaced font there is: each line is as
long as its columns are. Who wants no motion sees the end.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.sax.saxutils import escape

import llm
from llm.parts import Message, TextPart
from rich.console import Console
from rich.segment import Segment

from llm_diffusiongemma.backends.local import LocalReply
from llm_diffusiongemma.backends.turn import ALWAYS_WANTED, Turn
from llm_diffusiongemma.options import Options
from llm_diffusiongemma.view.canvas import Canvas
from llm_diffusiongemma.view.records import Reading, Snapshot, Watch
from llm_diffusiongemma.view.screen import Size

MODEL, PROMPT, SEED = "diffusiongemma-tiny", "Count from 1 to 400", 3
COMMAND = f'llm -m {MODEL} "{PROMPT}" -o seed {SEED}'

TERMINAL = Size(columns=72, rows=32)
FONT_SIZE, COLUMN, LINE, MARGIN = 14, 8.4, 19, 16

TYPED_SECONDS, STEP_SECONDS, END_SECONDS = 1.0, 0.7, 4.0

STYLE = f"""
svg {{ color-scheme: light dark; --back: #f6f8fa; --edge: #d0d7de; --plain: #1f2328; --dim: #6a737d }}
@media (prefers-color-scheme: dark) {{
svg {{ --back: #0d1117; --edge: #30363d; --plain: #d4dbe3; --dim: #7d8590 }}
}}
rect {{ fill: var(--back); stroke: var(--edge) }}
text {{
fill: var(--plain); white-space: pre;
font: {FONT_SIZE}px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace
}}
.dim {{ fill: var(--dim) }}
.bold {{ font-weight: bold }}
.passing {{ visibility: hidden }}
@media (prefers-reduced-motion: reduce) {{ g {{ animation: none !important }} }}
"""


@dataclass(frozen=True)
class Layer:
    """Lines that can be seen for a while."""

    lines: Sequence[Sequence[Segment]]
    row: int
    """of the first one"""
    start: float
    end: float | None
    """seconds; None where they stay"""


def draw(place: Path) -> None:
    place.write_text(picture(list(_seen())), encoding="utf-8")


def picture(seen: Sequence[Snapshot | str]) -> str:
    """Of the snapshots and the texts of a reply, in the order in which they came."""
    layers, seconds = _layers(seen)
    num_rows = max(layer.row + len(layer.lines) for layer in layers)
    width, height = TERMINAL.columns * COLUMN + 2 * MARGIN, num_rows * LINE + 2 * MARGIN
    groups, rules = [], []
    for number, layer in enumerate(layers):
        lines = "\n".join(_line(line, layer.row + i) for i, line in enumerate(layer.lines))
        kind = "lasting" if layer.end is None else "passing"
        groups.append(f'<g id="l{number}" class="{kind}">\n{lines}\n</g>\n')
        rules.append(_rule(number, layer, seconds))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xml:space="preserve" role="img" width="{width:g}" '
        f'height="{height:g}" viewBox="0 0 {width:g} {height:g}">\n'
        "<title>A terminal in which a reply is written everywhere at once</title>\n"
        f"<desc>{escape(COMMAND)}: what is still noise is dim, what a step accepts is bold, what has settled is "
        "plain. Below it: the canvas, the denoising step, and how much has settled.</desc>\n"
        f"<style>{STYLE}{''.join(rules)}</style>\n"
        f'<rect x="0.5" y="0.5" width="{width - 1:g}" height="{height - 1:g}" rx="8"/>\n'
        f"{''.join(groups)}</svg>\n"
    )


def _seen() -> Iterator[Snapshot | str]:
    """A reply as it comes."""
    snapshots: list[Snapshot] = []

    def see(seen: Reading | Snapshot) -> None:
        if isinstance(seen, Snapshot):
            # By the clock there would be another picture each time.
            snapshots.append(replace(seen, seconds=0.0))

    entry = llm.get_model(MODEL).entry  # type: ignore[attr-defined]
    messages = [Message(role="user", parts=[TextPart(text=PROMPT)])]
    turn = Turn(messages, Options(seed=SEED), watch=Watch(see, "drafts"))
    for events in LocalReply(entry, turn, ALWAYS_WANTED).steps():
        yield from snapshots
        snapshots.clear()
        yield "".join(event.chunk for event in events)


def _layers(seen: Sequence[Snapshot | str]) -> tuple[list[Layer], float]:
    """And how long all of it takes."""
    room = TERMINAL.room(is_own_row=False)
    console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), width=room.width, height=room.height)
    canvas = Canvas()
    layers = [Layer([[Segment(f"$ {COMMAND}")]], 0, 0.0, None)]
    printed: list[tuple[float, list[str]]] = [(0.0, [])]  # all lines, and since when
    text, now = "", TYPED_SECONDS
    for each in seen:
        if isinstance(each, str):
            text += each
            printed.append((now, _wrapped(text)))
            continue
        canvas.see(each)
        layers.append(Layer(canvas.lines(console), 1 + len(printed[-1][1]), now, now + STEP_SECONDS))
        now += STEP_SECONDS
    ends = [*(start for start, _ in printed[2:]), None]
    for (start, lines), end in zip(printed[1:], ends, strict=True):
        layers.append(Layer([[Segment(line)] for line in lines], 1, start, end))
    layers.append(Layer([[Segment("$")]], 1 + len(_wrapped(text)), now, None))
    return layers, now + END_SECONDS


def _wrapped(text: str) -> list[str]:
    """As a terminal breaks it, none of its characters being wide."""
    columns = TERMINAL.columns
    return [line[i : i + columns] for line in text.splitlines() for i in range(0, len(line), columns)]


def _line(line: Sequence[Segment], row: int) -> str:
    text = "".join(segment.text for segment in line).rstrip()
    parts, left = [], len(text)
    for piece, style, _ in line:
        shown = escape(piece[:left])
        left -= len(piece[:left])
        look = [name for name, is_so in (("dim", style and style.dim), ("bold", style and style.bold)) if is_so]
        parts.append(f'<tspan class="{" ".join(look)}">{shown}</tspan>' if look else shown)
    y = MARGIN + row * LINE + FONT_SIZE
    return f'<text x="{MARGIN}" y="{y}" textLength="{len(text) * COLUMN:.1f}">{"".join(parts)}</text>'


def _rule(number: int, layer: Layer, seconds: float) -> str:
    """Its animation in CSS, in steps that last until the next one."""
    if layer.start == 0:
        return ""
    times = [(0.0, "hidden"), (layer.start, "visible")]
    if layer.end is not None:
        times.append((layer.end, "hidden"))
    steps = "".join(f"{100 * time / seconds:.2f}%{{visibility:{value}}}" for time, value in times)
    return f"@keyframes k{number}{{{steps}}}\n#l{number}{{animation:k{number} {seconds:g}s step-end infinite}}\n"
