"""What is in a replay's file, read without a browser."""

from __future__ import annotations

import base64
import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Data:
    replies: list[dict[str, Any]]
    strings: list[str]
    columns: bytes
    """of all canvases, as page.py has them"""


def read(file: Path) -> Data:
    (packed,) = re.findall(r'id="data">([A-Za-z0-9+/=]+)<', file.read_text(encoding="utf-8"))
    content = zlib.decompress(base64.b64decode(packed))
    size = 4 + int.from_bytes(content[:4], "little")
    head = json.loads(content[4:size])
    for reply in head["replies"]:
        reply["settings"], reply["figures"] = dict(reply["settings"]), dict(reply["figures"])
    return Data(head["replies"], head["strings"], content[size:])
