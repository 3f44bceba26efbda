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

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from paramcompress.dictionaries.patch import gram, upright

Patterns = tuple[NDArray[np.int8], ...]
"""Of one sector (K, m), or of two that share their numbers."""


def sectors(kernel: tuple[int, ...]) -> tuple[Patterns, ...]:
    """Patterns of each sector, or of two that share their numbers; part of the format, with their order."""
    return _sectors(tuple(n for n in kernel if n > 1))


@lru_cache(maxsize=64)
def _sectors(axes: tuple[int, ...]) -> tuple[Patterns, ...]:
    products = [np.ones((1, 1), np.int8)]
    for n in axes:
        products = [np.kron(one, _along(n, sign)) for one in products for sign in (1, -1)]
    if len(axes) != 2 or axes[0] != axes[1]:
        return tuple((one,) for one in products)
    even, mixed, _, odd = products
    found = [*_by_turning(even, axes), (mixed, _turned(mixed, axes)), *_by_turning(odd, axes)]
    return tuple(one for one in found if one[0].shape[1])


def n_numbers(kernel: tuple[int, ...]) -> int:
    """Numbers that settle a basis: the square of the number of patterns, for each sector or two that share theirs."""
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


def _along(n: int, sign: int) -> NDArray[np.int8]:
    """Even patterns (sign 1) or odd ones (-1) along an axis, (n, half of n); that in the middle of it is even."""
    patterns = np.zeros((n, (n + sign * (n % 2)) // 2), np.int8)
    for i in range(patterns.shape[1]):
        patterns[n - 1 - i, i] = sign
        patterns[i, i] = 1
    return patterns


def _turned(patterns: NDArray[np.int8], axes: tuple[int, ...]) -> NDArray[np.int8]:
    """The same with the two axes of each changed."""
    return patterns.reshape(*axes, -1).transpose(1, 0, 2).reshape(patterns.shape)


def _by_turning(patterns: NDArray[np.int8], axes: tuple[int, ...]) -> tuple[Patterns, Patterns]:
    """Patterns, alike along both axes, as a sector that a change of axes leaves alone and one that changes its sign."""
    turned, m = _turned(patterns, axes), math.isqrt(patterns.shape[1])
    (a, b), (c, d) = np.triu_indices(m), np.triu_indices(m, 1)
    return ((patterns + turned).clip(-1, 1)[:, a * m + b],), ((patterns - turned)[:, c * m + d],)
