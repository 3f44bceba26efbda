"""An evenly spaced part of a matrix, on which something is tried before it is done to all of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from paramcompress.entropy import Scales
from paramcompress.jit import compiled

MOST_ROWS = 256
"""Rows that a sample has, where the matrix has as many; the rest of its size is columns."""
LEAST_KERNELS, LEAST_ROWS = 8, 32
"""Kernels of each row, even if that leaves fewer rows: the first input channel alone may well be dead. Then rows, even
if that makes the sample larger."""


@dataclass(frozen=True)
class Sample:
    """Rows and whole kernels of columns of a matrix (n_rows, n_columns), or of its transpose."""

    x: NDArray[np.float32]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    @classmethod
    def of(cls, matrix: NDArray[np.float32], size: int, period: int) -> Sample:
        """About `size` numbers of matrix (n_rows, n_columns); all of it where that is not much more."""
        rows, columns = sample_of(matrix.shape[0], matrix.shape[1], size, period)
        return cls(gathered(matrix, rows, columns), rows, columns)

    @classmethod
    def of_transposed(cls, x: NDArray[np.float32], size: int, period: int) -> Sample:
        """The same of x (n_columns, n_rows)."""
        rows, columns = sample_of(x.shape[1], x.shape[0], size, period)
        return cls(gathered(x, columns, rows), rows, columns)

    def of_scales(self, scales: Scales) -> Scales:
        """Classes of the sample's rows and columns."""
        return Scales(scales.base, scales.rows[self.rows], scales.columns[self.columns])


@lru_cache(maxsize=64)
def sample_of(n_rows: int, n_columns: int, size: int, period: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of a sample; most layers of a network share a few shapes."""
    if n_rows * n_columns <= 2 * size:
        return np.arange(n_rows), np.arange(n_columns)
    n_kernels = min(n_columns // period, LEAST_KERNELS)
    n_sampled = max(round(n_rows * math.sqrt(size / (n_rows * n_columns))), min(n_rows, MOST_ROWS))
    rows = spread(n_rows, max(min(n_sampled, size // (period * n_kernels)), LEAST_ROWS))
    kernels = spread(n_columns // period, max(n_kernels, size // (period * len(rows))))
    return rows, (kernels[:, None] * period + np.arange(period)).reshape(-1)


@compiled
def gathered(matrix, rows, columns):
    """matrix[rows][:, columns]; numpy would take several times as long."""
    found = np.empty((len(rows), len(columns)), matrix.dtype)
    for i in range(len(rows)):
        for j in range(len(columns)):
            found[i, j] = matrix[rows[i], columns[j]]
    return found


def spread(n: int, n_kept: int) -> NDArray[np.int64]:
    """n_kept of the first n numbers, evenly spaced."""
    n_kept = min(n, n_kept)
    return np.arange(n_kept) * n // n_kept
