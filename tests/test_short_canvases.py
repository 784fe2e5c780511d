"""`-o canvas_length`: replies in canvases that are shorter than the checkpoint's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import llm
import pytest
from PIL import Image

from .conftest import TINY, Llm
from .view.replay.pages import read

QUESTION = "What is a canvas?"
SHORT = ("-m", TINY, QUESTION, "-o", "canvas_length", "16")


def last_blocks(llm_command: Llm) -> list[int]:
    return [block["tokens"] for block in llm_command.logs()[-1]["response_json"]["blocks"]]


def test_a_reply_goes_on_from_canvas_to_canvas(llm_command: Llm, tmp_path: Path) -> None:
    """To its end or the last token that is wanted, and so it is shown and told."""
    out = tmp_path / "out.html"
    said = llm_command.ok(*SHORT, "-o", "replay", str(out))
    assert said.startswith("A canvas is a block of 256 tokens.")
    *full, last = last_blocks(llm_command)
    assert set(full) == {16}
    assert len(full) > 1
    assert 0 < last <= 16
    (shown,) = read(out)
    assert shown["text"] == said
    assert [canvas["size"] for canvas in shown["canvases"]] == [16] * (len(full) + 1)
    assert "-o canvas_length 16" in llm_command.ok("diffusiongemma", "last")
    assert said.startswith(llm_command.ok(*SHORT, "-o", "max_tokens", "20"))
    assert last_blocks(llm_command) == [16, 4]


def test_thoughts_forms_and_pictures_take_as_many_as_they_need(llm_command: Llm, tmp_path: Path) -> None:
    few = ("-o", "canvas_length", "16", "-o", "max_denoising_steps", "3")
    llm_command("-m", TINY, "What is 12 + 5?", "-o", "thinking", "true", *few)
    assert len(last_blocks(llm_command)) > 1
    pattern = "[a-z]{4}( [a-z]{4}){12}"
    said = llm_command.ok("-m", TINY, QUESTION, "-o", "regex", pattern, *few)
    assert re.fullmatch(pattern, said)
    assert len(last_blocks(llm_command)) > 1
    picture = tmp_path / "red.png"
    Image.new("RGB", (64, 48), (220, 25, 25)).save(picture)
    asked = ("-m", TINY, "What colour is this image?", "-a", str(picture), "-o", "canvas_length", "48")
    assert llm_command.ok(*asked) == "The image is red."


def test_turns_of_one_conversation_have_any_length() -> None:
    """What the one has read the next one finds, as it would read it itself."""
    from llm_diffusiongemma.backends.engine import get_engine

    model: Any = llm.get_model(TINY)
    cache = get_engine(model.entry).engine.pipeline.prefix_cache

    def replies(*, cached: bool) -> list[str]:
        cache.clear()
        talk, said = model.conversation(), []
        for length in (256, 16, 32):
            if not cached:
                cache.clear()
            response = talk.prompt(QUESTION, canvas_length=length, max_tokens=50, seed=1)
            said.append(response.text())
            assert bool((response.token_details or {}).get("cached_tokens")) == (cached and length < 256)
        return said

    assert replies(cached=True) == replies(cached=False)


@pytest.mark.parametrize(
    "asked", [(), ("-o", "thinking", "true"), ("-o", "choices", "yes,no"), ("-T", "llm_version")], ids=str
)
def test_longer_ones_than_the_checkpoints_are_refused_first(
    llm_command: Llm, asked: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_diffusiongemma.backends.local._PromptReader", None)
    said = llm_command.fails("-m", TINY, "Hi", "-o", "canvas_length", "272", *asked)
    assert said == (
        "canvas_length is 272, but this checkpoint's canvases have 256 tokens. Set it to that or less."
    )


@pytest.mark.parametrize("length", ["0", "-16", "8", "20"])
def test_lengths_that_no_canvas_has(llm_command: Llm, length: str) -> None:
    assert "must be a multiple of 16, from 16 up" in llm_command.fails(
        "-m", TINY, "Hi", "-o", "canvas_length", length
    )
