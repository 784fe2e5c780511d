"""Tokens of canvases to what stands at each position."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tokenizers import decoders

from llm_diffusiongemma.chat.drafts import CanvasReader, Spelling
from llm_diffusiongemma.chat.tokenizer import ChatTokenizer, token_bytes

from ..tokenizers import KINDS, TEXTS, load, ours


def reader_of(tokenizer: ChatTokenizer, *, in_thought: bool = False, has_calls: bool = True) -> CanvasReader:
    return CanvasReader(Spelling(tokenizer), tokenizer.control_tokens, in_thought=in_thought, has_calls=has_calls)


def bytes_of(tokenizer: ChatTokenizer, text: str | bytes) -> list[int]:
    """Each byte as a token of its own."""
    table = token_bytes(tokenizer)
    return [table.index(bytes([byte])) for byte in (text.encode() if isinstance(text, str) else text)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_put_together_are_the_text(kind: str, text: str) -> None:
    tokenizer = ours(kind)
    tokens = tokenizer.encode(text)
    pieces, kinds = reader_of(tokenizer).read(tokens)
    assert len(pieces) == len(kinds) == len(tokens)
    assert "".join(pieces) == tokenizer.decode(tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_a_character_of_several_tokens_stands_at_the_last(kind: str) -> None:
    tokenizer = ours(kind)
    reader = reader_of(tokenizer)
    assert reader.read(bytes_of(tokenizer, "é☃a"))[0] == ["", "é", "", "", "☃", "a"]
    # What breaks off is no character: before a text, another character, at the end.
    assert reader.read(bytes_of(tokenizer, b"\xe2\x98a\x83"))[0] == ["", "\ufffd", "a", "\ufffd"]
    assert reader.read(bytes_of(tokenizer, b"\xe2\x98\xc3\xa9"))[0] == ["", "", "\ufffd", "é"]
    assert reader.read(bytes_of(tokenizer, b"a\xe2\x98"))[0] == ["a", "", "\ufffd"]
    assert reader.read(bytes_of(tokenizer, b"\x98"))[0] == ["\ufffd"]
    assert reader.read([]) == ([], "")


def test_a_character_may_go_on_in_the_next_canvas() -> None:
    tokenizer = ours()
    reader = reader_of(tokenizer)
    first, second = bytes_of(tokenizer, "☃"), bytes_of(tokenizer, "☃b")
    reader.commit(first[:2])
    assert reader.read(second[2:])[0] == ["☃", "b"]
    assert reader.read(second[3:])[0] == ["\ufffdb"]
    reader.commit(second[2:])
    assert reader.read(second[3:])[0] == ["b"]


def test_a_token_that_no_text_has_is_its_name_or_nothing() -> None:
    tokenizer = ours("sentencepiece")
    reserved = tokenizer.backend.token_to_id("<unused17>")
    assert reader_of(tokenizer).read([reserved, 10**7]) == (["<unused17>", ""], "tt")


def test_a_tokenizer_of_another_kind_is_read_token_by_token() -> None:
    tokenizer = load("sentencepiece")
    tokenizer.backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    tokens = tokenizer.encode("What is a canvas")
    reader = reader_of(tokenizer)
    assert "".join(reader.read(tokens)[0]) == "What is a canvas"
    assert reader.text(tokens[0]) == reader.read(tokens)[0][0]


def test_a_candidate_stands_alone() -> None:
    tokenizer = ours()
    half, *_ = bytes_of(tokenizer, "é")
    turn, letter = tokenizer.backend.token_to_id("<turn|>"), tokenizer.encode("a")[0]
    assert [reader_of(tokenizer).text(token) for token in (half, turn, letter)] == ["<0xC3>", "<turn|>", "a"]


CALL = '<|tool_call>a<|"|><tool_call|>b<|"|><tool_call|>c'


@pytest.mark.parametrize(
    ("text", "in_thought", "has_calls", "expected"),
    [
        ("a<turn|>b", False, True, "txt"),
        ("<|channel>a<channel|>b", False, True, "xrxt"),
        ("a<channel|>b", True, True, "rxt"),
        ("a<channel|>b", False, True, "txt"),
        # A closer in a string closes nothing.
        (CALL, False, True, "xcxxcxxt"),
        (CALL, False, False, "xtxxtxxt"),
        ('<|tool_call>a<|"|>b<channel|>c', False, True, "xcxcxc"),
        ("<|tool_call>a<channel|>b", False, True, "xcxt"),
        # What opens something always does.
        ('<|tool_call>a<|"|>b<|channel>c', False, True, "xcxcxr"),
        ("a<|tool_call>b<tool_call|>c", True, True, "rxcxt"),
        ("a<tool_call|>b", True, True, "rxr"),
    ],
)
def test_each_position_is_part_of_what_is_open_there(
    text: str, in_thought: bool, has_calls: bool, expected: str
) -> None:
    tokenizer = ours()
    tokens = tokenizer.encode(text)
    assert reader_of(tokenizer, in_thought=in_thought, has_calls=has_calls).read(tokens)[1] == expected
    for cut in range(len(tokens)):
        reader = reader_of(tokenizer, in_thought=in_thought, has_calls=has_calls)
        reader.commit(tokens[:cut])
        assert reader.read(tokens[cut:])[1] == expected[cut:]


def test_a_token_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = ours()
    looked_up: list[Sequence[int]] = []
    spelling = Spelling(tokenizer)
    reader = CanvasReader(spelling, tokenizer.control_tokens, in_thought=False, has_calls=False)
    tokens = tokenizer.encode("What is a canvas?")
    first = reader.read(tokens)
    monkeypatch.setattr(Spelling, "__missing__", lambda _, token: looked_up.append(token))
    assert reader.read(tokens) == first
    assert looked_up == []
