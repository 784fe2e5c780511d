"""`llm diffusiongemma warm on`: prompts start a server and share it. In processes, for only those may."""

from __future__ import annotations

import signal
import sys
import time

import pytest

from llm_diffusiongemma.backends import launch, running

from ..conftest import PATIENCE_SECONDS, TINY, Llm

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no server in the background there")

ASK = ("-m", TINY, "What is a canvas?")


def test_prompts_at_once_start_one_and_share_it(llm_command: Llm) -> None:
    """Also when who first asked for it doesn't wait."""
    llm_command.ok("diffusiongemma", "warm", "on")
    hasty = llm_command.process(*ASK)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not running.is_locked():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    hasty.send_signal(signal.SIGINT)
    output, errors = hasty.communicate()
    assert (hasty.returncode, output, errors.strip()) == (130, "", "Interrupted.")
    try:
        for command in [llm_command.process(*ASK), llm_command.process(*ASK, "--async")]:
            output, errors = command.communicate()
            assert (command.returncode, errors) == (0, "")
            assert output.startswith("A canvas is")
        turns = llm_command.logs()
        assert [turn["response_json"]["server"] for turn in turns] == ["local server"] * 2
        # One had it loaded, whichever.
        assert sorted(turn["response_json"]["load_seconds"] > 0 for turn in turns) == [False, True]
        found = running.recorded()
        assert found is not None
        assert found.ends_when_idle
        assert found.url is None
        assert launch.ask(found, "GET", "/diffusiongemma/status")["replies"] == 2
    finally:
        launch.stop()
