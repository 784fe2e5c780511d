"""The embedded checkpoint: a small network of the same architecture, its data and its training."""
