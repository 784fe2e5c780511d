"""What attachments cost at the most, each in a process of its own: 300 MB and 10 s more than a small picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ..attacks.cost import MAX_BYTES, MAX_SECONDS
from ..attacks.media import film


def plain(size: tuple[int, int], file_format: str, mode: str = "RGB", **how: Any) -> Callable[[Path], None]:
    return lambda path: Image.new(mode, size).save(path, file_format, **how)


TURNED = Image.Exif()
TURNED[0x0112] = 6
# As cameras and telephones make them, and what takes the most that is let in; plain ones take as much as others.
ACCEPTED = {
    "24 million pixels.png": plain((6000, 4000), "png", compress_level=1),
    "108 million pixels.jpeg": plain((12_000, 9000), "jpeg", exif=TURNED),
    "progressive.jpeg": plain((6000, 4000), "jpeg", progressive=True, subsampling=0),
    "12 million pixels.webp": plain((4096, 3072), "webp", method=0),
    "4K.mp4": lambda path: path.write_bytes(film("mp4", "mpeg4", size=(3840, 2160), frames=2)),
}


@pytest.mark.skipif(sys.platform == "win32", reason="measures as Unix does")
def test_what_is_accepted_costs_little(tmp_path: Path) -> None:
    """Decoded and made smaller. To cut pictures into patches takes less, and twice as long to import."""
    pytest.importorskip("av", reason="needs the video extra")
    for name, make in ACCEPTED.items():
        make(tmp_path / name)
    process = subprocess.run(
        [
            *(sys.executable, "-m", "tests.attacks.cost"),
            *(
                f"{'video' if name.endswith('mp4') else 'image'}/{name.rpartition('.')[2]}={name}"
                for name in ACCEPTED
            ),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    costs = dict(zip(ACCEPTED, map(json.loads, process.stdout.splitlines()), strict=True))
    assert {name: cost["result"] for name, cost in costs.items()} == dict.fromkeys(ACCEPTED, "pictures")
    assert not {
        name: cost for name, cost in costs.items() if cost["bytes"] > MAX_BYTES or cost["seconds"] > MAX_SECONDS
    }
    # It is the decoding that was measured.
    assert costs["24 million pixels.png"]["bytes"] > 96_000_000
