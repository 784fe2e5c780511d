"""Regular expressions → trees.

What is read is ECMA 262's syntax with the `u` flag, as JSON schema has it: `\\d` and `\\w` are ASCII, `\\s` is all
white space of Unicode, a character is a code point. What that calls an error but people write all the same is
read as all who accept it read it: escaped punctuation, `{` and `]` as text, Python's `(?P<name>...)`, `\\A`, `\\Z`
and `(?i)`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum

from ..errors import ConstraintError
from .characters import (
    ASCII_SPACE,
    BEYOND_ASCII,
    DIGITS,
    ECMA_SPACE,
    EVERY_CHARACTER,
    LINE_ENDS,
    MAX_CODE_POINT,
    WHITE_SPACE,
    WORD,
    Ranges,
    all_but,
    case_closed,
    property_ranges,
    union,
)

# How far a counter like {0,1000} goes, and how deep groups nest.
MAX_COUNT = 1000
MAX_NESTING = 40

MAX_PATTERN_LENGTH = 10_000


class Dialect(Enum):
    """Whose regular expressions they are."""

    ECMA = "ECMA 262"
    COMMON = "ECMA 262 and Python"
    """Written as for either, what both match: `\\W` is neither `é`, a word character to one, nor `a`. Where the
    same spelling says two things it is Python's: `{,3}` counts, and a `]` at the front of a set is in it."""


@dataclass(frozen=True, eq=False, slots=True)
class Characters:
    """Any one character of a set."""

    ranges: Ranges


@dataclass(frozen=True, eq=False, slots=True)
class Sequence:
    """One part after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Choice:
    """Any one of the branches."""

    branches: tuple[Node, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Repeated:
    """`part`, from `minimum` to `maximum` times; without end where `maximum` is None."""

    part: Node
    minimum: int
    maximum: int | None


@dataclass(frozen=True, eq=False, slots=True)
class Start:
    """The empty text at the start of the whole."""


@dataclass(frozen=True, eq=False, slots=True)
class Ahead:
    """The empty text where `part` follows, or doesn't if it is not `wanted`."""

    part: Node
    wanted: bool


@dataclass(frozen=True, eq=False, slots=True)
class Behind:
    """The empty text where `part`, which looks nowhere itself, comes before; or doesn't if it is not `wanted`."""

    part: Node
    wanted: bool


Node = Characters | Sequence | Choice | Repeated | Start | Ahead | Behind

ANYTHING = Repeated(Characters(EVERY_CHARACTER), 0, None)
END = Ahead(Characters(EVERY_CHARACTER), wanted=False)


class InvalidExpressionError(ConstraintError):
    """It is no regular expression in any dialect that is read."""


def parse(pattern: str, dialect: Dialect = Dialect.ECMA) -> Node:
    """Raises `InvalidExpressionError`, and `ConstraintError` for what no reply can be held to."""
    return _Parser(pattern, dialect).parse()


def shown(text: str) -> str:
    """A pattern or a choice in a sentence."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


# A class escape as what it surely matches, and as what it may match to some reader of the dialect. Negation swaps
# the two: `[^\w]` must not match what only one of two takes for a word character.
Class = tuple[Ranges, Ranges]


def _classes(digits: Class, words: Class, spaces: Class) -> dict[str, Class]:
    found: dict[str, Class] = {}
    for letter, (surely, maybe) in (("d", digits), ("w", words), ("s", spaces)):
        found[letter] = surely, maybe
        found[letter.upper()] = all_but(maybe), all_but(surely)
    return found


_CLASSES = {
    Dialect.ECMA: _classes((DIGITS, DIGITS), (WORD, WORD), (ECMA_SPACE, ECMA_SPACE)),
    Dialect.COMMON: _classes(
        (DIGITS, union(DIGITS, BEYOND_ASCII)),
        (WORD, union(WORD, BEYOND_ASCII)),
        (ASCII_SPACE, WHITE_SPACE),
    ),
}
_LINE_BREAKS: dict[Dialect, Ranges] = {Dialect.ECMA: LINE_ENDS, Dialect.COMMON: ((0x0A, 0x0A),)}

_CONTROL_ESCAPES = {"n": 0x0A, "r": 0x0D, "t": 0x09, "f": 0x0C, "v": 0x0B, "a": 0x07}
_HEX_ESCAPES = {"x": 2, "u": 4, "U": 8}

_GROUPS_REFUSED = {
    "?P=": "a back-reference",
    "?>": "an atomic group",
    "?(": "a conditional",
    "?|": "a branch reset",
}
_LOOKS: dict[str, tuple[type[Ahead] | type[Behind], bool]] = {
    "?=": (Ahead, True),
    "?!": (Ahead, False),
    "?<=": (Behind, True),
    "?<!": (Behind, False),
}
_NAMED_GROUP = re.compile(r"\?P?<([^<>]*)>")
_FLAGGED_GROUP = re.compile(r"\?([a-zA-Z]*)(-[a-zA-Z]*)?([:)])")
_COUNTER = re.compile(r"\*|\+|\?|\{(\d+)\}|\{(\d+),(\d*)\}")
# As Python has it besides: {,3} counts from 0.
_COUNTER_FROM_ZERO = re.compile(r"\{(?!,\})(),(\d+)\}")
# Those that capture; what is escaped or in a set opens none.
_GROUPS = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|(\((?!\?)|\(\?P?<(?![=!]))", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Flags:
    ignore_case: bool = False
    multiline: bool = False
    dot_all: bool = False


_FLAG_NAMES = {"i": "ignore_case", "m": "multiline", "s": "dot_all"}
# They say what is so in any case: Unicode, and whether a quantifier is lazy.
_IDLE_FLAGS = "uU"


class _Parser:
    """Reads a pattern from left to right."""

    def __init__(self, pattern: str, dialect: Dialect) -> None:
        self.pattern = pattern
        self.dialect = dialect
        self.position = 0
        self.nesting = 0
        self.looks_behind = False
        self.flags = _Flags()
        self.names: set[str] = set()

    def parse(self) -> Node:
        if len(self.pattern) > MAX_PATTERN_LENGTH:
            raise ConstraintError(
                f"The regular expression {shown(self.pattern)} is longer than {MAX_PATTERN_LENGTH:,} characters. "
                "Shorten it."
            )
        node = self._alternatives()
        if self.position < len(self.pattern):
            raise self._invalid("unbalanced parenthesis")
        return node

    def _invalid(self, reason: str) -> InvalidExpressionError:
        return InvalidExpressionError(f"{shown(self.pattern)} is no valid regular expression: {reason}.")

    def _refused(self, what: str) -> ConstraintError:
        return ConstraintError(
            f"The regular expression {shown(self.pattern)} has {what} at character {self.position + 1}, which a "
            "reply can't be held to. Write it without."
        )

    def _next_is(self, text: str) -> bool:
        return self.pattern.startswith(text, self.position)

    def _take(self) -> str:
        if self.position == len(self.pattern):
            raise self._invalid("it ends too early")
        self.position += 1
        return self.pattern[self.position - 1]

    def _characters(self, ranges: Ranges) -> Characters:
        return Characters(case_closed(ranges) if self.flags.ignore_case else ranges)

    def _alternatives(self) -> Node:
        branches = [self._sequence()]
        while self._next_is("|"):
            self.position += 1
            branches.append(self._sequence())
        return branches[0] if len(branches) == 1 else Choice(tuple(branches))

    def _sequence(self) -> Node:
        parts: list[Node] = []
        while self.position < len(self.pattern) and not self._next_is("|") and not self._next_is(")"):
            parts.append(self._quantified(self._atom()))
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _counter(self) -> re.Match[str] | None:
        counter = _COUNTER.match(self.pattern, self.position)
        if counter is None and self.dialect is Dialect.COMMON:
            if self._next_is("{,}"):
                raise self._refused("the counter {,}, which some read as text,")
            counter = _COUNTER_FROM_ZERO.match(self.pattern, self.position)
        return counter

    def _quantified(self, atom: Node) -> Node:
        counter = self._counter()
        if counter is None:
            return atom
        minimum, maximum = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(counter[0], (0, None))
        if counter[0].startswith("{"):
            low, *high = counter[0][1:-1].split(",")
            minimum = self._count(low or "0")
            maximum = minimum if not high else self._count(high[0]) if high[0] else None
        if maximum is not None and maximum < minimum:
            raise self._invalid(f"the counter {counter[0]} is the wrong way round")
        self.position = counter.end()
        if self._next_is("+"):
            raise self._refused("a possessive quantifier")
        if self._next_is("?"):
            # Lazy or greedy makes a difference to what is captured, not to what matches.
            self.position += 1
        return self._unquantified(_repeated(atom, minimum, maximum))

    def _unquantified(self, node: Node) -> Node:
        """What no quantifier may stand behind."""
        if self._counter() is not None:
            raise self._invalid(f"nothing to repeat at character {self.position + 1}")
        return node

    def _count(self, digits: str) -> int:
        if len(digits) > 9 or int(digits) > MAX_COUNT:
            raise ConstraintError(
                f"The regular expression {shown(self.pattern)} counts up to {shown(digits)[1:-1]}; counters go "
                f"up to {MAX_COUNT:,}. Use a smaller one, or * or + instead."
            )
        return int(digits)

    def _atom(self) -> Node:
        if self.pattern[self.position] == "{":
            self._unquantified(Sequence(()))
        character = self._take()
        match character:
            case "^":
                return self._unquantified(self._line_start() if self.flags.multiline else Start())
            case "$":
                return self._unquantified(self._line_end() if self.flags.multiline else self._ahead(END))
            case ".":
                return Characters(EVERY_CHARACTER if self.flags.dot_all else all_but(LINE_ENDS))
            case "(":
                return self._group()
            case "[":
                return Characters(self._set())
            case "\\":
                return self._escape()
            case "*" | "+" | "?":
                raise self._invalid(f"nothing to repeat at character {self.position}")
        return self._characters(((ord(character), ord(character)),))

    def _line_start(self) -> Node:
        return self._behind(all_but(_LINE_BREAKS[self.dialect]), wanted=False)

    def _line_end(self) -> Node:
        return self._ahead(Ahead(Characters(all_but(_LINE_BREAKS[self.dialect])), wanted=False))

    def _ahead(self, node: Ahead) -> Ahead:
        if self.looks_behind:
            raise self._refused("something that looks ahead inside a look-behind")
        return node

    def _behind(self, ranges: Ranges, wanted: bool) -> Behind:
        if self.looks_behind:
            raise self._refused("a look-behind inside a look-behind")
        return Behind(Characters(ranges), wanted)

    def _word_boundary(self, wanted: bool) -> Node:
        surely, maybe = _CLASSES[self.dialect]["w"]
        alike, unlike = (
            Choice(
                (
                    Sequence((self._behind(surely, True), self._ahead(Ahead(Characters(one), first)))),
                    Sequence((self._behind(maybe, False), self._ahead(Ahead(Characters(other), second)))),
                )
            )
            for one, first, other, second in ((surely, True, maybe, False), (maybe, False, surely, True))
        )
        return unlike if wanted else alike

    def _group(self) -> Node:
        """A group, its parenthesis being read."""
        outer = self.flags
        if self._next_is("?#"):
            return self._comment()
        for prefix, (look, wanted) in _LOOKS.items():
            if self._next_is(prefix):
                return self._look(prefix, look, wanted)
        for prefix, name in _GROUPS_REFUSED.items():
            if self._next_is(prefix):
                raise self._refused(name)
        if self._next_is("?"):
            named = _NAMED_GROUP.match(self.pattern, self.position)
            flagged = _FLAGGED_GROUP.match(self.pattern, self.position)
            if named is not None:
                self._name(named[1])
                self.position = named.end()
            elif flagged is not None:
                self.flags = self._flagged(flagged[1], flagged[2] or "")
                self.position = flagged.end()
                if flagged[3] == ")":
                    return self._unquantified(Sequence(()))
            else:
                raise self._refused("an unknown kind of group")
        node = self._inside()
        self.flags = outer
        return node

    def _inside(self) -> Node:
        self.nesting += 1
        if self.nesting > MAX_NESTING:
            raise self._refused(f"more than {MAX_NESTING} groups inside each other")
        flags = self.flags
        node = self._alternatives()
        self.flags = flags
        self.nesting -= 1
        if not self._next_is(")"):
            raise self._invalid("a parenthesis is not closed")
        self.position += 1
        return node

    def _comment(self) -> Node:
        end = self.pattern.find(")", self.position)
        if end < 0:
            raise self._invalid("it ends in a comment")
        self.position = end + 1
        if self._counter() is not None:
            raise self._refused("a quantifier behind a comment")
        return Sequence(())

    def _look(self, prefix: str, look: type[Ahead] | type[Behind], wanted: bool) -> Node:
        if self.looks_behind:
            raise self._refused("a look-around inside a look-behind")
        self.position += len(prefix)
        self.looks_behind = look is Behind
        node = look(self._inside(), wanted)
        self.looks_behind = False
        return node

    def _name(self, name: str) -> None:
        if not name.replace("$", "_").isidentifier():
            raise self._invalid(f"{name[:60]!r} is no name for a group")
        if name in self.names:
            raise self._invalid(f"two groups have the name {name[:60]!r}")
        self.names.add(name)

    def _flagged(self, on: str, off: str) -> _Flags:
        flags = self.flags
        for letters, value in ((on, True), (off[1:], False)):
            for letter in letters:
                if letter in _FLAG_NAMES:
                    flags = replace(flags, **{_FLAG_NAMES[letter]: value})
                elif letter not in _IDLE_FLAGS:
                    raise self._refused(f"the flag {letter}")
        return flags

    def _escape(self) -> Node:
        """What a backslash begins, which has been read."""
        letter = self._take()
        match letter:
            case "A":
                return self._unquantified(Start())
            case "Z" | "z":
                return self._unquantified(self._ahead(END))
            case "b" | "B":
                return self._unquantified(self._word_boundary(letter == "b"))
            case "k":
                raise self._refused("a back-reference")
        if letter in "123456789" and not self._octal():
            self.position -= 1
            digits = re.compile(r"\d+").match(self.pattern, self.position)
            number = digits[0] if digits else letter
            groups = sum(1 for found in _GROUPS.finditer(self.pattern) if found[1])
            if len(number) > 4 or int(number) > groups:
                raise self._invalid(f"it has no group {number[:60]}")
            raise self._refused("a back-reference")
        ranges = self._class(letter, negated=False)
        if ranges is None:
            point = self._escaped_point(letter)
            ranges = ((point, point),)
        return self._characters(ranges)

    def _class(self, letter: str, negated: bool) -> Ranges | None:
        """The characters of a class escape, its letter being read; None if it is none.

        Inside of a negated set they are all those that it may match to some reader.
        """
        classes = _CLASSES[self.dialect]
        if letter in classes:
            ranges = classes[letter][negated]
            if self.flags.ignore_case and letter == "W":
                # Its complement is what ignores the case: `ſ` is an `s`, so it is in `\\w`.
                return all_but(case_closed(classes["w"][not negated]))
            return ranges
        return self._property(letter == "P") if letter in "pP" else None

    def _property(self, negated: bool) -> Ranges:
        name = re.compile(r"\{(\^?)([^{}]*)\}|()([A-Z])").match(self.pattern, self.position)
        if name is None:
            raise self._invalid("\\p wants the name of a property in braces")
        ranges = property_ranges(name[2] or name[4] or "")
        if ranges is None:
            raise self._refused(f"the property {name[0][:60]}, which is no general category of Unicode,")
        self.position = name.end()
        return all_but(ranges) if negated != bool(name[1]) else ranges

    def _octal(self) -> bool:
        """Whether the digits from the last one read on are three that make a character."""
        return re.compile("[0-3][0-7][0-7]").match(self.pattern, self.position - 1) is not None

    def _escaped_point(self, letter: str) -> int:
        """The code point of an escaped character, its first letter being read."""
        if letter in _HEX_ESCAPES:
            return self._hexadecimal(letter)
        if letter == "0" or (letter.isdecimal() and self._octal()):
            digits = re.compile("0[0-7]{0,2}|[1-3][0-7]{2}").match(self.pattern, self.position - 1)
            assert digits is not None
            self.position = digits.end()
            return int(digits[0], 8)
        if letter == "c" and re.compile("[a-zA-Z]").match(self.pattern, self.position):
            return ord(self._take()) % 32
        if letter in _CONTROL_ESCAPES:
            return _CONTROL_ESCAPES[letter]
        if letter.isascii() and letter.isalnum():
            raise self._refused(f"the escape \\{letter}")
        return ord(letter)

    def _hexadecimal(self, letter: str) -> int:
        braced = re.compile(r"\{([0-9a-fA-F]{1,8})\}").match(self.pattern, self.position)
        if letter == "u" and braced is not None:
            self.position = braced.end()
            return self._point(int(braced[1], 16))
        digits = re.compile(f"[0-9a-fA-F]{{{_HEX_ESCAPES[letter]}}}").match(self.pattern, self.position)
        if digits is None:
            raise self._invalid(f"\\{letter} wants {_HEX_ESCAPES[letter]} hexadecimal digits")
        self.position = digits.end()
        point = self._point(int(digits[0], 16))
        low = re.compile(r"\\u([dD][c-fC-F][0-9a-fA-F]{2})").match(self.pattern, self.position)
        if letter == "u" and 0xD800 <= point <= 0xDBFF and low is not None:
            self.position = low.end()
            return 0x10000 + (point - 0xD800 << 10) + int(low[1], 16) - 0xDC00
        return point

    def _point(self, point: int) -> int:
        if point > MAX_CODE_POINT:
            raise self._invalid(f"U+{point:X} is no character")
        return point

    def _set(self) -> Ranges:
        """The characters of a set, its opening bracket being read."""
        negated = self._next_is("^")
        self.position += negated
        ranges: list[Ranges] = []
        first_may_close = self.dialect is Dialect.ECMA
        while not self._next_is("]") or not (ranges or first_may_close):
            first = self._set_member(negated)
            last: int | Ranges | None = None
            if self._next_is("-") and not self._next_is("-]"):
                self.position += 1
                last = self._set_member(negated)
            if last is None:
                ranges.append(_as_ranges(first))
            elif isinstance(first, tuple) or isinstance(last, tuple):
                # No range ends in a class, so the hyphen is one.
                ranges += [_as_ranges(first), _as_ranges(ord("-")), _as_ranges(last)]
            elif last < first:
                raise self._invalid("a range of characters is the wrong way round")
            else:
                ranges.append(((first, last),))
        self.position += 1
        found = union(*ranges)
        if self.flags.ignore_case:
            found = case_closed(found)
        return all_but(found) if negated else found

    def _set_member(self, negated: bool) -> int | Ranges:
        """A code point, or the characters of a class escape."""
        character = self._take()
        if character != "\\":
            return ord(character)
        letter = self._take()
        ranges = self._class(letter, negated)
        if ranges is not None:
            return ranges
        if letter == "b":
            return 0x08
        if letter in "123456789" and not self._octal():
            raise self._refused("an octal escape")
        return self._escaped_point(letter)


def _repeated(part: Node, minimum: int, maximum: int | None) -> Node:
    """What may be empty itself needs no count of how often it is: `(?:a?){3,9}` is `a{0,9}`, `(?:a*)+` is `a*`."""
    if isinstance(part, Repeated) and part.minimum == 0 and maximum != 0 and part.maximum in (1, None):
        return Repeated(part.part, 0, None if part.maximum is None else maximum)
    return Repeated(part, minimum, maximum)


def _as_ranges(member: int | Ranges) -> Ranges:
    return member if isinstance(member, tuple) else ((member, member),)
