"""A hash of whole numbers, for what is drawn or compared without memory."""

from __future__ import annotations

import numpy as np


def mix(bits: np.ndarray) -> np.ndarray:
    """A well mixed uint64 of each: splitmix64, which needs no state.

    Args:
        bits: What is hashed.  # any shape, uint64

    Returns:
        The hashes.  # of the same shape, uint64

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014).

    Example:
        >>> mix(np.arange(2, dtype=np.uint64)).tolist()
        [0, 16294208416658607535]
    """
    bits = bits * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits ^= bits >> np.uint64(shift)
        bits *= np.uint64(factor)
    bits ^= bits >> np.uint64(31)
    return bits
