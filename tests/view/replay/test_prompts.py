"""What a replay says of a prompt."""

from __future__ import annotations

import llm
from llm.parts import (
    AttachmentPart,
    Message,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

from llm_diffusiongemma.view.replay.prompts import prompt_of


def test_each_message_is_said() -> None:
    picture = llm.Attachment(type="image/png", path="/home/somebody/cat.png")
    linked = llm.Attachment(url="https://example.org/dog.jpg")
    messages = [
        Message(role="system", parts=[TextPart(text="Be brief.")]),
        Message(role="user", parts=[TextPart(text="What is this?"), AttachmentPart(attachment=picture)]),
        Message(
            role="assistant",
            parts=[
                ReasoningPart(text="I must look."),
                ToolCallPart(name="look", arguments={"wo": "über"}, tool_call_id="1"),
            ],
        ),
        Message(
            role="tool",
            parts=[
                ToolResultPart(name="look", output="a cat", tool_call_id="1"),
                ToolResultPart(name="look", output="", tool_call_id="2", attachments=[linked]),
            ],
        ),
        Message(role="user", parts=[AttachmentPart(attachment=llm.Attachment(content=b"GIF89a"))]),
        Message(role="assistant", parts=[ReasoningPart(text="")]),
    ]
    assert prompt_of(messages) == (
        ("system", "Be brief."),
        # The folder is nobody's business whom the page is given to.
        ("user", "What is this?\n[image/png: cat.png]"),
        ("assistant", 'look({"wo": "über"})'),
        ("tool", "look: a cat"),
        ("tool", "look: \n[https://example.org/dog.jpg]"),
        ("user", "[attachment]"),
    )
