"""Words from outside in sentences of ours: names in files and listings, messages of servers and libraries.

A terminal obeys some characters, and others hide or turn round what stands beside them. Whoever makes a sentence
passes through `quoted` what it quotes; what is shown at last goes through `printable`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import click

from .view import screen

MAX_QUOTED_CHARACTERS = 500

# Control characters, format characters (those that turn text round, tags), halves of surrogate pairs, characters
# for private use, code points that are none, and separators of lines and paragraphs.
OBEYED = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Format characters that many writings and emoji need, and which only join or part what is beside them.
JOINERS = "\u200c\u200d"
LINE_ENDS = re.compile("[\r\n\u2028\u2029\x85]")


def printable(text: str) -> str:
    """A text of several lines with nothing in it that a terminal obeys: that is written out as an escape."""
    return "".join(map(_shown, text))


def quoted(value: object, limit: int = MAX_QUOTED_CHARACTERS) -> str:
    """A word, a path or an exception from outside as a part of a sentence: on one line, printable and not long."""
    text = " ".join(filter(None, map(str.strip, LINE_ENDS.split(str(value)))))
    shown = printable(text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def listed(words: Sequence[str]) -> str:
    """Several in a sentence: a, b and c."""
    *before, last = words
    return f"{', '.join(before)} and {last}" if before else last


def gib(num_bytes: int) -> str:
    """A size for people."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**29 else f"{num_bytes / 2**20:.1f} MiB"


_listener: ContextVar[Callable[[str], object] | None] = ContextVar("listener", default=None)


@contextmanager
def told_to(listener: Callable[[str], object]) -> Iterator[None]:
    """In here, and in replies that begin in here, what is said beside a reply is said to `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell(message: str) -> None:
    """Say something to who sits at the terminal, beside the reply."""
    message = printable(message)
    if (listener := _listener.get()) is not None:
        listener(message)
        return
    with screen.aside():
        screen.printed(message + "\n", err=True)
        click.echo(message, err=True)


def tell_once(message: str) -> None:
    """What is as true of the next reply of this process."""
    if message not in _told:
        _told.add(message)
        tell(message)


_told: set[str] = set()


def _shown(character: str) -> str:
    if character == "\n" or character in JOINERS or unicodedata.category(character) not in OBEYED:
        return character
    return character.encode("unicode_escape").decode()
