"""docs/replay.png: the page of a reply of the embedded model, halfway, and what one of its tokens could have been.
Needs the extra named browser, and Chromium or Chrome."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import llm
from PIL import Image

from ..browsers import chromium
from ..conftest import TINY

PROMPT = "How does diffusion write text?"
# Fewer tokens are accepted in a step than by default, so that there is more to see of each.
OPTIONS = {"seed": 3, "entropy_bound": 0.001}
STEP = 2
POSITION = 32
SIZE = {"width": 1280, "height": 740}
COLOURS = 128


def draw(place: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "out.html"
        llm.get_model(TINY).prompt(PROMPT, **OPTIONS, replay=str(page)).text()
        with chromium() as browser:
            opened = browser.new_page(viewport=SIZE, reduced_motion="reduce", color_scheme="light")
            opened.goto(page.as_uri())
            for _ in range(STEP - 1):
                opened.locator("#step-on").click()
            opened.locator("#canvas > span").nth(POSITION - 1).click()
            picture = Image.open(io.BytesIO(opened.screenshot()))
    picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(place, optimize=True)
