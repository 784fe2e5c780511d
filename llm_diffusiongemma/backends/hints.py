"""What is said after a long wait: how the next prompt needn't have it."""

from __future__ import annotations

import sys
import time
from contextlib import suppress

from . import launch, running
from .turn import Report

LONG_SECONDS = 10.0
DAY_SECONDS = 86_400.0
#: In the server's folder: when it was said last.
STAMP_FILE = "hinted"


def on_loading(report: Report) -> str | None:
    """How to keep the weights loaded, if they took long; None if they didn't, or it was said today already."""
    seconds = report.load_seconds or 0.0
    if report.server is not None or seconds <= LONG_SECONDS or launch.is_warm() or not _is_due():
        return None
    # There is no background there.
    command = "serve (in a window of its own)" if sys.platform == "win32" else "warm on"
    return (
        f"Loading took {seconds:.0f} s. To keep the model loaded for prompts to come: llm diffusiongemma {command}"
    )


def _is_due() -> bool:
    """Once a day, or never where that can't be noted down."""
    with suppress(OSError):
        stamp = running.make_folder() / STAMP_FILE
        if stamp.exists() and 0 <= time.time() - stamp.stat().st_mtime < DAY_SECONDS:
            return False
        stamp.touch(mode=0o600)
        return True
    return False
