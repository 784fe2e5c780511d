"""The strings of a `format`, as far as RFCs make them regular, as regular languages.

To a validator a format is an annotation; here it is a promise. Each language is a part of what its RFC allows:
what people and programs write, less what some reader of such a text would refuse.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .characters import json_string_character
from .dfa import ByteDFA
from .language import (
    EMPTY_TEXT,
    Language,
    Literal,
    OneByte,
    Repetition,
    byte_range,
    concatenate,
    difference,
    embed,
    intersection,
    minimal_dfa,
    optional,
    unite,
)
from .minimal import minimised
from .pattern import pattern_language

# RFC 3339. The year 0 and leap seconds are left out: hardly a program has them.
_YEAR = r"(?:[1-9]\d{3}|0[1-9]\d\d|00[1-9]\d|000[1-9])"
_MONTH_AND_DAY = (
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    r"|02-(?:0[1-9]|1\d|2[0-8]))"
)
_LEAP_DAY = r"(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29"
_DATE = rf"(?:{_YEAR}-{_MONTH_AND_DAY}|{_LEAP_DAY})"
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"

# RFC 3339, appendix A: no unit between the first and the last is left out, and weeks stand alone.
_COUNT = r"\d{1,9}"
_TIME_SPAN = rf"T(?:{_COUNT}H(?:{_COUNT}M(?:{_COUNT}S)?)?|{_COUNT}M(?:{_COUNT}S)?|{_COUNT}S)"
_DAYS = rf"(?:{_COUNT}Y(?:{_COUNT}M(?:{_COUNT}D)?)?|{_COUNT}M(?:{_COUNT}D)?|{_COUNT}D)"
_DURATION = rf"P(?:{_COUNT}W|{_DAYS}(?:{_TIME_SPAN})?|{_TIME_SPAN})"

# RFC 3986, section 3.2.2: eight groups of which :: stands for one or more, the last two also as an IPv4 address.
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = rf"{_OCTET}(?:\.{_OCTET}){{3}}"
_GROUP = "[0-9A-Fa-f]{1,4}"


def _ipv6(last: str) -> str:
    """`last` is what may stand for the last two groups."""
    ways = [rf"(?:{_GROUP}:){{6}}{last}"]
    for behind in range(8):
        before = 7 - behind
        groups = rf"(?:{_GROUP}(?::{_GROUP}){{0,{before - 1}}})?" if before else ""
        rest = {0: "", 1: _GROUP}.get(behind, rf"(?:{_GROUP}:){{{behind - 2}}}{last}")
        ways.append(rf"{groups}::{rest}")
    return f"(?:{'|'.join(ways)})"


_TWO_GROUPS = f"{_GROUP}:{_GROUP}"

# RFC 3986, and RFC 3987 where `beyond` has the characters beyond ASCII: those of ucschar less spaces and what only
# says in which direction a text runs. A host that looks like an address is one.
_UCS = "".join(
    f"{chr(first)}-{chr(last)}"
    for first, last in (
        (0xA1, 0x167F),
        (0x1681, 0x1FFF),
        (0x2010, 0x2027),
        (0x2030, 0x205E),
        (0x2070, 0x2FFF),
        (0x3001, 0xD7FF),
        (0xF900, 0xFDCF),
        (0xFDF0, 0xFEFE),
        (0xFF01, 0xFFEF),
        (0x10000, 0x1FFFD),
    )
)
_ESCAPED = "%[0-9A-Fa-f]{2}"


_PORT = "(?::(?:[0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?"


@dataclass(frozen=True)
class _Shares:
    """How many characters the parts of a reference may have that have no end of their own; None is any number.

    Each part counts for itself, for the automaton of a whole with a counter has the product of their states.
    """

    scheme: int | None = None
    host: int | None = None
    rest: int | None = None

    @classmethod
    def of(cls, most: int | None) -> _Shares:
        """Of a reference of `most` characters, `LEAST_SHARED` at least; then no user is named in it."""
        if most is None:
            return cls()
        scheme = 11 if most >= 64 else 5
        host = min(63, (most - 8) // 2)
        # Beside them :// and a port.
        return cls(scheme, host, most - scheme - host - 9)


LEAST_SHARED = 32


def _authority(beyond: str, shares: _Shares) -> Language:
    inner = rf"(?:[A-Za-z0-9_{beyond}-]*[A-Za-z0-9{beyond}])?"
    host = rf"(?:[A-Za-z0-9{beyond}]{inner}\.)*[A-Za-z{beyond}]{inner}\.?"
    hosts = [_up_to(host, shares.host)]
    if shares.host is None or shares.host > 15:
        hosts.append(_text(_IPV4))
    if shares.host is None or shares.host > 41:
        hosts.append(_text(rf"\[{_ipv6(_TWO_GROUPS)}\]"))
    user = rf"(?:[A-Za-z0-9._~!$&'()*+,;=:{beyond}-]|{_ESCAPED})+"
    users = optional(_text(f"{user}@")) if shares.host is None else EMPTY_TEXT
    return concatenate(users, unite(hosts), _text(_PORT))


def _character(beyond: str, *more: str) -> str:
    """One character of a path, or of `more`."""
    return rf"(?:[A-Za-z0-9._~!$&'()*+,;=@{beyond}{''.join(more)}-]|{_ESCAPED})"


def _tail(beyond: str) -> str:
    text = _character(beyond, ":/?")
    return rf"(?:\?{text}*)?(?:#{text}*)?"


def _located(beyond: str, shares: _Shares) -> Language:
    """What begins with a host, and all that follows it."""
    path = f"(?:/{_character(beyond, ':/')}*)?{_tail(beyond)}"
    return concatenate(Literal(b"//"), _authority(beyond, shares), _up_to(path, shares.rest))


def _absolute(beyond: str, most: int | None) -> Language:
    """References with a scheme. One of http and https has a host, which others need not have."""
    shares = _Shares.of(most)
    rest = f"(?:///|/?){_character(beyond, ':')}{_character(beyond, ':/')}*{_tail(beyond)}"
    schemes = _up_to("[A-Za-z][A-Za-z0-9+.-]+", shares.scheme)
    others = embed(difference(minimal_dfa(schemes), _dfa("[Hh][Tt][Tt][Pp][Ss]?")))
    return unite(
        [
            concatenate(unite([_text("https?"), others]), Literal(b":"), _located(beyond, shares)),
            concatenate(others, Literal(b":"), _up_to(rest, shares.rest)),
        ]
    )


def _any_reference(beyond: str, most: int | None) -> Language:
    """The same, and references relative to one, of which the shortest is empty."""
    rooted = f"/(?:{_character(beyond, ':')}{_character(beyond, ':/')}*)?"
    rootless = f"{_character(beyond)}+(?:/{_character(beyond, ':/')}*)?"
    relative = _up_to(f"(?:{rooted}|{rootless}|){_tail(beyond)}", most)
    return unite([_absolute(beyond, most), _located(beyond, _Shares.of(most)), relative])


# RFC 6570.
_NAME = r"[A-Za-z0-9_](?:\.?[A-Za-z0-9_])*"
_VARIABLE = rf"{_NAME}(?::[1-9]\d{{0,2}}|\*)?"
_TEMPLATE = (
    rf"(?:[A-Za-z0-9!#$&()*+,./:;=?@_~{_UCS}\[\]-]|{_ESCAPED}|\{{[+#./;?&]?{_VARIABLE}(?:,{_VARIABLE})*\}})*"
)

# RFC 6901.
_POINTER = "(?:/(?:[^/~]|~[01])*)*"

# RFC 5321, a dot-string, and RFC 1123. No hyphen follows another one: "xn--" has a meaning of its own.
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_USER = rf"{_ATOM}(?:\.{_ATOM})*"
# A host of mail has a domain, for readers of addresses ask for one.
_DOMAIN = r"(?:[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*\.)+[A-Za-z]{2,}"
LONGEST_LABEL = 63
LONGEST_HOST = 253

_PATTERNS = {
    "date": _DATE,
    "date-time": rf"{_DATE}T{_TIME}",
    "time": _TIME,
    "duration": _DURATION,
    "uuid": r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "ipv4": _IPV4,
    "ipv6": _ipv6(f"(?:{_TWO_GROUPS}|{_IPV4})"),
    "json-pointer": _POINTER,
    "relative-json-pointer": rf"(?:0|[1-9]{{1,3}}|[1-9]{{1,2}}0)(?:#|{_POINTER})",
    "uri-template": _TEMPLATE,
}

# How many characters a name has at most: a host, and of an address what stands before and behind the @.
LONGEST_NAMES = {"hostname": LONGEST_HOST, "email": LONGEST_LABEL}

_REFERENCES = {
    "uri": (_absolute, ""),
    "uri-reference": (_any_reference, ""),
    "iri": (_absolute, _UCS),
    "iri-reference": (_any_reference, _UCS),
}

FORMATS = frozenset([*_PATTERNS, *LONGEST_NAMES, *_REFERENCES])


def longest_name(name: str, limit: int) -> int:
    """How many characters the names of a format have at most where a limit holds for all."""
    return min(LONGEST_NAMES[name], limit)


@lru_cache(maxsize=64)
def format_language(name: str, limit: int, most: int | None = None) -> tuple[Language, bool]:
    """What stands between the quotes of a string of one of `FORMATS`, and if it has at most `most` characters.

    Names in it that have to be counted have at most `limit` characters. Raises `StateLimitError`.
    """
    # Below this nothing can be shared out, and counting costs little.
    ends = most is not None and most >= LEAST_SHARED
    if name == "hostname":
        return _host(min(longest_name(name, limit), most if most is not None and ends else LONGEST_HOST)), ends
    if name == "email":
        longest = min(longest_name(name, limit), (most - 1) // 2 if most is not None and ends else LONGEST_HOST)
        return concatenate(_up_to(_USER, longest), Literal(b"@"), _up_to(_DOMAIN, longest)), ends
    if name in _REFERENCES:
        make, beyond = _REFERENCES[name]
        # A character beyond ASCII is dear to count.
        return make("" if ends else beyond, most if ends else None), ends
    return _text(_PATTERNS[name]), False


def _text(pattern: str) -> Language:
    return pattern_language(pattern, json_string_character)


def _dfa(pattern: str) -> ByteDFA:
    return minimal_dfa(_text(pattern))


def _up_to(pattern: str, longest: int | None) -> Language:
    """What a pattern matches, of so many characters at most; then only of ASCII."""
    if longest is None:
        return _text(pattern)
    shortened = Repetition(OneByte(byte_range(0x20, 0x7E)), 0, longest)
    return embed(intersection(_dfa(pattern), minimal_dfa(shortened)))


def _host(longest: int) -> Language:
    """Host names of RFC 1123: of at most so many characters, and 63 to a label. The last label has a letter.

    Both lengths together are dear to count. So a host of more than 63 characters is one of several sections of at
    most 63, each as many labels as it takes to have 32.
    """
    # The last one may be a little shorter, as in a host of 253 characters, and not much.
    sections = max((longest + 3) // (LONGEST_LABEL + 1), 1)
    lengths = [LONGEST_LABEL] * (sections - 1)
    lengths.append(min(LONGEST_LABEL, longest - (LONGEST_LABEL + 1) * (sections - 1)))
    # Section and place in it, whether the label has a letter, and what was last: nothing of a label, a hyphen or
    # another character.
    start = (0, 0, False, "")
    numbers = {start: 0}
    states = [start]
    rows: list[list[int]] = []
    for section, count, has_letter, before in states:
        row: list[int] = []
        for symbol in "a0-.":
            target = (section, count + 1, has_letter or symbol == "a", symbol)
            if symbol == ".":
                ends = count > LONGEST_LABEL // 2 and section + 1 < sections
                target = (section + 1, 0, False, "") if ends else (section, count + 1, False, "")
            if target[1] > lengths[section] or (symbol in "-." and before not in ("a", "0")):
                row.append(-1)
                continue
            if target not in numbers:
                numbers[target] = len(states)
                states.append(target)
            row.append(numbers[target])
        rows.append(row)
    dead = len(states)
    moves = np.full((dead + 1, 5), dead, np.int32)
    moves[:-1, :-1] = np.where(np.array(rows) < 0, dead, rows)
    byte_class = np.full(256, 4)
    for number, symbols in enumerate((string.ascii_letters, string.digits, "-", ".")):
        byte_class[list(symbols.encode())] = number
    accepting = [has_letter and before in ("a", "0") for _, _, has_letter, before in states]
    return embed(minimised(ByteDFA.of(moves, byte_class, np.array([*accepting, False]))))
