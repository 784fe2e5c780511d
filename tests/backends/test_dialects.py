"""What a server is by its list of models, and a turn in its words."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import llm
import pytest
from llm.parts import Message, ReasoningPart, TextPart, ToolCallPart, ToolResultPart

from llm_diffusiongemma.backends.address import Address
from llm_diffusiongemma.backends.dialects import Served, body_of, read_models
from llm_diffusiongemma.backends.protocol import EXTENSION, OWNER, VIEW_OPTIONS
from llm_diffusiongemma.backends.turn import Turn
from llm_diffusiongemma.chat.declarations import declare
from llm_diffusiongemma.errors import PromptError, ServerError, UnsupportedByServerError
from llm_diffusiongemma.options import Options
from llm_diffusiongemma.view.records import Watch

from .scripted_server import models

ENTRY = Address("http://host/v1", None, None, None, False, "box", wanted=("dg-box",), takes_any=True)
NAMED = replace(ENTRY, wanted=("diffusiongemma", "google/it"), takes_any=False)
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def served(address: Address, owner: str | None, *names: str, **fields: Any) -> Served:
    return read_models(json.loads(models(owner, *names, **fields).body), address)


@pytest.mark.parametrize(
    ("address", "owner", "names", "model"),
    [
        (ENTRY, "vllm", ["google/it"], "google/it"),
        (ENTRY, OWNER, ["diffusiongemma-tiny"], "diffusiongemma-tiny"),
        (ENTRY, "vllm", ["a", "dg-box"], "dg-box"),
        (ENTRY, "vllm", ["a", "b"], None),
        (ENTRY, "vllm", [], None),
        (NAMED, "vllm", ["a", "google/it"], "google/it"),
        (NAMED, "vllm", ["mlx-community/it-8bit"], "mlx-community/it-8bit"),
        (NAMED, OWNER, ["diffusiongemma"], "diffusiongemma"),
        # A server of ours names its model as llm does: another one is not meant.
        (NAMED, OWNER, ["diffusiongemma-tiny"], None),
        # Not all that some have is in their lists.
        (replace(ENTRY, model="mine"), None, ["a", "b"], "mine"),
    ],
)
def test_which_model_is_meant(address: Address, owner: str, names: list[str], model: str | None) -> None:
    if model is not None:
        assert served(address, owner, *names).model == model
        return
    with pytest.raises(ServerError, match=f"It has: {', '.join(names) or 'none'}"):
        served(address, owner, *names)


def test_what_a_server_is() -> None:
    ours = served(ENTRY, OWNER, "a")
    assert (ours.kind, ours.address.is_ours, ours.context_tokens) == ("ours", True, None)
    vllm = served(ENTRY, "vllm", "a", max_model_len=2048)
    assert (vllm.kind, vllm.address.is_ours, vllm.context_tokens) == ("vllm", False, 2048)
    assert {served(ENTRY, owner, "a").kind for owner in (None, "", "mlx-vlm")} == {"other"}
    for listing in (None, [], {}, {"data": "a"}, {"object": "error", "message": "x"}):
        with pytest.raises(ServerError, match="no OpenAI-compatible server"):
            read_models(listing, ENTRY)


# --- requests ------------------------------------------------------------------------------------------------

OURS = served(ENTRY, OWNER, "a")
VLLM = served(ENTRY, "vllm", "a")
OTHER = served(ENTRY, None, "a")
TOOL = llm.Tool(name="add", description="Adds <turn|>", input_schema={"type": "object", "properties": {"a": {}}})


def turn(schema: dict[str, Any] | None = None, tools: list[llm.Tool] | None = None, **options: Any) -> Turn:
    return Turn(
        [Message(role="user", parts=[TextPart(text="Hi <turn|>")])], Options(**options), tools or [], schema
    )


def test_ours_is_told_everything() -> None:
    options: dict[str, Any] = {
        "max_tokens": 5,
        "seed": 0,
        "max_denoising_steps": 3,
        "entropy_bound": 0.2,
        "t_max": 0.9,
        "t_min": 0.1,
        "confidence_threshold": 0.1,
        "stability_threshold": 0,
        "image_tokens": 140,
        "thinking": False,
        "regex": "a+",
        "choices": "a,b",
        "fill": "{a}",
        "fill_json": True,
        "draft": "a",
        "noise": 0.2,
        "canvas_length": 64,
        "stop_at_end": True,
    }
    decision = {"choices": "a,b", "probabilities": True, "reads": 2}
    assert options.keys() | decision == set(Options.model_fields) - VIEW_OPTIONS
    body = body_of(turn(SCHEMA, [TOOL], **options), OURS)
    assert (body["model"], body["stream"], body["max_tokens"], body["seed"]) == ("a", True, 5, 0)
    others = {name: value for name, value in options.items() if name not in ("max_tokens", "seed")}
    assert body[EXTENSION] == {**others, "progress": True}
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    # It makes no control tokens of texts.
    assert body["messages"] == [{"role": "user", "content": "Hi <turn|>"}]
    assert body["tools"][0]["function"]["description"] == "Adds <turn|>"
    assert body_of(turn(**decision), OURS)[EXTENSION] == {**decision, "progress": True}
    # What isn't set there is the checkpoint's.
    plain = body_of(turn(), OURS)
    assert plain[EXTENSION] == {"progress": True}
    assert not {"max_tokens", "seed", "tools", "response_format"} & set(plain)


def test_ours_is_asked_for_what_somebody_wants_to_see() -> None:
    watched = replace(turn(watch=True), watch=Watch(print, "drafts"))
    ours = served(ENTRY, OWNER, "a", **{EXTENSION: {"watch": ["readings", "drafts"]}})
    assert body_of(watched, ours)[EXTENSION] == {"progress": True, "watch": "drafts"}
    # One of an earlier version would refuse the field, and others don't know it.
    assert ours.watch
    for server in (
        OURS,
        VLLM,
        *(served(ENTRY, OWNER, "a", **{EXTENSION: odd}) for odd in ([], {"watch": "drafts"})),
    ):
        assert not server.watch
        assert body_of(watched, server) == body_of(turn(), server)
    replayed = replace(turn(replay="out.html"), watch=Watch(print, "candidates"))
    with pytest.raises(UnsupportedByServerError, match="the option replay: it is of an earlier version"):
        body_of(replayed, ours)
    there = served(ENTRY, OWNER, "a", **{EXTENSION: {"watch": ["candidates"]}})
    assert body_of(replayed, there)[EXTENSION] == {"progress": True, "watch": "candidates"}


def test_others_are_told_what_they_know() -> None:
    asked = turn(tools=[TOOL], max_tokens=5, thinking=True)
    common = {"model", "messages", "stream", "stream_options", "tools", "max_tokens", "chat_template_kwargs"}
    for server in (VLLM, OTHER):
        body = body_of(asked, server)
        assert set(body) - {"enable_thinking"} == common
        assert body["chat_template_kwargs"] == {"enable_thinking": True}
        assert "<turn|>" not in json.dumps(body)
    steps = body_of(turn(max_denoising_steps=7), VLLM)
    assert steps["vllm_xargs"] == {"diffusion_max_steps": 7}


def test_others_are_told_of_tools_what_a_prompt_shows_of_them() -> None:
    """A real vLLM made of the keywords of this one parameters of the tool."""
    now = llm.Tool(name="now", input_schema={"type": "object", "additionalProperties": False})
    for server in (VLLM, OTHER):
        assert body_of(turn(tools=[now]), server)["tools"] == declare([now])


@pytest.mark.parametrize("context_tokens", [None, 262_144, 2048])
def test_the_longest_reply_of_others_is_that_of_here_if_it_fits(context_tokens: int | None) -> None:
    body = body_of(turn(), replace(VLLM, context_tokens=context_tokens))
    assert body.get("max_tokens") == (None if context_tokens == 2048 else 8192)


REFUSED: list[tuple[Served, dict[str, Any], list[str]]] = [
    (VLLM, {"seed": 0}, ["seed"]),
    (VLLM, {"entropy_bound": 0.1, "t_min": 0.1}, ["entropy_bound", "t_min"]),
    (VLLM, {"schema": SCHEMA, "regex": "a"}, ["a schema", "regex"]),
    (VLLM, {"choices": "a,b"}, ["choices"]),
    (VLLM, {"choices": "a,b", "probabilities": True, "reads": 2}, ["choices", "probabilities", "reads"]),
    (VLLM, {"fill": "{a}", "fill_json": True}, ["fill", "fill_json"]),
    (OTHER, {"draft": "a", "noise": 0.2}, ["draft", "noise"]),
    (OTHER, {"canvas_length": 64, "stop_at_end": True}, ["canvas_length", "stop_at_end"]),
    (VLLM, {"image_tokens": 70}, ["image_tokens"]),
    (VLLM, {"replay": "out.html"}, ["replay"]),
    (OTHER, {"max_denoising_steps": 7, "t_max": 0.5}, ["max_denoising_steps", "t_max"]),
    (
        OTHER,
        {"stability_threshold": 0, "confidence_threshold": 0.1},
        ["stability_threshold", "confidence_threshold"],
    ),
]


@pytest.mark.parametrize(("server", "options", "names"), REFUSED)
def test_what_others_cannot_is_refused_by_name(server: Served, options: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(UnsupportedByServerError) as caught:
        body_of(turn(**options), server)
    asked_for = str(caught.value).partition("can't be asked for")[2].partition(":")[0]
    assert all(name in asked_for for name in names)
    assert "vLLM" in str(caught.value) if server is VLLM else "vLLM" not in str(caught.value)


def test_history_for_others() -> None:
    """vLLM shows the model past thoughts by this name only."""
    call = ToolCallPart(name="add", arguments={"a": 1}, tool_call_id="tc_1")
    result = ToolResultPart(name="add", output="2 <|turn>", tool_call_id="tc_1")
    asked = Turn(
        [
            Message(role="user", parts=[TextPart(text="Add")]),
            Message(role="assistant", parts=[ReasoningPart(text="Hm."), call]),
            Message(role="tool", parts=[result]),
        ],
        Options(),
        [TOOL],
    )
    _, calling, answering = body_of(asked, VLLM)["messages"]
    assert calling["reasoning"] == "Hm."
    assert calling["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1}'}
    assert answering["tool_call_id"] == calling["tool_calls"][0]["id"] == "tc_1"
    assert answering["content"] == "2 <\u2060|turn>"


def test_a_tool_whose_parameters_are_no_json() -> None:
    message = Message(role="user", parts=[TextPart(text="Hi")])
    deep: dict[str, Any] = {}
    for _ in range(2000):
        deep = {"not": deep}
    for parameters in ({"properties": {"a": {"enum": [float("nan")]}}}, deep):
        turn = Turn([message], Options(), [llm.Tool(name="add", input_schema=parameters)])
        with pytest.raises(PromptError, match="the tool add holds parameters that are no JSON"):
            body_of(turn, served(ENTRY, OWNER, "a"))
