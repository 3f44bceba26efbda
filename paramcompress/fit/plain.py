"""The plain grid, for `fast`: scale classes, the step at which a matrix has a given error, and the points there.

Without a trellis every number decides alone, in half a nanosecond: all of a matrix is quantised again sooner than
Python could say what to do with a part of it. So everything is one compiled call, of the passes that `search` makes one
by one: scales (`scales`), classes and first step on a sample (`settle`), then the step.

Shapes: x (n_columns, n_rows): the matrix to be quantised, column after column.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from paramcompress import prices
from paramcompress.entropy import Scales
from paramcompress.fit.sample import gathered, sample_of
from paramcompress.fit.scales import fit_scales, to_classes
from paramcompress.fit.settle import STEP_POWER, classes_that_pay, on_plain_grid, stretch_of, stride
from paramcompress.jit import compiled
from paramcompress.prior import prior_of
from paramcompress.trellis import TRELLISES

MOST_TRIES = 6
"""Steps that are tried; more only where all of them leave too large an error."""
FINER = 0.95
"""Times the last one: the step after so many tries."""
_NO_GRAM = np.zeros((0, 0))


def points_of_error(
    x: NDArray[np.float32],
    target: float,
    tolerance: float,
    n_sample: int,
    period: int,
    gram: NDArray[np.float64] | None,
    most_steps: float,
) -> tuple[float, NDArray[np.int32], Scales]:
    """Gain, points and classes with a mean squared error of at most `target` and hardly less than (1 - tolerance) of
    it. No points where all of x may be left; a gain of 0 where something would be more than `most_steps` steps.

    Args:
        n_sample: numbers on which classes and the first step are settled.
        period: K. gram: (K, K), Q^T Q where the basis is not quite orthonormal: the error is then that of the weight.
    """
    rows, columns = sample_of(x.shape[1], x.shape[0], n_sample, period)
    gain, points, *sides = _quantise(
        x, target, tolerance, rows, columns, period, _NO_GRAM if gram is None else gram, most_steps,
        prices.cost_table(), TRELLISES[1].walk, prices.token_raw_bits(), prior_of(has_zero=True),
        *prices.magnitudes(),
    )  # fmt: skip
    return float(np.float32(gain)), points, Scales(*sides)


@compiled
def _quantise(
    x, target, tolerance, at_rows, at_columns, period, gram, most_steps, cost, walk, raw_bits, prior, tokens,
    magnitude_bits,
):  # fmt: skip
    sides = fit_scales(x, target)
    column_peaks, mean_square = sides[5], sides[6]
    if mean_square <= target:
        return 1.0, np.zeros((0, 0), np.int32), np.int64(0), np.zeros(0, np.int16), np.zeros(0, np.int16)
    if 1 in x.shape:  # a class for every single number costs more than it can tell
        step = np.sqrt(target * (1 - tolerance / 2) / prices.MSE_OF_PLAIN_STEP)
        no, fine = np.bool_(False), np.int64(1)
        base, rows, columns = to_classes(*sides, step, step, no, no, fine)
    else:
        sample = gathered(x, at_columns, at_rows)
        base, rows, columns, step, counts, _, _ = classes_that_pay(
            sample, at_rows, at_columns, *sides, target, gram, period, cost, walk, raw_bits
        )
        cost = prices.costs_after(counts, prior, tokens, magnitude_bits)
    least_step = np.float64(column_peaks.max()) / most_steps
    gain, points = _search(x, target, tolerance, base, rows, columns, cost, step, least_step, gram)
    return gain, points, base, rows, columns


@compiled
def _search(x, target, tolerance, base, rows, columns, cost, step, least_step, gram):
    """Secants of the logarithm of the error over that of the step, between what is too fine and what is too coarse."""
    points = np.zeros(x.shape, np.int32)
    aim = target * (1 - tolerance / 2)
    fine, coarse = 0.0, np.inf
    last_step = last_error = stretch = 0.0
    power = STEP_POWER
    n_tried = 0
    while step > least_step:
        n_tried += 1
        gain, error = on_plain_grid(x, step, base, rows, columns, cost, points)
        if stretch == 0:
            stretch = stretch_of(x, points, gain, gram) if len(gram) else 1.0
        error *= stretch
        # the bytes that another try would save are ever fewer
        if target * (1 - tolerance * n_tried) <= error <= target or (step == fine and n_tried > MOST_TRIES):
            return gain, points
        if error <= target:
            fine = max(fine, step)
        else:
            coarse = min(coarse, step)
        if n_tried >= MOST_TRIES:
            step = fine if fine > 0 else FINER * step
            continue
        if last_error > 0 and error > 0 and last_step != step:
            power = min(max(np.log(error / last_error) / np.log(step / last_step), 0.5), 2.5)
        last_step, last_error = step, error
        step *= stride(aim / max(error, 1e-30), power)
        if not fine < step < coarse:
            step = np.sqrt(fine * coarse) if fine > 0 and coarse < np.inf else step
    return 0.0, points
