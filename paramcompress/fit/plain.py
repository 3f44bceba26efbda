"""The plain grid, for `fast`: the step at which a matrix has a given error, and the points that come out there.

Without a trellis every number decides alone, in half a nanosecond: all of a matrix is quantised again sooner than
Python could say what to do with a part of it. So the whole search is one compiled call.

Shapes: x (n_columns, n_rows): the matrix to be quantised, column after column.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from paramcompress import prices
from paramcompress.entropy import Scales
from paramcompress.fit.scales import fit_scales, to_classes
from paramcompress.fit.settle import STEP_POWER, on_plain_grid, stretch_of, stride
from paramcompress.jit import compiled

MOST_TRIES = 6
"""Steps that are tried; more only where all of them leave too large an error."""
FINER = 0.95
"""Times the last one: the step after so many tries."""
_NO_GRAM = np.zeros((0, 0))


def points_of_error(
    x: NDArray[np.float32],
    target: float,
    tolerance: float,
    scales: Scales,
    cost: NDArray[np.float32],
    step: float,
    least_step: float,
    gram: NDArray[np.float64] | None,
) -> tuple[float, NDArray[np.int32]]:
    """Gain and points with a mean squared error of at most `target` and hardly less than (1 - tolerance) of it; a gain
    of 0 where that would take a step below `least_step`.

    Args:
        scales, cost: classes of x, and bits of a magnitude in each (`prices.cost_table`).
        step: the first that is tried.
        gram: (K, K), Q^T Q where the basis is not quite orthonormal: the error is then that of the weight.
    """
    sides = scales.base, scales.rows, scales.columns
    gain, points = _search(x, target, tolerance, *sides, cost, step, least_step, _NO_GRAM if gram is None else gram)
    return float(np.float32(gain)), points


def line_of_error(
    x: NDArray[np.float32], target: float, tolerance: float, most_steps: float
) -> tuple[float, NDArray[np.int32] | None, Scales]:
    """The same of a vector, in one class: one for every single number costs more than it can tell. No points where all
    of it may be left; a gain of 0 where something would be more than `most_steps` steps."""
    gain, points, base, rows, columns = _search_line(x, target, tolerance, most_steps, prices.cost_table())
    return float(np.float32(gain)), points if points.size else None, Scales(base, rows, columns)


@compiled
def _search_line(x, target, tolerance, most_steps, cost):
    sides = fit_scales(x, target)
    mean_square, peaks = sides[6], sides[5]
    step = np.sqrt(target * (1 - tolerance / 2) / prices.MSE_OF_PLAIN_STEP)
    no, fine = np.bool_(False), np.int64(1)
    base, rows, columns = to_classes(*sides, step, step, no, no, fine)
    if mean_square <= target:
        return 1.0, np.zeros((0, 0), np.int32), base, rows, columns
    least_step = np.float64(peaks.max()) / most_steps
    gain, points = _search(x, target, tolerance, base, rows, columns, cost, step, least_step, np.zeros((0, 0)))
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
