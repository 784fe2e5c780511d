"""A text with blanks: what it is made of, the language of its fillings, and a filling read back.

A blank ends at the first place where what stands behind it begins, so that a filled text can be read in one way
only, and each blank with what ends it is a language in which no text begins with another one: behind it the next
one starts afresh. So the automaton is as long as the text. Blanks that could end anywhere (`.*A.*B`) would have to
be followed all at once, and their states multiply.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..errors import ConstraintError
from .characters import LINE_ENDS, WHITE_SPACE, Ranges, all_but, utf8
from .dfa import ByteDFA
from .language import (
    MAX_STATES,
    Language,
    Literal,
    Repetition,
    StateLimitError,
    concatenate,
    embed,
    intersection,
    minimal_dfa,
    unite,
)

# So many characters of what stands behind a blank tell that it has ended. What follows them is certain by then:
# nobody begins a signature and goes on with the letter.
TELLING = 16

# A blank doesn't end with one of these if that stands behind it anyhow: a sentence would end twice.
MARKS = ".,;:!?"

_BRACE = re.compile(r"[{}]")
_HALF_A_PAIR = re.compile("[\ud800-\udfff]")  # what Python makes of bytes that are no UTF-8
_BLANK = re.compile(r"\{([^{}]*)\}")
_LONG = "..."
_CONTROLS: Ranges = ((0x00, 0x1F), (0x7F, 0x9F))
_CONTROLS_BUT_LINES: Ranges = ((0x00, 0x08), (0x0B, 0x1F), (0x7F, 0x9F))
_BYTE_ORDER_MARK = "\ufeff"  # white space in JSON schema's dialect only
_SHOWN = 24


@dataclass(frozen=True)
class Blank:
    """A place to be filled: with at least one character, and no white space at either end."""

    name: str
    is_long: bool
    """Whether it may have several lines, and tabs. Other control characters it never has."""

    def takes(self, text: str, mark: str) -> bool:
        """Whether it may be filled with this, where such a mark stands behind it ("" for none)."""
        if not text or (mark and text.endswith(mark)) or text != text.strip().strip(_BYTE_ORDER_MARK):
            return False
        if not self.is_long and len(text.splitlines()) > 1:
            return False
        allowed = "\n\t" if self.is_long else ""
        return all(character in allowed or unicodedata.category(character) != "Cc" for character in text)


@dataclass(frozen=True)
class BlankText:
    """A text with blanks: each stands behind one of the literals, and the last literal behind them all."""

    literals: tuple[str, ...]
    blanks: tuple[Blank, ...]

    def __str__(self) -> str:
        """For who is to fill it: with braces around blanks, and as they are elsewhere."""
        shown = [f"{{{blank.name}{_LONG if blank.is_long else ''}}}" for blank in self.blanks]
        return "".join(map("".join, zip(self.literals, [*shown, ""], strict=True)))

    def language(self) -> ByteDFA:
        """All its fillings. Raises `ConstraintError` if they need too large an automaton."""
        parts: list[Language] = [Literal(self.literals[0].encode())]
        states = sum(len(literal.encode()) for literal in self.literals)
        try:
            for number, blank in enumerate(self.blanks):
                # Before thousands of blanks are built one by one.
                if states > MAX_STATES:
                    raise StateLimitError
                telling, behind = self._ends(number)
                filled = _filled(blank.is_long, telling, self._mark(number))
                states += filled.dead - len(telling.encode()) - 1
                parts += [embed(filled), Literal(behind.encode())]
            return minimal_dfa(concatenate(*parts))
        except StateLimitError:
            raise ConstraintError(
                f"The text to fill needs an automaton of more than {MAX_STATES:,} states: one for each byte "
                "outside its blanks, and some for each blank. Shorten it, or have its parts filled one by one."
            ) from None

    def read(self, text: str) -> dict[str, str] | None:
        """What stands in the blanks, by name and in their order; None if the text is none of the fillings."""
        if not text.startswith(self.literals[0]):
            return None
        position = len(self.literals[0])
        values: dict[str, str] = {}
        for number, blank in enumerate(self.blanks):
            telling, behind = self._ends(number)
            end = text.find(telling, position) if telling else len(text) - len(behind)
            value = text[position:end] if end >= 0 else ""
            if not blank.takes(value, self._mark(number)) or not text.startswith(telling + behind, end):
                return None
            values[blank.name] = value
            position = end + len(telling) + len(behind)
        return values if position == len(text) else None

    def _ends(self, number: int) -> tuple[str, str]:
        """What tells that a blank has ended, and what stands behind that, up to the next one.

        Where nothing comes behind a short literal any more it is the end of the text that tells: in `{price}.` a
        point is no end.
        """
        literal = self.literals[number + 1]
        is_last = number + 1 == len(self.blanks)
        telling = 0 if is_last and len(literal) < TELLING else TELLING
        return literal[:telling], literal[telling:]

    def _mark(self, number: int) -> str:
        """Which of the marks stands behind a blank, if one does."""
        character = self.literals[number + 1][:1]
        return character if character in MARKS else ""


def parse_blanks(text: str) -> BlankText:
    """A text that has a blank wherever `{name}` or `{name...}` stands, `{{` and `}}` being braces.

    Raises `ConstraintError`.
    """
    if broken := _HALF_A_PAIR.search(text):
        raise _wrong(text, broken.start(), "there are bytes that are no valid UTF-8. Convert the text first.")
    literals, blanks = list[str](), list[Blank]()
    seen: dict[str, int] = {}
    # Of the literal at hand: added to one string by bits, millions of braces would take minutes.
    pieces: list[str] = []
    position = 0
    while position < len(text):
        character = text[position]
        if character not in "{}":
            brace = _BRACE.search(text, position)
            end = len(text) if brace is None else brace.start()
            pieces.append(text[position:end])
            position = end
        elif text.startswith(character, position + 1):
            pieces.append(character)
            position += 2
        else:
            blank, end = _parse_blank(text, position)
            if blanks and not pieces:
                raise _wrong(
                    text,
                    position,
                    f"nothing stands between the blanks {{{blanks[-1].name}}} and {{{blank.name}}}, so that "
                    "nobody could tell where the first one ends. Put something between them, or make them one.",
                )
            if blank.name in seen:
                raise _wrong(
                    text,
                    position,
                    f"the blank {{{blank.name}}} is there a second time (the first is at "
                    f"{_place(text, seen[blank.name])}). Give it another name.",
                )
            seen[blank.name] = position
            literals.append("".join(pieces))
            blanks.append(blank)
            pieces = []
            position = end
    if not blanks:
        raise ConstraintError(
            "The text to fill has no blank. Write one as {name}, or as {name...} if it may be of several lines. A "
            'text that is in a file comes from the shell: -o fill "$(cat letter.txt)".'
        )
    return BlankText((*literals, "".join(pieces)), tuple(blanks))


def _parse_blank(text: str, position: int) -> tuple[Blank, int]:
    """The blank whose brace opens at `position`, and where it ends."""
    if text[position] == "}":
        raise _wrong(
            text, position, "a brace closes that none has opened. As a character it is written twice: }}."
        )
    found = _BLANK.match(text, position)
    if found is None:
        nested = "{" in text[position + 1 :]
        what = "and another one before it is closed" if nested else "that isn't closed"
        twice = "Braces that are characters, as those of JSON, are written twice: {{ and }}."
        raise _wrong(text, position, f"a brace opens{',' if nested else ''} {what}. {twice}")
    name = found[1].removesuffix(_LONG)
    if not all(part and all(map(_may_be_in_name, part)) for part in name.split(" ")):
        raise _wrong(
            text,
            position,
            "there is no blank in these braces. A blank is a name of letters, digits, _, - and single spaces: "
            "{name}, or {name...} if it may be of several lines. As characters braces are written twice: {{ }}.",
        )
    return Blank(name, found[1].endswith(_LONG)), found.end()


def _may_be_in_name(character: str) -> bool:
    return character in "_-" or unicodedata.category(character)[0] in "LMN"


def _wrong(text: str, position: int, why: str) -> ConstraintError:
    shown = text[position : position + _SHOWN] + ("…" if len(text) > position + _SHOWN else "")
    return ConstraintError(f"In the text to fill, at {_place(text, position)} ({shown!r}), {why}")


def _place(text: str, position: int) -> str:
    """Where that is, for people."""
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    return f"line {line}, character {column}" if "\n" in text else f"character {column}"


@lru_cache(maxsize=64)
def _filled(is_long: bool, telling: str, mark: str) -> ByteDFA:
    """A blank with what tells that it has ended, which a mark may begin."""
    if not telling:
        character = all_but(_CONTROLS_BUT_LINES) if is_long else all_but(_CONTROLS, LINE_ENDS)
        outside = _CONTROLS, LINE_ENDS, WHITE_SPACE
        first = utf8(all_but(*outside))
        last = utf8(all_but(*outside, tuple((ord(each), ord(each)) for each in mark)))
        return minimal_dfa(unite([last, concatenate(first, Repetition(utf8(character), 0, None), last)]))
    anywhere = concatenate(embed(_filled(is_long, "", mark)), Literal(telling.encode()))
    return intersection(minimal_dfa(anywhere), _until(telling.encode()))


def _until(word: bytes) -> ByteDFA:
    """All that ends with the first `word` in it."""
    # After Knuth, Morris and Pratt: a state for each number of the word's bytes that have just been read.
    end, dead = len(word), len(word) + 1
    transitions = np.full((end + 2, 256), dead, np.int32)
    fallback = 0
    for state, byte in enumerate(word):
        transitions[state] = transitions[fallback] if state else 0
        transitions[state, byte] = state + 1
        if state:
            fallback = int(transitions[fallback, byte])
    return ByteDFA.of(transitions, np.arange(256), np.arange(end + 2) == end)
