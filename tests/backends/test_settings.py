"""How a server is to run."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from llm_diffusiongemma.backends.settings import Settings, duration_text, read_duration, settings_options
from llm_diffusiongemma.server.__main__ import main


@pytest.mark.parametrize(
    ("text", "seconds", "again"),
    [
        ("10m", 600, "10m"),
        ("90s", 90, "90s"),
        ("90", 90, "90s"),
        ("120s", 120, "2m"),
        ("1.5h", 5400, "90m"),
        ("2h", 7200, "2h"),
        ("0", 0, "0s"),
        ("0.5s", 0.5, "0.5s"),
        ("never", None, "never"),
    ],
)
def test_durations(text: str, seconds: float | None, again: str) -> None:
    assert read_duration(text) == seconds
    assert duration_text(seconds) == again
    assert read_duration(again) == seconds


@pytest.mark.parametrize("text", ["", "m", "10 m", "-1m", "1d", "10m30s", "inf", "١m"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"^$"):
        read_duration(text)
    shown = CliRunner().invoke(_command, ["--keep-alive", text])
    assert shown.exit_code == 2
    assert "is no time: write 90s, 10m, 2h, 0 or never." in shown.stderr


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings("::1", 0, "a-key", None, 0, ("one", "two"), True, True),
        Settings(keep_alive_seconds=0.0),
    ],
)
def test_a_command_line_says_the_same(settings: Settings) -> None:
    values = main.make_context("server", ["a-model", *settings.arguments()]).params
    assert values.pop("model_id") == "a-model"
    assert Settings(**values) == settings


@pytest.mark.parametrize("option", ["--ends-when-idle", "--detached"])
def test_what_is_no_users_to_say(option: str) -> None:
    assert f"No such option '{option}'" in CliRunner().invoke(_command, [option]).stderr


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        *((host, True) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST")),
        *((host, False) for host in ("0.0.0.0", "::", "192.168.1.5", "example.org", "127.0.0.1.example.org", "")),
    ],
)
def test_who_can_ask(host: str, is_local: bool) -> None:
    assert Settings(host).is_local is is_local
    assert Settings(host).is_everywhere is (host in ("0.0.0.0", "::", ""))


@click.command()
@settings_options
def _command(settings: Settings) -> Settings:
    return settings
