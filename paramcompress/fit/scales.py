"""Scale classes of a matrix: how loud each row and each column is, on the coder's half-octave grid.

The entropy coder reads a class for every row and column (`entropy.Scales`); this room finds good ones. Classes only
steer contexts: any are legal, and good ones make the bytes few.

Shapes: x (n_columns, n_rows): a matrix column after column, as the trellis runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paramcompress.entropy import DEAD, MOST_CLASS, Scales
from paramcompress.jit import compiled, compiled_sums
from paramcompress.tokens import UNIT_CLASS

DEAD_PEAK, DEAD_RMS = 1.3, 0.45
"""Rows and columns whose largest number and root mean square stay below these many steps are dead: reverse
water-filling gives nothing to what has less energy than the error that is allowed."""
LEAST_BASE = -2 * UNIT_CLASS
"""Class that a matrix begins with at least."""
DEAD_LENGTH = 16
"""Rows and columns shorter than this are not looked at for death: their flags would cost more than their zeros."""
MOST_ZEROS = 0.02
"""Share of zeros among numbers above which they are worth a point of their own everywhere."""


def wants_zero(x: NDArray[np.float32]) -> bool:
    """Whether a matrix is for a trellis with a zero everywhere: many of its numbers are just zero, as in pruned
    weights, rows and columns of zeros aside; or all are of one sign, which tiny ones would lose."""
    if x.min() >= 0 or x.max() <= 0:
        return True
    n_zeros = x.size - np.count_nonzero(x)
    if n_zeros <= MOST_ZEROS * x.size:
        return False
    n_live = int(x.any(0).sum()) * int(x.any(1).sum())
    return bool(n_zeros - (x.size - n_live) > MOST_ZEROS * n_live)


@dataclass(frozen=True)
class Profile:
    """Scales of x, each the product of a row's and a column's, and what tells the dead rows and columns."""

    rows: NDArray[np.float64]
    columns: NDArray[np.float64]
    row_rms: NDArray[np.float64]
    column_rms: NDArray[np.float64]
    row_peaks: NDArray[np.float32]
    column_peaks: NDArray[np.float32]
    mean_square: float

    @classmethod
    def of(cls, x: NDArray[np.float32], floor: float) -> Profile:
        """Scales of x (n_columns, n_rows), fitted in turns. Below the mean square `floor` nothing is told apart: what
        the quantiser leaves at zero must not shape the scales of the rest."""
        return cls(*fit_scales(x, floor))

    @property
    def peak(self) -> float:
        """Largest magnitude in x."""
        return float(self.column_peaks.max())

    def scales(
        self, step: float, live_step: float, by_row: bool = True, by_column: bool = True, grid: int = 1
    ) -> Scales:
        """Classes on a grid of `grid` half octaves for symbols of that step; a symbol is worth two steps.

        What is dead is decided by `live_step`. Where that is no larger than the step whose mean squared error at high
        rate is the error that is wanted, what is dead alone cannot exceed that.
        """
        sides = self.rows, self.columns, self.row_rms, self.column_rms, self.row_peaks, self.column_peaks
        return Scales(*to_classes(*sides, self.mean_square, step, live_step, by_row, by_column, grid))


def without_empty(scales: Scales, points: NDArray[np.int32]) -> Scales:
    """Classes with rows and columns dead that have no points, but for short ones."""
    n_columns, n_rows = points.shape
    rows, columns = scales.rows, scales.columns
    if n_columns >= DEAD_LENGTH:
        rows = np.where(points.any(0), rows, DEAD).astype(rows.dtype)
    if n_rows >= DEAD_LENGTH:
        columns = np.where(points.any(1), columns, DEAD).astype(columns.dtype)
    return Scales(scales.base, rows, columns)


@compiled
def to_classes(
    rows, columns, row_rms, column_rms, row_peaks, column_peaks, mean_square, step, live_step, by_row, by_column, grid
):
    """Base class, classes of the rows and classes of the columns; the arguments are a profile's."""
    live_rows = live_lines(row_peaks, row_rms, len(columns), live_step)
    live_columns = live_lines(column_peaks, column_rms, len(rows), live_step)
    if not live_rows.any() or not live_columns.any():
        live_rows[:] = True
        live_columns[:] = True
    # where only one side has classes they are those of its root mean squares, and the base carries the rest
    whole = 1.0 if by_row or by_column else np.sqrt(mean_square)
    row_scales = (rows if by_column else row_rms) if by_row else np.array([whole])
    column_scales = (columns if by_row else column_rms) if by_column else np.ones(1)
    least_row, row_classes = _half_octaves(row_scales, live_rows, grid)
    least_column, column_classes = _half_octaves(column_scales, live_columns, grid)
    base = least_row + least_column + np.int64(np.rint(-2 * np.log2(2 * step))) + UNIT_CLASS
    # the base has a byte; classes below 0 share the first context, so that the quietest of all lose nothing
    if base < LEAST_BASE:
        _raise(column_classes if by_column else row_classes, LEAST_BASE - base)
        base = LEAST_BASE
    return min(base, MOST_CLASS), row_classes, column_classes


@compiled
def _raise(classes, by):
    """Take what the base is raised by from the classes that have as much."""
    for i in range(len(classes)):
        if classes[i] != DEAD:
            classes[i] = max(classes[i] - by, 0)


@compiled
def live_lines(peaks, rms, length, step):
    """Which lines of so many numbers, with such peaks and root mean squares, are not dead at a step."""
    live = np.ones(len(peaks), np.bool_)
    if length >= DEAD_LENGTH:
        for i in range(len(peaks)):
            live[i] = peaks[i] >= DEAD_PEAK * step or rms[i] >= DEAD_RMS * step
    return live


@compiled
def _half_octaves(scales, live, grid):
    """The least of the live, and how far each is above it; scales may be a single one for all."""
    classes = np.zeros(len(live), np.int16)
    least = np.int64(1 << 30)
    for i in range(len(live)):
        scale = scales[i] if len(scales) > 1 else scales[0]
        if live[i]:
            # rounded to the nearest: the exponent of the float that is half a step of the grid larger
            power = scale * scale if grid == 1 else scale
            exponent = (np.float64(power * np.sqrt(2.0)).view(np.int64) >> 52) - 1023
            classes[i] = np.int16(grid * exponent) if scale > 0 else 0
            least = min(least, np.int64(classes[i]))
    for i in range(len(live)):
        classes[i] = min(classes[i] - least, MOST_CLASS) if live[i] else DEAD
    return least, classes


@compiled_sums
def fit_scales(x, floor):
    """The fields of a profile of x; nothing is told apart below the mean square `floor`."""
    n_columns, n_rows = x.shape
    row_peaks, column_peaks = _peaks(x)
    row_rms = np.zeros(n_rows)
    column_rms = np.zeros(n_columns)
    for j in range(n_columns):
        total = 0.0
        for i in range(np.uintp(n_rows)):
            square = np.float64(x[j, i]) * x[j, i]
            row_rms[i] += square
            total += square
        column_rms[j] = total
    mean = column_rms.sum() / x.size
    row_rms = np.sqrt(row_rms / n_columns)
    column_rms = np.sqrt(column_rms / n_rows)
    # one pseudo-weight of average size for each row and column, so that a few weights do not make a wild scale
    rows = np.sqrt((row_rms**2 * n_columns + mean) / (n_columns + 1))
    columns = np.ones(n_columns)
    if mean > 0:
        least = max(min(floor / mean, 1.0), 1e-12)
        for turn in range(2):
            inverse = 1 / np.maximum(rows**2, least * mean)
            for j in range(n_columns):
                total = 1.0
                for i in range(np.uintp(n_rows)):
                    total += np.float64(x[j, i]) * x[j, i] * inverse[i]
                columns[j] = np.sqrt(total / (n_rows + 1))
            if turn == 0:
                sums = np.full(n_rows, mean)
                for j in range(n_columns):
                    weight = 1 / max(columns[j] * columns[j], least)
                    for i in range(np.uintp(n_rows)):
                        sums[i] += np.float64(x[j, i]) * x[j, i] * weight
                rows = np.sqrt(sums / (n_columns + 1))
    return rows, columns, row_rms, column_rms, row_peaks, column_peaks, mean


@compiled
def _peaks(x):
    """Largest magnitude in each row and each column. Numbers that are not negative are in the order of their bits, and
    integers are compared several at a time."""
    bits = x.view(np.int32)
    rows, columns = np.zeros(x.shape[1], np.int32), np.zeros(x.shape[0], np.int32)
    for j in range(x.shape[0]):
        peak = np.int32(0)
        for i in range(np.uintp(x.shape[1])):
            size = np.int32(bits[j, i] & np.int32(0x7FFFFFFF))
            rows[i] = size if size > rows[i] else rows[i]
            peak = size if size > peak else peak
        columns[j] = peak
    return rows.view(np.float32), columns.view(np.float32)
