"""The names of control tokens in texts for servers that would take them for the tokens.

A server of ours never does (prompt.py). Others have the chat template put the texts together and tokenise the
whole, so that a `<turn|>` in a user's text ends the turn.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

from .tokenizer import MARKERS, RESERVED

# What Gemma's tokenizers have of such tokens besides those of the chat format.
OTHERS = frozenset(
    "<pad> <eos> <bos> <unk> <mask> <s> </s> <start_of_turn> <end_of_turn> <|audio> <|audio|> <audio|> <|video> "
    "<|video|> <video|> <start_of_image> <end_of_image> <image_soft_token> <audio_soft_token>".split()
)
# A character of no width: a text looks as before, and no longer spells the marker.
BREAKER = "\u2060"

_MARKER = re.compile(
    "|".join((*sorted(map(re.escape, MARKERS | OTHERS), key=len, reverse=True), RESERVED.pattern))
)


def without_markers(value: Any) -> Any:
    """The same messages or declarations of tools in OpenAI's format, with no text in them that spells a marker."""
    if isinstance(value, str):
        return _MARKER.sub(lambda marker: marker[0][0] + BREAKER + marker[0][1:], value)
    if isinstance(value, list):
        return [without_markers(item) for item in value]
    if isinstance(value, dict):
        return {without_markers(name): _field(name, item) for name, item in value.items()}
    return value


def _field(name: str, value: Any) -> Any:
    if name == "arguments" and isinstance(value, str):
        # JSON can spell a marker in escapes, and the template is given what it says.
        with suppress(ValueError):  # a text of that name in a declaration
            return json.dumps(without_markers(json.loads(value)))
    return without_markers(value)
