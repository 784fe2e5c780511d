"""A checkpoint's tokenizer, and what its tokens stand for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ..errors import CheckpointError, ConstraintError
from ..wording import quoted

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Rows of Gemma's vocabulary that stand for nothing; not all of them are flagged as special.
RESERVED = re.compile(r"<unused\d+>|<mask>|\[multimodal\]")

# Tokens of a vocabulary with byte fallback for what it has no other token for.
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")

# A longer text takes so long that other threads have to go on meanwhile, as a server's do. The library lets them
# in a batch only, but that has threads of its own, of which it complains in processes that fork: short texts, and
# most are, do without.
LONG_CHARACTERS = 50_000

# The markers of Gemma 4's chat format. They are control tokens even if a tokenizer's file forgets to call
# one of them special.
MARKERS = frozenset(
    (
        "<|turn> <turn|> <|channel> <channel|> <|think|> <|tool> <tool|> <|tool_call> <tool_call|> "
        '<|tool_response> <tool_response|> <|"|> <|image> <|image|> <image|>'
    ).split()
)


@dataclass(frozen=True)
class ChatTokenizer:
    """What the `tokenizers` library made of a checkpoint's files, and the chat template that goes with it."""

    backend: Tokenizer
    special_tokens: Mapping[str, str]
    """By the names that a template knows them by: `bos_token` and the like."""
    chat_template: str

    @cached_property
    def control_tokens(self) -> dict[int, str]:
        """The control tokens by id.

        Not all added tokens: Gemma's tokenizer also adds runs of blanks and HTML tags, which are text.
        """
        added = self.backend.get_added_tokens_decoder().items()
        return {token_id: token.content for token_id, token in added if token.special or token.content in MARKERS}

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, control tokens' names included. Raises `CheckpointError` if the library fails."""
        try:
            if len(text) > LONG_CHARACTERS:
                return self.backend.encode_batch([text], add_special_tokens=False)[0].ids
            return self.backend.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            if not is_panic(error):
                raise
            raise CheckpointError(
                f"The checkpoint's tokenizer fails on a text: {quoted(error)}. Take its tokenizer.json from where "
                "the model comes from."
            ) from error

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, with nothing left out and nothing cleaned up."""
        return self.backend.decode(token_ids, skip_special_tokens=False)


def is_panic(error: BaseException) -> bool:
    """Whether it says that the tokenizers library panicked, which is no `Exception` and has no name to import."""
    return type(error).__name__ == "PanicException"


def token_bytes(tokenizer: ChatTokenizer) -> list[bytes | None]:
    """The bytes of each token, by id; None for control tokens, reserved ones and holes, which no text has.

    Byte-level BPE and Gemma's kind of SentencePiece BPE (`▁` for a blank, `<0xNN>` for a byte) stand for
    bytes one by one, whatever surrounds them. Raises `ConstraintError` for a tokenizer of another kind.
    """
    spell = token_speller(tokenizer)
    vocabulary = tokenizer.backend.get_vocab()
    table: list[bytes | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    for token, token_id in vocabulary.items():
        table[token_id] = spell(token, token_id)
    return table


def token_speller(tokenizer: ChatTokenizer) -> Callable[[str, int], bytes | None]:
    """What turns a token, as the vocabulary writes it, and its id into the bytes that `token_bytes` has for it.
    Raises as that does."""
    spell = _speller(tokenizer.backend)
    control = tokenizer.control_tokens
    added = tokenizer.backend.get_added_tokens_decoder()

    def to_bytes(token: str, token_id: int) -> bytes | None:
        if token_id in control or RESERVED.fullmatch(token):
            return None
        # Added tokens, runs of blanks and HTML tags, are spelled as they are written.
        return token.replace("▁", " ").encode() if token_id in added else spell(token)

    return to_bytes


def table_decoder(tokenizer: ChatTokenizer, table: Sequence[bytes | None]) -> Callable[[list[int]], str]:
    """What turns tokens into text by putting their bytes together, for a reply that is held to a form.

    Unlike `decode` it can't depend on anything but the tokens: what a tokenizer's decoder strips or cleans
    up was part of what the form asked for. Control tokens are written as their names.
    """

    def to_bytes(token_id: int) -> bytes:
        text = table[token_id] if token_id < len(table) else None
        return tokenizer.decode([token_id]).encode() if text is None else text

    return lambda token_ids: b"".join(map(to_bytes, token_ids)).decode(errors="replace")


def _speller(backend: Tokenizer) -> Callable[[str], bytes | None]:
    """How a vocabulary spells bytes. Raises `ConstraintError`."""
    # The state of a part is its entry in tokenizer.json.
    decoder = json.loads(backend.decoder.__getstate__()) if backend.decoder else {}
    steps = {step["type"]: step for step in decoder.get("decoders", [decoder]) if step}
    if set(steps) == {"ByteLevel"}:
        characters = _byte_level_characters()
        return lambda token: bytes(characters[c] for c in token) if all(c in characters for c in token) else None
    blanks = steps.get("Replace", {})
    replaces_blanks = (blanks.get("pattern"), blanks.get("content")) == ({"String": "▁"}, " ")
    if replaces_blanks and "ByteFallback" in steps and getattr(backend.model, "byte_fallback", False):
        return _spell_sentencepiece
    raise ConstraintError(
        "A reply can't be held to a form with this checkpoint's tokenizer: it is neither a byte-level BPE nor "
        "one with byte fallback, so what bytes its tokens stand for is not known. Ask without a schema, or use "
        "another checkpoint."
    )


def _spell_sentencepiece(token: str) -> bytes:
    byte = BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()


def _byte_level_characters() -> dict[str, int]:
    """The bytes that the characters of a byte-level vocabulary stand for (GPT-2's table).

    Printable characters of Latin-1 stand for themselves, the rest in their order for U+0100 and on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
