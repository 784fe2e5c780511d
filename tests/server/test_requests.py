"""Requests as clients send them: what is asked for, what is ignored and named, and what is refused."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from dataclasses import replace
from typing import Any, get_args

import llm
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm.parts import Message, ReasoningPart, ToolCallPart, ToolResultPart

from llm_diffusiongemma.backends.address import Address
from llm_diffusiongemma.backends.dialects import body_of, served_by_ours
from llm_diffusiongemma.backends.protocol import VIEW_OPTIONS
from llm_diffusiongemma.backends.turn import Turn
from llm_diffusiongemma.chat.messages import read_conversation
from llm_diffusiongemma.options import Options
from llm_diffusiongemma.server.requests import IGNORED, Asked, RequestError, read_request
from llm_diffusiongemma.view.records import Wants, Watch

MESSAGES = [{"role": "user", "content": "Hi"}]


def body(**fields: object) -> bytes:
    return json.dumps({"model": "tiny", "messages": MESSAGES, **fields}).encode()


def asked(**fields: object) -> Asked:
    return read_request(body(**fields), "tiny")


def refused(content: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        read_request(content, "tiny")
    return caught.value


def test_a_question() -> None:
    read = asked()
    assert (read.turn.messages, read.turn.options, read.turn.tools) == ([llm.user("Hi")], Options(), [])
    assert read.turn.schema is None
    assert (read.stream, read.include_usage, read.progress, read.warnings) == (False, False, False, [])
    assert read.watch is None


def test_how_it_is_answered() -> None:
    read = asked(stream=True, stream_options={"include_usage": True}, diffusiongemma={"progress": True})
    assert (read.stream, read.include_usage, read.progress, read.warnings) == (True, True, True, [])


@pytest.mark.parametrize("wants", get_args(Wants))
def test_who_watches_it_says_how_much_is_wanted(wants: Wants) -> None:
    read = asked(stream=True, diffusiongemma={"watch": wants})
    assert (read.watch, read.turn.watch, read.turn.options) == (wants, None, Options())


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
FUNCTION = {"name": "f", "description": "Does it.", "parameters": SCHEMA}
TOOLS = [{"type": "function", "function": FUNCTION}]


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"seed": 0, "max_tokens": 5}, {"seed": 0, "max_tokens": 5}),
        ({"max_completion_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 5, "max_tokens": 5}, {"max_tokens": 5}),
        ({"chat_template_kwargs": {"enable_thinking": True}}, {"thinking": True}),
        ({"chat_template_kwargs": {}}, {}),
        ({"reasoning_effort": "none"}, {"thinking": False}),
        ({"reasoning_effort": "minimal"}, {"thinking": False}),
        ({"reasoning_effort": "low", "diffusiongemma": {"thinking": True}}, {"thinking": True}),
        (
            {"diffusiongemma": {"max_denoising_steps": 3, "t_min": 0, "choices": ["a", "b"], "image_tokens": 70}},
            {"max_denoising_steps": 3, "t_min": 0, "choices": ["a", "b"], "image_tokens": 70},
        ),
        ({"diffusiongemma": {"regex": "a+", "thinking": False}}, {"regex": "a+", "thinking": False}),
        (
            {"diffusiongemma": {"choices": "a,b", "probabilities": True, "reads": 2}},
            {"choices": "a,b", "probabilities": True, "reads": 2},
        ),
    ],
)
def test_options(fields: dict[str, Any], options: dict[str, Any]) -> None:
    read = asked(**fields)
    assert read.turn.options == Options(**options)
    assert read.warnings == []


@pytest.mark.parametrize(
    ("response_format", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}, SCHEMA),
        ({"type": "json_schema", "json_schema": {"schema": {"const": None}}}, {"const": None}),
        ({"type": "json_schema", "json_schema": {"schema": {}}}, {}),
    ],
)
def test_forms(response_format: dict[str, Any], schema: dict[str, Any] | None) -> None:
    assert asked(response_format=response_format).turn.schema == schema


def test_tools() -> None:
    for more in ({}, {"tool_choice": "auto"}, {"parallel_tool_calls": True}):
        read = asked(tools=TOOLS, **more)
        assert (read.turn.tools, read.warnings) == ([llm.Tool("f", "Does it.", SCHEMA)], [])
    assert asked(tools=TOOLS, tool_choice="none").turn.tools == []


def test_nulls_are_as_if_left_out() -> None:
    names = "stream stream_options tools tool_choice parallel_tool_calls response_format seed max_tokens n".split()
    names += "stop max_completion_tokens chat_template_kwargs reasoning_effort logprobs modalities".split()
    nulls: dict[str, Any] = dict.fromkeys([*names, *IGNORED, "never_heard_of"])
    nulls["diffusiongemma"] = {"seed": None, "t_min": None, "progress": None, "watch": None}
    nulls["messages"] = [{"role": "user", "content": "Hi", "name": None, "tool_calls": None}]
    assert asked(**nulls) == asked()


def test_what_says_nothing_new_is_taken() -> None:
    read = asked(n=1, stop=[], logprobs=False, top_logprobs=0, modalities=["text"], tool_choice="auto")
    assert read == asked()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"temperature": 1.0}, "temperature"),
        ({"user": "x", "top_p": 0.5, "logit_bias": {"5": "anything"}}, "user, top_p, logit_bias"),
        ({"tools": TOOLS, "parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tools": [{"type": "function", "function": {**FUNCTION, "strict": True}}]}, "tools.0.function.strict"),
        ({"messages": [{**MESSAGES[0], "name": "x"}]}, "messages.0.name"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"description": "x", "schema": {}}}},
            "response_format.json_schema.description",
        ),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
        ),
    ],
)
def test_what_has_no_meaning_is_named(fields: dict[str, Any], named: str) -> None:
    assert asked(**fields).warnings == [f"Without meaning for this model, and ignored: {named}."]


def test_a_warning_is_not_long() -> None:
    [warning] = asked(messages=[{**MESSAGES[0], "name": "x"}] * 1000).warnings
    assert warning.endswith("messages.19.name and 980 more.")


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({"stop": ["a"]}, "stop", "not by a text in it"),
        ({"stop": "a"}, "stop", "not by a text in it"),
        ({"n": 2}, "n", "one reply"),
        ({"logprobs": True}, "logprobs", "logprobs is true: the tokens"),
        ({"top_logprobs": 5}, "top_logprobs", "probability"),
        ({"modalities": ["text", "audio"]}, "modalities", "texts"),
        ({"audio": {"voice": "x"}}, "audio", "nothing of that name"),
        ({"functions": []}, "functions", "nothing of that name"),
        ({"a" * 1000: 1}, "a" * 499 + "…", "nothing of that name"),
        ({"\x1b[2J": 1}, "\\x1b[2J", "nothing of that name"),
        ({"tool_choice": "required"}, "tool_choice", "no call can be forced"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "no call can be forced"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "streamed"),
        ({"stream": True, "stream_options": {"every": 1}}, "stream_options.every", "nothing of that name"),
        ({"seed": -1}, "seed", "0 or more"),
        ({"seed": 2**63}, "seed", "less than"),
        ({"seed": 1.5}, "seed", "a whole number"),
        ({"seed": "1"}, "seed", "a whole number"),
        ({"max_tokens": 0}, "max_tokens", "1 or more"),
        ({"max_completion_tokens": 0}, "max_tokens", "1 or more"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens", "contradict each other"),
        ({"reasoning_effort": "much"}, "reasoning_effort", "'none'"),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
            "reasoning_effort",
            "chat_template_kwargs.enable_thinking and reasoning_effort contradict each other",
        ),
        ({"chat_template_kwargs": {"tools": 1}}, "chat_template_kwargs.tools", "nothing of that name"),
        ({"diffusiongemma": 5}, "diffusiongemma", "an object"),
        ({"diffusiongemma": {"progress": 1}}, "diffusiongemma.progress", "true or false"),
        ({"stream": True, "diffusiongemma": {"watch": True}}, "diffusiongemma.watch", "'drafts'"),
        ({"stream": True, "diffusiongemma": {"watch": "all"}}, "diffusiongemma.watch", "'drafts'"),
        ({"diffusiongemma": {"watch": "drafts"}}, "diffusiongemma.watch", "streamed"),
        ({"diffusiongemma": {"replay": "out.html"}}, "diffusiongemma.replay", "none of the options"),
        ({"diffusiongemma": {"seed": 1}}, "diffusiongemma.seed", "none of the options canvas_length, choices"),
        ({"diffusiongemma": {"t_min": -1}}, "diffusiongemma.t_min", "0 or more"),
        ({"diffusiongemma": {"t_min": 1, "t_max": 1}}, "diffusiongemma.t_min", "t_min must be below t_max"),
        (
            {"diffusiongemma": {"probabilities": True}},
            "diffusiongemma.probabilities",
            "diffusiongemma.probabilities are those of choices",
        ),
        ({"diffusiongemma": {"choices": "a,b", "reads": 2}}, "diffusiongemma.reads", "reads are for"),
        ({"diffusiongemma": {"choices": "a,b", "reads": 65}}, "diffusiongemma.reads", "64 or less"),
        ({"diffusiongemma": {"fill_json": True}}, "diffusiongemma.fill_json", "fill_json is for a text"),
        ({"diffusiongemma": {"noise": 0.5}}, "diffusiongemma.noise", "noise is that of a draft"),
        ({"diffusiongemma": {"draft": ""}}, "diffusiongemma.draft", "diffusiongemma.draft must be a text"),
        ({"diffusiongemma": {"canvas_length": 40}}, "diffusiongemma.canvas_length", "must be a multiple of 16"),
        ({"diffusiongemma": {"stop_at_end": "maybe"}}, "diffusiongemma.stop_at_end", "true or false"),
        ({"diffusiongemma": {"image_tokens": 71}}, "diffusiongemma.image_tokens", "must be one of 70"),
        ({"response_format": {"type": "grammar"}}, "response_format.type", "'json_schema'"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema belongs"),
        ({"response_format": {"type": "text", "json_schema": {"schema": {}}}}, "response_format", "belongs"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": True}}}, None, "an object"),
        ({"tools": {}}, "tools", "a list"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "'function'"),
        ({"messages": "Hi"}, "messages", "a list"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "a text or a list of parts"),
        ({"model": 5}, "model", "a text"),
        ({"model": None}, "model", "it has no model"),
    ],
)
def test_what_is_refused_is_named(fields: dict[str, Any], param: str | None, reason: str) -> None:
    error = refused(body(**fields))
    assert error.status == 400
    assert reason in error.message
    assert error.message.startswith("The request can't be answered: ")
    assert error.message.isprintable()
    if param is not None:
        assert error.param == param


def test_as_many_unknown_fields_as_fit() -> None:
    """An error for each of them took minutes, and all memory."""
    error = refused(body(**{f"x{number}": 1 for number in range(200_000)}))
    assert error.message == "The request can't be answered: x0 is 1: nothing of that name is known here."


def test_another_model() -> None:
    error = refused(body(model="big\n"))
    assert (error.status, error.message, error.param) == (404, "There is no model big here, only tiny.", "model")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is no JSON from line 1, column 1 on"),
        (b"[]", "no JSON object"),
        (b'{"model": "\xff"}', "no UTF-8 from byte"),
        (b'{"seed": NaN}', "NaN is no number"),
        (b'{"seed": 1, "seed": 2}', "seed stands twice"),
        (b'{"seed": ' + b"1" * 5000 + b"}", "digits"),
        (b'{"metadata": ' + b"[" * 100 + b"]" * 100 + b"}", "more than 100 levels deep"),
        (b'{"metadata": [' + b"0," * 300_001 + b"0]}", "more than 300,000 parts"),
        (b"[" * 10**6, "nested too deeply"),
        (b'{"a":' * 10**6, "nested too deeply"),
    ],
)
def test_what_is_no_json(content: bytes, reason: str) -> None:
    error = refused(content)
    assert (error.status, error.param) == (400, None)
    assert reason in error.message


# --- of our own client ------------------------------------------------------------------------------------------

HERE = served_by_ours(Address("http://host/v1", None, None, "tiny", True, "here"))
CONVERSATION = [
    llm.system("Be brief."),
    llm.user("Look"),
    Message("assistant", [ReasoningPart("hm"), ToolCallPart("f", {"a": 1}, "1")]),
    Message("tool", [ToolResultPart("f", "4", "1")]),
]


ASKED: list[tuple[dict[str, Any], dict[str, Any] | None]] = [
    ({}, None),
    ({"seed": 0, "max_tokens": 1_000_000, "max_denoising_steps": 1000, "entropy_bound": 1e-9}, {}),
    ({"t_max": 100.0, "t_min": 0.0, "confidence_threshold": 0.1, "stability_threshold": 0}, SCHEMA),
    ({"image_tokens": 1120, "thinking": True, "regex": "\\d+ half \ud83d"}, {"const": "half \ud83d"}),
    ({"thinking": False, "choices": ["é", "b,c"]}, None),
    ({"choices": "a,b", "probabilities": True, "reads": 64}, None),
    ({"fill": "{a} \ud83d {b...}", "fill_json": True, "stop_at_end": True}, None),
    ({"draft": "naïve\n", "noise": 1.0, "canvas_length": 16}, None),
]


@pytest.mark.parametrize(("options", "schema"), ASKED)
def test_what_our_client_asks_is_read_as_it_was_meant(
    options: dict[str, Any], schema: dict[str, Any] | None
) -> None:
    turn = Turn(CONVERSATION, Options(**options), [llm.Tool("f", "Does it.", SCHEMA)], schema)
    read = read_request(json.dumps(body_of(turn, HERE)).encode(), "tiny")
    assert (read.stream, read.include_usage, read.progress, read.warnings) == (True, True, True, [])
    assert read_conversation(read.turn.messages) == read_conversation(turn.messages)
    assert replace(read.turn, messages=turn.messages) == turn
    assert read.watch is None


@pytest.mark.parametrize("wants", get_args(Wants))
def test_what_our_client_wants_to_see_is_read_as_it_was_meant(wants: Wants) -> None:
    turn = Turn(CONVERSATION, Options(watch=True, replay="out.html"), watch=Watch(print, wants))
    read = read_request(json.dumps(body_of(turn, replace(HERE, watch=frozenset([wants])))).encode(), "tiny")
    assert (read.watch, read.turn.options) == (wants, Options())


def test_every_option_of_our_client_is_tried() -> None:
    assert {name for options, _ in ASKED for name in options} == set(Options.model_fields) - VIEW_OPTIONS


# --- whatever comes ---------------------------------------------------------------------------------------------

# Values of every kind, in every place where a request may have one.
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
VALUES = st.recursive(
    SCALARS | st.just("data:image/png;base64,aaaa"),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=3), values, max_size=3),
    max_leaves=5,
)
WHOLE: dict[str, Any] = {
    "model": "tiny",
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "a"}]},
        {
            "role": "user",
            "content": [
                {
                    "type": "image_url",
                    "image_url": {"url": f"data:image/png;base64,{base64.b64encode(b'a').decode()}"},
                    "diffusiongemma": {"timestamp": "00:01", "name": "a.mp4"},
                }
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "reasoning": "hm",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "content": "4", "tool_call_id": "1"},
    ],
    "tools": TOOLS,
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
    "stream": True,
    "stream_options": {"include_usage": True},
    "seed": 1,
    "stop": None,
    "logit_bias": {"1": 2},
    "chat_template_kwargs": {"enable_thinking": True},
    "reasoning_effort": "high",
    "diffusiongemma": {"t_min": 0.1, "choices": ["a"], "progress": True, "watch": "drafts"},
}


def places(value: Any) -> list[tuple[Any, Any]]:
    """Everything within a value, as what holds it and where."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in items for place in [(value, key), *places(item)]]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_whatever_is_sent_is_asked_or_refused(data: st.DataObject) -> None:
    """A whole request with something else in one or two of its places."""
    request = json.loads(json.dumps(WHOLE))
    for _ in range(data.draw(st.integers(1, 2))):
        holder, key = data.draw(st.sampled_from(places(request)))
        holder[key] = data.draw(VALUES)
    with suppress(RequestError):
        read_request(json.dumps(request).encode(), "tiny")


def test_the_whole_request() -> None:
    """Or nothing would be tried above."""
    assert len(asked(**WHOLE).turn.messages) == 4
