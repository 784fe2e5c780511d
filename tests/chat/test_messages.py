"""llm's messages to prompt tokens."""

from __future__ import annotations

import llm
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm.parts import AttachmentPart, Message, ReasoningPart, TextPart, ToolCallPart, ToolResultPart
from transformers import AutoTokenizer

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.chat.messages import PromptEncoder, read_conversation
from llm_diffusiongemma.chat.tokenizer import control_tokens
from llm_diffusiongemma.errors import PromptError

TOKENIZER = AutoTokenizer.from_pretrained(EMBEDDED_CHECKPOINT, local_files_only=True)
ENCODER = PromptEncoder(TOKENIZER)
CONTROL = control_tokens(TOKENIZER)
MARKERS = sorted(CONTROL.values())


def rendered(*messages: Message, thinking: bool = False) -> str:
    return TOKENIZER.decode(ENCODER.encode(read_conversation(messages).messages, thinking=thinking))


def test_user() -> None:
    assert rendered(llm.user("Hi")) == "<bos><|turn>user\nHi<turn|>\n<|turn>model\n"


def test_system_and_history() -> None:
    assert rendered(llm.system("Be brief."), llm.user("Hi"), llm.assistant("Hello"), llm.user("Bye")) == (
        "<bos><|turn>system\nBe brief.<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\nHello<turn|>\n"
        "<|turn>user\nBye<turn|>\n<|turn>model\n"
    )


def test_blanks_around_text_are_trimmed_by_the_template() -> None:
    """Also where the tokenizer has tokens of its own for blanks, as Gemma's has."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_CHECKPOINT, local_files_only=True)
    tokenizer.add_tokens(["\n", "\n\n"])
    ids = PromptEncoder(tokenizer).encode(read_conversation([llm.user("\n\nHi\n\nyou\n")]).messages)
    assert tokenizer.decode(ids) == "<bos><|turn>user\nHi\n\nyou<turn|>\n<|turn>model\n"


def test_thinking() -> None:
    assert rendered(llm.user("Hi"), thinking=True) == (
        "<bos><|turn>system\n<|think|>\n<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\n"
    )


def test_past_thoughts_are_dropped() -> None:
    answer = Message("assistant", [ReasoningPart("hm"), TextPart("Hello")])
    assert "hm" not in rendered(llm.user("Hi"), answer, llm.user("Bye"))


def test_tool_loop_in_the_history() -> None:
    """Text beside a call would land behind the results with no model turn after it: it is left out."""
    messages = [
        llm.user("Weather?"),
        Message(
            "assistant",
            [ReasoningPart("hm"), TextPart("Let me see."), ToolCallPart("weather", {"city": "Rome"}, "1")],
        ),
        Message("tool", [ToolResultPart("weather", "sunny", "1")]),
    ]
    assert rendered(*messages) == (
        "<bos><|turn>user\nWeather?<turn|>\n<|turn>model\n<|channel>thought\nhm\n<channel|>"
        '<|tool_call>call:weather{city:<|"|>Rome<|"|>}<tool_call|>'
        '<|tool_response>response:weather{value:<|"|>sunny<|"|>}<tool_response|>'
    )


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [llm.system("Be brief.")],
        [llm.user("")],
        [llm.user(" \n")],
        [llm.user("Hi"), llm.assistant("Hello")],
    ],
)
def test_nothing_to_answer(messages: list[Message]) -> None:
    with pytest.raises(PromptError, match="Give a prompt"):
        read_conversation(messages)


def test_unreadable_part_in_the_history() -> None:
    attachment = llm.Attachment(type="audio/wav", content=b"RIFF")
    with pytest.raises(PromptError, match="audio/wav"):
        read_conversation([Message("user", [TextPart("Listen"), AttachmentPart(attachment)])])


HOSTILE = st.lists(st.sampled_from([*MARKERS, "<", "|", ">", "a", " ", "\n", "turn", "\ue000"]), max_size=8).map(
    "".join
)


@settings(max_examples=200, deadline=None)
@given(user=HOSTILE, system=HOSTILE, answer=HOSTILE)
def test_text_never_becomes_a_control_token(user: str, system: str, answer: str) -> None:
    """Whatever text says, the control tokens are those of harmless text, and the text comes through."""

    def control_ids(ids: list[int]) -> list[int]:
        return [token for token in ids if token in CONTROL]

    def encode(*texts: str) -> list[int]:
        system, first, answer, last = texts
        messages = [llm.system(system), llm.user(first), llm.assistant(answer), llm.user(last)]
        return ENCODER.encode(read_conversation(messages).messages)

    hostile = encode(f"s{system}s", f"u{user}u", f"a{answer}a", f"x{user}")
    assert control_ids(hostile) == control_ids(encode("s", "u", "a", "x"))
    decoded = TOKENIZER.decode(hostile)
    for text in (f"s{system}s", f"u{user}u", f"a{answer}a"):
        assert text in decoded
