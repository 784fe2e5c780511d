"""What is imported is declared, with bounds that were tried."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGE = "llm_diffusiongemma"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def bounds(requirements: list[str]) -> dict[str, str]:
    """The lower bound of each."""
    read = [Requirement(text) for text in requirements]
    return {
        normalized(each.name): next(bound.version for bound in each.specifier if bound.operator == ">=")
        for each in read
        if normalized(each.name) != normalized(PROJECT["name"])
    }


def imported() -> set[str]:
    """Top-level modules that the package imports, anywhere in it, without its own and Python's."""
    names = set()
    for file in (ROOT / PACKAGE).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {PACKAGE}


def test_what_is_imported_is_declared() -> None:
    extras = PROJECT["optional-dependencies"]
    declared = bounds(PROJECT["dependencies"] + extras["video"] + extras["serve"])
    distributions = importlib.metadata.packages_distributions()
    undeclared = {name for name in imported() if not {*map(normalized, distributions[name])} & declared.keys()}
    assert not undeclared


def test_the_lower_bounds_are_those_that_were_tried() -> None:
    """tests/oldest.txt is what the suite is run against by hand, and by the workflow."""
    lines = (ROOT / "tests" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    extras = PROJECT["optional-dependencies"]
    declared = bounds(PROJECT["dependencies"] + extras["video"] + extras["serve"])
    # The tests may want a later one than the product.
    declared |= {name: bound for name, bound in bounds(extras["test"]).items() if name in declared}
    assert {normalized(name): version for name, version in pins.items()} == declared
