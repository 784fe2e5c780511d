"""What is imported is declared, with bounds that were tried, and what is published is what belongs there."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import runpy
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGE = "llm_diffusiongemma"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAME = f"{PACKAGE}-{PROJECT['version']}"
URL = "https://host/owner/name"


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
    # A CUDA build of PyTorch brings its Triton, and elsewhere nothing imports it.
    names = imported() - {"triton"}
    undeclared = {name for name in names if not {*map(normalized, distributions[name])} & declared.keys()}
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


# --- what is published ---------------------------------------------------------------------------------------

# A file of another kind has strayed in, or is missing here.
KINDS = {".py", ".typed", ".json", ".jinja", ".safetensors", ".md", ".html", ".css", ".js"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = str(tmp_path_factory.mktemp("wheel"))
    return zipfile.ZipFile(next(WheelBuilder(str(ROOT)).build(directory=folder, versions=["standard"])))


def test_a_wheel_is_the_package_and_its_licences(wheel: zipfile.ZipFile) -> None:
    package = {path for path in (ROOT / PACKAGE).rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {path.suffix for path in package if path.name != "LICENSE"} <= KINDS
    about = [
        *("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"),
        f"licenses/{PACKAGE}/tiny/checkpoint/LICENSE",
    ]
    expected = {path.relative_to(ROOT).as_posix() for path in package}
    assert {*wheel.namelist()} == expected | {f"{NAME}.dist-info/{name}" for name in about}


def test_a_source_archive_has_the_tests_and_nothing_that_lies_about(tmp_path: Path) -> None:
    built = next(SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    with tarfile.open(built) as archive:
        names = {name.removeprefix(f"{NAME}/") for name in archive.getnames()}
    assert {name.partition("/")[0] for name in names} == {
        *(".github", "docs", PACKAGE, "tests"),
        *(".gitignore", "CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"),
    }
    assert {"tests/test_packaging.py", "docs/schemas.md", f"{PACKAGE}/tiny/checkpoint/model.safetensors"} <= names
    assert {Path(name).suffix for name in names} <= KINDS | {"", ".toml", ".txt", ".yml", ".svg", ".png"}


def test_the_wheel_says_what_an_index_shows(wheel: zipfile.ZipFile) -> None:
    about = message_from_bytes(wheel.read(f"{NAME}.dist-info/METADATA"))
    assert about["License-Expression"] == "Apache-2.0"
    classifiers = about.get_all("Classifier", [])
    # With an expression there must be none of a licence (PEP 639).
    assert not any(each.startswith("License") for each in classifiers)
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))
    python = "Programming Language :: Python :: "
    versions = [each.removeprefix(python) for each in classifiers if re.fullmatch(rf"{python}3\.\d+", each)]
    assert versions == workflow["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    assert about["Requires-Python"] == f">={versions[0]}"


@pytest.mark.skipif("urls" in PROJECT, reason="this is a release, and has them")
def test_a_release_has_the_addresses_of_where_it_is_made() -> None:
    """Nothing leads from an index to a file of the repository but a whole address."""
    release = runpy.run_path(str(ROOT / ".github" / "release.py"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    whole = release["with_whole_links"](readme, URL, "v1")
    addresses = re.findall(r"\]\(([^)]+)\)", whole)
    assert all(re.match("https?://", address) for address in addresses)
    ours = [address.removeprefix(f"{URL}/") for address in addresses if address.startswith(URL)]
    assert ours
    for address in ours:
        kind, tag, path = address.partition("#")[0].split("/", 2)
        assert (kind in ("blob", "raw"), tag) == (True, "v1")
        assert (ROOT / path).is_file()
    text = '<img alt="a" src="docs/a.svg"> ![b](docs/b.png) [c](#d) [e](f.md#g) <https://h>'
    assert release["with_whole_links"](text, URL, "v1") == (
        f'<img alt="a" src="{URL}/raw/v1/docs/a.svg"> ![b]({URL}/raw/v1/docs/b.png) '
        f"[c]({URL}/blob/v1/README.md#d) [e]({URL}/blob/v1/f.md#g) <https://h>"
    )
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    made = tomllib.loads(release["with_urls"](project, URL))
    assert made["project"].pop("urls")["Issues"] == f"{URL}/issues"
    assert made == tomllib.loads(project)


@pytest.mark.parametrize(
    ("tag", "changelog", "problem"),
    [
        ("v1.2", "# Changelog\n\n## 1.2 (2026-12-01)\n", None),
        ("v1.3", "## 1.2 (2026-12-01)\n", "The tag is v1.3"),
        ("1.2", "## 1.2 (2026-12-01)\n", "The tag is 1.2"),
        ("v1.2", "## 1.2 (unreleased)\n", "CHANGELOG.md has no section"),
        ("v1.2", "## 1.20 (2026-12-01)\n## 1x2 (2026-12-01)\n", "CHANGELOG.md has no section"),
    ],
)
def test_a_release_is_of_the_tag_and_in_the_changelog(tag: str, changelog: str, problem: str | None) -> None:
    check = runpy.run_path(str(ROOT / ".github" / "release.py"))["check"]
    if problem is None:
        check("1.2", tag, changelog)
    else:
        with pytest.raises(SystemExit, match=problem):
            check("1.2", tag, changelog)


def test_a_release_may_do_no_more_than_it_has_to() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8"))
    # YAML 1.1 reads `on` as a truth.
    assert workflow[True] == {"push": {"tags": ["v*"]}}
    jobs = workflow["jobs"]
    assert (workflow["permissions"], jobs["build"]["permissions"]) == ({}, {"contents": "read"})
    assert (jobs["publish"]["permissions"], jobs["publish"]["needs"]) == ({"id-token": "write"}, "build")
    assert jobs["publish"]["environment"] == "pypi"
    # What is published has passed the tests.
    assert (jobs["test"]["uses"], jobs["build"]["needs"]) == ("./.github/workflows/test.yml", "test")
    assert jobs["test"]["permissions"] == {"contents": "read"}
    used = [step["uses"] for job in jobs.values() for step in job.get("steps", []) if "uses" in step]
    assert all(re.search(r"@(release/)?v\d+$", each) for each in used)


def test_a_report_of_a_bug_has_what_is_needed() -> None:
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text(encoding="utf-8"))
    fields = {each["id"]: each for each in form["body"] if each["type"] != "markdown"}
    commands = [each["attributes"]["label"] for each in fields.values()]
    assert {"llm diffusiongemma status --json", "llm diffusiongemma last --json"} <= {*commands}
    assert {name for name, each in fields.items() if each.get("validations", {}).get("required")} == {
        *("done", "expected", "status"),
    }
