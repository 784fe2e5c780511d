"""Encoding, decoding and what tokens stand for: as transformers has them, and as the grammar needs them."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

import pytest
from tokenizers import decoders

from llm_diffusiongemma.chat.output import ReplyReader
from llm_diffusiongemma.chat.tokenizer import LONG_CHARACTERS, MARKERS, ChatTokenizer, table_decoder, token_bytes
from llm_diffusiongemma.errors import CheckpointError, ConstraintError

from ..tokenizers import HOSTILE, KINDS, TEXTS, PanicException, load, ours, theirs

# SentencePiece has no way to write its sign for a blank.
PLAIN = [text for text in TEXTS if text not in HOSTILE and "<mask>" not in text and "▁" not in text]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tokenizer(kind: str) -> ChatTokenizer:
    return ours(kind)


@pytest.mark.parametrize("text", TEXTS)
def test_it_encodes_and_decodes_as_transformers_does(tokenizer: ChatTokenizer, kind: str, text: str) -> None:
    witness = theirs(kind)
    ids = tokenizer.encode(text)
    assert ids == witness.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == witness.decode(ids, skip_special_tokens=False)
    for start in range(min(len(ids), 8)):
        assert tokenizer.decode(ids[start:]) == witness.decode(ids[start:], skip_special_tokens=False)


def test_a_long_text_keeps_no_other_thread_waiting(tokenizer: ChatTokenizer, kind: str) -> None:
    text = "".join(TEXTS).replace("▁", "")
    text *= LONG_CHARACTERS // len(text) + 1
    assert tokenizer.encode(text) == theirs(kind).encode(text, add_special_tokens=False)
    backend = MagicMock()
    backend.encode_batch.return_value = [MagicMock(ids=[1])]  # in which the library lets others go on
    assert ChatTokenizer(backend, {}, "").encode(text) == [1]


def test_each_token_is_what_it_is_for_transformers(tokenizer: ChatTokenizer, kind: str) -> None:
    witness = theirs(kind)
    vocabulary = witness.get_vocab()
    assert tokenizer.backend.get_vocab() == vocabulary
    assert tokenizer.special_tokens == witness.special_tokens_map
    for token_id in vocabulary.values():
        assert tokenizer.decode([token_id]) == witness.decode([token_id], skip_special_tokens=False)
    same = ChatTokenizer(witness.backend_tokenizer, witness.special_tokens_map, witness.chat_template)
    assert tokenizer.chat_template == same.chat_template
    assert tokenizer.control_tokens == same.control_tokens
    assert token_bytes(tokenizer) == token_bytes(same)


def test_control_tokens_are_the_special_ones_and_the_markers(tokenizer: ChatTokenizer) -> None:
    """Also a marker that its file forgot to flag, and no tags and blanks."""
    named = {"<pad>", "<eos>", "<bos>", "<unk>"}
    assert set(tokenizer.control_tokens.values()) - {"<mask>"} == MARKERS | named


def test_a_panic_of_the_library_is_said() -> None:
    class Backend:
        def encode(self, *_: Any, **__: Any) -> Any:
            raise PanicException("index out of bounds")

    backend: Any = Backend()
    with pytest.raises(CheckpointError, match="fails on a text: index out of bounds"):
        ChatTokenizer(backend, {}, "").encode("a")


@pytest.mark.parametrize("text", PLAIN)
def test_the_bytes_of_tokens_put_together_are_the_text(tokenizer: ChatTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    table = token_bytes(tokenizer)
    pieces = [table[token] for token in ids]
    assert None not in pieces
    assert b"".join(pieces) == text.encode()
    assert table_decoder(tokenizer, table)(ids) == text == tokenizer.decode(ids)


def test_every_byte_can_be_written(tokenizer: ChatTokenizer) -> None:
    assert {piece for piece in token_bytes(tokenizer) if piece and len(piece) == 1} == {
        bytes([byte]) for byte in range(256)
    }


def test_no_text_has_a_control_token_or_a_reserved_one(tokenizer: ChatTokenizer) -> None:
    table = token_bytes(tokenizer)
    assert all(table[token] is None for token in tokenizer.control_tokens)
    names = tokenizer.backend.get_vocab()
    reserved = ["<unused0>", "<unused17>", "<mask>", "[multimodal]", "<|turn>", "<turn|>", "<eos>", "<pad>"]
    assert all(table[names[name]] is None for name in reserved if name in names)
    assert all(piece is None or piece for piece in table)


def test_what_looks_like_a_byte_or_a_blank_is_told_apart() -> None:
    tokenizer = ours("sentencepiece")
    table, names = token_bytes(tokenizer), tokenizer.backend.get_vocab()
    assert table[names["<0x0A>"]] == table[names["\n"]] == b"\n"
    assert table[names["<0xE2>"]] == b"\xe2"
    assert table[names["<0xZZ>"]] == b"<0xZZ>"
    assert table[names["▁<0x41>"]] == b" <0x41>"
    assert (table[names["\n\n"]], table[names["▁▁"]], table[names["</b>"]]) == (b"\n\n", b"  ", b"</b>")


def test_an_added_token_stands_for_what_it_says() -> None:
    """It is no spelling of bytes."""
    tokenizer = load("byte level")
    tokenizer.backend.add_tokens(["☃ Ġ"])
    assert tokenizer.decode([3072]) == "☃ Ġ"
    assert token_bytes(tokenizer)[3072] == "☃ Ġ".encode()


def test_a_character_over_several_tokens_is_read_as_one(tokenizer: ChatTokenizer) -> None:
    table = token_bytes(tokenizer)
    ids = [table.index(bytes([byte])) for byte in "é☃".encode()]
    read = table_decoder(tokenizer, table)
    assert read(ids) == "é☃"
    assert read(ids[:3]) == "é\ufffd"
    reader = ReplyReader(read, tokenizer.control_tokens)
    events = [*reader.consume(ids[:3]), *reader.consume(ids[3:]), *reader.finalize()]
    assert [event.chunk for event in events] == ["é", "☃"]


def test_control_tokens_are_written_as_their_names() -> None:
    tokenizer = ours("byte level")
    names = tokenizer.backend.get_vocab()
    ids = [names["<|tool_call>"], *tokenizer.encode("call"), names["<tool_call|>"]]
    assert table_decoder(tokenizer, token_bytes(tokenizer))(ids) == "<|tool_call>call<tool_call|>"


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.WordPiece(),
        decoders.Metaspace(),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()]),
        decoders.Sequence([decoders.Replace("_", " "), decoders.ByteFallback()]),
    ],
)
def test_a_tokenizer_of_another_kind_is_refused(decoder: Any) -> None:
    tokenizer = load("sentencepiece")
    tokenizer.backend.decoder = decoder
    with pytest.raises(ConstraintError, match="tokenizer"):
        token_bytes(tokenizer)
