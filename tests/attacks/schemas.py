"""Random schemas of every draft: no text of their languages, and no document that they accept, may be invalid.

python -m tests.attacks schemas --count 50000

A case is a document. jsonschema judges it as it comes, but for `multipleOf`, which is decided in decimals.
"""

from __future__ import annotations

import copy
import json
import random
import warnings
from collections.abc import Iterator
from typing import Any

import referencing

from llm_diffusiongemma.errors import ConstraintError
from llm_diffusiongemma.grammar.samples import random_texts
from llm_diffusiongemma.grammar.schema import compile_schema

from ..grammar.wild import DRAFTS, NAMES, VALUES, in_decimals, wild_schema
from .outcome import Outcome


def run(count: int, seed: int, texts_each: int = 40, mutants_each: int = 40) -> Iterator[Outcome]:
    warnings.simplefilter("ignore")  # of patterns whose meaning Python will change
    dice = random.Random(seed)
    done = 0
    while done < count:
        draft = dice.choice(list(DRAFTS))
        schema = wild_schema(dice, draft)
        described = f"schema {json.dumps(schema)}"
        try:
            compiled = compile_schema(schema)
        except ConstraintError as error:
            yield Outcome("a schema", "refused", "bug" not in str(error), f"{error}\n{described}")
            continue
        except Exception as error:
            yield Outcome("a schema", f"raises {type(error).__name__}", False, described)
            continue
        yield Outcome("a schema", "compiled", True)
        judge = stock_judge(schema)
        texts = list(random_texts(compiled.dfa, texts_each, seed=dice.randrange(1 << 30), soft_length=40))
        for text in texts:
            document = json.loads(text)
            result = _judged(judge, document)
            held = result != "invalid" and compiled.validator.is_valid(document)
            yield Outcome("a text of its language", result, held, f"{text!r}\n{described}")
        for _ in range(mutants_each):
            document = mutated(dice, json.loads(dice.choice(texts)))
            accepted = compiled.dfa.accepts(json.dumps(document, ensure_ascii=False).encode())
            result = _judged(judge, document)
            held = not accepted or (result != "invalid" and compiled.validator.is_valid(document))
            kind = f"a changed document, {'' if accepted else 'not '}accepted"
            yield Outcome(kind, result, held, f"{document!r}\n{described}")
        done += texts_each + mutants_each


def stock_judge(schema: dict[str, Any]) -> Any:
    """jsonschema's own class but for multiples, which fetches nothing."""
    dialect = in_decimals(DRAFTS[schema["$schema"]])
    # It overlooks an empty pattern; and where it meets a $schema again, it takes its class without our keyword.
    text = json.dumps({**schema, "$schema": ""}).replace('"patternProperties": {"":', '"patternProperties": {"^":')
    return dialect(json.loads(text), registry=referencing.Registry())


def _judged(judge: Any, document: Any) -> str:
    try:
        return "valid" if judge.is_valid(document) else "invalid"
    except Exception:
        return "not judged"  # what it stumbles over


def mutated(dice: random.Random, document: Any) -> Any:
    """A document with one thing in it changed."""
    document = copy.deepcopy(document)
    holders = [document] if isinstance(document, dict | list) else []
    for holder in holders:
        holders += [each for each in (holder.values() if isinstance(holder, dict) else holder) if _holds(each)]
    if not holders or dice.random() < 0.1:
        return _changed(dice, document)
    holder = dice.choice(holders)
    names: list[Any] = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    match dice.choice(("add", "remove", "change", "change")):
        case "remove" if names:
            del holder[dice.choice(names)]
        case "change" if names:
            name = dice.choice(names)
            holder[name] = _changed(dice, holder[name])
        case _ if isinstance(holder, dict):
            holder[dice.choice(NAMES)] = copy.deepcopy(dice.choice(VALUES))
        case _:
            holder.insert(dice.randint(0, len(holder)), copy.deepcopy(dice.choice([*VALUES, *holder])))
    return document


def _holds(value: Any) -> bool:
    return isinstance(value, dict | list)


def _changed(dice: random.Random, value: Any) -> Any:
    if isinstance(value, str) and dice.random() < 0.7:
        place = dice.randint(0, len(value))
        return value[:place] + dice.choice(("a", "x", "é", "1", "")) + value[place + dice.randint(0, 1) :]
    if isinstance(value, int | float) and not isinstance(value, bool) and dice.random() < 0.7:
        return dice.choice((value + 1, value - 1, value * 2, value / 2, -value))
    return copy.deepcopy(dice.choice(VALUES))
