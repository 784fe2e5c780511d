"""How a server is to run: what its commands accept, and what is handed on to one in the background."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from ..wording import quoted

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8642
DEFAULT_KEEP_ALIVE_SECONDS = 600.0
DEFAULT_QUEUE = 8

NEVER = "never"
DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m|h)?", re.ASCII)
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Settings:
    """How a server is to run."""

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    """0 takes a free one."""
    key_name: str | None = None
    """A key of `llm keys` that it takes besides its token."""
    keep_alive_seconds: float | None = DEFAULT_KEEP_ALIVE_SECONDS
    """After so long without a prompt it lets the weights go; None: never."""
    queue: int = DEFAULT_QUEUE
    """So many replies may wait."""
    allowed_hosts: tuple[str, ...] = ()
    """By what names it may be asked, besides its own."""
    ends_when_idle: bool = False
    """For prompts only: it listens on its Unix socket alone, loads with the first, and goes with the weights."""
    is_detached: bool = False
    """In the background: it says to who started it how it goes, on stdout (see `launch.Message`)."""

    @property
    def is_local(self) -> bool:
        """Whether only this machine can ask."""
        return self.host.lower() == "localhost" or self._is("is_loopback")

    @property
    def is_everywhere(self) -> bool:
        """Whether it listens at all of this machine's addresses, and has no own by which it can be asked."""
        return not self.host or self._is("is_unspecified")

    def _is(self, kind: str) -> bool:
        """Whether its host is an address of that kind; a name isn't."""
        from ipaddress import ip_address

        try:
            return bool(getattr(ip_address(self.host), kind))
        except ValueError:
            return False

    def arguments(self) -> list[str]:
        """The same for the command line of `python -m llm_diffusiongemma.server`."""
        return [
            *("--host", self.host, "--port", str(self.port), "--queue", str(self.queue)),
            *("--keep-alive", duration_text(self.keep_alive_seconds)),
            *(("--key", self.key_name) if self.key_name is not None else ()),
            *(part for name in self.allowed_hosts for part in ("--allow-host", name)),
            *(("--ends-when-idle",) if self.ends_when_idle else ()),
            *(("--detached",) if self.is_detached else ()),
        ]


def read_duration(text: str) -> float | None:
    """Seconds; None for `never`. Raises `ValueError`."""
    if text == NEVER:
        return None
    match = DURATION.fullmatch(text)
    if match is None:
        raise ValueError
    return float(match[1]) * UNIT_SECONDS[match[2] or "s"]


def duration_text(seconds: float | None) -> str:
    """What `read_duration` reads, in the largest unit that it is a whole number of."""
    if seconds is None:
        return NEVER
    unit = next((unit for unit in "hm" if seconds and seconds % UNIT_SECONDS[unit] == 0), "s")
    return f"{seconds / UNIT_SECONDS[unit]:g}{unit}"


class _Duration(click.ParamType[float | None]):
    """Such as 10m. None, which click has for an option that isn't there, is `NEVER` here."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        try:
            return read_duration(str(value))
        except ValueError:
            self.fail(f"{quoted(repr(value), 60)} is no time: write 90s, 10m, 2h, 0 or {NEVER}.", param, ctx)


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options by which a user says how a server is to run, made one argument `settings`."""

    @click.option("--host", default=DEFAULT_HOST, show_default=True, help="The address that it listens at")
    @click.option(
        "--port",
        type=click.IntRange(0, 65535),
        default=DEFAULT_PORT,
        show_default=True,
        help="And the port; 0 takes a free one",
    )
    @click.option("--key", "key_name", metavar="NAME", help="A key of `llm keys` that it takes besides its token")
    @click.option(
        "--keep-alive",
        "keep_alive_seconds",
        type=_Duration(),
        metavar="TIME",
        default=duration_text(DEFAULT_KEEP_ALIVE_SECONDS),
        show_default=True,
        help="How long the weights stay after a reply, such as 90s, 10m or 2h; 0 lets them go at once, and "
        f"{NEVER} never",
    )
    @click.option(
        "--queue",
        type=click.IntRange(0, 1000),
        default=DEFAULT_QUEUE,
        show_default=True,
        help="How many prompts may wait while one is answered",
    )
    @click.option(
        "--allow-host",
        "allowed_hosts",
        metavar="NAME",
        multiple=True,
        help="A name that it is asked by, besides its address",
    )
    @functools.wraps(command)
    def with_settings(
        *arguments: Any,
        host: str,
        port: int,
        key_name: str | None,
        keep_alive_seconds: float | None,
        queue: int,
        allowed_hosts: tuple[str, ...],
        **others: Any,
    ) -> Any:
        settings = Settings(host, port, key_name, keep_alive_seconds, queue, allowed_hosts)
        return command(*arguments, settings=settings, **others)

    return with_settings
