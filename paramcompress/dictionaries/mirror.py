"""`mirror`: a fitted basis of kernels whose atoms look the same in a mirror, but for their sign. D = I (x) Q.

Kernels see the world as often from the left as from the right: their covariance hardly changes where an axis is turned
round, or where two of equal length change places. Principal axes of a covariance that does not change at all are even
or odd along every axis, and so are settled by far fewer numbers: of 81 for kernels of 3 x 3 there remain 15.

A *sector* is a set of patterns, of 1, 0 and -1, that are even or odd along the same axes and have no position in
common; its atoms are combinations of them. In square kernels those that are even along both axes, or odd, fall into two
sectors, by whether they change their sign where the axes change places; and those that are even along one axis only are
the others with their axes changed, so that one set of numbers serves both.

Shapes: kernels (n, K); Q (K, K), its columns sector by sector; patterns (K, m).
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from paramcompress.dictionaries.patch import gram, upright

Patterns = tuple[NDArray[np.floating], ...]
"""Of one sector (K, m), or of two that share their numbers."""


@lru_cache(maxsize=16)
def sectors(kernel: tuple[int, ...]) -> tuple[Patterns, ...]:
    """Patterns of all sectors; part of the format, with their order."""
    axes = [n for n in kernel if n > 1]
    is_square = len(axes) == 2 and axes[0] == axes[1]
    found: list[Patterns] = []
    for parity in itertools.product((1, -1), repeat=len(axes)):
        patterns: NDArray[np.floating] = np.ones((1, 1))
        for n, sign in zip(axes, parity, strict=True):
            patterns = np.kron(patterns, _along(n, sign))
        if not is_square:
            found.append((patterns,))
            continue
        turned = patterns.reshape(*axes, -1).transpose(1, 0, 2).reshape(patterns.shape)
        if parity == (1, -1):
            found.append((patterns, turned))
        elif parity[0] == parity[1]:
            m = _half(axes[0], parity[0])
            upper = [i * m + j for i in range(m) for j in range(i, m)]
            above = [i * m + j for i in range(m) for j in range(i + 1, m)]
            found += [((patterns + turned)[:, upper].clip(-1, 1),), ((patterns - turned)[:, above],)]
    return tuple(one for one in found if one[0].shape[1])


def n_numbers(kernel: tuple[int, ...]) -> int:
    """Numbers that settle a basis: the squares of the patterns of each sector."""
    return sum(int(one[0].shape[1]) ** 2 for one in sectors(kernel))


def mirror_basis(kernels: NDArray[np.float32], kernel: tuple[int, ...]) -> NDArray[np.float64]:
    """Numbers of the principal axes of the kernels, and of all their mirror images, about zero.

    Args:
        kernels: (n, K), float32 or float64, finite, n >= 1.
        kernel: lengths of the axes, K their product.

    Returns:
        (n_numbers,) for each sector what the patterns (rows) are multiplied with in its atoms (columns, by falling
        energy), which are of length 1.

    Cost: O(n K^2).
    """
    whole, numbers = gram(kernels), []
    for shared in sectors(kernel):
        lengths = np.linalg.norm(shared[0], axis=0)
        energy = sum(one.T @ whole @ one for one in shared) / np.outer(lengths, lengths)
        numbers.append((upright(np.linalg.eigh(energy)[1][:, ::-1]) / lengths[:, None]).ravel())
    return np.concatenate(numbers)


def expanded(numbers: NDArray[np.generic], kernel: tuple[int, ...]) -> NDArray[np.float64]:
    """Q (K, K) of its numbers (n_numbers,); exact, since every entry is one of them, or its negative, or 0."""
    atoms, at = [], 0
    for shared in sectors(kernel):
        m = shared[0].shape[1]
        matrix = numbers[at : at + m * m].astype(np.float64).reshape(m, m)
        atoms += [one @ matrix for one in shared]
        at += m * m
    return np.concatenate(atoms, 1)


def _half(n: int, sign: int) -> int:
    """Even patterns (sign 1) or odd ones (-1) along an axis; that in the middle of an odd axis is even."""
    return (n + sign * (n % 2)) // 2


def _along(n: int, sign: int) -> NDArray[np.float64]:
    """These, (n, half of n)."""
    patterns = np.zeros((n, _half(n, sign)))
    for i in range(patterns.shape[1]):
        patterns[n - 1 - i, i] = sign
        patterns[i, i] = 1
    return patterns
