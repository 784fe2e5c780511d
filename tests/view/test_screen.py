"""What lies below a terminal's cursor: on a real terminal, and as it is written."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from .. import tmux as terminals
from ..tmux import Drawing, Tmux

EDGE = range(78, 83)


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drawing]:
    if not terminals.is_there():
        pytest.skip(terminals.REASON)
    folder = tmp_path_factory.mktemp("tmux")
    tmux = Tmux(folder)
    drawing = Drawing(tmux, folder)
    yield drawing
    drawing.close()
    tmux.close()


def test_the_text_stays_as_it_is(drawing: Drawing) -> None:
    """At every column around the edge, and where the screen scrolls."""
    pieces = [piece for columns in EDGE for piece in ("a" * columns, "bc", "\n")]
    wide = [piece for columns in (38, 39, 40, 41) for piece in ("語" * columns, "b語", "\nd")]
    drawn = []
    drawing.do("clear")
    for piece in pieces + wide:
        drawing.do("print", piece)
        drawn.append(drawing.do("draw", 3))
    seen = drawing.printed()
    drawing.do("clear")
    drawing.do("print_alone", "".join(pieces + wide))
    assert seen == drawing.printed()
    # Only where the cursor may be at the edge.
    assert len(drawn) - sum(drawn) == 2
    assert drawing.tmux.flag("wrap_flag") == "1"


def test_resized_in_the_middle(drawing: Drawing) -> None:
    """tmux breaks lines anew. A pane that is made half as wide still has the cursor in it, at the bottom."""
    words = "".join(f"{number} " for number in range(400))
    drawing.do("clear")
    drawing.do("print", 30 * "\n")
    for index, size in enumerate([(40, 24), (97, 30), (50, 10), (160, 12), (80, 24)]):
        drawing.do("print", words[index * 200 : (index + 1) * 200])
        drawing.do("draw", 40)
        drawing.tmux.resize(*size)
        drawing.do("draw", 40)
    drawing.printed()
    seen = drawing.tmux.text("-J")
    text = seen.rpartition("<end")[0]
    assert text.strip() == words[:1000].strip()


def test_killed_with_something_shown(drawing: Drawing) -> None:
    assert drawing.do("draw", 3)
    os.kill(drawing.do("pid"), signal.SIGKILL)
    drawing.tmux.wait_for("<ended>")
    assert drawing.tmux.flag("cursor_flag") == drawing.tmux.flag("wrap_flag") == "1"
