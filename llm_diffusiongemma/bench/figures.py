"""The figures that come of measured replies, in the form of JSON. Units are in the names. No torch.

Of several values there are the median and both ends, as `{"median": ..., "least": ..., "most": ...}`.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .clock import Sample
    from .measure import Measured

DIGITS = 4


def figures(measured: Measured) -> dict[str, Any]:
    """By kind, and of all texts: a decision is none."""
    texts = [name for name in measured.names if name not in measured.parts or measured.parts[name].writes]
    every = [sample for name in texts for sample in measured.samples.get(name, [])]
    return {
        "kinds": {name: _of_kind(measured, name) for name in measured.samples},
        "all": {
            "tokens_per_second": spread(
                sum(each.tokens for each in samples) / sum(each.seconds for each in samples)
                for samples in _whole_rounds(measured, texts)
            ),
            "steps_per_canvas": spread(each.steps / each.canvases for each in every),
            "first_block_seconds": spread(_known(each.first_block_seconds for each in every)),
            **_of_steps(every, [measured.parts[name] for name in texts if name in measured.parts]),
        },
        "peak_memory_bytes": measured.peak_memory_bytes,
        "against": {name: _against(measured, name) for name in measured.theirs} or None,
        "problems": dict(measured.problems),
    }


def _whole_rounds(measured: Measured, texts: Sequence[str]) -> list[tuple[Sample, ...]]:
    """Those with a text of every kind that there are any of. Another mix would have another rate."""
    wanted = [name for name in texts if name in measured.samples or name not in measured.problems]
    return list(zip(*(measured.samples.get(name, []) for name in wanted), strict=False))


def _of_kind(measured: Measured, name: str) -> dict[str, Any]:
    samples = measured.samples[name]
    return {
        "replies": len(samples),
        "prompt_tokens": samples[0].prompt_tokens,
        "output_tokens": spread(each.tokens for each in samples),
        "canvases": spread(each.canvases for each in samples),
        "converged_canvases": spread(each.converged for each in samples),
        "steps_per_canvas": spread(each.steps / each.canvases for each in samples),
        "reply_seconds": spread(each.seconds for each in samples),
        "tokens_per_second": spread(each.tokens / each.seconds for each in samples if each.writes),
        "first_block_seconds": spread(_known(each.first_block_seconds for each in samples)),
        "reading_ms": spread(1e3 * seconds for seconds in _known(each.reading_seconds for each in samples)),
        **_of_steps(samples, [measured.parts[name]]),
        "peak_memory_bytes": max(_known(each.peak_memory_bytes for each in samples), default=None),
    }


def _of_steps(samples: Sequence[Sample], parts: Sequence[Sample]) -> dict[str, Any]:
    return {
        "step_ms": spread(1e3 * seconds for each in samples for seconds in each.step_seconds),
        "forward_ms": spread(1e3 * seconds for each in parts for seconds in each.forward_seconds),
        "sampler_ms": spread(1e3 * seconds for each in parts for seconds in each.sampler_seconds),
    }


def _against(measured: Measured, name: str) -> dict[str, Any]:
    """Of the rounds in which there are both."""
    rates = [
        (ours.tokens / ours.seconds, theirs.tokens / theirs.seconds)
        for ours, theirs in zip(measured.samples[name], measured.theirs[name], strict=False)
    ]
    return {
        "transformers_output_tokens": spread(each.tokens for each in measured.theirs[name]),
        "ours_tokens_per_second": spread(ours for ours, _ in rates),
        "transformers_tokens_per_second": spread(theirs for _, theirs in rates),
        "times_faster": spread(ours / theirs for ours, theirs in rates if theirs),
    }


def spread(values: Iterable[float]) -> dict[str, float] | None:
    """None of no values."""
    known = list(values)
    if not known:
        return None
    ends = {"median": statistics.median(known), "least": min(known), "most": max(known)}
    return {name: float(f"{value:.{DIGITS}g}") for name, value in ends.items()}


def _known(values: Iterable[float | None]) -> Iterable[float]:
    return (value for value in values if value is not None)
