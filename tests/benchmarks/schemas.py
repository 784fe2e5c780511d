"""How many of a collection's schemas a reply can be held to, and how much of what they allow can be written.

    python -m tests.benchmarks.schemas PATH... [--weights FILE] [--show]

A path is a folder or a file: JSON, or JSON lines, with or without .gz. A file or a line holds

- `{"schema": ..., "tests": [{"data": ..., "valid": true}, ...]}`, as in MaskBench; `file` is its name, if there;
- a list of those, as in the JSON Schema Test Suite;
- or a schema alone, of which only is asked whether it compiles.

A schema passes if every valid instance of it is writable, as `json.dumps` writes it with or without spaces, and
no invalid one is. A group is what stands before `---` in a name, or before the first `_` of one that ends in a
number (`JME_1.json`: JME); in a folder of folders it is the folder. Nothing is fetched, and no model is loaded.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import itertools
import json
import re
import signal
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_diffusiongemma.errors import ConstraintError
from llm_diffusiongemma.grammar.dfa import ByteDFA
from llm_diffusiongemma.grammar.schema import compile_schema

LIMIT_SECONDS = 10.0
SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


@dataclass(frozen=True)
class Case:
    """A schema with instances."""

    group: str
    name: str
    schema: Any
    valid: Sequence[Any] = ()
    invalid: Sequence[Any] = ()


@dataclass(frozen=True)
class Outcome:
    """What came of a case."""

    seconds: float
    states: int | None = None
    """None if it was not compiled"""
    refusal: str = ""
    bug: bool = False
    """It was not compiled, and nobody said why in a sentence."""
    unwritable: tuple[str, ...] = ()
    """valid instances; `‖` is where the language ends"""
    accepted: tuple[str, ...] = ()
    """invalid instances"""
    lowered: tuple[str, ...] = ()

    @property
    def passes(self) -> bool:
        return self.states is not None and not self.unwritable and not self.accepted


@dataclass
class Row:
    """A group's outcomes."""

    outcomes: list[Outcome] = field(default_factory=list)

    def share(self, what: str) -> float:
        """Percent of those that compile, or pass."""
        held = [each.passes if what == "passes" else each.states is not None for each in self.outcomes]
        return 100 * sum(held) / len(held)


def read_cases(paths: Sequence[Path], schema_uri: str | None = None) -> Iterator[Case]:
    """All schemas under the paths, in the order of their names; `schema_uri` is the `$schema` of those without."""
    for path in paths:
        files = [path]
        if path.is_dir():
            files = sorted(each for each in path.rglob("*") if each.name.endswith(SUFFIXES) and each.is_file())
        for file in files:
            folder = file.parent.name if path.is_dir() and file.parent != path else ""
            for name, content in _contents(file):
                yield from _cases_of(content, folder, name, schema_uri)


def _contents(file: Path) -> Iterator[tuple[str, Any]]:
    name = file.name.removesuffix(".gz")
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as stream:
        if not name.endswith(".jsonl"):
            yield name, json.load(stream)
            return
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield f"{name}:{number}", json.loads(line)


def _cases_of(content: Any, folder: str, name: str, schema_uri: str | None) -> Iterator[Case]:
    if isinstance(content, list):
        for each in content:
            yield from _cases_of(
                each, folder or _group(name), f"{name}: {each.get('description', '')}", schema_uri
            )
        return
    tests: list[dict[str, Any]] = []
    schema = content
    if isinstance(content, dict) and "schema" in content and isinstance(content.get("tests"), list):
        schema, tests = content["schema"], content["tests"]
        name = content.get("file", name)
    if schema_uri is not None and isinstance(schema, dict):
        schema = {"$schema": schema_uri, **schema}
    yield Case(
        folder or _group(name),
        name,
        schema,
        [test["data"] for test in tests if test["valid"]],
        [test["data"] for test in tests if not test["valid"]],
    )


def _group(name: str) -> str:
    before, found, _ = name.partition("---")
    if found:
        return before
    numbered = re.match(r"([^_]+)_.*\d+(_Normalized)?\.json$", name)
    return numbered[1] if numbered else name.partition(".")[0]


def measure(case: Case, limit_seconds: float = LIMIT_SECONDS) -> Outcome:
    """Compile a schema, and look which of its instances can be written."""
    started = time.perf_counter()
    try:
        with _ended_after(limit_seconds):
            compiled = compile_schema(case.schema)
    except ConstraintError as error:
        return Outcome(time.perf_counter() - started, refusal=str(error))
    except Exception as error:
        return Outcome(time.perf_counter() - started, refusal=f"{type(error).__name__}: {error}", bug=True)
    seconds = time.perf_counter() - started
    dfa = compiled.dfa
    return Outcome(
        seconds,
        dfa.dead,
        unwritable=tuple(_shown(dfa, each) for each in case.valid if not _is_writable(dfa, each)),
        accepted=tuple(
            _texts(each)[0].decode(errors="replace") for each in case.invalid if _is_writable(dfa, each)
        ),
        lowered=tuple(each.keyword for each in compiled.lowered),
    )


@contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _texts(document: Any) -> list[bytes]:
    return [
        json.dumps(document, ensure_ascii=False, separators=separators).encode("utf-8", "surrogatepass")
        for separators in ((", ", ": "), (",", ":"))
    ]


def _is_writable(dfa: ByteDFA, document: Any) -> bool:
    return any(map(dfa.accepts, _texts(document)))


def _shown(dfa: ByteDFA, document: Any) -> str:
    """What can't be written: where its text leaves the language, with what stands around."""
    text = _texts(document)[0]
    states = itertools.accumulate(text, lambda state, byte: int(dfa.moves[state, dfa.byte_kind[byte]]), initial=0)
    place = sum(state != dfa.dead for state in states) - 1
    parts = text[max(0, place - 60) : place], text[place : place + 40]
    return " ‖ ".join(part.decode(errors="replace") for part in parts)


HEAD = (
    *("", "Schemas", "Compile", "Pass", "Invalid accepted", "No sentence", "Lowered"),
    *("ms, median", "worst", "States, median", "most"),
)


def table(rows: dict[str, Row], weights: dict[str, float] | None = None) -> str:
    """A line a group, and one of all: each schema counts alike, or each group by its weight."""
    lines = [f"| {' | '.join(HEAD)} |", "|" + " --- |" * len(HEAD)]
    lines += [_line(name, row) for name, row in sorted(rows.items())]
    lines.append(_line("all", Row([each for row in rows.values() for each in row.outcomes])))
    if weights:
        known = {name: weights[name] for name in rows if name in weights}
        whole = sum(known.values()) or 1.0
        shares = [
            sum(weight * rows[name].share(what) for name, weight in known.items()) / whole
            for what in ("compiles", "passes")
        ]
        lines.append(f"| by weight | | {shares[0]:.1f} % | {shares[1]:.1f} % |" + " |" * (len(HEAD) - 4))
    return "\n".join(lines)


def _line(name: str, row: Row) -> str:
    outcomes = row.outcomes
    states = [each.states for each in outcomes if each.states is not None] or [0]
    milliseconds = [1000 * each.seconds for each in outcomes]
    cells = (
        name,
        f"{len(outcomes):,}",
        f"{row.share('compiles'):.1f} %",
        f"{row.share('passes'):.1f} %",
        str(sum(len(each.accepted) for each in outcomes)),
        str(sum(each.bug for each in outcomes)),
        str(sum(bool(each.lowered) for each in outcomes)),
        f"{statistics.median(milliseconds):,.0f}",
        f"{max(milliseconds):,.0f}",
        f"{statistics.median(states):,.0f}",
        f"{max(states):,}",
    )
    return f"| {' | '.join(cells)} |"


def reasons(outcomes: Sequence[Outcome]) -> str:
    """Why schemas were refused, and what was lowered in others: the most frequent first."""
    refused = collections.Counter(_reason(each.refusal) for each in outcomes if each.refusal)
    lowered = collections.Counter(keyword for each in outcomes for keyword in set(each.lowered))
    lines = [f"| Refused | Schemas |\n| --- | --- |\n{_counted(refused)}"] if refused else []
    lines += [f"| Lowered | Schemas |\n| --- | --- |\n{_counted(lowered)}"] if lowered else []
    return "\n\n".join(lines)


def _reason(refusal: str) -> str:
    """A refusal without what is of one schema only."""
    text = re.sub(r"(?<= at )\S+", "…", refusal.partition(". ")[0])
    return re.sub(r"(?<![a-z])(['\"]).*\1|\(.*?\)", "…", text)[:100]


def _counted(found: collections.Counter[str]) -> str:
    return "\n".join(f"| {name} | {count} |" for name, count in found.most_common(12))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.schemas",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    parser.add_argument("--weights", type=Path, help="a JSON object: the size of each group")
    parser.add_argument("--group", action="append", help="this group only; again for others")
    parser.add_argument("--schema", metavar="URI", help="the $schema of schemas that name none")
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, help="seconds for each schema (10)")
    parser.add_argument("--show", action="store_true", help="say of each schema that doesn't pass what is wrong")
    asked = parser.parse_args(arguments)
    if missing := [path for path in asked.paths if not path.exists()]:
        parser.error(f"there is no {missing[0]}")
    weights = json.loads(asked.weights.read_text(encoding="utf-8")) if asked.weights else None
    warnings.simplefilter("ignore")
    rows: dict[str, Row] = {}
    for case in read_cases(asked.paths, asked.schema):
        if asked.group and case.group not in asked.group:
            continue
        outcome = measure(case, asked.limit)
        rows.setdefault(case.group, Row()).outcomes.append(outcome)
        if asked.show:
            for kind, found in (
                ("refused", [outcome.refusal] if outcome.refusal else []),
                ("not writable", outcome.unwritable),
                ("INVALID ACCEPTED", outcome.accepted),
            ):
                for each in found:
                    print(f"{case.name}  {kind}: {each}", flush=True)
    if not rows:
        print("No schemas there.", file=sys.stderr)
        return 1
    outcomes = [each for row in rows.values() for each in row.outcomes]
    print(f"{table(rows, weights)}\n\n{reasons(outcomes)}")
    return 1 if any(each.accepted or each.bug for each in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
