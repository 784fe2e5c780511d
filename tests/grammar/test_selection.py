"""What was refused or narrowed beyond use, and can be asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_diffusiongemma.grammar.schema import compile_schema

from .selection import SELECTION, Case


def encoded(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode()


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in SELECTION])
def test_the_selection(case: Case) -> None:
    compiled = compile_schema(case.schema)
    for document in case.writable:
        assert compiled.dfa.accepts(encoded(document)), document
        assert compiled.validator.is_valid(document), document
    for document in case.unwritable:  # of formats the validator knows nothing
        assert not compiled.dfa.accepts(encoded(document)), document
