"""What was measured, for people. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..last import ROWS
from ..printing import aligned, filled
from ..wording import gib, listed, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# What `llm diffusiongemma last` says of the weights of a reply, too.
OF_A_REPLY = ("weights", "device", "kernels", "graph", "streaming")


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The same as `--json`."""
    random = found["random_weights"]
    yield f"Random {random} weights" if random else quoted(found["model"])
    yield from aligned(list(_about(found)))
    numbers = found["versions"] | ({"driver": found["driver_version"]} if found["driver_version"] else {})
    yield filled(", ".join(f"{name} {number}" for name, number in numbers.items()) + ".")
    yield filled(f"{found['system']}.")
    yield ""
    kinds = found["kinds"]
    counts = [each["replies"] for each in kinds.values()]
    of = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    yield "Replies (one of each kind)" if of == "1" else f"Replies (medians of {of}, least to most in brackets)"
    yield from aligned(list(_replies(found)))
    yield ""
    yield "Prompts and canvases"
    yield from aligned(list(_prompts(found)))
    yield ""
    yield "Denoising steps"
    yield from aligned(list(_steps(found)))
    if random:
        yield ""
        yield filled(
            "A random network never converges: tokens a second are those of canvases of exactly "
            f"{found['max_denoising_steps']} steps. The real one takes as many as its reply needs."
        )
        if left_out := [f"{length:,}" for length in found["left_out_prompt_tokens"]]:
            yield filled(f"For a prompt of {listed(left_out)} tokens there is no room beside the weights.")
    if found["against"] is not None:
        yield ""
        version = found["versions"].get("transformers", "")
        yield f"Against `generate` of transformers {version}".rstrip() + ", tokens a second"
        yield from aligned(list(_against(found["against"])))
    for name, problem in found["problems"].items():
        yield ""
        yield filled(f"{name}: {problem}")
    if found["is_interrupted"]:
        yield ""
        yield filled(f"Interrupted: {found['repeats']} replies of each kind were asked for.")


def _about(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in OF_A_REPLY:
        if name in ROWS and (text := ROWS[name](found)):
            if name == "device":
                threads = found["threads"]
                text += (
                    f" ({found['device_name']})"
                    if found["device_name"]
                    else f", {threads} thread{'s' * (threads > 1)}"
                )
            yield name, text
    yield "drawn in" if found["random_weights"] else "loaded in", f"{found['load_seconds']:.1f} s"
    if memory := ROWS["memory"](found):
        yield "memory", memory


def _replies(found: Mapping[str, Any]) -> Iterator[list[str]]:
    yield ["", "tokens a second", "first block, s", "whole, s", "tokens out"]
    for name, of in found["kinds"].items():
        yield [
            name,
            _spread(of["tokens_per_second"]),
            _spread(of["first_block_seconds"]),
            _median(of["reply_seconds"]),
            _median(of["output_tokens"]),
        ]
    if _has_all(found):
        yield ["all", _spread(found["all"]["tokens_per_second"]), "", "", ""]


def _prompts(found: Mapping[str, Any]) -> Iterator[list[str]]:
    yield ["", "prompt, tokens", "read in, ms", "canvases", "steps a canvas"]
    for name, of in found["kinds"].items():
        yield [
            name,
            f"{of['prompt_tokens']:,}",
            _median(of["reading_ms"]),
            _median(of["canvases"]),
            _spread(of["steps_per_canvas"]),
        ]
    if _has_all(found):
        yield ["all", "", "", "", _spread(found["all"]["steps_per_canvas"])]


def _steps(found: Mapping[str, Any]) -> Iterator[list[str]]:
    has_memory = any(of["peak_memory_bytes"] is not None for of in found["kinds"].values())
    yield ["", "ms a step", "forward, ms", "sampler, ms", *["memory"] * has_memory]
    rows = dict(found["kinds"])
    if _has_all(found):
        rows["all"] = found["all"]
    for name, of in rows.items():
        peak = of.get("peak_memory_bytes")
        yield [
            name,
            _spread(of["step_ms"]),
            _median(of["forward_ms"]),
            _median(of["sampler_ms"]),
            *[gib(peak) if peak is not None else ""] * has_memory,
        ]


def _has_all(found: Mapping[str, Any]) -> bool:
    """Whether a mean of all kinds says something: not of lengths that are apart."""
    return len(found["kinds"]) > 1 and not found["random_weights"]


def _against(found: Mapping[str, Any]) -> Iterator[list[str]]:
    yield ["", "here", "transformers", "times as fast"]
    for name, of in found.items():
        yield [
            name,
            _spread(of["ours_tokens_per_second"]),
            _spread(of["transformers_tokens_per_second"]),
            _spread(of["times_faster"]),
        ]


def _spread(of: Mapping[str, float] | None) -> str:
    if of is None:
        return ""
    shown = _shown(of["median"])
    ends = f"{_shown(of['least'])}–{_shown(of['most'])}"
    return shown if of["least"] == of["most"] else f"{shown} ({ends})"


def _median(of: Mapping[str, float] | None) -> str:
    return "" if of is None else _shown(of["median"])


def _shown(value: float) -> str:
    """To three digits, and whole where it is a count."""
    if value == int(value) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{1 if value >= 10 else 2}f}"
