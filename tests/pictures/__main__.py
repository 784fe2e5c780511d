"""Makes the pictures of the README anew: `python -m tests.pictures [NAME]`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from . import canvas

DOCS = Path(__file__).parents[2] / "docs"
MAKERS = {"canvas": canvas.make}
"""Each is given the folder that its picture goes to."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.pictures", description=__doc__)
    parser.add_argument("name", nargs="?", choices=MAKERS, help="all of them without it")
    name = parser.parse_args().name
    for make in MAKERS.values() if name is None else [MAKERS[name]]:
        print(make(DOCS))


if __name__ == "__main__":
    main()
