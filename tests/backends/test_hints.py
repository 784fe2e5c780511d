"""What is said after a long wait."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import llm
import pytest

from llm_diffusiongemma.backends import hints, launch, running
from llm_diffusiongemma.backends.hints import on_loading
from llm_diffusiongemma.backends.turn import Report

from ..conftest import TINY, Llm

SLOW = Report(
    finish_reason="stop",
    resolved_model=TINY,
    input_tokens=1,
    output_tokens=1,
    cached_tokens=0,
    seed=1,
    load_seconds=43.2,
    generate_seconds=1.0,
)
HINT = "Loading took 43 s. To keep the model loaded for prompts to come: llm diffusiongemma warm on"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="another way out there")


def test_once_a_day() -> None:
    assert on_loading(SLOW) == HINT
    assert on_loading(SLOW) is None
    stamp = running.folder() / hints.STAMP_FILE
    # A clock that was wrong counts for no day.
    for age_seconds, is_said in ((80_000, False), (90_000, True), (-90_000, True)):
        os.utime(stamp, times=(time.time() - age_seconds,) * 2)
        assert (on_loading(SLOW) is not None) is is_said


def test_where_it_would_be_no_help() -> None:
    for report in (
        replace(SLOW, load_seconds=9.9),
        replace(SLOW, load_seconds=None),
        replace(SLOW, server="local server"),
    ):
        assert on_loading(report) is None
    launch.set_warm(True)
    assert on_loading(SLOW) is None
    launch.set_warm(False)
    assert on_loading(SLOW) == HINT


def test_on_a_terminal_only(llm_command: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hints, "LONG_SECONDS", -1.0)
    ask = ("-m", TINY, "What is a canvas?")
    assert llm_command(*ask).stderr == ""
    with monkeypatch.context() as patch:
        patch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
        llm.get_model(TINY).prompt("What is a canvas?", seed=1).text()  # a program's terminal is its own
        assert "llm diffusiongemma warm on" in llm_command(*ask).stderr
        assert llm_command(*ask).stderr == ""
