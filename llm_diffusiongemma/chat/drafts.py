"""From the tokens of a canvas to what stands at each of its positions, for somebody who watches it.

What the reply comes to is the business of `output`, which reads whole blocks. A canvas that is still noise is no
text yet, and has to look like one 256 positions at a time, after every denoising step.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import ConstraintError
from ..view.records import CALL, CONTROL, TEXT, THOUGHT
from .output import REPLACEMENT_CHARACTER, THOUGHT_CLOSES, THOUGHT_OPENS
from .tokenizer import ChatTokenizer, token_speller
from .tool_calls import CALL_CLOSES, CALL_OPENS, QUOTE


class Spelling(dict[int, str | bytes]):
    """What tokens stand for, each looked up when it is first asked for: a text, or bytes where they are none
    without those of other tokens. A control token is its name."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        super().__init__(tokenizer.control_tokens)
        self._tokenizer = tokenizer
        try:
            self._spell = token_speller(tokenizer)
        except ConstraintError:  # by decoding them one by one: a character of several is then U+FFFD
            self._spell = lambda token, token_id: None

    def __missing__(self, token_id: int) -> str | bytes:
        token = self._tokenizer.backend.id_to_token(token_id)
        spelled = None if token is None else self._spell(token, token_id)
        self[token_id] = found = self._tokenizer.decode([token_id]) if spelled is None else _as_text(spelled)
        return found


def _as_text(spelled: bytes) -> str | bytes:
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return spelled


@dataclass(frozen=True)
class _Place:
    """What a reply has come to at a position."""

    kind: str = TEXT
    """What is open there: a THOUGHT, a CALL, or nothing but TEXT."""
    in_string: bool = False
    """of that call"""


class CanvasReader:
    """Reads the canvases of one reply: any that is not done yet with `read`, and with `commit` what came of it.

    What is open is told from control tokens alone: the name of a channel is part of what that holds.
    """

    def __init__(
        self, spelling: Spelling, control_tokens: Mapping[int, str], *, in_thought: bool, has_calls: bool
    ) -> None:
        """`in_thought` says that the prompt has opened a thought, `has_calls` that tools were declared: without
        any a call is text, since nobody could run it."""
        self._spelling = spelling
        self._control_tokens = control_tokens
        self._has_calls = has_calls
        # Where the canvas begins, and the first bytes there of a character whose others are still to come.
        self._begins = _Place(THOUGHT if in_thought else TEXT)
        self._bytes_before = b""

    def read(self, tokens: Sequence[int]) -> tuple[list[str], str]:
        """The text of each position, and what it is part of as `Snapshot.kinds` has it.

        A character of several tokens stands at the last of them, and U+FFFD where one breaks off.
        """
        pieces, bytes_left = self._pieces(tokens)
        if bytes_left and pieces:
            pieces[-1] += REPLACEMENT_CHARACTER
        kinds, _ = self._kinds(tokens)
        return pieces, kinds

    def commit(self, tokens: Sequence[int]) -> None:
        """The next canvas begins behind these."""
        _, self._bytes_before = self._pieces(tokens)
        _, self._begins = self._kinds(tokens)

    def text(self, token_id: int) -> str:
        """Of a token that stands alone. What is no whole character is written as SentencePiece names bytes."""
        spelled = self._spelling[token_id]
        return spelled if isinstance(spelled, str) else "".join(f"<0x{byte:02X}>" for byte in spelled)

    def _pieces(self, tokens: Sequence[int]) -> tuple[list[str], bytes]:
        """The text of each position, and the bytes at the end that are no character yet."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.setstate((self._bytes_before, 0))
        bytes_left = self._bytes_before
        pieces: list[str] = []
        for token in tokens:
            spelled = self._spelling[token]
            if isinstance(spelled, bytes):
                pieces.append(decoder.decode(spelled))
                bytes_left = decoder.getstate()[0]
                continue
            if bytes_left:
                decoder.reset()
                bytes_left = b""
                if pieces:
                    pieces[-1] += REPLACEMENT_CHARACTER
                else:
                    spelled = REPLACEMENT_CHARACTER + spelled
            pieces.append(spelled)
        return pieces, bytes_left

    def _kinds(self, tokens: Sequence[int]) -> tuple[str, _Place]:
        """What each position is part of, and what is open behind the last one."""
        kinds, place = [], self._begins
        for token in tokens:
            name = self._control_tokens.get(token)
            if name is None:
                kinds.append(place.kind)
            else:
                kinds.append(CONTROL)
                place = self._behind(name, place)
        return "".join(kinds), place

    def _behind(self, control: str, place: _Place) -> _Place:
        """As `output.ReplyReader` has it."""
        if control == THOUGHT_OPENS:
            return _Place(THOUGHT)
        if control == CALL_OPENS and self._has_calls:
            return _Place(CALL)
        if place.kind == CALL:
            if control == QUOTE:
                return _Place(CALL, in_string=not place.in_string)
            return _Place() if control in (CALL_CLOSES, THOUGHT_CLOSES) and not place.in_string else place
        return _Place() if control == THOUGHT_CLOSES else place
