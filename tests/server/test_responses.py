"""Events and a report, in OpenAI's format."""

from __future__ import annotations

import pytest
from llm.parts import StreamEvent
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from llm_diffusiongemma.backends.protocol import report_from_wire
from llm_diffusiongemma.server.responses import Response

from .scripted import report


def text(chunk: str) -> StreamEvent:
    return StreamEvent("text", chunk)


def thought(chunk: str) -> StreamEvent:
    return StreamEvent("reasoning", chunk)


def call(name: str, number: int) -> list[StreamEvent]:
    tool_call_id = f"tc_{number}"
    return [
        StreamEvent("tool_call_name", name, tool_call_id=tool_call_id),
        StreamEvent("tool_call_args", f'{{"n": {number}}}', tool_call_id=tool_call_id),
    ]


def wire_call(name: str, number: int, index: int) -> dict[str, object]:
    function = {"name": name, "arguments": f'{{"n": {number}}}'}
    return {"index": index, "id": f"tc_{number}", "type": "function", "function": function}


BLOCKS = {
    "nothing": ([], []),
    "a text": ([text("a")], [{"content": "a"}]),
    "in a chunk's order": (
        [thought("t"), text("a"), *call("f", 1), *call("g", 2)],
        [{"reasoning": "t", "content": "a", "tool_calls": [wire_call("f", 1, 0), wire_call("g", 2, 1)]}],
    ),
    "in another order": (
        [text("a"), thought("t"), text("b"), *call("f", 1), text("c"), *call("g", 2), thought("u")],
        [
            {"content": "a"},
            {"reasoning": "t", "content": "b", "tool_calls": [wire_call("f", 1, 0)]},
            {"content": "c", "tool_calls": [wire_call("g", 2, 1)]},
            {"reasoning": "u"},
        ],
    ),
    "two of a kind": ([text("a"), text("b")], [{"content": "a"}, {"content": "b"}]),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_chunks_of_a_block(name: str) -> None:
    events, deltas = BLOCKS[name]
    chunks = list(Response("a-model").block(events))
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == deltas
    for chunk in chunks:
        assert ChatCompletionChunk.model_validate(chunk, strict=True).choices[0].finish_reason is None


def test_calls_are_counted_through_all_blocks() -> None:
    response = Response("a-model")
    chunks = [*response.block(call("f", 1)), *response.block(call("g", 2))]
    assert [chunk["choices"][0]["delta"]["tool_calls"][0]["index"] for chunk in chunks] == [0, 1]


def test_all_parts_have_one_name() -> None:
    response = Response("a-model")
    parts = [response.beginning(), response.waiting("queued"), *response.block([text("a")])]
    parts += response.end(report(), [], with_usage=True)
    assert len({(part["id"], part["created"]) for part in parts}) == 1
    assert {part["model"] for part in parts} == {"a-model"}
    assert parts[0]["id"] != Response("a-model").beginning()["id"]


@pytest.mark.parametrize("events", [[text("a")], []], ids=["something", "nothing"])
def test_a_report_goes_with_each_block(events: list[StreamEvent]) -> None:
    (chunk,) = Response("a-model").block(events, report("interrupted"))
    assert report_from_wire(chunk["diffusiongemma"]["report"]) == report("interrupted")


@pytest.mark.parametrize("reason", ["stop", "tool_calls", "length"])
def test_the_end(reason: str) -> None:
    ended = report(reason)
    last, usage = Response("a-model").end(ended, ["Beware."], with_usage=True)
    assert (last["choices"][0]["finish_reason"], last["choices"][0]["delta"]) == (reason, {})
    assert last["warnings"] == ["Beware."]
    assert report_from_wire(last["diffusiongemma"]["report"]) == ended
    assert usage["choices"] == []
    assert usage["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 5,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 3},
    }
    (alone,) = Response("a-model").end(ended, [], with_usage=False)
    assert "warnings" not in alone


def test_a_whole_reply() -> None:
    events = [thought("t"), text("a"), *call("f", 1), text("b"), *call("g", 2)]
    whole = Response("a-model").whole(events, report("tool_calls"), ["Beware."])
    message = whole["choices"][0]["message"]
    assert (message["role"], message["reasoning"], message["content"]) == ("assistant", "t", "ab")
    assert [each["function"]["arguments"] for each in message["tool_calls"]] == ['{"n": 1}', '{"n": 2}']
    assert "index" not in message["tool_calls"][0]
    assert whole["warnings"] == ["Beware."]
    read = ChatCompletion.model_validate(whole, strict=True)
    assert read.usage is not None
    assert read.usage.total_tokens == 12


def test_a_reply_without_a_text_has_none() -> None:
    message = Response("a-model").whole(call("f", 1), report("tool_calls"), [])["choices"][0]["message"]
    assert message["content"] is None


def test_an_interrupted_reply_is_none() -> None:
    response = Response("a-model")
    with pytest.raises(ValueError, match="interrupted"):
        response.whole([text("a")], report("interrupted"), [])
    with pytest.raises(ValueError, match="interrupted"):
        list(response.end(report("interrupted"), [], with_usage=False))
