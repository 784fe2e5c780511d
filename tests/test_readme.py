"""The README says what is so: its tables are generated, its commands run as printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from llm_diffusiongemma.options import Options

from .conftest import TINY, Llm

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    match = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", README, re.DOTALL)
    assert match, f"README.md has no block {name}"
    return match[1]


def test_option_table() -> None:
    """To renew it, put what this test expects between the two comments."""
    rows = [f"| `{name}` | {field.description} |" for name, field in Options.model_fields.items()]
    assert block("options") == "\n".join(["| Option | Meaning |", "| --- | --- |", *rows, ""])


def commands() -> list[list[str]]:
    """The words of every command that the README's examples give, a command at a time.

    A quoted argument may go on over several lines. What is piped into a command is left out, and `&&` ends one.
    """
    found = []
    for fenced in re.findall(r"```bash\n(.*?)```", README, re.DOTALL):
        pending = ""
        for line in fenced.splitlines():
            pending += line
            try:
                words = shlex.split(pending)
            except ValueError:  # a quotation that is not closed yet
                pending += "\n"
                continue
            pending = ""
            ends = [index for index, word in enumerate(words) if word in ("&&", "|")]
            found += [words[i + 1 : j] for i, j in zip([-1, *ends], [*ends, len(words)], strict=True)]
    return found


# Those that need nothing but the embedded checkpoint and what is printed before them.
RUN = [words for words in commands() if words[:3] == ["llm", "-m", TINY] and len(words) > 3]


def test_commands_were_found() -> None:
    assert len(RUN) >= 8


@pytest.mark.parametrize("words", RUN, ids=" ".join)
def test_command_runs_as_printed(
    llm_command: Llm, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "red.png" in words:
        (program,) = [words[2] for words in commands() if words[:2] == ["python", "-c"] and "red.png" in words[2]]
        exec(compile(program, "README.md", "exec"), {})
    assert llm_command.ok(*words[1:])
