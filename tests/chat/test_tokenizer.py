from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.chat.output import ReplyReader
from llm_diffusiongemma.chat.tokenizer import control_tokens, decode, table_decoder, token_bytes
from llm_diffusiongemma.errors import ConstraintError

TEXTS = [
    "Hello, world",
    " leading and trailing ",
    'a  b\n\n\tc {"name": "Zoë", "n": [1, 2.5]}',
    "naïve ☃ 日本語 👩‍🔬",
    "don't stop , now . \\u00e9 \x00\x7f",
    "<b>bold</b>",
]


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Gemma's kind in small: `▁` for a blank, byte fallback, reserved rows, blanks and tags as added tokens."""
    words = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;'{}[]\"\\▁é"
    merges = [("▁", "a"), ("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "b"), ("o", "r"), ("a", "n")]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "[multimodal]", "<unused0>", "<unused17>"]
    tokens += ["\n", "\n\n", "▁▁", "<b>", "</b>", "<|turn>", "<turn|>"]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    tokens += [*words, *(left + right for left, right in merges), "<0xZZ>", "▁<0x41>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"])
    # The file forgot to flag the markers.
    unflagged = ["<b>", "</b>", "\n\n", "<|turn>", "<turn|>"]
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in unflagged])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def byte_level() -> Any:
    return AutoTokenizer.from_pretrained(EMBEDDED_CHECKPOINT, local_files_only=True)


@pytest.fixture(params=[sentencepiece_like, byte_level], ids=["sentencepiece", "byte level"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_tokens_put_together_are_the_text(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    table = token_bytes(tokenizer)
    pieces = [table[token] for token in ids]
    assert None not in pieces
    assert b"".join(pieces) == text.encode()
    assert table_decoder(tokenizer, table)(ids) == text == decode(tokenizer, ids)


def test_every_byte_can_be_written(tokenizer: Any) -> None:
    assert {piece for piece in token_bytes(tokenizer) if piece and len(piece) == 1} == {
        bytes([byte]) for byte in range(256)
    }


def test_no_text_has_a_control_token_or_a_reserved_one(tokenizer: Any) -> None:
    table = token_bytes(tokenizer)
    assert control_tokens(tokenizer)
    assert all(table[token] is None for token in control_tokens(tokenizer))
    names = tokenizer.get_vocab()
    reserved = ["<unused0>", "<unused17>", "<mask>", "[multimodal]", "<|turn>", "<turn|>", "<eos>", "<pad>"]
    assert all(table[names[name]] is None for name in reserved if name in names)
    assert all(piece is None or piece for piece in table)


def test_what_looks_like_a_byte_or_a_blank_is_told_apart() -> None:
    tokenizer = sentencepiece_like()
    table, names = token_bytes(tokenizer), tokenizer.get_vocab()
    assert table[names["<0x0A>"]] == table[names["\n"]] == b"\n"
    assert table[names["<0xE2>"]] == b"\xe2"
    assert table[names["<0xZZ>"]] == b"<0xZZ>"
    assert table[names["▁<0x41>"]] == b" <0x41>"
    assert (table[names["\n\n"]], table[names["▁▁"]], table[names["</b>"]]) == (b"\n\n", b"  ", b"</b>")


def test_a_character_over_several_tokens_is_read_as_one(tokenizer: Any) -> None:
    table = token_bytes(tokenizer)
    ids = [table.index(bytes([byte])) for byte in "é☃".encode()]
    read = table_decoder(tokenizer, table)
    assert read(ids) == "é☃"
    assert read(ids[:3]) == "é\ufffd"
    reader = ReplyReader(read, control_tokens(tokenizer))
    events = [*reader.consume(ids[:3]), *reader.consume(ids[3:]), *reader.finalize()]
    assert [event.chunk for event in events] == ["é", "☃"]


def test_control_tokens_are_written_as_their_names() -> None:
    tokenizer = byte_level()
    names = tokenizer.get_vocab()
    ids = [names["<|tool_call>"], *tokenizer.encode("call", add_special_tokens=False), names["<tool_call|>"]]
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
    tokenizer = sentencepiece_like()
    tokenizer.backend_tokenizer.decoder = decoder
    with pytest.raises(ConstraintError, match="tokenizer"):
        token_bytes(tokenizer)
