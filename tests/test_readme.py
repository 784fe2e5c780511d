"""What the README and the pages in docs/ print can be typed as it stands, and their links lead somewhere."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import click.testing
import llm.cli
import pytest

from llm_diffusiongemma.bench import replies
from llm_diffusiongemma.catalog import DECIDES_VARIABLE

from .conftest import TINY, Llm

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *DOCS]

FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
EXAMPLE = re.compile(
    r"(?:^<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<language>bash|python)\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Example:
    language: str
    code: str
    why_not_run: str | None


def examples(page: Path) -> list[Example]:
    found = EXAMPLE.finditer(page.read_text(encoding="utf-8"))
    return [Example(match["language"], match["code"], match["why"]) for match in found]


def commands(code: str) -> list[list[str]]:
    """The words of each command, of which the ends of `a && b` and the beginnings of `a | b` are ones, too.

    A quoted argument may go on over several lines. `|` is the last word of a command that is piped on.
    """
    found = []
    pending = ""
    for line in code.replace("\\\n", "").splitlines():
        pending += line
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quotation that is not closed yet
            pending += "\n"
            continue
        pending = ""
        command: list[str] = []
        for word in words:
            if word != "&&":
                command.append(word)
            if word in ("&&", "|"):
                found.append(command)
                command = []
        if command:
            found.append(command)
    assert not pending, code
    return found


def run(words: list[str], given: str | None, llm_command: Llm) -> str | None:
    """What a command prints; None if it prints nothing that the next one could be given."""
    match words:
        case ["pip", "install", "-e", *_]:
            return None  # whoever runs this has done that
        case ["echo", text, "|"]:
            return text + "\n"
        case ["python", "-c", program]:
            exec(compile(program, "<printed>", "exec"), {})
            return None
        case ["llm", "chat", *rest]:
            return llm_command.ok("chat", *rest, input="exit\n")
        case ["llm", *rest]:
            printed = llm_command.ok(*rest, input=given)
            # To the page's question that may come back empty, the network says a word or nothing.
            assert printed or "-m" not in rest or "--save" in rest or "Repeat: " in rest
            return printed
    pytest.fail(f"Nothing here runs {shlex.join(words)}. Say why before its block: <!-- not run: because -->")


@cache
def run_on_its_page() -> dict[Path, list[Example]]:
    """What is run of each page. What stands on several is run once, unless what follows it there may need it."""
    seen: set[str] = set()
    kept: dict[Path, list[Example]] = {}
    for page in PAGES:
        on_page = [example for example in examples(page) if example.why_not_run is None]
        while on_page and on_page[-1].code in seen:
            on_page.pop()
        seen |= {example.code for example in on_page}
        kept[page] = on_page
    return kept


def test_examples_were_found() -> None:
    assert len(run_on_its_page()[README]) >= 4
    assert sum(map(len, run_on_its_page().values())) >= 20


@pytest.mark.parametrize("page", [page for page in PAGES if run_on_its_page()[page]], ids=lambda page: page.name)
def test_examples_run_as_printed(
    page: Path,
    llm_command: Llm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One after the other, as by somebody who reads the page."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(replies, "Options", partial(replies.Options, max_denoising_steps=2))  # of a measurement
    monkeypatch.setenv(DECIDES_VARIABLE, "")  # an example sets it
    # What it says is no matter here.
    llm_command.ok("models", "options", "set", TINY, "max_denoising_steps", "2")
    llm_command.ok("models", "options", "set", TINY, "canvas_length", "64")
    for example in run_on_its_page()[page]:
        if example.language == "python":
            exec(compile(example.code, page.name, "exec", dont_inherit=True), {"__name__": "__main__"})
            assert not re.search(r"<\w*Response\b", capsys.readouterr().out)  # but the reply in it
            continue
        given = None
        for words in commands(example.code):
            given = run(words, given, llm_command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_not_run_can_be_read(page: Path) -> None:
    """Commands and options of that name exist, at least."""
    for example in examples(page):
        if example.language == "python":
            compile(example.code, page.name, "exec")
        elif example.why_not_run is not None:
            for words in commands(example.code):
                if words[0] == "llm":
                    command: click.Command = llm.cli.cli
                    rest = words[1:]
                    while isinstance(command, click.Group):
                        name = rest.pop(0) if rest[0] in command.commands else "prompt"
                        command = command.commands[name]
                    with click.testing.CliRunner().isolation(input="a key\n"):
                        command.make_context("llm", rest)


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").split()) <= 900


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them: words and hyphens of each heading."""
    found = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "tests/gpu/README.md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"`[^`]*`", "", FENCED.sub("", page.read_text(encoding="utf-8")))
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    dead = []
    for target in targets:
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in headings(file)):
            dead.append(target)
    assert dead == []


def test_every_page_can_be_found() -> None:
    text = README.read_text(encoding="utf-8")  # whose links have addresses in a release's archive
    assert [page.name for page in DOCS if f"docs/{page.name})" not in text] == []
