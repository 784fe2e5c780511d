"""`python -m tests.pictures canvas replay`: draws pictures of docs/ again. Each has a module here."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
PICTURES = {"canvas": "canvas.svg", "replay": "replay.png"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.pictures", description="Draw pictures of docs/ again.")
    parser.add_argument("pictures", nargs="+", choices=PICTURES)
    for name in parser.parse_args().pictures:
        place = DOCS / PICTURES[name]
        importlib.import_module(f".{name}", __package__).draw(place)
        print(f"{place.relative_to(Path.cwd())}: {place.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
