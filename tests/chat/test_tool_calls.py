"""Gemma's call syntax, whole and in pieces."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.chat.output import ReplyReader
from llm_diffusiongemma.chat.tokenizer import control_tokens
from llm_diffusiongemma.chat.tool_calls import MAX_DEPTH, QUOTE, MalformedCallError, parse_call

TOKENIZER = AutoTokenizer.from_pretrained(EMBEDDED_CHECKPOINT, local_files_only=True)
CONTROL = control_tokens(TOKENIZER)


def units(text: str) -> list[str]:
    """The characters of a call with `"` for the control token that quotes."""
    return [QUOTE if character == '"' else character for character in text]


PARSED: list[tuple[str, str, dict[str, Any]]] = [
    ("call:now{}", "now", {}),
    ("call:a.b-c_2{}", "a.b-c_2", {}),
    ('call:f{city:"Paris"}', "f", {"city": "Paris"}),
    ('call:f{"the city":"Paris"}', "f", {"the city": "Paris"}),
    ("call:f{city:Paris}", "f", {"city": "Paris"}),
    ("call:f{city:New York,n:2}", "f", {"city": "New York", "n": 2}),
    (
        "call:f{b:true,c:false,x:null,y:none,z:nil}",
        "f",
        {"b": True, "c": False, "x": None, "y": None, "z": None},
    ),
    (
        "call:f{i:-3,f:1.5,e:1e3,v:1.2.3,p:+7}",
        "f",
        {"i": -3, "f": 1.5, "e": 1000.0, "v": "1.2.3", "p": 7},
    ),
    ("call:f{n:nan,i:inf,h:1e999,u:1_000}", "f", {"n": "nan", "i": "inf", "h": "1e999", "u": "1_000"}),
    ('call:f{l:["a",1.5,[true],{k:1}]}', "f", {"l": ["a", 1.5, [True], {"k": 1}]}),
    ('call:f{o:{k:"v",p:{}}}', "f", {"o": {"k": "v", "p": {}}}),
    ("call:f{a:1,b:[1,2,],}", "f", {"a": 1, "b": [1, 2]}),
    ("call:f{a:,b:2,c}", "f", {"a": None, "b": 2, "c": None}),
    (' call:f { a : "x" , b : 2 } ', "f", {"a": "x", "b": 2}),
    ('call:f{t:"two\nlines, {braces} [and] colons: kept"}', "f", {"t": "two\nlines, {braces} [and] colons: kept"}),
    ('call:f{t:""}', "f", {"t": ""}),
    ("call:f{t:http://x.y/z?a=b}", "f", {"t": "http://x.y/z?a=b"}),
    ("call:f{a:1,a:2}", "f", {"a": 2}),
]


@pytest.mark.parametrize(("text", "name", "arguments"), PARSED)
def test_parsed(text: str, name: str, arguments: dict[str, Any]) -> None:
    parsed = parse_call(units(text))
    assert parsed == (name, arguments)
    json.dumps(parsed, allow_nan=False)


MALFORMED = [
    "",
    "call",
    "call:f",
    "call:f{",
    "call:f{a:1",
    'call:f{a:"x',
    'call:f{a:"x"',
    "call:f{a:[1",
    "call:f{a:[1}",  # it once went round and round at the brace
    "call:f{a:1]}",
    "call:f{a:{b:1],c:2}",
    'call:f{a:"x"y}',
    "call:f{}{}",
    "call:f{} and more",
    "call:{}",
    "call:two words{}",
    "call:f(){}",
    "say:f{}",
    "call:f[]",
    "call:f{a:" + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}",
]


@pytest.mark.parametrize("text", MALFORMED)
def test_malformed(text: str) -> None:
    with pytest.raises(MalformedCallError):
        parse_call(units(text))


def test_as_deep_as_allowed() -> None:
    depth = MAX_DEPTH - 2
    _, arguments = parse_call(units("call:f{a:" + "[" * depth + "]" * depth + "}"))
    assert json.dumps(arguments["a"]) == "[" * depth + "]" * depth


def test_control_tokens_within_a_string_are_text_and_elsewhere_no_call() -> None:
    call = ["c", "a", "l", "l", ":", "f", "{", "a", ":"]
    assert parse_call([*call, QUOTE, "<|turn>", QUOTE, "}"]) == ("f", {"a": "<|turn>"})
    with pytest.raises(MalformedCallError):
        parse_call([*call, "<|turn>", "}"])


# --- in a reply ------------------------------------------------------------------------------------------

Said = tuple[str, str]


def read(pieces: Sequence[Sequence[int]], has_tools: bool = True) -> tuple[list[Said], ReplyReader]:
    """(kind, text) of a reply given in pieces, neighbours of a kind joined; calls by their position."""
    reader = ReplyReader(TOKENIZER.decode, CONTROL, has_tools=has_tools)
    events = [event for piece in pieces for event in reader.consume(piece)] + reader.finalize()
    ids = [call.tool_call_id for call in reader.tool_calls]
    said: list[Said] = []
    for event in events:
        kind = event.type
        if event.tool_call_id is not None:
            kind += f" {ids.index(event.tool_call_id)}"
        if said and said[-1][0] == kind:
            said[-1] = (kind, said[-1][1] + event.chunk)
        else:
            said.append((kind, event.chunk))
    return said, reader


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


WEATHER = '<|tool_call>call:weather{city:<|"|>Rome<|"|>}<tool_call|>'
WEATHER_SAID = [("tool_call_name 0", "weather"), ("tool_call_args 0", '{"city": "Rome"}')]
REPLIES: list[tuple[str, list[Said]]] = [
    (WEATHER, WEATHER_SAID),
    ("Let me see." + WEATHER, [("text", "Let me see."), *WEATHER_SAID]),
    (
        WEATHER + "\n" + "<|tool_call>call:now{}<tool_call|>",
        [*WEATHER_SAID, ("tool_call_name 1", "now"), ("tool_call_args 1", "{}")],
    ),
    ("<|channel>thought\nhm\n<channel|>" + WEATHER, [("reasoning", "hm"), *WEATHER_SAID]),
    ("<|channel>thought\nnever closed" + WEATHER, [("reasoning", "never closed"), *WEATHER_SAID]),
    (WEATHER + "\n\nDone.", [*WEATHER_SAID, ("text", "Done.")]),
    # A string may hold what would end the call.
    (
        '<|tool_call>call:f{a:<|"|>}<tool_call|><|tool_call><|"|>}<tool_call|>',
        [("tool_call_name 0", "f"), ("tool_call_args 0", '{"a": "}<tool_call|><|tool_call>"}')],
    ),
    # Cut off: text, and never run.
    ("<|tool_call>call:weather{city:", [("text", "<|tool_call>call:weather{city:")]),
    (
        '<|tool_call>call:weather{city:<|"|>Rome}<tool_call|> and on',
        [("text", '<|tool_call>call:weather{city:<|"|>Rome}<tool_call|> and on')],
    ),
    ("<|tool_call>nonsense<tool_call|>ok", [("text", "<|tool_call>nonsense<tool_call|>ok")]),
    ("<|tool_call>call:a{" + WEATHER, [("text", "<|tool_call>call:a{"), *WEATHER_SAID]),
    ("stray <tool_call|>closer", [("text", "stray closer")]),
]


@pytest.mark.parametrize(("reply", "expected"), REPLIES)
def test_whole(reply: str, expected: list[Said]) -> None:
    said, reader = read([encode(reply)])
    assert said == expected
    assert len(reader.tool_calls) == sum(kind.startswith("tool_call_name") for kind, _ in said)


def test_events_and_calls_have_the_same_ids() -> None:
    said, reader = read([encode(WEATHER + WEATHER)])
    assert [kind for kind, _ in said] == [
        f"{kind} {number}" for number in (0, 1) for kind in ("tool_call_name", "tool_call_args")
    ]
    first, second = reader.tool_calls
    assert (first.name, first.arguments) == ("weather", {"city": "Rome"})
    assert first.tool_call_id != second.tool_call_id
    assert str(first.tool_call_id).startswith("tc_")


def test_without_tools_a_call_is_text() -> None:
    said, reader = read([encode(WEATHER)], has_tools=False)
    assert said == [("text", WEATHER)]
    assert reader.tool_calls == []


PIECES = [
    WEATHER,
    "<|tool_call>",
    "<tool_call|>",
    '<|"|>',
    "call:f{",
    "a:1,",
    "}",
    "<|channel>",
    "thought\n",
    "<channel|>",
    "☃",
    " ",
    "\n",
    "x",
    "<pad>",
]


@settings(max_examples=400, deadline=None)
@given(
    reply=st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
    cuts=st.lists(st.integers(0, 120), max_size=6),
)
@example(reply="<|channel>thought\nhm\n" + WEATHER + "☃", cuts=[1, 3, 7])
def test_any_split_gives_the_same(reply: str, cuts: list[int]) -> None:
    ids = encode(reply)
    edges = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    pieces = [ids[start:end] for start, end in itertools.pairwise(edges)]
    said, reader = read(pieces)
    whole, whole_reader = read([ids])
    assert said == whole
    assert [(call.name, call.arguments) for call in reader.tool_calls] == [
        (call.name, call.arguments) for call in whole_reader.tool_calls
    ]
