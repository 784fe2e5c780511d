"""Kernels in Triton: one launch for what PyTorch takes several for. `proving` imports them, where they can run."""
