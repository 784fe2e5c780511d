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


COMMANDS = [
    part.strip()
    for fenced in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in fenced.splitlines()
    for part in line.split("&&")
    if part.strip().startswith(f"llm -m {TINY}")
]


def test_commands_were_found() -> None:
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("command", COMMANDS)
def test_command_runs_as_printed(llm_command: Llm, command: str) -> None:
    assert llm_command.ok(*shlex.split(command)[1:])
