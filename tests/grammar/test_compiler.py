"""What a schema may take before anything is drawn, and what the process is left as."""

from __future__ import annotations

import gc
import os
import threading
import warnings
from typing import Any

import pytest

from llm_diffusiongemma.errors import ConstraintError
from llm_diffusiongemma.grammar import fitting
from llm_diffusiongemma.grammar.compiler import MADE_STATES_OF_VISIT, MAX_VISITS, Compiler
from llm_diffusiongemma.grammar.dialects import read_schema
from llm_diffusiongemma.grammar.fitting import DOCUMENT
from llm_diffusiongemma.grammar.garbage import without_collecting
from llm_diffusiongemma.grammar.language import StateLimitError
from llm_diffusiongemma.grammar.layout import Layout
from llm_diffusiongemma.grammar.places import LIMITS, Place
from llm_diffusiongemma.grammar.schema import compile_schema


def compiler_of(schema: Any) -> Compiler:
    return Compiler(read_schema(schema), LIMITS[-1], Layout.ONE_LINE)


def visits(schema: Any) -> int:
    compiler = compiler_of(schema)
    compiler.language(DOCUMENT, Place())
    return compiler.visits


def test_what_is_made_counts_once() -> None:
    compiler = compiler_of(True)
    for what in ("one", "one", "other"):
        compiler.made(what, 10 * MADE_STATES_OF_VISIT)
    assert compiler.visits == 20
    with pytest.raises(StateLimitError, match="places and choices"):
        compiler.made("much", MAX_VISITS * MADE_STATES_OF_VISIT)


def test_products_count_the_same_whatever_has_been_made_before() -> None:
    counted = {"type": "string", "maxLength": 24}
    product = {**counted, "pattern": "^(a|bc)*$"}
    twice = {"type": "object", "properties": {"a": product, "b": {**product}}}
    first = visits(product)
    assert first == visits(product) > visits(counted)
    assert visits(twice) < 2 * first


def test_that_a_large_schema_is_looked_at_first_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that fit as they are, or though the tightest limits refuse them, or if they are lowered."""
    nine = {"type": "array", "items": {"type": "string"}, "uniqueItems": True, "minItems": 9}
    with pytest.raises(ConstraintError, match="kept different"):
        compiler_of(nine).language(DOCUMENT, Place())
    texts = {f"p{number}": {"type": "string", "maxLength": 600} for number in range(14)}
    for schema in ({"type": "boolean"}, nine, {"type": "object", "properties": texts}):
        found = []
        for large in (0, 1 << 30):
            monkeypatch.setattr(fitting, "LARGE", large)
            compiled = compile_schema(schema)
            found.append((compiled.dfa.moves.tobytes(), compiled.dfa.accepting.tobytes(), compiled.lowered))
        assert found[0] == found[1]
    assert found[0][2]


def test_the_collector_wakes_when_the_last_one_goes() -> None:
    """In a forked process nobody is left."""
    inside, done = threading.Event(), threading.Event()

    def wait() -> None:
        with without_collecting():
            inside.set()
            done.wait(60)

    other = threading.Thread(target=wait)
    other.start()
    assert inside.wait(60)
    compile_schema({"type": "null"})
    assert not gc.isenabled()
    if hasattr(os, "fork"):
        with warnings.catch_warnings(action="ignore"):  # from Python 3.12 on: there are other threads
            child = os.fork()
        if not child:
            os._exit(gc.isenabled())
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    done.set()
    other.join(60)
    assert gc.isenabled()


def test_a_collector_that_was_at_rest_stays_so() -> None:
    gc.disable()
    try:
        compile_schema({"type": "null"})
        assert not gc.isenabled()
    finally:
        gc.enable()
