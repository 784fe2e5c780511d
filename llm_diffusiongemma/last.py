"""What `llm diffusiongemma last` says: how the last reply went that llm's log has of one of our models.

Gathered as plain values: `--json` prints those that tell nothing of what was asked and answered, people get lines
made of all of them. A reply is known by its report, so one of a model that is gone counts, too. The log may be of
another version of llm or of this plugin: what isn't in it is None.
"""

from __future__ import annotations

import json
import math
import shlex
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import llm

from .backends.address import LOCAL_SERVER
from .backends.form import lowered_note
from .backends.protocol import VIEW_OPTIONS
from .catalog import EMBEDDED_CHECKPOINT, HUB_SOURCES
from .errors import LogError
from .grammar.records import Lowered
from .options import DEFAULT_MAX_TOKENS
from .printing import aligned, filled, kernels_told
from .wording import gib, listed, printable, quoted

# Somebody's own words, files and machines. `--json` leaves them out, so that it can be shown to anybody.
PRIVATE = frozenset({"prompt", "error", "server", "served_model", "own_words", "choice_texts", "filled"})
# Names of weights that tell nothing of who runs them.
KNOWN_REPOSITORIES = frozenset({EMBEDDED_CHECKPOINT.name, *(str(source.where) for source in HUB_SOURCES)})

# For people: so many canvases are a table, more are summed up.
MOST_ROWS = 12
PROMPT_CHARACTERS = 70
MOST_NAMED = 4
NAMED_CHARACTERS = 30

# A reply that nothing came of has a short report, and a part that says so.
TURNS_SQL = """
select
    turns.id, turns.parent_message_hash,
    turns.model, turns.resolved_model, turns.options_json, turns.schema_id, turns.input_tokens,
    turns.output_tokens, turns.token_details, turns.duration_ms, turns.datetime_utc, turns.response_json,
    turn_search.prompt,
    exists (
        select 1 from parts
        where parts.message_hash = turns.tip_message_hash and case when json_valid(parts.payload)
            then json_type(parts.payload, '$.provider_metadata.diffusiongemma') is not null end
    ) as says_unanswered
from turns left join turn_search on turn_search.turn_id = turns.id
where turns.response_json is not null
order by turns.id desc
"""

# What was asked: roles of its messages and types of their parts, the last message first.
ASKED_SQL = """
with recursive asked (hash, parent_hash, role, depth) as (
    select hash, parent_hash, role, 0 from messages where hash = :hash
    union all
    select messages.hash, messages.parent_hash, messages.role, depth + 1
    from messages join asked on messages.hash = asked.parent_hash
)
select asked.role, parts.type from asked left join parts on parts.message_hash = asked.hash order by depth
"""

ENDS = {
    "stop": "complete",
    "tool_calls": "calls of tools",
    "interrupted": "interrupted",
    "error": "an error",
}


def gather() -> dict[str, Any]:
    """The last reply of ours in llm's log, in the form of JSON. Raises `LogError` if there is none."""
    try:
        folder = Path(llm.user_dir())  # type: ignore[no-untyped-call]
        log, is_logging = folder / "logs.db", not (folder / "logs-off").exists()
        has_log = log.exists()
    except OSError as error:
        raise LogError(f"llm has no folder for its log: {quoted(error)}. LLM_USER_PATH can name one.") from error
    if not has_log:
        raise LogError(f"There is no log yet: llm begins one with the first prompt.{_why_not(is_logging)}")
    try:
        with closing(sqlite3.connect(f"{log.absolute().as_uri()}?mode=ro", uri=True)) as database:
            database.row_factory = sqlite3.Row
            if not database.execute("select 1 from sqlite_master where name = 'turns'").fetchone():
                raise LogError(f"There is nothing in llm's log {quoted(log)} yet.{_why_not(is_logging)}")
            for row in database.execute(TURNS_SQL):
                report = _read(row["response_json"])
                if _is_ours(report) or (row["says_unanswered"] and "finish_reason" in report):
                    return {**_values(row, report), **_asked(database, row), "is_logging": is_logging}
    except sqlite3.OperationalError as error:
        raise LogError(
            f"llm's log {quoted(log)} can't be read: {quoted(error)}. Look whether you may read it, whether "
            "another program keeps it locked, and whether it is of another version of llm."
        ) from error
    except sqlite3.Error as error:
        raise LogError(
            f"llm's log {quoted(log)} is damaged: {quoted(error)}. Move it away, and llm begins a new one."
        ) from error
    raise LogError(
        f"In llm's log {quoted(log)} there is no reply of a DiffusionGemma. One that failed is not kept, nor one "
        f"of a program or of `llm -n`.{_why_not(is_logging)}"
    )


def _asked(database: sqlite3.Connection, row: sqlite3.Row) -> dict[str, Any]:
    """What there was beside the prompt, in words."""

    def has_any(table: str) -> bool:
        return bool(database.execute(f"select 1 from {table} where turn_id = ? limit 1", (row["id"],)).fetchone())

    asked = [tuple(each) for each in database.execute(ASKED_SQL, {"hash": row["parent_message_hash"]})]
    roles = [role for role, _ in asked]
    there = {
        "system prompt": "system" in roles,
        "fragments": has_any("turn_fragments"),
        "attachments": any(kind == "attachment" for _, kind in asked),
        "tools": has_any("turn_tools"),
        "schema": row["schema_id"] is not None,
    }
    return {
        "beside_the_prompt": [name for name, is_there in there.items() if is_there],
        "is_continued": "assistant" in roles,
        "is_after_tools": roles[:1] == ["tool"],
    }


def public(found: Mapping[str, Any]) -> dict[str, Any]:
    """What anybody may see of it."""
    shown = {name: value for name, value in found.items() if name not in PRIVATE}
    if found["repository"] not in KNOWN_REPOSITORIES:
        shown |= {"resolved_model": None, "repository": None}
    return shown


def _why_not(is_logging: bool) -> str:
    return "" if is_logging else " llm logs nothing now: `llm logs on` changes that."


def _read(text: object) -> dict[str, Any]:
    """A JSON object; empty if it is none."""
    with suppress(ValueError, RecursionError):
        value = json.loads(text) if isinstance(text, str) else None
        if isinstance(value, dict):
            return value
    return {}


def _is_ours(report: Mapping[str, Any]) -> bool:
    """Every version of this plugin has written these."""
    return {"finish_reason", "seed", "generate_seconds"} <= report.keys() and isinstance(
        report.get("blocks"), list
    )


def _number(value: object) -> float | None:
    """A whole one stays one."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    with suppress(OverflowError):  # JSON may have more digits than a float
        return value if is_number and math.isfinite(value) else None  # type: ignore[return-value, arg-type]
    return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: object) -> list[dict[str, Any]]:
    return [_object(each) for each in value] if isinstance(value, list) else []


def _values(row: sqlite3.Row, report: Mapping[str, Any]) -> dict[str, Any]:
    options = {name: value for name, value in _read(row["options_json"]).items() if name not in VIEW_OPTIONS}
    own_words = {name: value for name, value in options.items() if not isinstance(value, int | float)}
    canvases = [_canvas(block) for block in _objects(report.get("blocks"))]
    steps = [canvas["denoising_steps"] for canvas in canvases if canvas["denoising_steps"] is not None]
    resolved_model = _text(row["resolved_model"])
    output_tokens, seconds = _number(row["output_tokens"]), _number(report.get("generate_seconds"))
    weights = _text(report.get("representation"))
    server = _text(report.get("server"))
    # A server of somebody else's names it as it likes, after a folder of its machine maybe.
    is_foreign = server is not None and weights is None
    cached_tokens = _number(_read(row["token_details"]).get("cached_tokens"))
    milliseconds = _number(row["duration_ms"])
    forms = [name for name in ("regex", "choices", "fill") if name in own_words]
    choices = _object(report.get("choices"))
    filled = _object(report.get("blanks"))
    return {
        "model": _text(row["model"]),
        "resolved_model": None if is_foreign else resolved_model,
        "served_model": resolved_model if is_foreign else None,
        "datetime_utc": _text(row["datetime_utc"]),
        "prompt": _text(row["prompt"]),
        "finish_reason": _text(report.get("finish_reason")),
        "error": _text(report.get("error")),
        "answered_by": _answered_by(server),
        "server": server,
        "input_tokens": _number(row["input_tokens"]),
        "output_tokens": output_tokens,
        # What is not told is 0 of a reply of ours.
        "cached_tokens": cached_tokens if cached_tokens is not None or weights is None else 0,
        "denoising_steps": sum(steps) if canvases else None,
        "tokens_per_step": _number(report.get("tokens_per_forward")),
        "canvases": canvases,
        "load_seconds": _number(report.get("load_seconds")),
        "generate_seconds": seconds,
        "tokens_per_second": round(output_tokens / seconds, 1) if output_tokens and seconds else None,
        "duration_seconds": milliseconds / 1000 if milliseconds is not None else None,
        "representation": weights,
        "repository": _text(report.get("repository")),
        "revision": _text(report.get("revision")),
        "device": _text(report.get("device")),
        "dtype": _text(report.get("dtype")),
        "placement": _object(report.get("placement")) or None,
        "kernels": _object(report.get("kernels")) or None,
        "graph": _text(report.get("graph")),
        "streaming": _object(report.get("streaming")) or None,
        "peak_memory_bytes": _number(report.get("peak_memory_bytes")),
        "constraint": "schema" if row["schema_id"] is not None else next(iter(forms), None),
        "lowered": [
            {name: each.get(name) for name in ("keyword", "asked", "given")}
            for each in _objects(report.get("lowered"))
        ],
        "choices": _choices(choices) if choices else None,
        "choice_texts": list(_object(choices.get("probabilities"))),
        "blanks": len(filled) if filled else None,
        "filled": filled,
        "seed": _number(report.get("seed")),
        "options": {name: value for name, value in options.items() if name not in own_words},
        "own_words": own_words,
    }


def _answered_by(server: str | None) -> str:
    if server is None:
        return "this process"
    return LOCAL_SERVER if server == LOCAL_SERVER else "another server"


def _canvas(block: Mapping[str, Any]) -> dict[str, Any]:
    converged = block.get("converged")
    return {
        "tokens": _number(block.get("tokens")),
        "denoising_steps": _number(block.get("denoising_steps")),
        "converged": converged if isinstance(converged, bool) else None,
        "encoded_tokens": _number(block.get("encoded_tokens")),
        "seconds": _number(block.get("seconds")),
        "changed_positions": _number(_object(block.get("constraint")).get("changed_positions")),
        # What is not told was not done.
        "redrawn": _number(block.get("redrawn")) or 0,
    }


def _choices(report: Mapping[str, Any]) -> dict[str, Any]:
    """How probable each was, the most probable first, without saying what it is."""
    return {
        "probabilities": [_number(value) for value in _object(report.get("probabilities")).values()],
        "log_mass": _number(report.get("log_mass")),
        "reads": _number(report.get("reads")),
        "spread": [_number(value) for value in _object(report.get("spread")).values()] or None,
    }


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The same for people."""
    yield f"The last reply of {quoted(found['model'])}{_when(found['datetime_utc'])}"
    if found["is_after_tools"]:
        yield filled(
            "It is the last of several turns, after the results of tools: the figures are of this turn alone."
        )
    rows = [(name, text) for name, say in ROWS.items() if (text := say(found))]
    yield from aligned(rows)
    table = [] if _is_decision(found) else list(_table(found["canvases"]))
    if table:
        yield ""
        yield from aligned(table)
    if found["seed"] is not None:
        yield ""
        yield from _again(found)
    if not found["is_logging"]:
        yield ""
        yield filled("llm logs nothing now, so what was asked since is not here: `llm logs on` changes that.")


def _when(datetime_utc: object) -> str:
    with suppress(TypeError, ValueError):
        return f", {datetime.fromisoformat(str(datetime_utc)).astimezone():%Y-%m-%d %H:%M:%S}"
    return ""


def _prompt(found: Mapping[str, Any]) -> str | None:
    written = [line.strip() for line in str(found["prompt"] or "").splitlines() if line.strip()]
    if not written:
        return None
    first = quoted(written[0], PROMPT_CHARACTERS)
    return first if len(written) == 1 or first.endswith("…") else f"{first} …"


def _end(found: Mapping[str, Any]) -> str | None:
    reason = found["finish_reason"]
    if reason == "error" and found["error"]:
        return f"an error: {quoted(found['error'])}"
    if reason == "length":
        limit = _number(found["options"].get("max_tokens")) or DEFAULT_MAX_TOKENS
        if (found["output_tokens"] or 0) >= limit:
            return f"cut: max_tokens ({limit:,}) was used up"
        return "cut: the context was full, or the server's limit reached"
    return ENDS.get(reason, quoted(reason)) if reason else None


def _tokens(found: Mapping[str, Any]) -> str | None:
    counted = []
    if found["input_tokens"] is not None:
        cached = found["cached_tokens"]
        counted.append(f"{found['input_tokens']:,} in" + (f" ({cached:,} of them cached)" if cached else ""))
    if found["output_tokens"] is not None and not _is_decision(found):
        counted.append(f"{found['output_tokens']:,} out")
    return ", ".join(counted)


def _is_decision(found: Mapping[str, Any]) -> bool:
    """Whether canvases were read and none was written."""
    return found["choices"] is not None and found["choices"]["reads"] is not None


def _canvases(found: Mapping[str, Any]) -> str | None:
    canvases = found["canvases"]
    if not canvases:
        return None
    if _is_decision(found):
        return f"{len(canvases)}, of pure noise, each read in one denoising step"
    text = f"{len(canvases)}"
    if all(canvas["converged"] is not None for canvas in canvases):
        converged = sum(canvas["converged"] for canvas in canvases)
        share = {0: "not", len(canvases): "all"}.get(converged, f"{converged} of them")
        text += ", converged" if converged == len(canvases) == 1 else f", {share} converged"
    for number, redrawn in enumerate((canvas["redrawn"] for canvas in canvases), start=1):
        if redrawn:
            which = "" if len(canvases) == 1 else f"canvas {number} "
            often = {1: "once", 2: "twice"}.get(redrawn, f"{redrawn:g} times")
            text += f"; {which}drawn again {often}, as nothing was in it"
    text += f"; {found['denoising_steps']:,} denoising steps"
    if found["tokens_per_step"] is not None:
        text += f", tokens a step: {found['tokens_per_step']:g}"
    return text


def _time(found: Mapping[str, Any]) -> str | None:
    times = []
    if found["load_seconds"]:
        times.append(f"{found['load_seconds']:.1f} s to load")
    if seconds := found["generate_seconds"]:  # a server tells it with each canvas
        text = f"{seconds:.{1 if seconds >= 1 else 2}f} s to generate"
        if (speed := found["tokens_per_second"]) is not None:
            text += f" ({speed:,.{0 if speed >= 100 else 1}f} tokens a second)"
        times.append(text)
    if (seconds := found["duration_seconds"]) is not None:
        times.append(f"{seconds:.1f} s in all")
    return ", ".join(times)


def _weights(found: Mapping[str, Any]) -> str | None:
    if found["representation"] is None:
        return None
    text = quoted(found["representation"])
    if found["resolved_model"]:
        text += f" of {quoted(found['resolved_model'])}"
    return text + (f", computed in {quoted(found['dtype'])}" if found["dtype"] else "")


def _device(found: Mapping[str, Any]) -> str | None:
    """Where the layers are, and the experts that don't stay on a device."""
    placement = found["placement"] or {}
    homes = [
        (quoted(name), _number(_object(of).get("layers")))
        for name, of in _object(placement.get("devices")).items()
    ]
    if len(homes) < 2:
        text = quoted(found["device"]) if found["device"] else ""
    else:
        text = ", ".join(f"{name} ({layers} layers)" for name, layers in homes)
    for name, where in (("memory", "memory"), ("files", "the weight files")):
        if layers := _number(placement.get(f"experts_streamed_from_{name}")):
            text += f"; the experts of {layers} layers come from {where}"
    return text


def _kernels(found: Mapping[str, Any]) -> str | None:
    return kernels_told(found["kernels"])


def _graph(found: Mapping[str, Any]) -> str | None:
    return quoted(found["graph"]) if found["graph"] else None


def _streaming(found: Mapping[str, Any]) -> str | None:
    """What it took that experts lie elsewhere."""
    streaming = found["streaming"] or {}
    says: dict[str, Callable[[float], str]] = {
        "bytes_a_step": lambda number: f"{gib(int(number))} a step",
        "bytes_a_second": lambda number: f"{gib(int(number))} a second",
        "waited_share": lambda share: f"waited for {share:.0%} of the time",
    }
    numbers = ((_number(streaming.get(name)), say) for name, say in says.items())
    return ", ".join(say(number) for number, say in numbers if number is not None)


def _memory(found: Mapping[str, Any]) -> str | None:
    if found["peak_memory_bytes"] is None:
        return None
    return f"{gib(int(found['peak_memory_bytes']))} at most" + (
        ", of the whole process, with Python and PyTorch" if found["device"] == "cpu" else ""
    )


def _constraint(found: Mapping[str, Any]) -> str | None:
    kind = found["constraint"]
    if kind is None or _is_decision(found):
        return None
    text = (
        "the schema" if kind == "schema" else f"{kind} {quoted(found['own_words'].get(kind), PROMPT_CHARACTERS)}"
    )
    changed = [canvas["changed_positions"] for canvas in found["canvases"]]
    if any(each is not None for each in changed):
        text += f"; positions where the network preferred another token: {sum(filter(None, changed))}"
    return text


def _probabilities(found: Mapping[str, Any]) -> str | None:
    choices = found["choices"]
    if choices is None:
        return None
    numbers, spread = choices["probabilities"], choices["spread"] or []
    shown = []
    for i, (text, number) in enumerate(zip(found["choice_texts"][:MOST_NAMED], numbers, strict=False)):
        if number is not None:
            about = f" ±{spread[i]:.1%}" if i < len(spread) and spread[i] is not None else ""
            shown.append(f"{quoted(text, NAMED_CHARACTERS)} {number:.1%}{about}")
    if len(numbers) > MOST_NAMED:
        shown.append(f"{len(numbers) - MOST_NAMED:,} more")
    said = [", ".join(shown)] if shown else []
    if not _is_decision(found):
        said.append("at the last denoising step")
    if choices["log_mass"] is not None:
        said.append(f"e^{choices['log_mass']:.1f} of all that could be written")
    return "; ".join(said)


def _blanks(found: Mapping[str, Any]) -> str | None:
    shown = [
        f"{quoted(name, NAMED_CHARACTERS)}: {quoted(text, PROMPT_CHARACTERS)}"
        for name, text in list(found["filled"].items())[:MOST_NAMED]
    ]
    if len(found["filled"]) > MOST_NAMED:
        shown.append(f"{len(found['filled']) - MOST_NAMED:,} more")
    return "; ".join(shown)


def _lowered(found: Mapping[str, Any]) -> str | None:
    with suppress(TypeError, ValueError):
        told = [
            Lowered(
                str(each["keyword"]), None if each["asked"] is None else int(each["asked"]), int(each["given"]), ""
            )
            for each in found["lowered"]
        ]
        return lowered_note(told) if told else None
    return None


def _server(found: Mapping[str, Any]) -> str | None:
    if found["server"] is None:
        return None
    name = f"the {LOCAL_SERVER}" if found["answered_by"] == LOCAL_SERVER else quoted(found["server"])
    served = found["served_model"]
    return name + (f", as {quoted(served)}" if served and served != found["model"] else "")


ROWS: dict[str, Callable[[Mapping[str, Any]], str | None]] = {
    "prompt": _prompt,
    "ended": _end,
    "tokens": _tokens,
    "canvases": _canvases,
    "time": _time,
    "weights": _weights,
    "device": _device,
    "kernels": _kernels,
    "graph": _graph,
    "streaming": _streaming,
    "memory": _memory,
    "constraint": _constraint,
    "choices": _probabilities,
    "blanks": _blanks,
    "lowered": _lowered,
    "server": _server,
}


def _table(canvases: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Each of a few canvases, or what many were like. Of one all is said already."""
    columns: dict[str, tuple[str, Callable[[float], str]]] = {
        "tokens": ("tokens", "{:g}".format),
        "steps": ("denoising_steps", "{:g}".format),
        "seconds": ("seconds", "{:.2f}".format),
    }
    if 1 < len(canvases) <= MOST_ROWS:
        yield ["canvas", *columns, "converged"]
        for i, canvas in enumerate(canvases):
            numbers = ((canvas[name], shown) for name, shown in columns.values())
            cells = ("" if number is None else shown(number) for number, shown in numbers)
            yield [str(i + 1), *cells, {True: "yes", False: "no"}.get(canvas["converged"], "")]
    elif canvases[1:]:
        yield ["of a canvas", "least", "median", "most"]
        for column, (name, shown) in columns.items():
            values = [canvas[name] for canvas in canvases if canvas[name] is not None]
            if values:
                yield [column, *map(shown, (min(values), median(values), max(values)))]


def _again(found: Mapping[str, Any]) -> Iterator[str]:
    """How the reply is made again."""
    same = ["prompt", *found["beside_the_prompt"]]
    if found["is_after_tools"]:
        # Without a seed each turn before it drew its own.
        yield filled("What it was asked with; what came before it and the results of tools count, too:")
    else:
        again = f"{'makes' if len(same) == 1 else 'make'} this reply again"
        where = ", as the same turn of the same conversation" if found["is_continued"] else ""
        # They hang on how much of the prompt was cached.
        but = ", but for its last digits" if _is_decision(found) else ""
        yield filled(f"On the same device the same {listed(same)} with these options {again}{where}{but}:")
    options = found["options"] | found["own_words"] | {"seed": found["seed"]}
    # On one line, to be copied.
    yield "    " + " ".join(f"-o {name} {_option(value)}" for name, value in options.items())


def _option(value: object) -> str:
    """As it is given on the command line, printable."""
    text = value if isinstance(value, str) else json.dumps(value)
    if "\n" not in text and printable(text) == text:
        return shlex.quote(text)
    # Where a shell reads escapes, or another draft would come of what is copied.
    escaped = text.replace("\\", r"\\").replace("'", r"\'").replace("\n", r"\n")
    return f"$'{printable(escaped)}'"
