"""Random numbers that are the same on every machine and for ever, since files refer to them. SplitMix64, counted.

Part of the format (docs/format.md): what a seed gives here may never change.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def mixed(value: int) -> int:
    """The 64-bit finaliser of SplitMix64, on one number."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31


def numbers(words: tuple[int, ...], n: int) -> NDArray[np.uint64]:
    """(n,) uniform 64-bit numbers; every tuple of words has its own stream.

    Args:
        words: seeds and indices, each from 0 to 2**64 - 1.

    Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators".

    >>> [hex(x) for x in numbers((0,), 2).tolist()]
    ['0xa706dd2f4d197e6f', '0xb382a305f4414f5e']
    """
    key = 0
    for word in words:
        key = mixed((key ^ word) + _GOLDEN & _MASK)
    counted = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(key)
    counted = (counted ^ counted >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    counted = (counted ^ counted >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return counted ^ counted >> np.uint64(31)


def drawn(words: tuple[int, ...], n: int, size: int) -> NDArray[np.int64]:
    """`size` of the numbers 0 to n - 1 in rising order, each set as likely as any: those whose random numbers are
    least."""
    return np.sort(np.argsort(numbers(words, n), kind="stable")[:size]).astype(np.int64)
