"""The command that a hint names installs from where the package came, into the environment that runs."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import click.testing
import llm.cli
import pytest

from llm_diffusiongemma import installation
from llm_diffusiongemma.installation import install_command

CLONE = Path(__file__).parents[1]


class Installed:
    """Stands for the metadata of an installed package."""

    def __init__(self, direct_url: dict[str, Any] | str | None) -> None:
        self.text = direct_url if isinstance(direct_url, str | None) else json.dumps(direct_url)

    def read_text(self, filename: str) -> str | None:
        assert filename == "direct_url.json"
        return self.text


def installed(monkeypatch: pytest.MonkeyPatch, *direct_urls: dict[str, Any] | str | None) -> None:
    """In the order of the path."""
    found = [Installed(direct_url) for direct_url in direct_urls]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda name: iter(found))


@pytest.fixture(autouse=True)
def _llm_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: str(Path(sys.executable).parent.resolve() / name))


@pytest.mark.parametrize(
    ("direct_url", "command"),
    [
        (None, "llm install 'llm-diffusiongemma[video]'"),
        ("{", "llm install 'llm-diffusiongemma[video]'"),
        ("[]", "llm install 'llm-diffusiongemma[video]'"),
        ({"url": "file:///gone/away", "dir_info": {}}, "llm install 'llm-diffusiongemma[video]'"),
        (
            {"url": CLONE.as_uri(), "dir_info": {"editable": True}},
            f"llm install -e {shlex.quote(f'{CLONE}[video]')}",
        ),
        ({"url": CLONE.as_uri(), "dir_info": {}}, f"llm install {shlex.quote(f'{CLONE}[video]')}"),
        (
            {"url": "https://host/x.git", "vcs_info": {"vcs": "git", "commit_id": "ab12"}},
            "llm install 'llm-diffusiongemma[video] @ git+https://host/x.git@ab12'",
        ),
        (
            {
                "url": "https://host/x.git",
                "vcs_info": {"vcs": "git", "commit_id": "ab12", "requested_revision": "v1"},
                "subdirectory": "py",
            },
            "llm install 'llm-diffusiongemma[video] @ git+https://host/x.git@v1#subdirectory=py'",
        ),
        (
            {"url": "file:///tmp/x.whl", "archive_info": {}},
            "llm install 'llm-diffusiongemma[video] @ file:///tmp/x.whl'",
        ),
    ],
)
def test_from_where_the_package_came(
    direct_url: dict[str, Any] | str | None, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, direct_url)
    assert install_command("video") == command


@pytest.mark.parametrize(
    ("direct_url", "command"),
    [
        (None, "llm install llm-diffusiongemma"),
        ({"url": "file:///tmp/x.whl", "archive_info": {}}, "llm install 'llm-diffusiongemma @ file:///tmp/x.whl'"),
        ({"url": CLONE.as_uri(), "dir_info": {}}, f"llm install {shlex.quote(str(CLONE))}"),
    ],
)
def test_without_an_extra(
    direct_url: dict[str, Any] | None, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, direct_url)
    assert install_command() == command


def test_a_folder_with_blanks_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a clone"
    folder.mkdir()
    origin = {"url": folder.as_uri(), "dir_info": {"editable": True}}
    installed(monkeypatch, origin)
    assert shlex.split(install_command("video")) == ["llm", "install", "-e", f"{folder}[video]"]


def test_a_clone_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    assert shlex.split(install_command("video")) == ["llm", "install", "-e", f"{CLONE}[video]"]


def test_traces_of_another_build_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """setuptools leaves a folder in a clone, which `python -m llm` finds first when it is run there."""
    installed(monkeypatch, None, {"url": CLONE.as_uri(), "dir_info": {"editable": True}})
    assert shlex.split(install_command()) == ["llm", "install", "-e", str(CLONE)]


@pytest.mark.parametrize("found", [None, "/somewhere/else/bin/llm"])
def test_the_python_that_runs(found: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `llm` on the path, or another environment's, would install where it helps nobody."""
    monkeypatch.setattr(shutil, "which", lambda name: found)
    assert shlex.split(install_command())[:4] == [sys.executable, "-m", "llm", "install"]


def test_llm_understands_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as pip, which is not run."""
    seen: list[list[str]] = []
    monkeypatch.setattr(llm.cli, "run_module", lambda name, run_name: seen.append(list(sys.argv)))
    monkeypatch.setattr(sys, "argv", [])
    origin = {"url": CLONE.as_uri(), "dir_info": {"editable": True}}
    monkeypatch.setattr(installation, "_origin", lambda: origin)
    command = shlex.split(install_command("video"))
    result = click.testing.CliRunner().invoke(llm.cli.cli, command[1:], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert seen == [["pip", "install", "--editable", f"{CLONE}[video]"]]
