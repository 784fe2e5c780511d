"""Variables of the environment that are on or off. No torch."""

from __future__ import annotations

import os

from .errors import OptionError
from .wording import quoted

WORDS = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}


def switch(variable: str) -> bool | None:
    """What a variable says; None if it says nothing. Raises `OptionError` for any other word."""
    value = os.environ.get(variable, "").strip()
    if not value:
        return None
    if (is_on := WORDS.get(value.lower())) is None:
        raise OptionError(f"{variable} is {quoted(repr(value), 60)}. Set it to on or off, or unset it.")
    return is_on
