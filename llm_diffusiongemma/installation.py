"""How this package was installed, for advice that can be followed, and beside what, for reports of problems."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

DISTRIBUTION = "llm-diffusiongemma"
# What a problem may be of.
PACKAGES = (DISTRIBUTION, "llm", "torch", "triton", "transformers", "tokenizers", "safetensors")


def versions() -> dict[str, str]:
    """Of the packages that matter, as far as they are installed, and what they run on."""
    found = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def system() -> str:
    """The system and its processor, by their kinds."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def install_command(extra: str | None = None) -> str:
    """The command that installs this package again from where it came, with an extra or what is missing.

    A clone is not on a registry, and another `pip` on the path may belong to another Python: `llm install` runs
    the pip of the environment that `llm` is in.
    """
    extras = f"[{extra}]" if extra else ""
    return _shell([*_llm(), "install", *_arguments(_origin(), extras)])


def _llm() -> list[str]:
    """`llm` if that is the one of the running Python, else by that Python's name."""
    found = shutil.which("llm")
    if found and Path(found).resolve().parent == Path(sys.executable).parent.resolve():
        return ["llm"]
    return [sys.executable, "-m", "llm"]


def _origin() -> dict[str, Any]:
    """Where the package was installed from, as its direct_url.json (PEP 610) says it; {} for an index."""
    # A folder on the path may hold the traces of another build, which say nothing of it.
    said = [found.read_text("direct_url.json") for found in importlib.metadata.distributions(name=DISTRIBUTION)]
    if not said:
        # Not installed: a clone on the path.
        return {"url": Path(__file__).parent.parent.as_uri(), "dir_info": {"editable": True}}
    text = next(filter(None, said), None)
    try:
        origin = json.loads(text or "{}")
    except ValueError:
        return {}
    return origin if isinstance(origin, dict) and isinstance(origin.get("url"), str) else {}


def _arguments(origin: dict[str, Any], extras: str) -> list[str]:
    url = origin.get("url")
    if url is None:
        return [DISTRIBUTION + extras]
    if "dir_info" in origin:
        folder = url2pathname(urlsplit(url).path)
        if not Path(folder).is_dir():  # installed from a clone that has been deleted or moved
            return [DISTRIBUTION + extras]
        is_editable = bool((origin["dir_info"] or {}).get("editable"))
        return [*(["-e"] if is_editable else []), folder + extras]
    if vcs := origin.get("vcs_info"):
        commit = vcs.get("requested_revision") or vcs.get("commit_id")
        url = f"{vcs.get('vcs', 'git')}+{url}" + (f"@{commit}" if commit else "")
    if subdirectory := origin.get("subdirectory"):
        url += f"#subdirectory={subdirectory}"
    return [f"{DISTRIBUTION}{extras} @ {url}"]


def _shell(command: list[str]) -> str:
    """A command to be pasted, in the quotes that this system's shell takes."""
    return subprocess.list2cmdline(command) if os.name == "nt" else shlex.join(command)
