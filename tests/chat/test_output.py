"""Tokens of finished blocks to events, however the blocks are cut."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_diffusiongemma.chat.output import ReplyReader

from ..tokenizers import load, ours

TOKENIZER = ours()
CONTROL = TOKENIZER.control_tokens


Said = list[tuple[str, str]]


def read(pieces: Sequence[Sequence[int]], in_thought: bool = False, *, is_whole: bool = False) -> Said:
    """(kind, text) of a reply given in pieces, neighbours of a kind joined."""
    reader = ReplyReader(lambda ids: TOKENIZER.decode(ids), CONTROL, in_thought)
    events = [event for piece in pieces for event in reader.consume(piece)] + reader.finalize(is_whole=is_whole)
    grouped = itertools.groupby(events, key=lambda event: event.type)
    return [(kind, "".join(event.chunk for event in group)) for kind, group in grouped]


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text)


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
    ("stray<channel|> closer", [("text", "stray closer")]),
    ("<channel|>first", [("text", "first")]),
    ("<bos>markers<pad> go<|turn>", [("text", "markers go")]),
    ("", []),
]
CALL = "<|tool_call>call:f{}<tool_call|>"
# The word `thought` on the first line, with no channel open: what comes behind it says what it is.
OPENING_LEFT_OUT = [
    ("thought\n1 + 1\n<channel|>2", [("reasoning", "1 + 1"), ("text", "2")]),
    ("\nthought \n\n1 + 1\n<channel|>\n\n2\n", [("reasoning", "1 + 1"), ("text", "2\n")]),
    ("Thought\nhm<channel|>2", [("reasoning", "hm"), ("text", "2")]),
    ("thought\n<channel|>2", [("text", "2")]),
    ("thought<channel|>2", [("text", "2")]),
    ("<bos>thou<pad>ght\n1<pad> + 1<channel|>2", [("reasoning", "1 + 1"), ("text", "2")]),
    ("<channel|>thought\nhm<channel|>2", [("reasoning", "hm"), ("text", "2")]),
    (
        "<|channel>thought\na<channel|>\nthought\nb\n<channel|>thought\nc<channel|>2",
        [("reasoning", "abc"), ("text", "2")],
    ),
    ("<|channel>final\n1<channel|>thought\nb<channel|>2", [("text", "1"), ("reasoning", "b"), ("text", "2")]),
    (
        "thought\nhm<channel|>thought\nidea",
        [("reasoning", "hm"), ("text", "thought\nidea")],
    ),
    # An honest first line, and the words that begin like it.
    ("thought\nidea\nnotion", [("text", "thought\nidea\nnotion")]),
    ("thought\n", [("text", "thought\n")]),
    ("thought", [("text", "thought")]),
    ("  thought\nidea ", [("text", "  thought\nidea ")]),
    ("though", [("text", "though")]),
    ("thoughts\nfly<channel|>", [("text", "thoughts\nfly")]),
    ("thought of it\n<channel|>x", [("text", "thought of it\nx")]),
    ("My\nthought\nis free<channel|>", [("text", "My\nthought\nis free")]),
    ("<|channel>thought\nhm<channel|>thought\nidea", [("reasoning", "hm"), ("text", "thought\nidea")]),
    ("<|channel>thought\nthought\nidea<channel|>x", [("reasoning", "thought\nidea"), ("text", "x")]),
    # Another channel or a call comes first.
    (
        "thought\nidea<|channel>thought\nhm<channel|>x",
        [("text", "thought\nidea"), ("reasoning", "hm"), ("text", "x")],
    ),
    (f"thought\nidea{CALL}<channel|>x", [("text", f"thought\nidea{CALL}x")]),
]
# Channels of other names.
NAMED = [
    ("<|channel>final\n42<channel|>", [("text", "42")]),
    ("<|channel>final\n42\n<channel|>\n", [("text", "42")]),
    ("<|channel>final\nnever\n\nclosed\n", [("text", "never\n\nclosed")]),
    ("<|channel> final \n\n 42", [("text", "42")]),
    ("<|channel>fin<pad>al\n42", [("text", "42")]),
    ("<|channel>thought\nhm\n<channel|><|channel>final\n42\n<channel|>", [("reasoning", "hm"), ("text", "42")]),
    ("<|channel>thought\nhm<|channel>final\n42", [("reasoning", "hm"), ("text", "42")]),
    ("<|channel>final\n42<|channel>thought\nhm<channel|>", [("text", "42"), ("reasoning", "hm")]),
    ("<|channel>final\nOne.\n<channel|> Two.\n", [("text", "One.\nTwo.\n")]),
    ("<|channel>analysis\nhm<channel|>", [("text", "hm")]),
    ("<|channel>Final\n42<channel|>", [("text", "42")]),
    ("<|channel>user-facing_2\nhm<channel|>", [("text", "hm")]),
    ("<|channel>thought\nfinal\n42<channel|>x", [("reasoning", "final\n42"), ("text", "x")]),
    (f"<|channel>commentary\nI look.\n{CALL}", [("text", f"I look.\n{CALL}")]),
    # No names: more than a word, no line, nothing.
    ("<|channel>final answer\n42<channel|>x", [("reasoning", "final answer\n42"), ("text", "x")]),
    ("<|channel>hm<channel|>x", [("reasoning", "hm"), ("text", "x")]),
    ("<|channel>1 + 1\n= 2<channel|>2", [("reasoning", "1 + 1\n= 2"), ("text", "2")]),
    ("<|channel>Well,\nhm<channel|>x", [("reasoning", "Well,\nhm"), ("text", "x")]),
    (f"<|channel>{'a' * 40}\nhm<channel|>x", [("reasoning", f"{'a' * 40}\nhm"), ("text", "x")]),
    ("<|channel>\n<channel|>x", [("text", "x")]),
    ("final\n42", [("text", "final\n42")]),
]
CASES += OPENING_LEFT_OUT + NAMED


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


def test_a_prompt_that_opened_the_thought_has_named_it() -> None:
    assert read([encode("final\n42<channel|>x")], in_thought=True) == [("reasoning", "final\n42"), ("text", "x")]
    assert read([encode("hm<|channel>final\n42")], in_thought=True) == [("reasoning", "hm"), ("text", "42")]


def test_a_text_is_held_back_only_while_it_may_be_a_thought() -> None:
    reader = ReplyReader(TOKENIZER.decode, CONTROL)
    assert reader.consume(encode("thought\nhm")) == []
    assert [event.chunk for event in reader.consume(encode("<channel|>4"))] == ["hm", "4"]
    assert [event.chunk for event in reader.consume(encode("2"))] == ["2"]
    reader = ReplyReader(TOKENIZER.decode, CONTROL)
    assert reader.consume(encode("tho")) == []
    assert [event.chunk for event in reader.consume(encode("rough"))] == ["thorough"]


NEVER_CLOSED: list[tuple[str, bool, Said]] = [
    ("<|channel>thought\nIt is 42.\n", False, [("reasoning", "It is 42."), ("text", "It is 42.")]),
    ("It is\n\n42. ", True, [("reasoning", "It is\n\n42."), ("text", "It is\n\n42.")]),
    ("<|channel>No label", False, [("reasoning", "No label"), ("text", "No label")]),
    ("<|channel>42", False, [("reasoning", "42"), ("text", "42")]),
    # Only what was not closed.
    ("<|channel>thought\na<channel|>\n<|channel>thought\nb", False, [("reasoning", "ab"), ("text", "b")]),
    ("hm<channel|> \n<|channel>thought\nb", True, [("reasoning", "hmb"), ("text", "b")]),
    # There is an answer, or no thought.
    ("<|channel>thought\nhm<channel|>", False, [("reasoning", "hm")]),
    ("hm<channel|>\n\n", True, [("reasoning", "hm")]),
    ("42<|channel>thought\nhm", False, [("text", "42"), ("reasoning", "hm")]),
    ("<|channel>final\n42<|channel>thought\nhm", False, [("text", "42"), ("reasoning", "hm")]),
    (f"hm{CALL}<|channel>thought\nso", True, [("reasoning", "hm"), ("text", CALL), ("reasoning", "so")]),
    ("<|channel>thought\n", False, []),
    ("thought\nhm", False, [("text", "thought\nhm")]),
    ("", True, []),
]


@pytest.mark.parametrize(("reply", "in_thought", "expected"), NEVER_CLOSED)
def test_answer_inside_a_thought_that_never_closes(reply: str, in_thought: bool, expected: Said) -> None:
    ids = encode(reply)
    assert read([ids], in_thought, is_whole=True) == expected
    assert read([[token] for token in ids], in_thought, is_whole=True) == expected


def test_a_thought_that_was_cut_stays_a_thought() -> None:
    assert read([encode("<|channel>thought\nIt is 42.")], is_whole=False) == [("reasoning", "It is 42.")]


def test_text_that_spells_a_marker_stays_text() -> None:
    ids = [token for character in "a <channel|> b <|turn>" for token in TOKENIZER.encode(character)]
    assert read([ids]) == [("text", "a <channel|> b <|turn>")]


def test_added_tokens_that_are_no_control_tokens_are_text() -> None:
    """Gemma's tokenizer adds runs of blanks and HTML tags: an answer with a table must keep them."""
    tokenizer = load("byte level")
    tokenizer.backend.add_tokens(["<table>", "\n\n"])
    ids = tokenizer.encode("a<table>b\n\nc<turn|>")
    reader = ReplyReader(tokenizer.decode, tokenizer.control_tokens)
    assert "".join(event.chunk for event in reader.consume(ids)) == "a<table>b\n\nc"


def test_incomplete_character_at_the_end_is_replaced() -> None:
    assert read([encode("x☃")[:-1]]) == [("text", "x\ufffd")]


def test_one_text_event_a_block() -> None:
    reader = ReplyReader(lambda ids: TOKENIZER.decode(ids), CONTROL)
    assert [event.chunk for event in reader.consume(encode("a<pad> b<pad> c"))] == ["a b c"]


PIECES = [
    "<|channel>",
    "<channel|>",
    "thought\n",
    "thought",
    "final\n",
    "tho",
    "\n",
    " ",
    "é☃🚀",
    "x",
    "<pad>",
    CALL,
]


@settings(max_examples=100, deadline=None)
@given(
    text=st.lists(st.sampled_from(PIECES), max_size=10).map("".join)
    | st.text(alphabet=st.sampled_from("aé☃🚀 \n<|>thoug"), max_size=30),
    thought=st.booleans(),
    in_thought=st.booleans(),
    is_whole=st.booleans(),
    cuts=st.lists(st.integers(0, 200), max_size=6),
)
def test_any_split_gives_the_same(
    text: str, thought: bool, in_thought: bool, is_whole: bool, cuts: list[int]
) -> None:
    ids = encode(f"<|channel>thought\n{text}<channel|>{text}" if thought else text)
    edges = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    pieces = [ids[start:end] for start, end in itertools.pairwise(edges)]
    assert read(pieces, in_thought, is_whole=is_whole) == read([ids], in_thought, is_whole=is_whole)


def test_verbatim_text_keeps_its_blanks_and_nothing_in_a_thought_is_text() -> None:
    """Of a reply that is held to a form every character was asked for."""
    reader = ReplyReader(TOKENIZER.decode, CONTROL, in_thought=True, verbatim=True)
    ids = TOKENIZER.encode("thought\nhm <|tool_call>call:f{}<tool_call|> so\n<channel|>\n thought\n ")
    events = reader.consume(ids) + reader.finalize()
    assert [(event.type, event.chunk) for event in events] == [
        ("reasoning", "hm call:f{} so"),
        ("text", "\n thought\n "),
    ]
    named = ReplyReader(TOKENIZER.decode, CONTROL, in_thought=True, verbatim=True)
    (event,) = named.consume(encode("a <|channel>final\nb")) + named.finalize(is_whole=True)
    assert (event.type, event.chunk) == ("reasoning", "afinal\nb")
    plain = ReplyReader(TOKENIZER.decode, CONTROL, verbatim=True)
    assert "".join(event.chunk for event in plain.consume(ids[:3]) + plain.finalize()) == TOKENIZER.decode(ids[:3])
