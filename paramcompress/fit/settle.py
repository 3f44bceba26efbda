"""Which scale classes pay for a matrix, and nearly the right step, found on a sample of it and the plain grid.

The plain grid tells what classes are worth as well as the trellis, and much sooner. One compiled pass: for the layers
of small networks, calls between Python and the loops would take longer than the loops.

Shapes: x (n_columns, n_rows): a sample of the matrix, column after column, as the trellis runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paramcompress import prices
from paramcompress.entropy import Scales
from paramcompress.fit.sample import Sample
from paramcompress.fit.scales import Profile, to_classes
from paramcompress.jit import compiled, compiled_sums
from paramcompress.metrics import moments
from paramcompress.quantize import round_points
from paramcompress.tokens import N_CLASSES, N_TOKENS, count_tokens, shifted_bits
from paramcompress.trellis import TRELLISES

TRELLIS_STEP = math.sqrt(prices.MSE_OF_PLAIN_STEP / prices.MSE_OF_STEP)
"""Times the step of the plain grid: that of a trellis at the same error."""
SPARSE_STEP = 1.4
"""Times the step of high rate: above, hardly anything is stored. All contexts but the lowest would then be unused at
the true step, classes are dear, and the prior is far."""
LEAST_SIDE = 0.002
"""Of all bits: what the classes of rows or of columns cost at least, if doing without them is to be looked at."""
STEP_POWER = 1.8
"""The error grows with this power of the step."""
_STRETCH_SAMPLE = 1 << 12
"""Numbers on which the stretch of a basis is measured."""


@dataclass(frozen=True)
class Settled:
    """What a sample tells of a matrix."""

    scales: Scales
    """Of the whole matrix."""
    step: float
    """At which the plain grid should have about the error that is wanted; that of a trellis has a longer one."""
    stretch: float
    """Squared error of the weight / squared error of x."""
    is_sparse: bool
    """Whether hardly anything is stored."""


def settle(sample: Sample, profile: Profile, target: float, gram: NDArray[np.float64] | None, period: int) -> Settled:
    """Classes of fewest bytes at a mean squared error of about `target`.

    Args:
        sample: of the matrix, transposed. profile: of all of the matrix.
        gram: (K, K), Q^T Q where the basis is not quite orthonormal.
        period: K.
    """
    sides = profile.rows, profile.columns, profile.row_rms, profile.column_rms, profile.row_peaks, profile.column_peaks
    base, rows, columns, step, _, stretch, is_sparse = classes_that_pay(
        sample.x, sample.rows, sample.columns, *sides, profile.mean_square, target,
        np.zeros((0, 0)) if gram is None else gram, period,
        prices.cost_table(), TRELLISES[1].walk, prices.token_raw_bits(),
    )  # fmt: skip
    return Settled(Scales(base, rows, columns), step, stretch, bool(is_sparse))


@compiled
def stride(ratio, power=STEP_POWER):
    """What to multiply a step by, for an error that is so many times as large."""
    return min(max(ratio ** (1 / power), 0.25), 4.0)


@compiled
def classes_that_pay(
    x, at_rows, at_columns, rows, columns, row_rms, column_rms, row_peaks, column_peaks, mean_square, target,
    gram, period, cost, walk, raw_bits,
):  # fmt: skip
    """Base class, classes of rows and of columns, step, tokens of the sample (N_CLASSES, 2, N_TOKENS), stretch, whether
    hardly anything is stored; see `settle`."""
    live_step = np.sqrt(target / prices.MSE_OF_STEP)
    step = np.sqrt(target / prices.MSE_OF_PLAIN_STEP)
    yes, fine = np.bool_(True), np.int64(1)
    sides = rows, columns, row_rms, column_rms, row_peaks, column_peaks, mean_square
    base, row_classes, column_classes = to_classes(*sides, step, live_step, yes, yes, fine)
    points = np.zeros(x.shape, np.int32)
    gain, error = on_plain_grid(x, step, base, row_classes[at_rows], column_classes[at_columns], cost, points)
    stretch = stretch_of(x, points, gain, gram) if len(gram) else 1.0
    step *= stride(target / max(stretch * error, 1e-30))
    trellis_step = step * TRELLIS_STEP
    is_sparse = trellis_step > SPARSE_STEP * live_step
    grown = (len(rows) * len(columns)) / x.size
    best_counts = np.zeros((N_CLASSES, 2, N_TOKENS), np.int32)
    least, total, of_rows, of_columns = np.inf, 0.0, np.inf, np.inf
    for way in range(16 if is_sparse else 4):
        by_row, by_column = np.bool_(not way & 2), np.bool_(not way & 1)
        if not is_sparse and not (
            (by_row or of_rows > LEAST_SIDE * total) and (by_column or of_columns > LEAST_SIDE * total)
        ):
            continue
        grid = np.int64(2 if way & 4 else 1)
        class_step = live_step if way & 8 else trellis_step
        one = to_classes(*sides, class_step, live_step, by_row, by_column, grid)
        counts = np.zeros((N_CLASSES, 2, N_TOKENS), np.int32)
        count_tokens(points, one[0], one[1][at_rows], one[2][at_columns], walk, np.int64(1), counts)
        row_bits, column_bits = prices.side_bits(one[1], one[2], period)
        shifted = shifted_bits(one[0], one[1][at_rows], one[2][at_columns])
        bits = row_bits + column_bits + grown * (prices.token_bits(counts, raw_bits) + shifted)
        if way == 0:
            total, of_rows, of_columns = bits, row_bits, column_bits
        if bits < least:
            least = bits
            base, row_classes, column_classes = one
            best_counts = counts
    return base, row_classes, column_classes, step, best_counts, stretch, is_sparse


@compiled
def on_plain_grid(x, step, base, rows, columns, cost, points):
    """Fills in the points; returns the best gain and the mean squared error with it."""
    one, weight = np.zeros(1, np.int64), np.float32(prices.BIT_WEIGHT)  # one chain, of all columns
    round_points(x, np.float32(1 / step), base, rows, columns, cost, weight, one, len(x), points)
    product, square, energy = moments(x, points, one, len(x))
    gain = product / square if square > 0 else step
    return gain, max(energy - 2 * gain * product + gain * gain * square, 0.0) / x.size


@compiled_sums
def stretch_of(x, points, gain, gram):
    """Squared error of the weight / squared error of x: the sum of e^T gram e over that of e^T e, over the errors e of
    some kernels."""
    squared = turned = 0.0
    period = len(gram)
    n_kernels = len(x) // period
    n_some = min(n_kernels, max(1, _STRETCH_SAMPLE // (period * x.shape[1])))
    errors = np.empty((period, x.shape[1]))
    for some in range(n_some):
        kernel = some * n_kernels // n_some
        for k in range(period):
            for i in range(x.shape[1]):
                errors[k, i] = x[kernel * period + k, i] - gain * points[kernel * period + k, i]
        for a in range(period):
            for b in range(a + 1):
                total = 0.0
                for i in range(x.shape[1]):
                    total += errors[a, i] * errors[b, i]
                turned += total * gram[a, b] * (1 if a == b else 2)
                squared += total if a == b else 0.0
    return turned / squared if squared > 0 else 1.0
