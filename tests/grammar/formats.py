"""Readers of formats by other means than ours: jsonschema's, and of what it checks with further packages only."""

from __future__ import annotations

import datetime
import ipaddress
import re
from typing import Any

import jsonschema

_DATE_TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d))")
# RFC 3986, appendix B, with the characters of section 2; RFC 3987 has more of them.
_PARTS = re.compile(r"(?:([A-Za-z][A-Za-z0-9+.-]*):)?(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(?:#(.*))?")
_ASCII = r"[A-Za-z0-9._~:/?@!$&'()*+,;=-]"


def _characters(text: str, beyond: bool) -> bool:
    letters = rf"(?:{_ASCII}|[\xa0-\U000dffff])" if beyond else _ASCII
    return re.fullmatch(rf"(?:{letters}|%[0-9A-Fa-f]{{2}})*", text) is not None


def _authority(text: str, beyond: bool) -> bool:
    host = re.sub(r":\d*$", "", text.rpartition("@")[2])
    port = text.rpartition("@")[2][len(host) :]
    if host.startswith("["):
        ipaddress.IPv6Address(host[1:-1])
        host = ""
    elif re.fullmatch(r"[0-9.]*", host):
        ipaddress.IPv4Address(host)
    return len(port) <= 6 and int(port[1:] or 0) <= 65535 and "@" not in host and _characters(host, beyond)


def reference(text: str, absolute: bool, beyond: bool) -> bool:
    """Whether a text is a URI or IRI, or a reference that may be relative."""
    found = _PARTS.fullmatch(text)
    assert found is not None
    scheme, authority, path, query, fragment = found.groups()
    if scheme is None and (absolute or ":" in path.partition("/")[0]):
        return False
    if scheme is not None and scheme.lower() in ("http", "https") and not authority:
        return False
    if authority is None and path.startswith("//"):
        return False
    return (not authority or _authority(authority, beyond)) and all(
        _characters(part or "", beyond) for part in (path, query, fragment)
    )


def hostname(text: str) -> bool:
    label = r"[a-zA-Z\d]([a-zA-Z\d-]{0,61}[a-zA-Z\d])?"
    return len(text) <= 253 and re.fullmatch(rf"{label}(\.{label})*", text) is not None and "--" not in text


def email(text: str) -> bool:
    user, _, host = text.rpartition("@")
    return 1 <= len(user) <= 64 and hostname(host) and "." in host


def date_time(text: str) -> bool:
    return bool(_DATE_TIME.fullmatch(text) and datetime.datetime.fromisoformat(text))


def duration(text: str) -> bool:
    """RFC 3339, appendix A: no unit in the middle is missing."""
    found = re.fullmatch(
        r"P(?=.)(?:\d+W|(?:(\d+Y)?(\d+M)?(\d+D)?)(?:T(?=.)(\d+H)?(\d+M)?(\d+S)?)?)", text, re.ASCII
    )
    if found is None:
        return False
    return not any(found[first] and found[first + 2] and not found[first + 1] for first in (1, 4))


def template(text: str) -> bool:
    """RFC 6570, by the parts of a text that braces make."""
    variable = r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*(:[1-9]\d{0,3}|\*)?"
    outside = re.sub(rf"\{{[+#./;?&]?{variable}(,{variable})*\}}", "", text)
    return re.search("[\\x00-\\x20\"'<>\\\\^`{|}]|%(?![0-9A-Fa-f]{2})", outside) is None


def pointer(text: str) -> bool:
    return text == "" or (text.startswith("/") and re.search("~(?![01])", text) is None)


def relative_pointer(text: str) -> bool:
    found = re.fullmatch(r"(0|[1-9]\d*)(#|.*)", text, re.DOTALL)
    return found is not None and (found[2] == "#" or pointer(found[2]))


READERS = {
    "date-time": date_time,
    "time": lambda text: date_time(f"2000-01-01T{text}"),
    "duration": duration,
    "hostname": hostname,
    "email": email,
    "uri": lambda text: reference(text, absolute=True, beyond=False),
    "uri-reference": lambda text: reference(text, absolute=False, beyond=False),
    "iri": lambda text: reference(text, absolute=True, beyond=True),
    "iri-reference": lambda text: reference(text, absolute=False, beyond=True),
    "uri-template": template,
    "json-pointer": pointer,
    "relative-json-pointer": relative_pointer,
}


def format_checker() -> jsonschema.FormatChecker:
    """jsonschema's own checks, and these."""
    checker = jsonschema.FormatChecker()
    for name, read in READERS.items():

        def check(text: Any, read: Any = read) -> bool:
            return not isinstance(text, str) or read(text)

        checker.checks(name, raises=ValueError)(check)
    return checker
