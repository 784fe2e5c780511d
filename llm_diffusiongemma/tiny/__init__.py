"""The embedded checkpoint: a small network of the same architecture, its data and its training."""

from pathlib import Path

#: Where the trained network lies, in the layout of a Hub repository.
CHECKPOINT = Path(__file__).parent / "checkpoint"
