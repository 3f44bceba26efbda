"""Trellis quantisation where errors have a metric: what one column does wrong, the columns after it make good.

Knows neither layers nor bytes, as `quantize`, whose cost of a point it shares. That search treats all errors alike, and
is several times faster; this one minimises, over points S on the trellis,

    sum over rows i of  worth_i (x_i - s_i)^T M (x_i - s_i)  +  bits of S

or, where the output heeds rows together, worth_i (C (x - s))_i in place of worth_i (x_i - s_i), C lower triangular.

Two stages. *Feeding forward* (Frantar et al. 2022, arXiv:2210.17323): column after column is quantised, each by a
Viterbi search down its rows, and its error is carried to the columns that are still open, through the Cholesky factor
of the inverse metric. An error in column j then costs what no later column can make good, 1 / U_jj^2 with M^-1 = U^T U.
*Descending*: every column is chosen again, given all others. It has to leave the trellis in the state in which the next
column of its chain begins, and never makes the sum larger. What the others leave for a column to make good does not
depend on C, for the cost is a product of what rows and what columns do; so only the search down a column knows of C.

Shapes: x, points (n_columns, n_rows) in steps, as the chain runs.  M (n_groups, n_columns, n_columns), rows in n_groups
equal runs, each with its own metric (1 but for grouped convolutions).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from paramcompress.entropy import DEAD, Scales
from paramcompress.jit import compiled
from paramcompress.prices import N_MAGNITUDES
from paramcompress.tokens import scale_context
from paramcompress.trellis import Trellis, columns_per_chain

_BLOCK = 64
"""Columns between two matrix products: within a block errors are carried one by one, beyond it all at once."""
_FAR = np.inf
"""Cost of what no path leads to: above every cost, for metrics and numbers come from files of strangers."""


@dataclass(frozen=True)
class Worth:
    """What errors cost, in bits."""

    rows: NDArray[np.float64]
    """(n_rows,) bits that one squared step costs in each row, for a metric of 1."""
    metric: NDArray[np.float64]
    """(n_groups, n_columns, n_columns), symmetric, positive definite."""
    coupling: NDArray[np.float64] | None = None
    """(n_runs, run, run) C, for rows in n_runs equal runs: unit lower triangles. None where each row counts alone."""

    @cached_property
    def upper(self) -> NDArray[np.float64]:
        """(n_groups, n_columns, n_columns) U of M^-1 = U^T U, upper triangles.

        Raises numpy.linalg.LinAlgError for a metric that is not positive definite.
        """
        return np.stack([np.linalg.cholesky(np.linalg.inv(metric)).T for metric in self.metric])

    @property
    def pivots(self) -> NDArray[np.float64]:
        """(n_groups, n_columns) cost of an error in a column, once those after it have made good what they can."""
        return 1 / np.diagonal(self.upper, axis1=1, axis2=2) ** 2


def quantize_in_metric(
    x: NDArray[np.float64],
    scales: Scales,
    trellis: Trellis,
    cost: NDArray[np.float32],
    worth: Worth,
    n_passes: int,
) -> NDArray[np.int32]:
    """Points that nearly minimise the cost of their errors plus their bits.

    Args:
        x: (n_columns, n_rows), finite, |x| < 2**30.
        cost: (classes, 2, magnitudes) bits, from `prices.cost_table`.
        n_passes: times that every column is chosen again; 0 feeds forward only.

    Returns:
        points (n_columns, n_rows), zero in dead rows and columns.

    Raises:
        numpy.linalg.LinAlgError: a metric that is not positive definite.

    Cost: O(n_rows n_columns^2) for each stage, O(n_columns^3) for each group, and O(n_rows n_columns run n_states)
    where rows are coupled.
    """
    n_columns, n_rows = x.shape
    n_groups = len(worth.metric)
    upper = worth.upper
    groups = [slice(g * n_rows // n_groups, (g + 1) * n_rows // n_groups) for g in range(n_groups)]
    points = np.zeros((n_columns, n_rows), np.int32)
    states = np.zeros(n_columns + 1, np.int64)
    chain = columns_per_chain(n_rows)
    coupling = np.ones((n_rows, 1, 1)) if worth.coupling is None else worth.coupling
    walk = trellis.next_state.astype(np.int64), trellis.quantiser.astype(np.int64), trellis.loud_class
    table = cost.astype(np.float64), scales.base, scales.rows.astype(np.int64), scales.columns.astype(np.int64)

    open_x = x.copy()
    carried = np.empty_like(x)
    for first in range(0, n_columns, _BLOCK):
        block = slice(first, min(first + _BLOCK, n_columns))
        rest = slice(block.stop, n_columns)
        _feed(
            open_x, upper, worth.rows, coupling, *table, *walk, chain, block.start, block.stop,
            points, states, carried,
        )  # fmt: skip
        for g, rows in enumerate(groups):
            open_x[rest, rows] -= upper[g, block, rest].T @ carried[block, rows]

    residual = points - x
    slope = np.empty_like(x)
    for g, rows in enumerate(groups):
        slope[:, rows] = worth.metric[g] @ residual[:, rows]
    for _ in range(n_passes):
        for first in range(0, n_columns, _BLOCK):
            block = slice(first, min(first + _BLOCK, n_columns))
            before = residual[block].copy()
            _descend(
                x, worth.metric, worth.rows, coupling, *table, *walk, chain, block.start, block.stop,
                points, states, residual, slope,
            )  # fmt: skip
            change = residual[block] - before
            for g, rows in enumerate(groups):
                for rest in (slice(0, block.start), slice(block.stop, n_columns)):
                    slope[rest, rows] += worth.metric[g, rest, block] @ change[:, rows]
    return points


@compiled
def _feed(
    x, upper, worth, coupling, cost, base, rows, columns, next_state, quantiser, loud_class, chain, first, last,
    points, states, carried,
):  # fmt: skip
    """Quantise the columns from first to last; carry their errors among themselves, and note them for the rest."""
    n_rows = x.shape[1]
    n_here = n_rows // len(upper)
    bits = np.empty(n_rows)
    for j in range(first, last):
        state = states[j] if j % chain else 0
        states[j] = state
        if columns[j] != DEAD:
            for i in range(n_rows):
                pivot = upper[i // n_here, j, j]
                bits[i] = worth[i] / (pivot * pivot)
            walk = cost, base + columns[j], rows, next_state, quantiser, loud_class, state
            if coupling.shape[1] > 1:
                state = _choose_coupled(x[j], bits, coupling, *walk, -1, points[j])
            else:
                state = _choose(x[j], bits, *walk, -1, points[j])
        states[j + 1] = state
        for i in range(n_rows):
            g = i // n_here
            carried[j, i] = (x[j, i] - points[j, i]) / upper[g, j, j]
        for k in range(j + 1, last):
            for i in range(n_rows):
                x[k, i] -= upper[i // n_here, j, k] * carried[j, i]


@compiled
def _descend(
    x, metric, worth, coupling, cost, base, rows, columns, next_state, quantiser, loud_class, chain, first, last,
    points, states, residual, slope,
):  # fmt: skip
    """Choose the columns from first to last again, each given all others. slope: metric @ residual, kept up to date
    within the block."""
    n_columns, n_rows = x.shape
    n_here = n_rows // len(metric)
    bits = np.empty(n_rows)
    wanted = np.empty(n_rows)
    for j in range(first, last):
        if columns[j] == DEAD:
            continue
        for i in range(n_rows):
            own = metric[i // n_here, j, j]
            bits[i] = worth[i] * own
            wanted[i] = points[j, i] - slope[j, i] / own
        ends = (j + 1) % chain == 0 or j + 1 == n_columns
        goal = -1 if ends else states[j + 1]
        walk = cost, base + columns[j], rows, next_state, quantiser, loud_class, states[j]
        if coupling.shape[1] > 1:
            before = points[j].copy()
            _choose_coupled(wanted, bits, coupling, *walk, goal, points[j])
            if _sum_of(wanted, bits, coupling, *walk, points[j]) > _sum_of(wanted, bits, coupling, *walk, before):
                for i in range(n_rows):
                    points[j, i] = before[i]
        else:
            _choose(wanted, bits, *walk, goal, points[j])
        for i in range(n_rows):
            change = points[j, i] - x[j, i] - residual[j, i]
            if change != 0:
                residual[j, i] += change
                for k in range(first, last):
                    slope[k, i] += metric[i // n_here, k, j] * change


@compiled
def _best_points(number, worth, bits, shift, q, loud):
    """Least worth * (number - point)**2 + bits of the points of quantiser q that lead on by an even symbol, and that
    point; the same of those that do by an odd one. Near the number, or zero."""
    size = abs(number)
    no_zero = q == 1 and loud
    least_even, least_odd = _FAR if no_zero else worth * size * size + bits[0], _FAR
    even = odd = np.int64(0)
    near = max(((np.int64(size) + q) >> 1) - 1, 0)
    for k in range(near, near + 4):
        point = 2 * k - q if k or no_zero else 0
        magnitude = k if k or not no_zero else 1
        total = worth * (size - point) ** 2 + bits[min(magnitude >> shift, N_MAGNITUDES - 1)]
        if k & 1:
            if total < least_odd:
                least_odd, odd = total, point
        elif total < least_even:
            least_even, even = total, point
    if number < 0:
        even, odd = -even, -odd
        if no_zero:
            return least_odd, odd, least_even, even
    return least_even, even, least_odd, odd


@compiled
def _choose(x, worth, cost, base, rows, next_state, quantiser, loud_class, start, goal, points):
    """Viterbi search down one column: least sum of worth * (x - point)**2 + bits from state `start` to `goal`, or to
    any where that is -1. Fills points, returns the last state."""
    n = len(x)
    n_states = len(quantiser)
    path = np.full(n_states, _FAR)
    after = np.empty(n_states)
    path[start] = 0.0
    came_from = np.zeros((n, n_states), np.int8)  # filled, or a cost that is no number would lead out of them
    chosen = np.zeros((n, n_states), np.int32)
    least = np.empty((2, 2))
    best = np.empty((2, 2), np.int64)
    for i in range(n):
        if rows[i] == DEAD:
            for s in range(n_states):
                came_from[i, s] = s
                chosen[i, s] = 0
            continue
        c, shift = scale_context(base + rows[i])
        for q in range(2):
            least[q, 0], best[q, 0], least[q, 1], best[q, 1] = _best_points(
                x[i], worth[i], cost[c, q], shift, q, c >= loud_class
            )
        after[:] = _FAR
        for s in range(n_states):
            q = quantiser[s]
            for parity in range(2):
                to = next_state[s, parity]
                total = path[s] + least[q, parity]
                if total < after[to]:
                    after[to] = total
                    came_from[i, to] = s
                    chosen[i, to] = best[q, parity]
        path, after = after, path
    state = goal
    if goal < 0:
        state = np.argmin(path)
    end = state
    for i in range(n - 1, -1, -1):
        points[i] = chosen[i, state]
        state = np.int64(came_from[i, state])
    return end


@compiled
def _choose_coupled(x, worth, coupling, cost, base, rows, next_state, quantiser, loud_class, start, goal, points):
    """`_choose` for the sum of worth * (C (x - point))**2 + bits: an error counts with those of the rows before it.

    No longer the least, since of all paths into a state only the best so far is followed, with its own errors.
    """
    n = len(x)
    n_states = len(quantiser)
    run = coupling.shape[1]
    path = np.full(n_states, _FAR)
    after = np.empty(n_states)
    path[start] = 0.0
    came_from = np.zeros((n, n_states), np.int8)
    chosen = np.zeros((n, n_states), np.int32)
    errors = np.empty((run, n_states))  # of the path into each state, in this run of rows
    moved = np.empty(n_states)
    wanted = np.empty(n_states)
    for i in range(n):
        at = i % run
        wanted[:] = x[i]
        for k in range(at):
            factor = coupling[i // run, at, k]
            for s in range(n_states):
                wanted[s] += factor * errors[k, s]
        if rows[i] == DEAD:
            for s in range(n_states):
                came_from[i, s] = s
                path[s] += worth[i] * wanted[s] * wanted[s]
                errors[at, s] = x[i]
            continue
        c, shift = scale_context(base + rows[i])
        after[:] = _FAR
        for s in range(n_states):
            if path[s] == _FAR:
                continue
            q = quantiser[s]
            least_even, even, least_odd, odd = _best_points(wanted[s], worth[i], cost[c, q], shift, q, c >= loud_class)
            for parity in range(2):
                to = next_state[s, parity]
                total = path[s] + (least_odd if parity else least_even)
                if total < after[to]:
                    after[to] = total
                    came_from[i, to] = s
                    chosen[i, to] = odd if parity else even
        path, after = after, path
        for k in range(at):
            for s in range(n_states):
                moved[s] = errors[k, came_from[i, s]]
            for s in range(n_states):
                errors[k, s] = moved[s]
        for s in range(n_states):
            errors[at, s] = x[i] - chosen[i, s]
    state = goal
    if goal < 0:
        state = np.argmin(path)
    end = state
    for i in range(n - 1, -1, -1):
        points[i] = chosen[i, state]
        state = np.int64(came_from[i, state])
    return end


@compiled
def _sum_of(x, worth, coupling, cost, base, rows, next_state, quantiser, loud_class, start, points):
    """What `_choose_coupled` minimises, of points on the trellis."""
    run = coupling.shape[1]
    total = 0.0
    state = start
    for i in range(len(x)):
        first = i - i % run
        error = 0.0
        for k in range(first, i + 1):
            error += coupling[i // run, i - first, k - first] * (x[k] - points[k])
        total += worth[i] * error * error
        if rows[i] != DEAD:
            c, shift = scale_context(base + rows[i])
            q = quantiser[state]
            k = (abs(np.int64(points[i])) + q) >> 1
            total += cost[c, q, min(k >> shift, N_MAGNITUDES - 1)]
            turned = q & np.int64(points[i] < 0) & np.int64(c >= loud_class)
            state = next_state[state, (k ^ turned) & 1]
    return total
