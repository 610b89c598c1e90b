"""The truth of ``csrc/cpu/random.h``: random numbers by their number, as Python's integers or numpy's; a hash, too."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

LOW_64 = 0xFFFFFFFFFFFFFFFF
GAMMA = 0x9E3779B97F4A7C15
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

# One number, or an array of uint64.
Bits = TypeVar("Bits", int, np.ndarray)


def mix(bits: Bits) -> Bits:
    """64 bits, each of which depends on each of those given.

    Args:
        bits: 64 bits; where they are small numbers, times ``GAMMA``.  # int, or any shape, uint64

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014).
    """
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & LOW_64
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & LOW_64
    return bits ^ (bits >> 31)


def random_bits(stream: Bits, number: Bits) -> Bits:
    """Random bits by their number.

    Args:
        stream: Which sequence of them, one for all or one each.  # int, or (1,) or (size,) uint64
        number: Their place in it, one for all or one each.  # int, or (1,) or (size,) uint64

    Returns:
        The bits.  # int, or (size,) uint64
    """
    return mix((stream + (number + 1) * GAMMA) & LOW_64)


def below(limit: int | np.ndarray, bits: np.ndarray) -> np.ndarray:
    """From 64 random bits to a number below ``limit``: the high half of their product, by halves of 32 bits.

    Args:
        limit: One for all, or one each.  # (size,)
        bits: The random bits.  # (size,) uint64

    Returns:
        The numbers.  # (size,) int64
    """
    limit = np.asarray(limit, dtype=np.uint64)
    high, low, limit_high, limit_low = bits >> _HALF, bits & _LOW, limit >> _HALF, limit & _LOW
    middle = high * limit_low + (low * limit_low >> _HALF)
    product = high * limit_high + (middle >> _HALF) + (low * limit_high + (middle & _LOW) >> _HALF)
    return product.astype(np.int64)


def stream_of(seed: int) -> np.ndarray:
    """The sequence of random bits that belongs to a seed.

    Args:
        seed: 64 bits.

    Returns:
        What :func:`random_bits` takes.  # (1,) uint64
    """
    return mix(np.array([seed & LOW_64], dtype=np.uint64) + GAMMA)
