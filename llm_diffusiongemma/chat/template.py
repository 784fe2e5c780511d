"""A checkpoint's chat template, which is a program of a stranger: rendered in jinja2's sandbox, and within bounds.

What a template sees and what it may call is as with transformers' `apply_chat_template`, but for what makes a long
text of a short one by a number (padding, formatting). Time, numbers and texts are bounded at every place where a
template can repeat something: loops, calls, operators, output.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_indent, do_round, do_sum, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

# Far above what a template takes for any conversation, whose own length comes on top.
MAX_SECONDS = 10.0
MAX_CHARACTERS = 10_000_000
TIMES_ITS_INPUT = 8
MAX_TOGETHER = 1_000_000_000
MAX_NUMBER_BITS = 1024
MAX_INDENT = 16
MAX_SEPARATOR = 16
MAX_DECIMALS = 30
MAX_TIME_FORMAT = 100

BUDGET = "budget of this rendering"

# They pad, repeat or format by a number, and no chat template needs them.
LENGTHENING_FILTERS = (
    "batch center forceescape format pprint slice striptags truncate urlencode urlize wordcount wordwrap xmlattr"
).split()
# They make a key of each item, or a text of whatever they get.
COPYING_FILTERS = ("dictsort", "groupby", "max", "min", "sort", "unique")
TEXT_FILTERS = ("capitalize", "e", "escape", "lower", "safe", "string", "title", "trim", "upper")
LENGTHENING_METHODS = frozenset(
    {"center", "expandtabs", "format", "format_map", "ljust", "rjust", "to_bytes", "translate", "zfill"}
)


class _Budget:
    """What one rendering may still take. Raises `SecurityError`."""

    def __init__(self, input_characters: int) -> None:
        self._ends = time.monotonic() + MAX_SECONDS
        self._longest = MAX_CHARACTERS + TIMES_ITS_INPUT * input_characters
        self._left = self._longest
        self._left_together = MAX_TOGETHER + TIMES_ITS_INPUT * input_characters

    def tick(self) -> None:
        if time.monotonic() > self._ends:
            raise SecurityError(f"it takes longer than {MAX_SECONDS:.0f} seconds")

    def write(self, value: object) -> None:
        self.tick()
        if isinstance(value, str):
            self._left -= len(value)
        if self._left < 0:
            raise SecurityError(f"it writes more than {self._longest:,} characters")

    def make(self, size: int) -> None:
        """A text of so many characters, or a list with so much in it."""
        self.tick()
        self._left_together -= size
        if size > self._longest or self._left_together < 0:
            raise SecurityError(f"it makes texts or lists of more than {self._longest:,} characters")

    def write_out(self, value: Any) -> None:
        """What is no text yet becomes one."""
        if not isinstance(value, str):
            self.make(self.measure(value))

    def measure(self, value: Any) -> int:
        """What a value takes when it is written out: a list may hold the same one many times, at every depth."""
        size, stack = 0, [value]
        while stack and size <= self._longest:
            each = stack.pop()
            size += 1
            if isinstance(each, str):
                size += len(each)
            elif isinstance(each, (list, tuple)):
                stack += each
            elif isinstance(each, dict):
                stack += [*each, *each.values()]
        return size


def _budget(context: Context) -> _Budget:
    # Of what the rendering began with: a template can't set it.
    budget = context.parent[BUDGET]
    assert isinstance(budget, _Budget)
    return budget


@jinja2.pass_context
def _write(context: Context, value: Any) -> Any:
    _budget(context).write_out(value)
    _budget(context).write(value)
    return value


@jinja2.pass_context
def _each(context: Context, items: Iterable[Any]) -> Any:
    """What a loop goes over."""
    budget = _budget(context)

    def ticking() -> Iterator[Any]:
        for item in items:
            budget.tick()
            yield item

    # A sequence stays one: a loop may ask for its length. Each item of it has been paid for.
    budget.tick()
    return _Ticking(items, ticking) if isinstance(items, Sequence) else ticking()


class _Ticking(Sequence[Any]):
    def __init__(self, items: Sequence[Any], iterate: Callable[[], Iterator[Any]]) -> None:
        self._items = items
        self._iterate = iterate

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self._items[index]

    def __iter__(self) -> Iterator[Any]:
        return self._iterate()


@jinja2.pass_context
def _concatenate(context: Context, *values: Any) -> str:
    for value in values:
        _budget(context).write_out(value)
    texts = [str(value) for value in values]
    _budget(context).make(sum(map(len, texts)))
    return "".join(texts)


@jinja2.pass_context
def _literal(context: Context, value: Any) -> Any:
    """A list or a dictionary that a template writes."""
    budget = _budget(context)
    budget.make(budget.measure(value))
    return value


@jinja2.pass_context
def _replace(context: Context, value: Any, old: Any, new: Any, count: int | None = None) -> str:
    _budget(context).write_out(value)
    text, old, new = str(value), str(old), str(new)
    _budget(context).make(len(text) + text.count(old) * len(new))
    return text.replace(old, new, -1 if count is None else count)


@jinja2.pass_context
def _join(context: Context, items: Iterable[Any], d: Any = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        items = map(make_attrgetter(context.environment, attribute), items)
    items = list(items)
    _budget(context).write_out(items)
    texts = [str(item) for item in items]
    _budget(context).make(sum(map(len, texts)) + len(texts) * len(str(d)))
    return str(d).join(texts)


@jinja2.pass_context
def _to_json(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if indent is not None and (not isinstance(indent, int) or indent > MAX_INDENT):
        raise SecurityError(f"it indents by more than {MAX_INDENT}")
    if separators is not None and sum(map(len, separators)) > MAX_SEPARATOR:
        raise SecurityError(f"it separates by more than {MAX_SEPARATOR} characters")
    _budget(context).write_out(value)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _measured(make: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of jinja2's that is given only what it can take."""
    takes_environment = hasattr(make, "jinja_pass_arg")

    @jinja2.pass_context
    def filter_(context: Context, value: Any, *args: Any, **values: Any) -> Any:
        if isinstance(value, Iterator):
            value = list(value)
        _budget(context).write_out(value)
        if takes_environment:
            return make(context.environment, value, *args, **values)
        return make(value, *args, **values)

    return filter_


@jinja2.pass_context
def _dict(context: Context, *args: Any, **values: Any) -> dict[Any, Any]:
    made: dict[Any, Any] = _literal(context, dict(*args, **values))
    return made


@jinja2.pass_environment
def _sum(
    environment: jinja2.Environment, values: Iterable[Any], attribute: str | int | None = None, start: Any = 0
) -> Any:
    if not isinstance(start, (int, float)):
        raise SecurityError("it adds up what is no number")
    return do_sum(environment, values, attribute, start)


def _round(value: float, precision: int = 0, method: Literal["common", "ceil", "floor"] = "common") -> float:
    if not isinstance(precision, int) or abs(precision) > MAX_DECIMALS:
        raise SecurityError(f"it rounds to more than {MAX_DECIMALS} decimals")
    return do_round(value, precision, method)


@jinja2.pass_context
def _indent(context: Context, text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    columns = len(width) if isinstance(width, str) else width
    if not isinstance(columns, int) or columns > MAX_INDENT:
        raise SecurityError(f"it indents by more than {MAX_INDENT}")
    text = str(text)
    _budget(context).make(len(text) + (text.count("\n") + 1) * max(0, columns))
    return do_indent(text, width, first, blank)


def _time_now(form: str) -> str:
    if len(form) > MAX_TIME_FORMAT:
        raise SecurityError("it writes the time in too many words")
    return datetime.now().strftime(form)


def _raise_exception(message: Any) -> None:
    raise TemplateError(str(message))


class _PublicNamespace(Namespace):
    """A template's variables, none of which is of Python's own."""

    def __init__(self, *args: Any, **values: Any) -> None:
        super().__init__(_public(dict(*args, **values)))

    def __setitem__(self, name: str, value: Any) -> None:
        _public({name: value})
        super().__setitem__(name, value)


def _public(values: dict[str, Any]) -> dict[str, Any]:
    if any(str(name).startswith("_") for name in values):
        raise SecurityError("it sets a name that begins with an underscore")
    return values


class _Generation(Extension):
    """`{% generation %}` marks what a model wrote, for training. Here it is only what stands in it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            # Nothing is computed while compiling, where nothing is bounded.
            optimized=False,
            finalize=_write,
        )
        for name in LENGTHENING_FILTERS:
            del self.filters[name]
        self.filters |= {
            "tojson": _to_json,
            "replace": _replace,
            "join": _join,
            "indent": _indent,
            "round": _round,
            "sum": _sum,
        }
        self.filters |= {name: _measured(self.filters[name]) for name in TEXT_FILTERS + COPYING_FILTERS}
        del self.globals["lipsum"]
        self.globals |= {
            "dict": _dict,
            "namespace": _PublicNamespace,
            "raise_exception": _raise_exception,
            "strftime_now": _time_now,
        }

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        """jinja2's hook between parsing and compiling: loops, `~`, lists go through functions of ours."""
        for loop in source.find_all(nodes.For):
            loop.iter = _call(_each, [loop.iter])
        _route(source)
        source.set_environment(self)
        return super()._generate(source, *args, **kwargs)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in LENGTHENING_METHODS and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """A text's own `format` is no exception among `LENGTHENING_METHODS`."""

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        _budget(context).tick()
        text, method = getattr(obj, "__self__", None), getattr(obj, "__name__", None)
        if isinstance(text, str) and method == "replace":
            return _replace(context, text, *args, **kwargs)
        if isinstance(text, str) and method == "join":
            return _join(context, args[0], text)
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = _budget(context)
        budget.tick()
        if operator == "%" and isinstance(left, str):
            raise SecurityError("it formats a text with %")
        if operator == "+" and isinstance(left, CONTAINERS) and isinstance(right, CONTAINERS):
            budget.make(budget.measure(left) + budget.measure(right))
        if operator == "*":
            for items, times in ((left, right), (right, left)):
                if isinstance(items, CONTAINERS) and isinstance(times, int):
                    budget.make((budget.measure(items)) * max(0, times))
            _check_bits(_bits(left) + _bits(right))
        if operator == "**" and isinstance(right, int):
            _check_bits(_bits(left) * right)
        return super().call_binop(context, operator, left, right)


CONTAINERS = (str, list, tuple)


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _check_bits(bits: int) -> None:
    if bits > MAX_NUMBER_BITS:
        raise SecurityError(f"it makes a number of more than {MAX_NUMBER_BITS:,} bits")


def _call(function: Callable[..., Any], arguments: list[Any]) -> nodes.Call:
    """An expression that calls a function of ours, which no template can name."""
    name = nodes.ImportedName(f"{__name__}.{function.__name__}")
    return nodes.Call(name, arguments, [], None, None)


def _route(node: nodes.Node) -> None:
    for field, value in list(node.iter_fields()):
        children: list[Any] = value if isinstance(value, list) else [value]
        routed = [_routed(child) if isinstance(child, nodes.Node) else child for child in children]
        setattr(node, field, routed if isinstance(value, list) else routed[0])


def _routed(node: nodes.Node) -> nodes.Node:
    _route(node)
    if isinstance(node, nodes.Concat):
        return _call(_concatenate, node.nodes)
    if isinstance(node, (nodes.List, nodes.Dict)) or (isinstance(node, nodes.Tuple) and node.ctx == "load"):
        return _call(_literal, [node])
    return node


ENVIRONMENT = _Environment()


@lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    """Once for all that read the same checkpoint: to compile Gemma's takes longer than to render it."""
    return ENVIRONMENT.from_string(source)


class ChatTemplate:
    """A template and the names of special tokens that it may write."""

    def __init__(self, source: str, special_tokens: Mapping[str, Any]) -> None:
        self._source = source
        self._special_tokens = {name: str(token) for name, token in special_tokens.items()}

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: list[dict[str, Any]],
        enable_thinking: bool,
        input_characters: int,
    ) -> str:
        """The prompt, ready for the model's turn. Raises whatever the template may.

        `input_characters` are those of the messages and tools.
        """
        values = {
            **self._special_tokens,
            "messages": [_as_templates_read(message) for message in messages],
            "tools": tools or None,
            "documents": None,
            "add_generation_prompt": True,
            "enable_thinking": enable_thinking,
            BUDGET: _Budget(input_characters),
        }
        return _compiled(self._source).render(values)


def _as_templates_read(message: dict[str, Any]) -> dict[str, Any]:
    """Without what is None, and with the thought under both of its names."""
    present = {key: value for key, value in message.items() if value is not None}
    thought = present.get("reasoning_content")
    return present if thought is None else {"thinking": thought, **present}
