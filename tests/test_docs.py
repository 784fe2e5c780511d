"""Tables of docs/ say what is so: against the options, the commands, and what is made of requests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest

from llm_diffusiongemma.backends.protocol import EXTENSION, EXTENSION_OPTIONS
from llm_diffusiongemma.commands import diffusiongemma
from llm_diffusiongemma.options import Options
from llm_diffusiongemma.server.requests import Asked, RequestError, read_request

from .conftest import TINY

DOCS = Path(__file__).parent.parent / "docs"
HELLO = [{"role": "user", "content": "Hello"}]


def rows(page: str, beginning: str) -> list[tuple[str, str]]:
    """The first and the last cell of each row of a page's table whose head begins so."""
    text = (DOCS / page).read_text(encoding="utf-8")
    table = text[text.index(f"| {beginning} |") :].partition("\n\n")[0]
    cells = [line.strip("|").split("|") for line in table.splitlines()[2:]]
    return [(row[0].strip(), row[-1].strip()) for row in cells]


def names(cell: str) -> list[str]:
    return re.findall(r"`([\w.]+)`", cell)


def ask(**fields: Any) -> Asked:
    return read_request(json.dumps({"model": TINY, "messages": HELLO, **fields}).encode(), TINY)


def test_the_options_of_a_prompt() -> None:
    """To renew the table, put what this test expects between the two comments."""
    text = (DOCS / "options.md").read_text(encoding="utf-8")
    table = text.partition("<!-- options -->\n")[2].partition("<!-- /options -->")[0]
    lines = [f"| `{name}` | {field.description} |" for name, field in Options.model_fields.items()]
    assert table == "\n".join(["| Option | Meaning |", "| --- | --- |", *lines, ""])


def test_the_options_of_serve() -> None:
    options = [each for each in diffusiongemma.commands["serve"].params if isinstance(each, click.Option)]
    parameters = {name: each for each in options if not each.hidden for name in each.opts}
    cells = [cell for cell, _ in rows("servers.md", "Option of `serve`")]
    said = re.findall(r"`(--[\w-]+)(?: (\w+))?`", " ".join(cells))
    assert {name for name, _ in said} == set(parameters)
    for name, default in said:
        if default:
            assert str(parameters[name].default) == default


def fields(meaning: str) -> list[str]:
    """Those of requests of which that is said."""
    (cell,) = [cell for cell, said in rows("api.md", "Field of a request") if said.startswith(meaning)]
    return names(cell)


@pytest.mark.parametrize("name", [name for name in fields("ignored") if name != "detail"])
def test_fields_that_are_ignored(name: str) -> None:
    (warning,) = ask(**{name: "anything"}).warnings
    assert name in warning


@pytest.mark.parametrize("name", [*fields("400"), "anything"])
def test_fields_that_are_refused(name: str) -> None:
    with pytest.raises(RequestError) as caught:
        ask(**{name: 2})
    assert (caught.value.status, caught.value.param) == (400, name)


def test_fields_that_are_taken() -> None:
    values = {"stream": True, "tools": [], "seed": 1, "max_tokens": 5, "max_completion_tokens": 5}
    said = {name for name in fields("taken") if name not in ("model", "messages")}
    assert said == {*values, "stream_options.include_usage"}
    asked = ask(**values, stream_options={"include_usage": True})
    assert (asked.stream, asked.include_usage, asked.warnings) == (True, True, [])
    assert (asked.turn.options.seed, asked.turn.options.max_tokens) == (1, 5)
    for name in EXTENSION_OPTIONS:
        assert ask(**{EXTENSION: {name: None}}).warnings == []
    for field, value in (
        ("reasoning_effort", "low"),
        ("chat_template_kwargs", {"enable_thinking": True}),
        (EXTENSION, {"thinking": True}),
    ):
        assert ask(**{field: value}).turn.options.thinking is True
