"""Canvases as tests make them up."""

from __future__ import annotations

from llm_diffusiongemma.view.records import NOISE, TEXT, Likely, Snapshot


def snapshot(
    text: str,
    *,
    attempt: int = 0,
    block: int = 0,
    step: int = 1,
    end: int | None = None,
    likely: Likely | None = None,
) -> Snapshot:
    """One whose pieces are the text's characters, all noise."""
    return Snapshot(
        attempt=attempt,
        block=block,
        step=step,
        max_steps=48,
        pieces=tuple(text),
        kinds=TEXT * len(text),
        states=NOISE * len(text),
        end=end,
        mean_entropy=1.5,
        tokens_before=0,
        seconds=0.1,
        likely=likely,
    )
