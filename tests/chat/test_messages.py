"""llm's messages to prompt tokens."""

from __future__ import annotations

import io

import llm
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm.parts import AttachmentPart, Message, ReasoningPart, TextPart, ToolCallPart, ToolResultPart
from PIL import Image

from llm_diffusiongemma.chat import messages as messages_module
from llm_diffusiongemma.chat.images import Picture
from llm_diffusiongemma.chat.messages import read_conversation, settle_results
from llm_diffusiongemma.chat.prompt import PromptEncoder
from llm_diffusiongemma.errors import PromptError

from ..tokenizers import KINDS, load, ours, rendered_by_transformers, theirs
from .conversations import CONVERSATIONS, EVIL, with_text

TOKENIZER = ours()
ENCODER = PromptEncoder(TOKENIZER)
CONTROL = TOKENIZER.control_tokens
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
    tokenizer = load("byte level")
    tokenizer.backend.add_tokens(["\n", "\n\n"])
    ids = PromptEncoder(tokenizer).encode(read_conversation([llm.user("\n\nHi\n\nyou\n")]).messages)
    assert tokenizer.decode(ids) == "<bos><|turn>user\nHi\n\nyou<turn|>\n<|turn>model\n"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_prompt_is_the_tokens_that_transformers_makes(name: str, kind: str) -> None:
    tokenizer, witness = ours(kind), theirs(kind)
    for asked in CONVERSATIONS[name]:
        ids = PromptEncoder(tokenizer).encode(asked.messages, tools=asked.tools, thinking=asked.thinking)
        text = rendered_by_transformers(asked.messages, asked.tools, asked.thinking)
        assert ids == witness.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == witness.decode(ids, skip_special_tokens=False)


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


# --- pictures --------------------------------------------------------------------------------------------


def image(width: int = 10) -> llm.Attachment:
    """One that can be told by its width from others."""
    out = io.BytesIO()
    Image.new("RGB", (width, 10)).save(out, "png")
    return llm.Attachment(type="image/png", content=out.getvalue())


VIDEO = llm.Attachment(type="video/mp4", content=b"three frames")


@pytest.fixture(autouse=True)
def _a_video_without_a_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = messages_module.pictures

    def pictures(attachment: llm.Attachment) -> list[Picture]:
        if attachment is not VIDEO:
            return decode(attachment)
        return [
            Picture(Image.new("RGB", (100 + n, 10)), stamp) for n, stamp in enumerate(("00:00", "00:01", "61:05"))
        ]

    monkeypatch.setattr(messages_module, "pictures", pictures)


def shown(*messages: Message) -> tuple[str, list[int]]:
    """What is in the turns behind the first marker, and the widths of the pictures in their order."""
    conversation = read_conversation(messages)
    text = TOKENIZER.decode(ENCODER.encode(conversation.messages))
    assert text.count("<|image|>") == len(conversation.pictures)
    text = text.removeprefix("<bos><|turn>user\n").removesuffix("<turn|>\n<|turn>model\n")
    return text, [picture.image.width for picture in conversation.pictures]


I = "<|image|>"  # noqa: E741


@pytest.mark.parametrize(
    ("parts", "text", "widths"),
    [
        # A prompt with attachments, as llm makes it: images first.
        (["What?", image(11)], f"{I}What?", [11]),
        (["What?", image(11), image(12)], f"{I}{I}What?", [11, 12]),
        (["What ", "now?", image(11)], f"{I}What now?", [11]),
        ([image(11), image(12)], f"{I}{I}", [11, 12]),
        (["", image(11)], I, [11]),
        # By turns: in that order.
        ([image(11), "What?"], f"{I}What?", [11]),
        (["This", image(11), "or this", image(12)], f"This{I}or this{I}", [11, 12]),
        (["This", image(11), image(12), "?"], f"This{I}{I}?", [11, 12]),
        ([image(11), "is", image(12), "what?"], f"{I}is{I}what?", [11, 12]),
        ([image(11), "What?", image(12)], f"{I}What?{I}", [11, 12]),
        # A stamp has a blank on both sides, but at the very beginning.
        (["What?", VIDEO], f"00:00 {I} 00:01 {I} 61:05 {I}What?", [100, 101, 102]),
        ([image(11), VIDEO, "What?"], f"{I} 00:00 {I} 00:01 {I} 61:05 {I}What?", [11, 100, 101, 102]),
        (
            ["See", VIDEO, "and", VIDEO, "?"],
            f"See 00:00 {I} 00:01 {I} 61:05 {I}and 00:00 {I} 00:01 {I} 61:05 {I}?",
            [100, 101, 102] * 2,
        ),
        ([VIDEO, VIDEO], f"00:00 {I} 00:01 {I} 61:05 {I} 00:00 {I} 00:01 {I} 61:05 {I}", [100, 101, 102] * 2),
    ],
)
def test_text_and_pictures(parts: list[object], text: str, widths: list[int]) -> None:
    assert shown(llm.user(*parts)) == (text, widths)


def test_the_tokens_of_a_video_are_those_of_transformers_text() -> None:
    """Its processor joins `mm:ss` and image with blanks, and the tokenizer sees all of it at once."""
    text = f"<bos><|turn>user\n00:00 {I} 00:01 {I} 61:05 {I}What?<turn|>\n<|turn>model\n"
    conversation = read_conversation([llm.user("What?", VIDEO)])
    assert ENCODER.encode(conversation.messages) == theirs().encode(text, add_special_tokens=False)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (["What?", image()], f"{I}What?\n\nIn JSON."),
        ([image()], f"{I}In JSON."),
        (["What?", image(), "And?"], f"What?{I}And?\n\nIn JSON."),
        (["What?"], "What?\n\nIn JSON."),
    ],
)
def test_a_request_stands_at_the_end(parts: list[object], text: str) -> None:
    conversation = read_conversation([llm.user(*parts)]).with_request("In JSON.")
    rendered = TOKENIZER.decode(ENCODER.encode(conversation.messages))
    assert rendered == f"<bos><|turn>user\n{text}<turn|>\n<|turn>model\n"


CALLS = [
    llm.user("Look"),
    Message("assistant", [ReasoningPart("hm"), ToolCallPart("a", {}, "1"), ToolCallPart("b", {}, "2")]),
]
CALLED = (
    "Look<turn|>\n<|turn>model\n<|channel>thought\nhm\n<channel|>"
    "<|tool_call>call:a{}<tool_call|><|tool_call>call:b{}<tool_call|>"
)


def answered(name: str, text: str) -> str:
    return f'<|tool_response>response:{name}{{value:<|"|>{text}<|"|>}}<tool_response|>'


def results(*attachments: list[llm.Attachment], output: str = "taken") -> list[llm.ToolResult]:
    return [
        llm.ToolResult(name=name, output=output, tool_call_id=tool_call_id, attachments=attached)
        for (name, tool_call_id), attached in zip([("a", "1"), ("b", "2")], attachments, strict=True)
    ]


def chained(tool_results: list[llm.ToolResult]) -> list[Message]:
    """What llm's chain of calls makes of results."""
    attachments = [each for result in tool_results for each in result.attachments]
    return llm.models._append_tool_results_to_chain([], tool_results, attachments)


@pytest.mark.parametrize(
    ("attached", "a", "b"),
    [
        ([[image(11)], []], f"taken{I}", "taken"),
        ([[], [image(11)]], "taken", f"taken{I}"),
        ([[image(11)], [image(12), image(13)]], f"taken{I}", f"taken{I}{I}"),
        ([[VIDEO], [image(11)]], f"taken 00:00 {I} 00:01 {I} 61:05 {I}", f"taken{I}"),
    ],
)
def test_what_tools_attach_stands_in_their_results(attached: list[list[llm.Attachment]], a: str, b: str) -> None:
    """In the running turn, whose thought stays open; also on later turns, and out of a log."""
    expected = CALLED + answered("a", a) + answered("b", b)
    # As a program writes it.
    written = [
        ToolResultPart(each.name, each.output, each.tool_call_id, attachments=each.attachments)
        for each in results(*attached)
    ]
    text, widths = shown(llm.user("Look"), CALLS[1], Message("tool", written))
    assert text == expected
    # As llm's chain writes it.
    messages = [*CALLS, *chained(results(*attached))]
    settle_results(messages, results(*attached))
    assert shown(*messages) == (expected, widths)
    logged = [Message.from_dict(message.to_dict()) for message in messages]
    if VIDEO not in attached[0]:
        assert shown(*logged) == (expected, widths)
    assert shown(*messages, Message("assistant", [TextPart("ok")]), llm.user("And", image(14)))[1] == [*widths, 14]


def test_attachments_that_nobody_has_told_apart_are_those_of_the_last_result() -> None:
    messages = [*CALLS, *chained(results([image(11)], [image(12)]))]
    assert shown(*messages) == (CALLED + answered("a", "taken") + answered("b", f"taken{I}{I}"), [11, 12])


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("caf\udce9", "caf\ufffd"),
        ("\udcff\udcfe!", "\ufffd\ufffd!"),
        ("\ud83d\ude00", "😀"),
        ("half \ud83d", "half \ufffd"),
    ],
)
def test_a_result_that_is_no_text(capsys: pytest.CaptureFixture[str], output: str, expected: str) -> None:
    """Of this turn, where llm's log gets it too, and out of a program's own messages."""
    messages = [*CALLS, *chained(settled := results([], [], output=output))]
    settle_results(messages, settled)
    assert [result.output for result in settled] == [expected] * 2
    assert shown(*messages)[0] == CALLED + answered("a", expected) + answered("b", expected)
    assert capsys.readouterr().err.count("returned is not all text") == 2
    written = [ToolResultPart(each.name, output, each.tool_call_id) for each in settled]
    text, _ = shown(llm.user("Look"), CALLS[1], Message("tool", written))
    assert text == CALLED + answered("a", expected) + answered("b", expected)


def test_a_result_without_text() -> None:
    messages = [*CALLS, *chained(results([], [image(11)], output=""))]
    assert shown(*messages)[0] == CALLED + answered("a", "") + answered("b", I)
    messages = [*CALLS, *chained(results([], [VIDEO], output=""))]
    assert shown(*messages)[0].endswith(answered("b", f"00:00 {I} 00:01 {I} 61:05 {I}"))


def test_a_user_who_goes_on_after_the_results() -> None:
    """What has text in it is the user's, and so is a picture if the results have some of their own."""
    messages = [*CALLS, *chained(results([], [])), llm.user("And this?", image(11))]
    assert shown(*messages)[0].endswith(f"<tool_response|><turn|>\n<|turn>user\n{I}And this?")
    messages = [*CALLS, *chained(results([image(11)], []))[:1], llm.user(image(12))]
    settle_results(messages, results([image(11)], []))
    text, widths = shown(*messages)
    assert widths == [11, 12]
    assert text.endswith(f"<tool_response|><turn|>\n<|turn>user\n{I}")


def test_pictures_of_users_and_tools_in_their_order() -> None:
    messages = [
        llm.user("This", image(11), "or", image(12)),
        CALLS[1],
        *chained(results([image(13)], [image(14)])),
        Message("assistant", [TextPart("ok")]),
        llm.user("And?", image(15)),
    ]
    assert shown(*messages)[1] == [11, 12, 13, 14, 15]


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_attachments_that_nobody_else_may_have(role: str) -> None:
    messages = [Message(role, [TextPart("See"), AttachmentPart(image())]), llm.user("Hi")]
    with pytest.raises(PromptError, match="attachment of type image/png"):
        read_conversation(messages)


PRIVATE = "".join(map(chr, range(0xE000, 0xE004)))


@pytest.mark.parametrize("evil", ["<|image|>", f"{PRIVATE}<|image|>{PRIVATE}", PRIVATE, "<|image", "|image|>"])
def test_text_never_stands_for_a_picture(evil: str) -> None:
    """Neither by its name nor by the character that stands for one inside, wherever it is."""
    name = [ToolResultPart("a", f"{evil}x", "1", attachments=[image(11)]), ToolResultPart("b", evil, "2")]
    messages = [llm.system(evil), llm.user(evil, image(12), f"{evil}x", VIDEO), CALLS[1], Message("tool", name)]
    conversation = read_conversation(messages)
    tools = [{"type": "function", "function": {"name": "a", "description": evil, "parameters": {}}}]
    ids = ENCODER.encode(conversation.messages, tools=tools)
    pictures = [token for token in ids if token == ENCODER.control_id(I)]
    assert len(pictures) == len(conversation.pictures) == 5
    assert TOKENIZER.decode(ids).count(evil) >= 5


# --- hostile text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", with_text(EVIL))
def test_markers_in_text_are_text(where: str, kind: str) -> None:
    """In all of a conversation that is not the template's, with either vocabulary."""
    tokenizer = ours(kind)
    encoder = PromptEncoder(tokenizer)

    def encode(text: str, number: int) -> tuple[list[int], str]:
        asked = with_text(text)[where][number]
        ids = encoder.encode(asked.messages, tools=asked.tools, thinking=asked.thinking)
        return [token for token in ids if token in tokenizer.control_tokens], tokenizer.decode(ids)

    for number in range(len(with_text(EVIL)[where])):
        (control, decoded), (as_control, as_decoded) = encode(EVIL, number), encode("harmless", number)
        assert control == as_control
        assert decoded == as_decoded.replace("harmless", EVIL)


HOSTILE = st.lists(st.sampled_from([*MARKERS, "<", "|", ">", "a", " ", "\n", "turn", "\ue000"]), max_size=8).map(
    "".join
)


@settings(max_examples=50, deadline=None)
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
