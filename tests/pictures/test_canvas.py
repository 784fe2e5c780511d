"""The picture of a canvas: the committed one, and that no text becomes anything but text in it."""

from __future__ import annotations

from xml.etree import ElementTree

from ..view.test_canvas import snapshot
from . import canvas
from .__main__ import DOCS, PICTURES

SVG = "{http://www.w3.org/2000/svg}"


def groups(svg: str) -> list[list[str]]:
    """The lines of each layer, in the order in which they are painted."""
    root = ElementTree.fromstring(svg)
    return [["".join(line.itertext()) for line in group] for group in root.iter(f"{SVG}g")]


def lasting(svg: str) -> list[str]:
    """What is seen in the end, and where nothing moves."""
    root = ElementTree.fromstring(svg)
    return [
        "".join(line.itertext())
        for group in root.iter(f"{SVG}g")
        if group.get("class") == "lasting"
        for line in group
    ]


def test_the_committed_one_shows_the_reply() -> None:
    svg = (DOCS / PICTURES["canvas"]).read_text(encoding="utf-8")
    command, *reply, prompt = lasting(svg)
    assert command == f"$ {canvas.COMMAND}"
    assert "".join(line.ljust(canvas.TERMINAL.columns) for line in reply).split() == [
        str(number) for number in range(1, 401)
    ]
    assert prompt == "$"
    last_lines = [lines[-1] for lines in groups(svg)]
    assert any(line.startswith("canvas 2 · step 3 of 48 · ") for line in last_lines)
    assert len(svg) < 150_000


def test_what_is_shown_when() -> None:
    seen = [snapshot("<b>&", "amp;", states="na", seconds=0.0), "<b>&", snapshot(" c", block=1), " c\n"]
    svg = canvas.picture(seen)
    assert groups(svg) == [
        [f"$ {canvas.COMMAND}"],
        ["<b>&amp;", "canvas 1 · step 1 of 48 · 0 % settled"],
        [" c", "canvas 2 · step 1 of 48 · 100 % settled"],
        ["<b>&"],
        ["<b>& c"],
        ["$"],
    ]
    assert lasting(svg) == [f"$ {canvas.COMMAND}", "<b>& c", "$"]
    assert '<tspan class="dim">&lt;b&gt;&amp;</tspan><tspan class="bold">amp;</tspan>' in svg
