"""A browser that a test or a picture opens a page in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Playwright

# As Debian, others and Google call it.
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


class MissingBrowserError(Exception):
    """Raised with what is missing."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless one: that of the machine, else Playwright's own. Raises `MissingBrowserError`."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        raise MissingBrowserError("needs playwright: the extra named browser") from None
    with sync_playwright() as playwright:
        try:
            browser = _launch(playwright)
        except Error as error:
            raise MissingBrowserError(f"needs Chromium or Chrome: {str(error).splitlines()[0]}") from None
        with browser:
            yield browser


def _launch(playwright: Playwright) -> Browser:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    # Its sandbox refuses root.
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    return playwright.chromium.launch(executable_path=found, args=["--no-sandbox"] if is_root else [])
