"""A chat template is a stranger's program: it reads what transformers shows it, within bounds."""

from __future__ import annotations

from typing import Any

import pytest
from jinja2 import TemplateError

from llm_diffusiongemma.chat import template
from llm_diffusiongemma.chat.template import ChatTemplate

from ..tokenizers import rendered_by_transformers, theirs
from .conversations import CONVERSATIONS, EVIL, with_text

MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "Hello", "name": None}]


def render(source: str, messages: list[dict[str, Any]] = MESSAGES) -> str:
    return ChatTemplate(source, {"bos_token": "<bos>"}).render(
        messages, tools=[], enable_thinking=False, input_characters=5
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ bos_token }}{{ messages[0].content ~ 1 ~ none }}", "<bos>Hello1None"),
        ("{% for m in messages %}{{ m | tojson }}{% endfor %}", '{"role": "user", "content": "Hello"}'),
        (
            "{% for i in [1, 2, 3] %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{% endfor %}",
            "1/3,2/3,3/3",
        ),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "13"),
        ("{% for i in [1, 2, 3] if i != 2 %}{{ i }}{% else %}none{% endfor %}", "13"),
        ("{% for i in nothing %}{{ i }}{% else %}none{% endfor %}", "none"),
        ("{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% endfor %}", "a2b1"),
        (
            "{% set n = namespace(x=1) %}{% for i in range(3) %}{% set n.x = n.x * 2 + 1 %}{% endfor %}{{ n.x }}",
            "15",
        ),
        (
            "{{ 'a-b'.replace('-', '+') }}{{ 'a-b' | replace('-', '+') }}{{ 'aaa'.replace('a', 'b', 2) }}",
            "a+ba+bbba",
        ),
        (
            "{{ ['a', 'b'] | join(', ') }}{{ '-'.join(['a', 'b']) }}{{ messages | join('', attribute='role') }}",
            "a, ba-buser",
        ),
        ("{% macro f(n) %}{{ n }}{% if n %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}", "3210"),
        ("{{ [1, [2, 3]] + [{'a': (1, 2)}] }}{{ [1, 2.5] | sum }}", "[1, [2, 3], {'a': (1, 2)}]3.5"),
        (
            "{% for a, (b, c) in [(1, (2, 3))] %}{{ a ~ b ~ c }}{% endfor %}{% set x, y = 1, 2 %}{{ x + y }}",
            "1233",
        ),
        ("{{ 'aB' | upper }}{{ ' a ' | trim }}{{ 3 | string }}{{ '.a.' | trim('.') }}", "ABa3a"),
        (
            "{{ dict(a=[1]) }}{{ ['b', 'A'] | sort }}{{ [2, 3] | max }}{{ [1, 1] | unique | list }}",
            "{'a': [1]}['A', 'b']3[1]",
        ),
        ("{{ 'b' in ['a', 'b'] }}{{ {'a': [1]}.a[0] }}{{ [1, 2, 3][1:] }}", "True1[2, 3]"),
        ("{% generation %}{{ 7 % 4 }}{{ 2 ** 10 }}{% endgeneration %}", "31024"),
        ("{{ [{'n': 1}, {'n': 2}] | sum(attribute='n', start=1) }}", "4"),
        ("{{ 2.345 | round(2) }} {{ 15 | round(-1, 'floor') }}", "2.35 10.0"),
        ("{{ 'a\\nb' | indent(2) }}", "a\n  b"),
        ("{{ dict(a=1) | tojson(indent=2) }}", '{\n  "a": 1\n}'),
        ("{{ '<é>' | tojson }}{{ tools is none }}{{ strftime_now('%%') }}", '"<é>"True%'),
        ("  {% if true %}\nx\n  {% endif %}\n", "x\n"),
    ],
)
def test_what_a_template_may(source: str, expected: str) -> None:
    assert render(source) == expected


def test_a_thought_has_both_of_its_names() -> None:
    message = {"role": "assistant", "content": "", "reasoning_content": "hm"}
    assert render("{{ messages[0].reasoning_content }} {{ messages[0].thinking }}", [message]) == "hm hm"


BIG = "{% set b = 'x' * 1000000 %}"
GROW = "{% set n = namespace(x=START) %}{% for i in range(90) %}HOW{% endfor %}"


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(9999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ 'x' * 10 ** 9 }}",
        "{{ 10 ** 9 * [1] }}",
        "{{ 9 ** (9 ** 9) }}",
        GROW.replace("START", "'aa'").replace("HOW", "{% set n.x = n.x ~ n.x %}"),
        GROW.replace("START", "'aa'").replace("HOW", "{% set n.x = n.x + n.x %}"),
        GROW.replace("START", "[1]").replace("HOW", "{% set n.x = n.x + n.x %}"),
        GROW.replace("START", "3").replace("HOW", "{% set n.x = n.x * n.x %}"),
        GROW.replace("START", "'aa'").replace("HOW", "{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}"),
        "{{ '%999999999d' % 1 }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ 'x'.ljust(10 ** 9) }}",
        "{{ 'x' | center(10 ** 9) }}",
        "{{ 'x' | indent(10 ** 9, true) }}",
        "{{ 1 | round(100000000, 'floor') }}",
        "{{ 1 | round(-100000000) }}",
        "{{ [1] | tojson(indent=10 ** 9) }}",
        BIG + "{{ b | replace('x', b) }}",
        BIG + "{{ b.replace('x', b) }}",
        BIG + "{{ b | join(b) }}",
        BIG + "{{ b.join(b) }}",
        BIG + "{% for i in range(99999) %}{{ b }}{% endfor %}",
        "{{ strftime_now('%c' * 1000000) }}",
        GROW.replace("START", "1").replace("HOW", "{% set n.x = [n.x, n.x] %}"),
        GROW.replace("START", "1").replace("HOW", "{% set n.x = {'a': n.x, 'b': n.x} %}"),
        GROW.replace("START", "1").replace("HOW", "{% set n.x = (n.x, n.x) %}"),
        BIG + "{{ [b] * 1000000 }}",
        BIG + "{{ ([[1] * 1000000] * 9) | sum(start=[]) }}",
        BIG + "{{ range(99999) | map('replace', '', b) | list | length }}",
        BIG + "{{ range(99999) | list | tojson(separators=(b, b)) }}",
        BIG + "{{ [[b] * 9] * 9 ~ '' }}",
        BIG + "{{ dict.fromkeys(range(99999), b) }}",
        BIG + "{{ range(99999) | map(attribute='x', default=b) | list }}",
        BIG + "{{ range(99999) | map(attribute='x', default=b) | list | upper }}",
        BIG + "{{ range(99999) | map(attribute='x', default=b) | sort | tojson }}",
        BIG + "{{ range(99999) | map(attribute='x', default=b) | join }}",
        "{{ lipsum(10 ** 9) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ ''.__class__.__mro__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ namespace(__class__=1) }}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{{ messages.append(1) }}",
        "{{ self._TemplateReference__context.parent }}",
        "{{ raise_exception('no') }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    ],
)
def test_what_a_template_may_not(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "MAX_SECONDS", 0.04)
    with pytest.raises((TemplateError, RecursionError, OverflowError, TypeError)):
        render(source)


def test_a_long_conversation_is_no_runaway() -> None:
    long = "x" * 9_000_000
    message = {"role": "user", "content": long}
    rendered = ChatTemplate("{% for m in messages %}{{ '<' ~ m.content ~ '>' }}{% endfor %}", {}).render(
        [message, message], tools=[], enable_thinking=False, input_characters=2 * len(long)
    )
    assert len(rendered) == 2 * len(long) + 4


# Hostile text is the template's as it is: what breaks its markers is done around it.
PROMPTS = CONVERSATIONS | with_text(EVIL)


@pytest.mark.parametrize("name", PROMPTS)
def test_it_renders_as_transformers_does(name: str) -> None:
    ours = ChatTemplate(theirs().chat_template, theirs().special_tokens_map)
    for asked in PROMPTS[name]:
        rendered = ours.render(
            asked.messages, tools=asked.tools, enable_thinking=asked.thinking, input_characters=1000
        )
        assert rendered == rendered_by_transformers(asked.messages, asked.tools, asked.thinking)
