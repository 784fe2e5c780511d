"""The benchmark of coverage reads what collections are made of, and counts it right."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from llm_diffusiongemma.errors import ConstraintError

from . import schemas

YES = {"schema": {"enum": ["a", 1]}, "tests": [{"data": "a", "valid": True}, {"data": "b", "valid": False}]}
REFUSED = {"schema": {"$ref": "#/nowhere"}, "tests": [{"data": 1, "valid": True}]}
# What is told apart by the instances only: nothing is wrong with the schema.
UNWRITABLE = {"schema": {"type": "null"}, "tests": [{"data": 1, "valid": True}]}
INVALID = {"schema": {"type": "null"}, "tests": [{"data": None, "valid": False}]}


def lines(*contents: Any) -> str:
    return "".join(json.dumps(each) + "\n" for each in contents)


def test_a_collection(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "Easy---1.json").write_text(json.dumps(YES))
    (tmp_path / "JME_12.json").write_text(json.dumps(REFUSED))
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "type.json").write_text(json.dumps([{"description": "of a type", **UNWRITABLE}]))
    (tmp_path / "suite" / "bare.json").write_text('{"type": "string", "maxLength": 5}')
    (tmp_path / "notes.txt").write_text("no schema")
    with gzip.open(tmp_path / "more.jsonl.gz", "wt") as stream:
        stream.write(lines({"file": "Easy---2.json", **INVALID}, {"file": "Hard---1.json", **YES}))
    weights = tmp_path / "sizes"
    weights.write_text('{"Easy": 30, "JME": 10, "unseen": 5}')
    assert schemas.main([str(tmp_path), "--weights", str(weights), "--show"]) == 1
    out = capsys.readouterr().out
    found = {line.split("|")[1].strip(): line.split("|")[2:6] for line in out.splitlines() if line.startswith("|")}
    counts = {name: [cell.strip() for cell in cells] for name, cells in found.items()}
    assert counts["Easy"] == ["2", "100.0 %", "50.0 %", "1"]
    assert counts["Hard"] == ["1", "100.0 %", "100.0 %", "0"]
    assert counts["JME"] == ["1", "0.0 %", "0.0 %", "0"]
    assert counts["suite"] == ["2", "100.0 %", "50.0 %", "0"]
    assert counts["all"] == ["6", "83.3 %", "50.0 %", "1"]
    assert counts["by weight"] == ["", "75.0 %", "37.5 %", ""]
    assert "JME_12.json  refused: The $ref" in out
    assert "type.json: of a type  not writable:  ‖ 1\n" in out
    assert "Easy---2.json  INVALID ACCEPTED: null\n" in out


def test_what_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks_down(schema: Any) -> None:
        raise ConstraintError("no") if schema else KeyError("x")

    monkeypatch.setattr(schemas, "compile_schema", breaks_down)
    broken, refused = schemas.measure(schemas.Case("", "", {})), schemas.measure(schemas.Case("", "", True))
    assert (broken.bug, broken.refusal, broken.passes) == (True, "KeyError: 'x'", False)
    assert (refused.bug, refused.refusal) == (False, "no")


def test_what_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    def never_ends(schema: Any) -> None:
        while True:
            pass

    monkeypatch.setattr(schemas, "compile_schema", never_ends)
    outcome = schemas.measure(schemas.Case("", "", True), limit_seconds=0.01)
    assert outcome.bug
    assert outcome.refusal.startswith("TimeoutError")


def test_the_draft_of_schemas_that_name_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(lines({"type": "null"}))
    (tmp_path / "b.json").write_text(lines({"$schema": "http://json-schema.org/draft-07/schema#"}))
    found = [case.schema["$schema"] for case in schemas.read_cases([tmp_path], "urn:draft-04")]
    assert found == ["urn:draft-04", "http://json-schema.org/draft-07/schema#"]


def test_nothing_to_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert schemas.main([str(tmp_path)]) == 1
    assert "No schemas" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        schemas.main([str(tmp_path / "absent")])
