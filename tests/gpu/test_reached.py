"""What was found stands beside what was asked for."""

from __future__ import annotations

from .bench import Result
from .reached import TARGETS


def said(step_ms: float, rate: float, reading_ms: float, times_faster: float = 0.0) -> Result:
    """What `bench` says of a representation."""

    def spread(value: float) -> Result:
        return {"median": value, "least": 0.0, "most": 1e9}

    return {
        "kinds": {
            "1,024 tokens": {"step_ms": spread(step_ms), "tokens_per_second": spread(rate)},
            "8,192 tokens": {"reading_ms": spread(reading_ms)},
        },
        "against": {"1,024 tokens": {"times_faster": spread(times_faster)}},
    }


def test_a_target_is_reached_or_missed() -> None:
    records = {
        "bench": {"bf16": said(23.0, 0, 400.0, 1.9), "fp8": said(14.1, 0, 0), "nvfp4": said(9, 1600, 410.0)},
        "streamed": {"nvfp4, a third": {"share of the bus": 0.93}},
    }
    found = {name: target.beside(records).get("is reached") for name, target in TARGETS.items()}
    assert found == {
        "bf16, ms a step": True,
        "bf16, times transformers": False,
        "fp8, ms a step": False,
        "nvfp4, ms a step": True,
        "nvfp4, tokens a second": True,
        "bf16, tokens read a second": True,
        "nvfp4, tokens read a second": False,
        "a third of the experts streamed, share of the bus": True,
    }


def test_what_no_section_has_said_is_neither() -> None:
    records = {"bench": {"fp8": said(9.0, 1, 1)}, "streamed": {"ok": False}}
    for name, target in TARGETS.items():
        beside = target.beside(records)
        assert (beside["found"] is None) == ("is reached" not in beside) == (not name.startswith("fp8"))
