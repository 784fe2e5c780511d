"""Drafts to what who watches is told, without a network. test_local.py has whole replies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llm_diffusiongemma.backends.telling import Teller
from llm_diffusiongemma.chat.drafts import CanvasReader, Spelling
from llm_diffusiongemma.diffusion.pipeline import Block, Draft
from llm_diffusiongemma.view.records import Likely, Reading, Snapshot, Watch

from ..tokenizers import ours

TOKENIZER = ours()
A, B, C, D = (TOKENIZER.encode(letter)[0] for letter in "abcd")
TURN = TOKENIZER.backend.token_to_id("<turn|>")


def draft(step: int, tokens: list[int], accepted: str, block: int = 0, candidates: Any = None) -> Draft:
    taken = [letter == "1" for letter in accepted]
    return Draft(block, step, 48, tokens, None, taken, [0.123456] * len(tokens), 0.5, candidates)


def seen_of(*records: Draft | Block | Reading) -> list[Any]:
    seen: list[Any] = []
    reader = CanvasReader(Spelling(TOKENIZER), TOKENIZER.control_tokens, in_thought=False, has_calls=False)
    teller = Teller(Watch(seen.append, "candidates"), reader, attempt=1)
    for number, record in enumerate(records):
        if isinstance(record, Reading):
            teller.read(record)
        elif isinstance(record, Draft):
            teller.drafted(record, float(number))
        else:
            teller.committed(record)
    return seen


def block(tokens: list[int]) -> Block:
    return Block(0, tokens, None, 4, True, None, 20, 0.1)


def test_a_token_settles_when_it_is_accepted_twice_in_a_row() -> None:
    seen = seen_of(
        draft(1, [A, B, C, D], "1101"),
        draft(2, [A, C, C, D], "1110"),
        draft(3, [A, C, C, D], "1111"),
        block([A, C, C, D]),
        # Of another canvas: nothing of the one before counts.
        draft(1, [A, C, C, D], "1111", block=1),
    )
    assert [each.states for each in seen] == ["aana", "saan", "sssa", "aaaa"]
    assert [each.tokens_before for each in seen] == [0, 0, 0, 4]


def test_nothing_has_settled_in_a_canvas_that_is_drawn_again() -> None:
    drawn = draft(1, [A, B], "11"), replace(draft(1, [A, B], "11"), redrawn=1), draft(2, [A, B], "11")
    seen = seen_of(*drawn)
    assert [(each.states, each.redrawn) for each in seen] == [("aa", 0), ("aa", 1), ("ss", 0)]


def test_all_of_a_snapshot() -> None:
    candidates = [[(A, 0.98765432), (TURN, 0.002), (B, 0.0001)], [(C, 0.0002), (D, 0.0001)]]
    assert seen_of(Reading(3, 9), draft(2, [A, TURN], "10", candidates=candidates)) == [
        Reading(3, 9),
        Snapshot(
            attempt=1,
            block=0,
            step=2,
            max_steps=48,
            pieces=("a", "<turn|>"),
            kinds="tx",
            states="an",
            end=None,
            mean_entropy=0.5,
            tokens_before=0,
            seconds=1.0,
            # What nobody would see is left out, but for the likeliest.
            likely=Likely((0.1235, 0.1235), ((("a", 0.9877), ("<turn|>", 0.002)), (("c", 0.0002),))),
        ),
    ]
