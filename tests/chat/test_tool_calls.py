"""Gemma's call syntax, whole and in pieces."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_diffusiongemma.chat.output import ReplyReader
from llm_diffusiongemma.chat.tool_calls import MAX_DEPTH, QUOTE, MalformedCallError, parse_call

from ..tokenizers import ours

TOKENIZER = ours()
CONTROL = TOKENIZER.control_tokens


def units(text: str) -> list[str]:
    """The characters of a call with `|` for the control token that quotes."""
    return [QUOTE if character == "|" else character for character in text]


PARSED: list[tuple[str, str, dict[str, Any]]] = [
    ("call:now{}", "now", {}),
    ("call:a.b-c_2{}", "a.b-c_2", {}),
    ("call:f{city:|Paris|}", "f", {"city": "Paris"}),
    ("call:f{|the city|:|Paris|}", "f", {"the city": "Paris"}),
    ("call:f{the city:|Paris|}", "f", {"the city": "Paris"}),
    ("call:f{city:Paris}", "f", {"city": "Paris"}),
    ("call:f{city:New York,n:2}", "f", {"city": "New York", "n": 2}),
    (
        "call:f{b:true,c:False,x:null,y:None,z:nil}",
        "f",
        {"b": True, "c": False, "x": None, "y": None, "z": None},
    ),
    ("call:f{i:-3,f:1.5,e:1e3,v:1.2.3,z:0}", "f", {"i": -3, "f": 1.5, "e": 1000.0, "v": "1.2.3", "z": 0}),
    (
        "call:f{n:nan,i:inf,h:1e999,u:1_000,s:٣}",
        "f",
        {"n": "nan", "i": "inf", "h": "1e999", "u": "1_000", "s": "٣"},
    ),
    # No numbers of JSON: codes.
    ("call:f{c:007,p:+49,m:-01,d:.5,e:5.}", "f", {"c": "007", "p": "+49", "m": "-01", "d": ".5", "e": "5."}),
    ("call:f{l:[|a|,1.5,[true],{k:1}]}", "f", {"l": ["a", 1.5, [True], {"k": 1}]}),
    ("call:f{o:{k:|v|,p:{}}}", "f", {"o": {"k": "v", "p": {}}}),
    ("call:f{a:1,b:[1,2,],}", "f", {"a": 1, "b": [1, 2]}),
    (" call:f { a : |x| , b : 2 } ", "f", {"a": "x", "b": 2}),
    ("call:f{t:|two\nlines, {braces} [and] colons: kept|}", "f", {"t": "two\nlines, {braces} [and] colons: kept"}),
    ("call:f{t:||}", "f", {"t": ""}),
    ("call:f{t:http://x.y/z?a=b}", "f", {"t": "http://x.y/z?a=b"}),
    ('call:f{t:|"as it is"|,u:|it\'s|}', "f", {"t": '"as it is"', "u": "it's"}),
    ("call:f{t:|back\\nslash|}", "f", {"t": "back\\nslash"}),
    ("call:f{$top:1,@id:|x|,Content-Type:|y|,a/b:2}", "f", {"$top": 1, "@id": "x", "Content-Type": "y", "a/b": 2}),
]
# Plain quotes, where there is but one way to read them.
PLAIN: list[tuple[str, dict[str, Any]]] = [
    ('{city:"Rome"}', {"city": "Rome"}),
    ("{city:'Rome'}", {"city": "Rome"}),
    ('{city : "Rome" , n : 2 }', {"city": "Rome", "n": 2}),
    (
        '{"city": "Rome", "n": 5, "l": ["a", \'b\', null], "o": {"k": true}}',
        {"city": "Rome", "n": 5, "l": ["a", "b", None], "o": {"k": True}},
    ),
    ('{city:"Rome, Italy",n:2}', {"city": "Rome, Italy", "n": 2}),
    ("{t:'{a: [b]}, c:'}", {"t": "{a: [b]}, c:"}),
    ('{t:"007",n:"5",b:"true",x:"null"}', {"t": "007", "n": "5", "b": "true", "x": "null"}),
    ('{t:""}', {"t": ""}),
    ("{t:''}", {"t": ""}),
    ('{t:" kept "}', {"t": " kept "}),
    ('{t:"two\nlines"}', {"t": "two\nlines"}),
    # The other quote, and escaped ones.
    ('{t:"it\'s"}', {"t": "it's"}),
    ("{t:'say \"hi\", now'}", {"t": 'say "hi", now'}),
    (r"""{t:"say \"hi\", now"}""", {"t": 'say "hi", now'}),
    (r"""{t:'it\'s, well'}""", {"t": "it's, well"}),
    (r"""{t:"a\nb\tc\\d\/e\u00e9\ud83d\ude80"}""", {"t": "a\nb\tc\\d/eé🚀"}),
    (r"""{t:"C:\\new",u:"ends in \\"}""", {"t": "C:\\new", "u": "ends in \\"}),
    # Apostrophes are no quotes.
    ("{t:it's fine,u:O'Brien,v:5'11}", {"t": "it's fine", "u": "O'Brien", "v": "5'11"}),
    ("{t:it’s fine}", {"t": "it’s fine"}),
    ("{t:'it's fine',u:'O'Brien'}", {"t": "it's fine", "u": "O'Brien"}),
]


@pytest.mark.parametrize(("text", "name", "arguments"), PARSED)
def test_parsed(text: str, name: str, arguments: dict[str, Any]) -> None:
    parsed = parse_call(units(text))
    assert parsed == (name, arguments)
    json.dumps(parsed, allow_nan=False)


@pytest.mark.parametrize(("text", "arguments"), PLAIN)
def test_plain_quotes(text: str, arguments: dict[str, Any]) -> None:
    assert parse_call(units(f"call:f{text}")) == ("f", arguments)


MALFORMED = [
    "",
    "call",
    "call:f",
    "call:f{",
    "call:f{a:1",
    "call:f{a:|x",
    "call:f{a:|x|",
    "call:f{a:[1",
    "call:f{a:[1}",  # it once went round and round at the brace
    "call:f{a:1]}",
    "call:f{a:{b:1],c:2}",
    "call:f{a:|x|y}",
    "call:f{}{}",
    "call:f{} and more",
    "call:{}",
    "call:two words{}",
    "call:f(){}",
    "say:f{}",
    "call:f[]",
    "call:f{a:" + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}",
]
IN_DOUBT = [
    # Keys without a value, values without a key, either twice.
    "{city='Rome'}",
    "{city=Rome}",
    "{city='Rome',n:2}",
    "{url=http://x.y}",
    "{city:=Rome}",
    "{city::Rome}",
    "{city => Rome}",
    "{c}",
    "{a:1,c}",
    "{a:,b:2}",
    "{a:}",
    "{a: ,}",
    "{:1}",
    "{,a:1}",
    "{a:1,,b:2}",
    "{l:[1,,2]}",
    "{l:[,]}",
    "{a:1,a:2}",
    "{a:1,|a|:1}",
    "{city:New York, NY}",
    "{price:1,500}",
    # Quotes that don't close, or not where a value ends, and those of other kinds.
    '{city:"Rome}',
    "{city:'Rome}",
    '{city:Rome"}',
    "{city:Rome'}",
    "{city:'Rome\"}",
    '{city:"Rome|}',
    '{city:|Rome"}',
    "{city:Rome|}",
    "{city:'tis the season}",
    '{t:"say "hi", now"}',
    '{t:say "hi"}',
    '{t:say "hi, there",n:2}',
    "{t:say 'a, b:c'}",
    "{t:'a'b, c:'d'}",
    "{t:the dogs' bowl}",
    '{t:"a" "b"}',
    '{t:"a"b:"c"}',
    '{t:"a":"b"}',
    '{"t:"a"}',
    '{"t"a:1}',
    '{t:"""a"""}',
    '{t:r"a"}',
    "{t:“Rome”}",
    "{t:‘Rome’}",
    "{t:«Rome»}",
    "{t:`Rome`}",
    # Escapes that are none, or of paths and regular expressions.
    r"""{t:"\d+"}""",
    r"""{t:"\bword"}""",
    r"""{t:"C:\Users"}""",
    r"""{t:"\u12"}""",
    r"""{t:"\ud83d"}""",
    r"""{t:"a\"}""",
    # Brackets and lines in a bare value.
    "{t:a[0]}",
    "{t:a{b}",
    "{t:f(a[b, c])}",
    "{t:[draft] hello}",
    "{a:1\nb:2}",
    "{t:two\nlines}",
    "{two  words:1}",
    "{a(b):1}",
]


@pytest.mark.parametrize("text", MALFORMED + [f"call:f{text}" for text in IN_DOUBT])
def test_malformed(text: str) -> None:
    with pytest.raises(MalformedCallError):
        parse_call(units(text))


def test_as_deep_as_allowed() -> None:
    depth = MAX_DEPTH - 2
    _, arguments = parse_call(units("call:f{a:" + "[" * depth + "]" * depth + "}"))
    assert json.dumps(arguments["a"]) == "[" * depth + "]" * depth


# --- held against what is declared -----------------------------------------------------------------------

STRING, INTEGER, NUMBER, BOOLEAN = ({"type": name} for name in ("string", "integer", "number", "boolean"))
ANYTHING: dict[str, Any] = {}
REFUSED = MalformedCallError
TYPED: list[tuple[dict[str, Any], str, Any]] = [
    # The schema of a parameter, what stands there, and what the tool is given.
    *((STRING, text, text) for text in ("007", "1e5", "1.0", "-3", "true", "Rome", "1.2.3")),
    # The text "null" is never meant.
    *((STRING, text, REFUSED) for text in ("None", "null")),
    (STRING, "|5|", "5"),
    # In quotes that it doesn't have.
    (INTEGER, "|5|", 5),
    (INTEGER, '"5"', 5),
    (INTEGER, '"five"', REFUSED),
    (BOOLEAN, "|false|", False),
    (BOOLEAN, "'yes'", REFUSED),
    ({"type": "array"}, '"a"', REFUSED),
    ({"type": "array", "items": INTEGER}, '["1",2]', [1, 2]),
    ({"type": "object"}, '|{"a":1}|', REFUSED),
    (["not a schema"], '"5"', "5"),
    # Separators of thousands.
    ({"type": "array", "items": INTEGER}, "[1,000,2]", REFUSED),
    (INTEGER, "5", 5),
    (INTEGER, "007", 7),
    (INTEGER, "+7", 7),
    (INTEGER, "3.0", 3),
    (INTEGER, "1e3", 1000),
    (INTEGER, "9" * 400, int("9" * 400)),
    *((INTEGER, text, REFUSED) for text in ("3.5", "true", "null", "Rome", "1e400", "12345678901234567890.0")),
    *((INTEGER, text, REFUSED) for text in ("9" * 5000, "٣", "1_000", "0x10", "[1]", "{a:1}")),
    (NUMBER, "5", 5),
    (NUMBER, "1.50", 1.5),
    (NUMBER, ".5", 0.5),
    (NUMBER, "5.", 5.0),
    (NUMBER, "+1.5", 1.5),
    *((NUMBER, text, REFUSED) for text in ("inf", "nan", "1e400", "1.2.3", "false", "none", "5%")),
    (BOOLEAN, "True", True),
    *((BOOLEAN, text, REFUSED) for text in ("yes", "1", "0", "null")),
    ({"type": "null"}, "null", None),
    ({"type": "null"}, "0", REFUSED),
    (STRING, "[draft]", REFUSED),
    (STRING, "{a:1}", REFUSED),
    ({"type": "array"}, "work", REFUSED),
    ({"type": "object"}, "[1]", REFUSED),
    ({"type": "array"}, "[007,1]", ["007", 1]),
    # At every depth.
    ({"type": "array", "items": STRING}, "[007,1,true]", ["007", "1", "true"]),
    ({"type": "array", "items": INTEGER}, "[1,x]", REFUSED),
    ({"type": "array", "items": {"type": "array", "items": STRING}}, "[[1],[]]", [["1"], []]),
    ({"type": "array", "prefixItems": [STRING, INTEGER], "items": STRING}, "[1,1,1]", ["1", 1, "1"]),
    ({"type": "array", "items": [STRING, INTEGER]}, "[1,1,1]", ["1", 1, 1]),
    ({"type": "object", "properties": {"zip": STRING}}, "{zip:01234}", {"zip": "01234"}),
    ({"type": "object", "additionalProperties": STRING}, "{a:1,b:2}", {"a": "1", "b": "2"}),
    ({"type": "object", "additionalProperties": True}, "{a:1,b:x}", {"a": 1, "b": "x"}),
    ({"type": "object", "patternProperties": {"^s_": STRING}}, "{s_a:1,b:1}", {"s_a": "1", "b": 1}),
    ({"type": "object", "patternProperties": {"(": STRING}}, "{a:1}", {"a": 1}),
    # More than one type.
    ({"type": ["string", "null"]}, "007", "007"),
    ({"type": ["string", "null"]}, "1", "1"),
    ({"type": ["string", "null"]}, "null", None),
    ({"type": "string", "nullable": True}, "null", None),
    ({"anyOf": [STRING, {"type": "null"}]}, "None", None),
    ({"anyOf": [INTEGER, {"type": "null"}]}, "null", None),
    ({"anyOf": [INTEGER, {"type": "null"}]}, "3.0", 3),
    ({"oneOf": [INTEGER, STRING]}, "5", 5),
    ({"oneOf": [INTEGER, STRING]}, "005", "005"),
    ({"oneOf": [INTEGER, STRING]}, "5.0", "5.0"),
    ({"anyOf": [{"type": "array", "items": STRING}, STRING]}, "[1]", ["1"]),
    ({"anyOf": [{"type": "array", "items": STRING}, STRING]}, "1", "1"),
    ({"anyOf": [{"properties": {"a": STRING}, "type": "object"}, INTEGER]}, "{a:1}", {"a": "1"}),
    ({"anyOf": [STRING, ANYTHING]}, "1", 1),
    # Where it says it in another way, and where it doesn't.
    ({"enum": ["1", "2"]}, "1", "1"),
    ({"enum": [1, 2.5]}, "1", 1),
    ({"enum": [1, "auto"]}, "auto", "auto"),
    ({"const": "1"}, "1", "1"),
    ({"type": "STRING"}, "1", "1"),
    ({"type": "any"}, "1", 1),
    (ANYTHING, "1", 1),
    (ANYTHING, "true", True),
    ({"$ref": "#/$defs/Code"}, "1", "1"),
    ({"$ref": "#/$defs/Code", "description": "A code"}, "1", "1"),
    ({"allOf": [{"$ref": "#/$defs/Code"}], "default": "0"}, "1", "1"),
    ({"allOf": [{"type": ["string", "integer"]}, STRING]}, "1", "1"),
    ({"allOf": [NUMBER, INTEGER]}, "1.5", REFUSED),
    ({"allOf": [{"properties": {"a": STRING}}, {"properties": {"a": {"minLength": 1}}}]}, "{a:1}", {"a": "1"}),
    ({"anyOf": [{"$ref": "#/$defs/Code"}, {"type": "null"}]}, "1", "1"),
    ({"$ref": "#/$defs/a~1b%20c"}, "1", "1"),
    (
        {"$ref": "#/$defs/Tree"},
        "{code:1,kids:[{code:2,kids:[]}]}",
        {"code": "1", "kids": [{"code": "2", "kids": []}]},
    ),
    ({"$ref": "#/$defs/nowhere"}, "1", 1),
    ({"$ref": "https://example.org/x"}, "1", 1),
    ({"$ref": "#/$defs/Loop"}, "1", 1),
    ({"$ref": 5}, "1", 1),
    ({"anyOf": [{"$ref": "#/$defs/Wide"}] * 9}, "1", 1),
]
DEFINITIONS = {
    "Code": STRING,
    "a/b c": STRING,
    "Tree": {
        "type": "object",
        "properties": {"code": STRING, "kids": {"type": "array", "items": {"$ref": "#/$defs/Tree"}}},
    },
    "Loop": {"$ref": "#/$defs/Loop"},
    "Wide": {"anyOf": [{"$ref": "#/$defs/Wide"}, {"$ref": "#/$defs/Wide"}, {"$ref": "#/$defs/Wide"}]},
}


@pytest.mark.parametrize(("schema", "text", "expected"), TYPED)
def test_held_against_the_declared_type(schema: dict[str, Any], text: str, expected: Any) -> None:
    tools = {"f": {"type": "object", "properties": {"a": schema}, "$defs": DEFINITIONS}}
    call = units(f"call:f{{a:{text}}}")
    if expected is REFUSED:
        with pytest.raises(MalformedCallError):
            parse_call(call, tools)
        return
    _, arguments = parse_call(call, tools)
    assert arguments == {"a": expected}
    assert json.dumps(arguments) == json.dumps({"a": expected})  # 1, 1.0 and true are equal to Python


FORECAST = {
    "type": "object",
    "properties": {"city": STRING, "unit": STRING, "days": INTEGER, "xml:lang": STRING, "a, b": STRING},
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{city:Rome,unit:C,days:2}", {"city": "Rome", "unit": "C", "days": 2}),
        ("{city:Re: Rome}", {"city": "Re: Rome"}),
        ("{city:community: Rome}", {"city": "community: Rome"}),
        # Declared keys, whatever they look like.
        ("{xml:lang:de,city:Bonn}", {"xml:lang": "de", "city": "Bonn"}),
        ("{a, b:c}", {"a, b": "c"}),
        # Written as one who means it: the tool says that there is no such parameter.
        ("{city:|Rome|,country:|IT|}", {"city": "Rome", "country": "IT"}),
        ("{country:IT}", {"country": "IT"}),
        # What may be part of the value before it.
        ("{city:Rome, also: Milan}", REFUSED),
        ("{days:2,5:1}", REFUSED),
        # A comma was left out.
        ("{city:Rome unit:C}", REFUSED),
        ("{city:Rome; unit=C}", REFUSED),
        ("{city:unit:C}", REFUSED),
    ],
)
def test_keys_that_are_declared(text: str, expected: Any) -> None:
    call = units(f"call:forecast{text}")
    if expected is REFUSED:
        with pytest.raises(MalformedCallError):
            parse_call(call, {"forecast": FORECAST})
    else:
        assert parse_call(call, {"forecast": FORECAST}) == ("forecast", expected)


NAMES = ["ns:read", "files/read", "read", "read file", "read{file}", "read{", "наука", "a,b", 'say "hi"', "|", "f"]


@pytest.mark.parametrize("name", NAMES)
def test_declared_names_are_names(name: str) -> None:
    tools = {declared: {"properties": {"n": STRING}} for declared in NAMES}
    assert parse_call([*f"call:{name}", *units("{n:1}")], tools) == (name, {"n": "1"})
    assert parse_call([*f" call: {name} ", *units("{}")], tools) == (name, {})


@pytest.mark.parametrize("name", ["ns:read", "files/read", "read file"])
def test_other_names_are_words(name: str) -> None:
    with pytest.raises(MalformedCallError):
        parse_call(units(f"call:{name}{{}}"), {"read": {}})
    assert parse_call(units("call:reed{}"), {"read": {}}) == ("reed", {})


def test_control_tokens_within_a_string_are_text_and_elsewhere_no_call() -> None:
    call = ["c", "a", "l", "l", ":", "f", "{", "a", ":"]
    assert parse_call([*call, QUOTE, "<|turn>", QUOTE, "}"]) == ("f", {"a": "<|turn>"})
    with pytest.raises(MalformedCallError):
        parse_call([*call, "<|turn>", "}"])


# --- in a reply ------------------------------------------------------------------------------------------

Said = tuple[str, str]


TOOLS: dict[str, dict[str, Any]] = {"weather": {"properties": {"city": STRING}}, "now": {}, "ns:read": {}, "f": {}}


def read(
    pieces: Sequence[Sequence[int]], tools: dict[str, dict[str, Any]] = TOOLS
) -> tuple[list[Said], ReplyReader]:
    """(kind, text) of a reply given in pieces, neighbours of a kind joined; calls by their position."""
    reader = ReplyReader(TOKENIZER.decode, CONTROL, tools=tools)
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
    return TOKENIZER.encode(text)


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
        '<|tool_call>call:f{a:<|"|>}<tool_call|><channel|><turn|><|"|>}<tool_call|>',
        [("tool_call_name 0", "f"), ("tool_call_args 0", '{"a": "}<tool_call|><channel|><turn|>"}')],
    ),
    ("<|tool_call>call:ns:read{}<tool_call|>", [("tool_call_name 0", "ns:read"), ("tool_call_args 0", "{}")]),
    (
        "<|tool_call>call:weather{city:007}<tool_call|>",
        [("tool_call_name 0", "weather"), ("tool_call_args 0", '{"city": "007"}')],
    ),
    (
        """<|tool_call>call:weather{"city": 'Rome'}<tool_call|>""",
        WEATHER_SAID,
    ),
    # A tool that isn't there: llm says so.
    ("<|tool_call>call:launch{}<tool_call|>", [("tool_call_name 0", "launch"), ("tool_call_args 0", "{}")]),
    # Cut off: text, and never run.
    ("<|tool_call>call:weather{city:", [("text", "<|tool_call>call:weather{city:")]),
    (
        '<|tool_call>call:weather{city:<|"|>Rome}<tool_call|> and on',
        [("text", '<|tool_call>call:weather{city:<|"|>Rome}<tool_call|> and on')],
    ),
    ("<|tool_call>nonsense<tool_call|> ok ", [("text", "<|tool_call>nonsense<tool_call|> ok ")]),
    ("<|tool_call>nonsense<tool_call|>thought\nok", [("text", "<|tool_call>nonsense<tool_call|>thought\nok")]),
    (
        "<|tool_call>call:weather{city='Rome'}<tool_call|>",
        [("text", "<|tool_call>call:weather{city='Rome'}<tool_call|>")],
    ),
    # What opens a call opens one, whatever was lost before it: a closing or an opening quote, the call's end.
    *(
        (broken + WEATHER, [("text", broken), *WEATHER_SAID])
        for broken in (
            "<|tool_call>",
            "<|tool_call>call:a{",
            '<|tool_call>call:weather{city:<|"|>Rome}<tool_call|>',
            '<|tool_call>call:weather{city:<|"|>Rome}<tool_call|>\n',
            '<|tool_call>call:weather{city:Rome<|"|>}<tool_call|>',
            '<|tool_call>call:weather{city:<|"|>Rome,unit:<|"|>C<|"|>}<tool_call|>',
            '<|tool_call>call:weather{city:<|"|>Rome<|"|>}',
            '<|tool_call>call:weather{city:<|"|>Rome<|"|>}\nthought\n',
            '<|tool_call>call:weather{city:<|"|>',
        )
    ),
    # So does what opens a channel, and outside of a string what closes one.
    (
        '<|tool_call>call:weather{city:<|"|>Rome}<tool_call|><|channel>thought\nhm\n<channel|>' + WEATHER,
        [("text", '<|tool_call>call:weather{city:<|"|>Rome}<tool_call|>'), ("reasoning", "hm"), *WEATHER_SAID],
    ),
    (
        "<|tool_call>call:weather{city:<|channel>thought\nhm<channel|>Rome}<tool_call|>",
        [("text", "<|tool_call>call:weather{city:"), ("reasoning", "hm"), ("text", "Rome}")],
    ),
    (
        "<|channel>thought\nI could <|tool_call>call:weather{\n<channel|>Rome",
        [("reasoning", "I could"), ("text", "<|tool_call>call:weather{\nRome")],
    ),
    # Calls that a thought without its opening comes before, or behind.
    (WEATHER + "\nthought\nhm\n<channel|>Done.", [*WEATHER_SAID, ("reasoning", "hm"), ("text", "Done.")]),
    ("thought\nhm\n<channel|>" + WEATHER, [("reasoning", "hm"), *WEATHER_SAID]),
    ("thought\nidea\n" + WEATHER, [("text", "thought\nidea\n"), *WEATHER_SAID]),
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


def test_half_of_a_character_never_runs() -> None:
    ids = encode("<|tool_call>call:f{a:x☃}<tool_call|>")
    del ids[-3]
    said, reader = read([ids])
    assert said == [("text", "<|tool_call>call:f{a:x\ufffd}<tool_call|>")]
    assert reader.tool_calls == []


def test_without_tools_a_call_is_text() -> None:
    said, reader = read([encode(WEATHER)], tools={})
    assert said == [("text", WEATHER)]
    assert reader.tool_calls == []


PIECES = [
    WEATHER,
    "<|tool_call>",
    "<tool_call|>",
    '<|"|>',
    "call:f{",
    "a:1,",
    "city:",
    "'Rome'",
    "=",
    "}",
    "<|channel>",
    "thought\n",
    "final\n",
    "<channel|>",
    "☃",
    " ",
    "\n",
    "x",
    "<pad>",
]


@settings(max_examples=100, deadline=None)
@given(
    reply=st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
    lost=st.integers(0, 15),
)
def test_a_well_formed_call_runs_whatever_stands_before_it(reply: str, lost: int) -> None:
    """Also another one that has lost a token, whichever."""
    broken = encode(WEATHER)
    del broken[lost % len(broken)]
    said, reader = read([encode(reply) + broken + encode(WEATHER)])
    name, arguments = reader.tool_calls[-1].name, reader.tool_calls[-1].arguments
    assert (name, arguments) == ("weather", {"city": "Rome"})
    assert said[-1][0].startswith("tool_call_args")


@settings(max_examples=100, deadline=None)
@given(reply=st.lists(st.sampled_from([*PIECES, WEATHER]), max_size=8).map("".join), length=st.integers(0, 120))
def test_a_reply_that_is_cut_runs_no_other_calls(reply: str, length: int) -> None:
    ids = encode(reply)
    cut, whole = (read([part])[1].tool_calls for part in (ids[:length], ids))
    assert [(call.name, call.arguments) for call in cut] == [
        (call.name, call.arguments) for call in whole[: len(cut)]
    ]


SPELLED = st.text(alphabet=st.sampled_from("abn1.0-+:=,{}[]'\"\\ |\n’“"), max_size=25)


@settings(max_examples=250, deadline=None)
@given(inside=SPELLED)
@example(inside="a:'\\|'")
def test_whatever_is_parsed_is_json_of_the_declared_types(inside: str) -> None:
    """Nothing but `MalformedCallError` is raised, and no value that reaches a tool has a quote of the syntax."""
    tools = {"f": {"type": "object", "properties": {"a": STRING, "b": INTEGER, "n": {"type": ["null", "number"]}}}}
    try:
        _, arguments = parse_call(units(f"call:f{{{inside}}}"), tools)
    except MalformedCallError:
        return
    assert json.loads(json.dumps(arguments, allow_nan=False)) == arguments
    assert isinstance(arguments.get("a", ""), str)
    quoted = "|" in inside or "'" in inside or '"' in inside
    assert quoted or isinstance(arguments.get("b", 0), int)
    assert quoted or isinstance(arguments.get("n"), int | float | None)


@settings(max_examples=100, deadline=None)
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


@pytest.mark.parametrize(
    "text",
    [
        # Paths, or texts with line breaks and tabulators?
        r'{t:"C:\new"}',
        r"{t:'D:\reports\todo.txt'}",
        r'{t:"\\server\new"}',
        r'{t:"src\test.py"}',
        r'{t:"C:\u0041"}',
        # One item or two?
        """{t:"x',u:'y"}""",
        "{t:Rome u:Italy}",
    ],
)
def test_two_readings_are_none(text: str) -> None:
    tools = {"f": {"type": "object", "properties": {"t": STRING, "u": STRING}}}
    with pytest.raises(MalformedCallError):
        parse_call(units(f"call:f{text}"), tools)


def test_a_missing_comma_between_items_that_nobody_declared() -> None:
    with pytest.raises(MalformedCallError):
        parse_call(units("call:f{city:Rome country:Italy}"), {"f": {}})


@pytest.mark.parametrize(
    ("text", "expected"),
    [(r'{t:"one\ntwo"}', "one\ntwo"), (r'{t:"C:\\new\\todo.txt"}', r"C:\new\todo.txt")],
)
def test_escapes_that_are_beyond_doubt(text: str, expected: str) -> None:
    tools = {"f": {"type": "object", "properties": {"t": STRING}}}
    assert parse_call(units(f"call:f{text}"), tools) == ("f", {"t": expected})
