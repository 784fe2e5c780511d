"""Weights as logarithms, nats, on the host: what stands for nothing, and sums.

Logarithms they are, for a single forced token can weigh 150 nats against a sharp network, so that sums of
probabilities themselves would underflow within a few positions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .automaton import Segments

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

# Stands for log 0. Finite, so that sums and differences of it stay numbers, and far below all that the
# positions of a canvas can add up to.
LOG_ZERO = -1e30

# Nothing to be seen beside one in fp64. The exponential of less takes many times as long, for it underflows.
NEGLIGIBLE = -700.0
# The same in fp32.
NEGLIGIBLE_SINGLE = np.float32(-85.0)


def log_sums(values: Floats, segments: Segments) -> Floats:
    """log sum exp of each segment of the columns: `[rows, n]` to `[rows, segments]`."""
    top = np.maximum.reduceat(values, segments.starts, axis=1)
    scaled = np.exp(values - np.repeat(top, segments.sizes, axis=1))
    result: Floats = top + np.log(np.add.reduceat(scaled, segments.starts, axis=1))
    return result
