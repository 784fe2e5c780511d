"""Where the references of a schema lead: ids, anchors and base URIs, read once and made plain pointers.

What comes after knows only `#/...` from the top of the schema. A nested id begins a resource of its own, to which
the pointers inside of it refer (RFC 3986, section 5, and the core of each draft).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin

from ..errors import ConstraintError
from ..wording import quoted

if TYPE_CHECKING:
    from .dialects import Part, Schema

Path = tuple[str | int, ...]

# Keywords whose value is a schema, a list of schemas, or schemas by name, in any draft.
_SCHEMAS_BY_NAME = ("properties", "patternProperties", "dependentSchemas", "dependencies", "$defs", "definitions")
_SCHEMAS = (
    *("not", "if", "then", "else", "allOf", "anyOf", "oneOf", "propertyNames", "contentSchema", "contains"),
    *("items", "prefixItems", "additionalItems", "unevaluatedItems"),
    *("additionalProperties", "unevaluatedProperties"),
)

# Each schema inside has its own, made from those around it.
MAX_URI_LENGTH = 4000

_INDEX = re.compile("0|[1-9][0-9]{0,8}")


def subschemas(schema: Part, keyword: str) -> Iterable[tuple[str, Schema]]:
    """The schemas under a keyword, by name where they have one."""
    return [(str(path[-1]) if keyword in _SCHEMAS_BY_NAME else "", each) for path, each in _under(schema, keyword)]


def _under(schema: Part, keyword: str) -> Iterator[tuple[Path, Schema]]:
    value = schema.get(keyword)
    found: Iterable[tuple[Path, Any]] = [((keyword,), value)]
    if isinstance(value, list):
        found = [((keyword, index), each) for index, each in enumerate(value)]
    elif isinstance(value, dict) and keyword in _SCHEMAS_BY_NAME:
        found = [((keyword, name), each) for name, each in value.items()]
    for path, each in found:
        if isinstance(each, dict | bool):
            yield path, each


def parts_of(schema: Part) -> Iterator[tuple[Path, Part]]:
    """The schemas right below one, in the places that any draft has for them; booleans left out."""
    for keyword in (*_SCHEMAS, *_SCHEMAS_BY_NAME):
        if keyword in schema:
            for path, each in _under(schema, keyword):
                if isinstance(each, dict):
                    yield path, each


def resolve(root: Schema, reference: Any) -> list[Any]:
    """What a $ref passes on its way from the root: the last one is the schema that it leads to.

    Raises `ConstraintError` if there is none.
    """
    if not isinstance(reference, str) or (reference != "#" and not reference.startswith("#/")):
        raise ConstraintError(f"The $ref {reference!r} doesn't lead to a place in the schema itself (#/...).")
    way: list[Any] = [root]
    for step in steps(reference):
        way.append(_step(way[-1], step, reference)[1])
    if not isinstance(way[-1], dict | bool):
        raise ConstraintError(f"The $ref {reference!r} leads to something that is no schema.")
    return way


def _step(node: Any, step: str, reference: str) -> tuple[str | int, Any]:
    try:
        name = int(step) if isinstance(node, list) and _INDEX.fullmatch(step) else step
        return name, node[name]
    except (LookupError, TypeError):
        raise ConstraintError(
            f"The $ref {quoted(repr(reference))} leads nowhere in the schema. Put what it names under $defs."
        ) from None


def steps(reference: str) -> list[str]:
    """The names and indices that a pointer goes by."""
    return [step.replace("~1", "/").replace("~0", "~") for step in unquote(reference).split("/")[1:]]


def _pointer(path: Path) -> str:
    """The reference to a path from the root, which `steps` takes apart again."""
    names = (str(step).replace("~", "~0").replace("/", "~1") for step in path)
    return "#" + re.sub("[\x00-\x20%]", lambda sign: f"%{ord(sign[0]):02X}", "".join(f"/{name}" for name in names))


def _joined(base: str, reference: str) -> str:
    if reference.startswith("#") or not reference:
        return base + reference
    try:
        return urljoin(base, reference)
    except ValueError:  # what no URI is
        return reference


def _split(uri: str) -> tuple[str, str]:
    before, _, fragment = uri.partition("#")
    return before, fragment


class References:
    """Where each schema of a document stands, and what it is called."""

    def __init__(self, root: Schema, id_keyword: str, stand_alone: bool, obeyed: Iterable[str]) -> None:
        """`stand_alone`: what stands beside a $ref is ignored, an id too. `obeyed`: keywords of the draft."""
        self.root = root
        self.id_keyword = id_keyword
        self.stand_alone = stand_alone
        self.finders = {
            keyword: find
            for keyword, find in (("$dynamicRef", self._dynamic), ("$recursiveRef", self._recursive))
            if keyword in obeyed
        }
        # By identity of a schema: the URI of its resource.
        self.bases: dict[int, str] = {}
        self.resources: dict[str, tuple[Path, Any]] = {"": ((), root)}
        self.anchors: dict[tuple[str, str], Path] = {}
        # Names of $dynamicAnchor: the path of each, by resource.
        self.dynamic: dict[str, dict[str, Path]] = {}
        self.repeated: set[str] = set()
        self.led: set[int] = set()
        if isinstance(root, dict):
            self._read(root, (), "")

    def _read(self, schema: Part, path: Path, base: str) -> None:
        """Note all schemas from one downwards."""
        pending = [(schema, path, base)]
        while pending:
            schema, path, base = pending.pop()
            if id(schema) in self.bases:
                continue
            self.bases[id(schema)] = base = self._name(schema, path, base)
            pending += [(each, path + way, base) for way, each in parts_of(schema)]

    def _name(self, schema: Part, path: Path, base: str) -> str:
        """The base URI within a schema; its names are noted."""
        for keyword in ("id", "$id"):
            own = schema.get(keyword)
            if not isinstance(own, str) or not own:
                continue
            uri, fragment = _split(_joined(base, own))
            if len(uri) > MAX_URI_LENGTH:
                raise ConstraintError(
                    f"The {keyword} {quoted(own, 60)} of the schema makes a URI of more than {MAX_URI_LENGTH:,} "
                    "characters. Shorten it."
                )
            counts = keyword == self.id_keyword and not (self.stand_alone and "$ref" in schema)
            if uri != base and (counts or not path):
                if self.resources.setdefault(uri, (path, schema))[1] is not schema:
                    self.repeated.add(uri)
                # The top has a name in any case; its base is moved only by the keyword of its draft.
                base = uri if counts else base
            if fragment and not fragment.startswith("/"):
                self._note((uri, fragment), path)
        for keyword in ("$anchor", "$dynamicAnchor"):
            name = schema.get(keyword)
            if isinstance(name, str):
                self._note((base, name), path)
                if keyword == "$dynamicAnchor":
                    self.dynamic.setdefault(name, {}).setdefault(base, path)
        return base

    def _note(self, name: tuple[str, str], path: Path) -> None:
        if self.anchors.setdefault(name, path) != path:
            self.repeated.add("#".join(name))

    def lead(self, schema: Part, place: str) -> str | None:
        """Make a schema's reference a pointer from the top, and return it; None if it has none.

        A $dynamicRef or $recursiveRef becomes a $ref where it can lead to one place only.

        Raises `ConstraintError` if it leads nowhere.
        """
        if id(schema) not in self.led:
            self.led.add(id(schema))
            if "$ref" in schema:
                schema["$ref"] = _pointer(self._target(schema, "$ref", place))
            for keyword, find in self.finders.items():
                if keyword in schema:
                    pointer = _pointer(find(schema, place))
                    del schema[keyword]
                    if "$ref" in schema:
                        schema["allOf"] = [*schema.get("allOf", ()), {"$ref": pointer}]
                    else:
                        schema["$ref"] = pointer
        pointer_or_none: str | None = schema.get("$ref")
        return pointer_or_none

    def _target(self, schema: Part, keyword: str, place: str) -> Path:
        reference = schema[keyword]
        if not isinstance(reference, str):
            raise _astray(keyword, reference, place, "doesn't lead to a place in the schema itself")
        base = self.bases.get(id(schema), "")
        if not reference.startswith("#"):
            base = _split(_joined(base, reference))[0]
        if base not in self.resources:
            raise _astray(keyword, reference, place, "leads to another document, and none is fetched")
        path, node = self.resources[base]
        base = self.bases.get(id(node), "")
        name = base, unquote(_split(reference)[1])
        if base in self.repeated or "#".join(name) in self.repeated:
            raise _astray(keyword, reference, place, "may lead to several places, which have the same id")
        if not name[1] or name[1].startswith("/"):
            return self._walked(node, path, reference, base, place)
        if name not in self.anchors:
            reason = "doesn't lead to a place in the schema itself: nothing in it has that $anchor"
            raise _astray(keyword, reference, place, reason)
        return self.anchors[name]

    def _walked(self, node: Any, path: Path, reference: str, base: str, place: str) -> Path:
        """The path that a pointer takes from a resource. A schema where none was known to be is read."""
        start = path
        inside = base
        try:
            for step in steps("#" + _split(reference)[1]):
                name, node = _step(node, step, reference)
                path = (*path, name)
                inside = self.bases.get(id(node), inside)
        except ConstraintError:
            if start and self._stands_at_top(reference):
                raise ConstraintError(
                    f"The keyword {self.id_keyword} at {quoted(place)} can't be guaranteed: inside of a schema it "
                    f"changes what a $ref refers to, and {quoted(repr(reference))} leads nowhere from there. "
                    "Leave it out."
                ) from None
            raise
        if not isinstance(node, dict | bool):
            raise ConstraintError(f"The $ref {quoted(repr(reference))} leads to something that is no schema.")
        if isinstance(node, dict) and id(node) not in self.bases:
            self._read(node, path, inside)
        return path

    def _stands_at_top(self, reference: str) -> bool:
        try:
            resolve(self.root, "#" + _split(reference)[1])
        except ConstraintError:
            return False
        return True

    def _dynamic(self, schema: Part, place: str) -> Path:
        """The outermost resource on the way that has the anchor is meant, and the top is on every way."""
        path = self._target(schema, "$dynamicRef", place)
        known = self.dynamic.get(_split(schema["$dynamicRef"])[1], {})
        if path not in known.values():
            return path
        top = self.bases.get(id(self.root), "")
        if top in known:
            return known[top]
        if len(known) > 1:
            raise _ambiguous("$dynamicRef", place)
        return path

    def _recursive(self, schema: Part, place: str) -> Path:
        """What is meant is the top of a resource, or of one around it if both have a $recursiveAnchor."""
        path, node = self.resources[self.bases.get(id(schema), "")]
        if not path or not node.get("$recursiveAnchor"):
            return path
        anchored = [bool(node.get("$recursiveAnchor")) for path, node in self.resources.values()]
        if all(anchored):
            return ()
        if sum(anchored) > 1:
            raise _ambiguous("$recursiveRef", place)
        return path


def _astray(keyword: str, reference: Any, place: str, reason: str) -> ConstraintError:
    return ConstraintError(
        f"The {keyword} {quoted(repr(reference))} at {quoted(place)} {reason}. Put what it names under $defs, and "
        "write #/$defs/..."
    )


def _ambiguous(keyword: str, place: str) -> ConstraintError:
    return ConstraintError(
        f"The keyword {keyword} at {quoted(place)} can't be guaranteed: where it leads depends on the way there. "
        "Use $ref."
    )
