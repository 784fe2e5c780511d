"""What the chat side uses of a transformers tokenizer."""

from __future__ import annotations

from typing import Any, Protocol


class ChatTokenizer(Protocol):
    """The part of `PreTrainedTokenizerFast` that is used here. It does not need torch."""

    added_tokens_decoder: dict[int, Any]

    def encode(self, text: str, **kwargs: Any) -> list[int]: ...

    def decode(self, token_ids: list[int], **kwargs: Any) -> str | list[str]: ...

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...


# The markers of Gemma 4's chat format. They are control tokens even if a tokenizer's file forgets to call
# one of them special.
MARKERS = frozenset(
    (
        "<|turn> <turn|> <|channel> <channel|> <|think|> <|tool> <tool|> <|tool_call> <tool_call|> "
        '<|tool_response> <tool_response|> <|"|> <|image> <|image|> <image|>'
    ).split()
)


def control_tokens(tokenizer: ChatTokenizer) -> dict[int, str]:
    """The control tokens of a tokenizer by id.

    Not all added tokens: Gemma's tokenizer also adds runs of blanks and HTML tags, which are text.
    """
    added = tokenizer.added_tokens_decoder.items()
    return {token_id: token.content for token_id, token in added if token.special or token.content in MARKERS}


def decode(tokenizer: ChatTokenizer, token_ids: list[int]) -> str:
    """The text of tokens, with nothing left out and nothing cleaned up."""
    text = tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text
