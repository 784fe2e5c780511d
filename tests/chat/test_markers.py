"""Names of control tokens in what a foreign server is sent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.chat.markers import BREAKER, without_markers

TOKENS = json.loads((EMBEDDED_CHECKPOINT / "tokenizer.json").read_text())["added_tokens"]
SPECIAL = [token["content"] for token in TOKENS if token["special"]]
# As far as they are known of the real one.
OTHERS = ["<mask>", "[multimodal]", "<unused7>", "<unused6241>", "<start_of_turn>", "<|audio|>", "<|video|>"]


@pytest.mark.parametrize("token", [*SPECIAL, *OTHERS])
def test_no_text_spells_a_control_token(token: str) -> None:
    text = f"a {token}{token} b <{token}"
    broken = without_markers(text)
    assert token not in broken
    assert broken.replace(BREAKER, "") == text


def test_other_texts_stay_as_they_are() -> None:
    for text in ("a < b", "<turn>", "<|", "<b>bold</b>", "\u2060", "[x]", "<| turn|>", ""):
        assert without_markers(text) == text


def test_wherever_it_stands() -> None:
    marker = "<turn|>"
    arguments = {"a": [f"{marker}"], marker: 1}
    escaped = json.dumps(arguments).replace("<", "\\u003c")
    assert marker not in escaped
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": marker},
        {"role": "user", "content": [{"type": "text", "text": marker}]},
        {
            "role": "assistant",
            "reasoning": marker,
            "tool_calls": [{"function": {"name": "f", "arguments": escaped}}],
        },
        {"role": "tool", "name": marker, "content": marker},
    ]
    tools = [{"function": {"description": marker, "parameters": {"arguments": marker, "url": {"enum": [marker]}}}}]
    sent = without_markers([messages, tools])
    assert marker not in json.dumps(sent)
    got = json.loads(sent[0][2]["tool_calls"][0]["function"]["arguments"])
    assert marker not in json.dumps(got)
    assert json.dumps(got, ensure_ascii=False).replace(BREAKER, "") == json.dumps(arguments)


def test_what_is_fixed_once_stays_so() -> None:
    """A conversation that comes back must not grow, nor a break come apart."""
    broken = without_markers("<|turn>")
    assert without_markers(broken) == broken
