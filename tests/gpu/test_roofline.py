"""The roofline on paper adds up, and docs/gpu.md shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_diffusiongemma.diffusion.config import DIFFUSIONGEMMA_26B_A4B

from .roofline import CARDS, FORMATS, Card, _sizes, by_card, by_part, parts_of_a_step, step_seconds

DOCS = Path(__file__).parent.parent.parent / "docs"


@pytest.mark.parametrize("name", FORMATS)
def test_every_weight_is_read_once_and_the_embedding_twice(name: str) -> None:
    parts = parts_of_a_step(DIFFUSIONGEMMA_26B_A4B, FORMATS[name])
    read = sum(part.bytes for what, part in parts.items() if what not in ("keys and values", "logits, fp32"))
    assert read - parts["soft embeddings: it once more"].bytes == _sizes(name).weight_bytes


def test_what_is_computed_is_what_the_plan_counts_and_attention() -> None:
    parts = parts_of_a_step(DIFFUSIONGEMMA_26B_A4B, FORMATS["bf16"])
    others = ("keys and values", "routers and norms")
    assert sum(part.operations for what, part in parts.items() if what not in others) == (
        _sizes("bf16").step_operations
    )


def test_a_longer_context_is_read_by_full_layers_only() -> None:
    near, far = (parts_of_a_step(DIFFUSIONGEMMA_26B_A4B, FORMATS["bf16"], context) for context in (1023, 101_023))
    more = far["keys and values"].bytes - near["keys and values"].bytes
    assert more == 5 * 2 * 2 * 512 * 2 * 100_000
    assert {name: part for name, part in near.items() if name != "keys and values"} == {
        name: part for name, part in far.items() if name != "keys and values"
    }


def test_a_part_takes_the_longer_of_reading_and_computing() -> None:
    parts = parts_of_a_step(DIFFUSIONGEMMA_26B_A4B, FORMATS["bf16"])
    reading = step_seconds(Card("reads slowly", 1, 1e9, 1e20), parts)
    computing = step_seconds(Card("computes slowly", 1, 1e20, 1e9), parts)
    assert reading == pytest.approx(sum(part.bytes for part in parts.values()) / 1e9)
    assert computing == pytest.approx(sum(part.operations for part in parts.values()) / 1e9)


def test_docs_show_it() -> None:
    """To renew them, put in what `python -m tests.gpu.roofline` prints."""
    page = (DOCS / "gpu.md").read_text(encoding="utf-8")
    assert by_part() in page
    assert by_card() in page
    assert all(card.name in page for card in CARDS)
