"""A browser that a test or a picture opens a page in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Playwright

# What there may be on the PATH.
NAMES = ("chromium", "chromium-browser", "google-chrome")


class MissingBrowserError(Exception):
    """Raised with what is missing."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless one: on the PATH, or Chrome where its installer puts it, or Playwright's own. Raises
    `MissingBrowserError`."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise MissingBrowserError("needs playwright: the extra named browser") from None
    with sync_playwright() as playwright, _launch(playwright) as browser:
        yield browser


def _launch(playwright: Playwright) -> Browser:
    from playwright.sync_api import Error

    on_path = next(filter(None, map(shutil.which, NAMES)), None)
    # Its sandbox refuses root.
    args = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    if on_path is not None:
        return playwright.chromium.launch(executable_path=on_path, args=args)
    for channel in ("chrome", None):
        with suppress(Error):
            return playwright.chromium.launch(channel=channel, args=args)
    raise MissingBrowserError("needs Chromium or Chrome")
