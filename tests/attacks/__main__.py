"""Attacks on the product, seeded, of any length, with a table of what came of them.

    python -m tests.attacks listings --count 500 --seed 1

Short runs of them are in the test suite.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import sys

ATTACKS = ("signals", "media", "checkpoints", "listings", "forms", "schemas", "terminals")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attacks", description="Attacks on the product.")
    parser.add_argument("attack", choices=ATTACKS, help="what is attacked; see docs/attacks.md")
    parser.add_argument("--count", type=int, default=200, help="how many cases (200)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed draws the same cases (1)")
    arguments = parser.parse_args()
    attack = importlib.import_module(f".{arguments.attack}", __package__)
    rows: collections.Counter[tuple[str, str, bool]] = collections.Counter()
    try:
        for outcome in attack.run(arguments.count, arguments.seed):
            rows[outcome.kind, outcome.result, outcome.held] += 1
            if not outcome.held:
                print(f"NOT HELD  {outcome.kind}: {outcome.result}\n{outcome.detail}", file=sys.stderr)
    except KeyboardInterrupt:
        print("Interrupted: the table is of what was done by then.", file=sys.stderr)
    print("| What was done | What came of it | Times |\n| --- | --- | --- |")
    for (kind, result, held), times in sorted(rows.items()):
        print(f"| {kind} | {result}{'' if held else ' (NOT HELD)'} | {times} |")
    return 0 if all(held for _, _, held in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
