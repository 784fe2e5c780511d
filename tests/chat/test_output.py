"""Tokens of finished blocks to events, however the blocks are cut."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.chat.output import ReplyReader
from llm_diffusiongemma.chat.tokenizer import control_tokens

TOKENIZER = AutoTokenizer.from_pretrained(EMBEDDED_CHECKPOINT, local_files_only=True)
CONTROL = control_tokens(TOKENIZER)


def read(pieces: Sequence[Sequence[int]], in_thought: bool = False) -> list[tuple[str, str]]:
    """(kind, text) of a reply given in pieces, neighbours of a kind joined."""
    reader = ReplyReader(lambda ids: TOKENIZER.decode(ids), CONTROL, in_thought)
    events = [event for piece in pieces for event in reader.consume(piece)] + reader.finalize()
    grouped = itertools.groupby(events, key=lambda event: event.type)
    return [(kind, "".join(event.chunk for event in group)) for kind, group in grouped]


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


CASES = [
    ("Hello", [("text", "Hello")]),
    ("snow ☃ and 🚀 and ü", [("text", "snow ☃ and 🚀 and ü")]),
    ("  kept as it is \n", [("text", "  kept as it is \n")]),
    ("<|channel>thought\n1 + 1\n<channel|>2", [("reasoning", "1 + 1"), ("text", "2")]),
    ("<|channel>thought\n\n a\n\nb \n<channel|>\n\nyes", [("reasoning", "a\n\nb"), ("text", "yes")]),
    ("<|channel>thought\n<channel|>nothing to think", [("text", "nothing to think")]),
    ("<|channel>thought<channel|>no line", [("text", "no line")]),
    ("<|channel>thoughtful one\n<channel|>x", [("reasoning", "thoughtful one"), ("text", "x")]),
    ("<|channel>no label<channel|>x", [("reasoning", "no label"), ("text", "x")]),
    ("<|channel>thought\nnever closed", [("reasoning", "never closed")]),
    ("answer<|channel>thought\nafter", [("text", "answer"), ("reasoning", "after")]),
    ("stray <channel|>closer", [("text", "stray closer")]),
    ("<bos>markers<pad> go<|turn>", [("text", "markers go")]),
    ("", []),
]


@pytest.mark.parametrize(("reply", "expected"), CASES)
def test_whole(reply: str, expected: list[tuple[str, str]]) -> None:
    assert read([encode(reply)]) == expected


@pytest.mark.parametrize(("reply", "expected"), CASES)
def test_token_by_token(reply: str, expected: list[tuple[str, str]]) -> None:
    assert read([[token] for token in encode(reply)]) == expected


def test_the_cases_cut_characters() -> None:
    """Otherwise the test above proves nothing about UTF-8: the snowman has to be several tokens."""
    assert len(encode("☃")) > 1


def test_prompt_that_opened_the_thought() -> None:
    assert read([encode("I see.\n<channel|>Done.")], in_thought=True) == [
        ("reasoning", "I see."),
        ("text", "Done."),
    ]


def test_text_that_spells_a_marker_stays_text() -> None:
    ids = TOKENIZER.encode("a <channel|> b <|turn>", add_special_tokens=False, split_special_tokens=True)
    assert read([ids]) == [("text", "a <channel|> b <|turn>")]


def test_added_tokens_that_are_no_control_tokens_are_text() -> None:
    """Gemma's tokenizer adds runs of blanks and HTML tags: an answer with a table must keep them."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_CHECKPOINT, local_files_only=True)
    tokenizer.add_tokens(["<table>", "\n\n"])
    ids = tokenizer.encode("a<table>b\n\nc<turn|>", add_special_tokens=False)
    reader = ReplyReader(tokenizer.decode, control_tokens(tokenizer))
    assert "".join(event.chunk for event in reader.consume(ids)) == "a<table>b\n\nc"


def test_incomplete_character_at_the_end_is_replaced() -> None:
    assert read([encode("x☃")[:-1]]) == [("text", "x\ufffd")]


def test_one_text_event_a_block() -> None:
    reader = ReplyReader(lambda ids: TOKENIZER.decode(ids), CONTROL)
    assert [event.chunk for event in reader.consume(encode("a<pad> b<pad> c"))] == ["a b c"]


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(alphabet=st.sampled_from("aé☃🚀 \n<|>thoug"), max_size=30),
    thought=st.booleans(),
    cuts=st.lists(st.integers(0, 200), max_size=6),
)
def test_any_split_gives_the_same(text: str, thought: bool, cuts: list[int]) -> None:
    ids = encode(f"<|channel>thought\n{text}<channel|>{text}" if thought else text)
    edges = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    pieces = [ids[start:end] for start, end in itertools.pairwise(edges)]
    assert read(pieces) == read([ids])


def test_verbatim_text_keeps_its_blanks_and_nothing_in_a_thought_is_text() -> None:
    """Of a reply that is held to a form every character was asked for."""
    reader = ReplyReader(TOKENIZER.decode, CONTROL, in_thought=True, verbatim=True)
    ids = TOKENIZER.encode(
        "thought\nhm <|tool_call>call:f{}<tool_call|> so\n<channel|>\n thought\n ", add_special_tokens=False
    )
    events = reader.consume(ids) + reader.finalize()
    assert [(event.type, event.chunk) for event in events] == [
        ("reasoning", "hm call:f{} so"),
        ("text", "\n thought\n "),
    ]
    plain = ReplyReader(TOKENIZER.decode, CONTROL, verbatim=True)
    assert "".join(event.chunk for event in plain.consume(ids[:3]) + plain.finalize()) == TOKENIZER.decode(ids[:3])
