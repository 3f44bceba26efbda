"""An evenly spaced part of a matrix, on which something is tried before it is done to all of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paramcompress.entropy import Scales

MOST_ROWS = 256
"""Rows that a sample has, where the matrix has as many; the rest of its size is columns."""


@dataclass(frozen=True)
class Sample:
    """Rows and whole kernels of columns of a matrix (n_rows, n_columns), or of its transpose."""

    x: NDArray[np.float32]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    @classmethod
    def of(cls, matrix: NDArray[np.float32], size: int, period: int) -> Sample:
        """About `size` numbers of matrix (n_rows, n_columns); all of it where that is not much more."""
        n_rows, n_columns = matrix.shape
        if matrix.size <= 2 * size:
            return cls(matrix, np.arange(n_rows), np.arange(n_columns))
        rows = spread(n_rows, max(round(n_rows * math.sqrt(size / matrix.size)), min(n_rows, MOST_ROWS)))
        kernels = spread(n_columns // period, max(1, size // (period * len(rows))))
        columns = (kernels[:, None] * period + np.arange(period)).reshape(-1)
        return cls(matrix[rows[:, None], columns], rows, columns)

    @classmethod
    def of_transposed(cls, x: NDArray[np.float32], size: int, period: int) -> Sample:
        """The same of x (n_columns, n_rows)."""
        found = cls.of(x.T, size, period)
        return cls(np.ascontiguousarray(found.x.T), found.rows, found.columns)

    def of_scales(self, scales: Scales) -> Scales:
        """Classes of the sample's rows and columns."""
        return Scales(scales.base, scales.rows[self.rows], scales.columns[self.columns])


def spread(n: int, n_kept: int) -> NDArray[np.int64]:
    """n_kept of the first n numbers, evenly spaced."""
    n_kept = min(n, n_kept)
    return np.arange(n_kept) * n // n_kept
