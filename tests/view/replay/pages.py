"""What is in a replay's file, read without a browser."""

from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any


def read(file: Path) -> list[dict[str, Any]]:
    """Its replies; the `columns` of each are those of all its canvases, as page.py has them."""
    (lines,) = re.findall(r'id="data">([A-Za-z0-9+/=\n]+)<', file.read_text(encoding="utf-8"))
    return [_unpacked(line) for line in lines.split("\n")]


def _unpacked(line: str) -> dict[str, Any]:
    content = zlib.decompress(base64.b64decode(line))
    size = 4 + int.from_bytes(content[:4], "little")
    reply = json.loads(content[4:size])
    reply["settings"], reply["figures"] = dict(reply["settings"]), dict(reply["figures"])
    return {**reply, "columns": content[size:]}
