"""From a conversation to prompt tokens, by the checkpoint's own chat template.

**Invariant**: only the template makes control tokens, and this module those of pictures where the template has no
place for them. Whatever stands in the text of a user, a system prompt, a tool or the history comes out as plain
text, even if it spells `<turn|>`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from typing import Any

from ..errors import CheckpointError
from ..wording import quoted
from .declarations import check_texts
from .messages import TemplateMessage
from .output import THOUGHT_LABEL, THOUGHT_OPENS
from .template import ChatTemplate
from .texts import texts_of
from .tokenizer import ChatTokenizer

# Where the next turn of a conversation may differ from this prompt: the template opens the model's turn
# here, and what it shows of a past one it decides anew.
TURN_OPENS = "<|turn>"
TURN_CLOSES = "<turn|>"

# The marker that the image reader puts soft tokens in the place of.
IMAGE = "<|image|>"


class PromptEncoder:
    """Renders messages with a tokenizer's chat template and tokenises them safely."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer.chat_template, tokenizer.special_tokens)
        self._control_ids = {token: token_id for token_id, token in tokenizer.control_tokens.items()}
        # Longest first, so that no token hides one that it begins.
        alternatives = sorted(map(re.escape, self._control_ids), key=len, reverse=True)
        self._control = re.compile("|".join(alternatives))

    def encode(
        self,
        messages: Sequence[TemplateMessage],
        *,
        tools: Sequence[dict[str, Any]] = (),
        thinking: bool = False,
    ) -> list[int]:
        """Token ids of the whole prompt, ready for the model's turn; one image token for each picture.

        `tools` are declarations as `declarations.declare` makes them.

        Raises `CheckpointError` if the checkpoint's template fails, `PromptError` if a declaration holds
        what is no text.
        """
        check_texts(tools)
        # A marker in untrusted text is broken by a character that the text doesn't contain. What survives
        # rendering with the markers whole comes from the template. Another such character stands for a picture
        # where templates know none.
        breaker, picture = _unused_characters(texts_of([messages, tools]), 2)

        shield = partial(self._shield, breaker=breaker)
        spelled = [_spell_out(message, picture, breaker) for message in _map_texts(messages, shield)]
        rendered = self._render(spelled, _map_texts(tools, shield), thinking).replace(picture, IMAGE)
        ids: list[int] = []
        end = 0
        for marker in self._control.finditer(rendered):
            ids += self._plain(rendered[end : marker.start()], breaker)
            ids.append(self._control_ids[marker[0]])
            end = marker.end()
        return ids + self._plain(rendered[end:], breaker)

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text alone, none of which is a control token."""
        (breaker,) = _unused_characters([text], 1)
        return self._plain(self._shield(text, breaker), breaker)

    def control_id(self, name: str) -> int | None:
        """The id of a control token, None if the checkpoint has none of that name."""
        return self._control_ids.get(name)

    @cached_property
    def opening_of_thought(self) -> list[int]:
        """What the model writes when it begins to think."""
        opens = self.control_id(THOUGHT_OPENS)
        label = self._tokenizer.encode(THOUGHT_LABEL)
        return [] if opens is None else [opens, *label]

    def stable_length(self, ids: Sequence[int], *, with_request: bool = False) -> int:
        """How much of a prompt every later prompt of the conversation begins with: what is before the model's
        turn. Behind that a template may leave out thoughts, or tokenise differently what the model wrote.

        `with_request` says that the user's turn before it ends in what only this prompt says.
        """
        turn = self._control_ids.get(TURN_OPENS)
        turns = [i for i, token in enumerate(ids) if token == turn]
        unstable = 2 if with_request else 1
        return turns[-unstable] if len(turns) >= unstable else 0

    def _render(self, messages: list[TemplateMessage], tools: list[dict[str, Any]], thinking: bool) -> str:
        try:
            size = sum(map(len, texts_of([messages, tools])))
            rendered = self._template.render(
                messages, tools=tools, enable_thinking=thinking, input_characters=size
            )
            rendered.encode()  # a template may write halves of surrogate pairs
            return rendered
        except Exception as error:  # a template may do with its input what it likes
            raise CheckpointError(
                f"The checkpoint's chat template can't render this conversation: {quoted(error)}"
            ) from error

    def _shield(self, text: str, breaker: str) -> str:
        return self._control.sub(lambda marker: marker[0][0] + breaker + marker[0][1:], text)

    def _plain(self, text: str, breaker: str) -> list[int]:
        # Both sides of a broken marker are tokenised apart, so that they can't become one again.
        parts = filter(None, text.split(breaker))
        return [token for part in parts for token in self._tokenizer.encode(part)]


def _spell_out(message: TemplateMessage, picture: str, breaker: str) -> TemplateMessage:
    """A message as templates read it: without frames, and with a text for content if it is a tool's."""
    content = message["content"]
    if isinstance(content, str):
        return message
    is_tool = message["role"] == "tool"
    parts: list[dict[str, str]] = []
    for part in content:
        if part["type"] == "frame":
            # A blank on both sides of the stamp, as transformers has it. Templates trim the text of a part, but
            # know nothing of this character, which tokenising drops.
            blank = f"{breaker} " if parts else ""
            parts.append({"type": "text", "text": f"{blank}{part['text']} {picture}"})
        elif part["type"] == "image" and is_tool:
            parts.append({"type": "text", "text": picture})
        else:
            parts.append(part)
    return {**message, "content": "".join(part["text"] for part in parts) if is_tool else parts}


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_map_texts(key, change): _map_texts(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_map_texts(item, change) for item in value]
    return value


def _unused_characters(texts: Iterable[str], count: int) -> list[str]:
    """Private-use characters that none of the texts contains: of 137,468 some are always left."""
    used = set().union(*texts)
    private_use = itertools.chain(range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
    return list(itertools.islice((chr(code) for code in private_use if chr(code) not in used), count))
