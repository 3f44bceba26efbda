"""Trellis quantisation where errors have a metric: what one column does wrong, the columns after it make good.

Knows neither layers nor bytes, as `quantize`, whose cost of a point it shares. That search treats all errors alike, and
is several times faster; this one minimises, over points S on the trellis,

    sum over rows i of  worth_i (x_i - s_i)^T M (x_i - s_i)  +  bits of S

or, where the output heeds rows together, worth_i (C (x - s))_i in place of worth_i (x_i - s_i), C lower triangular.

Two stages, in both of which column after column is chosen by a Viterbi search down its rows. *Feeding forward* (Frantar
et al. 2022, arXiv:2210.17323): the error of each is carried to the columns that are still open. With M = V V^T, V an
upper triangle, the cost is the sum over columns j of (sum over k <= j of V_kj e_k)^2; an error in column j then costs
what no later column can make good, V_jj^2. *Descending*: every column is chosen again, given all others. What the
others leave for a column to make good does not depend on C, for the cost is a product of what rows and what columns do;
so only the search down a column knows of C.

A column begins in the state in which the one before it in its chain ends. That is seldom the state from which it would
be cheapest, and among 32 states it takes some rows to get anywhere else: so each column ends where it and AHEAD rows of
those behind it, as they look now, are cheapest together. That saves about two bits a column.

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

AHEAD = 48
"""Rows behind a column, in the columns that follow, that are looked at before it is settled in which state it ends."""
_BLOCK = 64
"""Columns, about, between two matrix products: within a block errors are carried one by one, beyond it all at once."""
_FAR = np.inf
"""Cost of what no path leads to: above every cost, for metrics and numbers come from files of strangers."""
_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Feeding:
    """A metric, and how errors are carried on in it."""

    metric: NDArray[np.float64]
    """(n_groups, n_columns, n_columns), symmetric, positive definite."""

    @cached_property
    def root(self) -> NDArray[np.float64]:
        """(n_groups, n_columns, n_columns) V, upper triangles, of M = V V^T: the Cholesky factor of M turned round.

        Raises numpy.linalg.LinAlgError for a metric that is not positive definite.
        """
        turned = np.linalg.cholesky(self.metric[:, ::-1, ::-1])
        return np.ascontiguousarray(turned[:, ::-1, ::-1], np.float64)


@dataclass(frozen=True)
class Worth:
    """What errors cost, in bits."""

    rows: NDArray[np.float64]
    """(n_rows,) bits that one squared step costs in each row, for a metric of 1."""
    feeding: Feeding
    coupling: NDArray[np.float64] | None = None
    """(n_runs, run, run) C, for rows in n_runs equal runs: unit lower triangles. None where each row counts alone."""

    @property
    def metric(self) -> NDArray[np.float64]:
        return self.feeding.metric

    @property
    def pivots(self) -> NDArray[np.float64]:
        """(n_groups, n_columns) cost of an error in a column, once those after it have made good what they can."""
        return np.diagonal(self.feeding.root, axis1=1, axis2=2) ** 2


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
        n_passes: times that every column is chosen again; 0 feeds forward only. Each lowers the cost, but for rare ones
            in which a column leads where the rest of its chain pays more than what was looked at.

    Returns:
        points (n_columns, n_rows), zero in dead rows and columns.

    Raises:
        numpy.linalg.LinAlgError: a metric that is not positive definite.

    Cost: O(n_rows n_columns^2) for each stage, O(n_columns^3) for each group, and O(n_rows n_columns run n_states)
    where rows are coupled.
    """
    n_columns, n_rows = x.shape
    n_groups = len(worth.metric)
    chain = columns_per_chain(n_rows)
    block = chain * max(1, _BLOCK // chain)  # whole chains: what is ahead lies in the same one
    blocks = [slice(at, min(at + block, n_columns)) for at in range(0, n_columns, block)]
    points = np.zeros((n_columns, n_rows), np.int32)
    change = np.empty_like(x)
    coupling = np.ones((n_rows, 1, 1)) if worth.coupling is None else worth.coupling
    walk = trellis.next_state.astype(np.int64), trellis.quantiser.astype(np.int64), trellis.loud_class
    table = cost.astype(np.float64), scales.base, scales.rows.astype(np.int64)
    columns = scales.columns.astype(np.int64)

    def choose(
        here: slice, wanted: _Array, carried: _Array, per_wanted: _Array, pivots: _Array, *, again: bool
    ) -> None:
        _choose_columns(
            wanted, carried, per_wanted, pivots, worth.rows, coupling, *table, columns[here], *walk, chain, again,
            points[here], change[here],
        )  # fmt: skip

    def product(matrix: _Array, rows: _Array) -> _Array:
        """A matrix (n_groups, n, m), turned, times (n, n_rows), group by group."""
        grouped = rows.reshape(len(rows), n_groups, -1).transpose(1, 0, 2)
        found: _Array = matrix.transpose(0, 2, 1) @ grouped
        return found.transpose(1, 0, 2).reshape(-1, n_rows)

    root, pivots = worth.feeding.root, worth.pivots
    owed = np.zeros_like(x)  # of every column V^T e, e being the errors of the blocks before
    for here in blocks:
        inverse = np.asarray(np.linalg.inv(root[:, here, here]), np.float64)
        diagonal = np.diagonal(inverse, axis1=1, axis2=2)
        wanted = x[here] + product(inverse, owed[here])
        choose(here, wanted, inverse / diagonal[:, :, None], np.ones_like(diagonal), pivots[:, here], again=False)
        rest = slice(here.stop, n_columns)
        owed[rest] += product(root[:, here, rest], x[here] - points[here])
    if n_passes:
        own = np.diagonal(worth.metric, axis1=1, axis2=2).copy()
        per_own = np.repeat(1 / own.T, n_rows // n_groups, 1)
        wanted = points - per_own * product(worth.metric, points - x)
        for _ in range(n_passes):
            for here in blocks:
                choose(here, wanted[here], worth.metric[:, here, here], 1 / own[:, here], own[:, here], again=True)
                for rest in (slice(0, here.start), slice(here.stop, n_columns)):
                    wanted[rest] -= per_own[rest] * product(worth.metric[:, here, rest], change[here])
    return points


@compiled
def _choose_columns(
    wanted, carried, per_wanted, pivots, worth, coupling, cost, base, rows, columns, next_state, quantiser, loud_class,
    chain, again, points, change,
):  # fmt: skip
    """Choose the columns of a block, whole chains, one after another.

    What column j changes, its error or, where it is chosen `again`, the difference to what it was, moves what is wanted
    of column k by -per_wanted[k] * carried[j, k] times that: of later ones only or, again, of all.
    """
    n_columns, n_rows = wanted.shape
    n_groups = len(carried)
    n_here = n_rows // n_groups
    n_states = len(quantiser)
    bits = np.empty(n_rows)
    path = np.empty(n_states)
    came_from = np.zeros((n_rows, n_states), np.int8)  # filled, or a cost that is no number would lead out of them
    chosen = np.zeros((n_rows, n_states), np.int32)
    ahead = np.empty(AHEAD)
    ahead_bits = np.empty(AHEAD)
    ahead_class = np.empty(AHEAD, np.int64)
    state = 0
    for j in range(n_columns):
        if j % chain == 0:
            state = 0
        for i in range(n_rows):
            change[j, i] = points[j, i]
        if columns[j] != DEAD:
            for i in range(n_rows):
                bits[i] = worth[i] * pivots[i // n_here, j]
            path[:] = _FAR
            path[state] = 0.0
            walk = next_state, quantiser, loud_class
            if coupling.shape[1] > 1:
                _search_coupled(
                    wanted[j], bits, coupling, cost, base + columns[j], rows, *walk, path, came_from, chosen
                )
            else:
                _search(wanted[j], bits, cost, base + columns[j], rows, *walk, path, came_from, chosen)
            state = np.argmin(path)
            _trace_back(came_from, chosen, state, points[j])
            n = 0
            for k in range(j + 1, min(j - j % chain + chain, n_columns) if n_states > 1 else 0):
                if columns[k] == DEAD:
                    continue
                for i in range(min(n_rows, AHEAD - n)):
                    g = i // n_here
                    moved = points[j, i] - change[j, i] if again else wanted[j, i] - points[j, i]
                    ahead[n + i] = wanted[k, i] - per_wanted[g, k] * carried[g, j, k] * moved
                    ahead_bits[n + i] = worth[i] * pivots[g, k]
                    ahead_class[n + i] = DEAD if rows[i] == DEAD else columns[k] + rows[i]
                n += min(n_rows, AHEAD - n)
            if n > 0:
                state = _best_end(ahead[:n], ahead_bits[:n], coupling, cost, base, ahead_class[:n], *walk, path)
                _trace_back(came_from, chosen, state, points[j])
        for i in range(n_rows):
            change[j, i] = points[j, i] - change[j, i] if again else wanted[j, i] - points[j, i]
        for k in range(0 if again else j + 1, n_columns):
            if k == j:
                continue
            for g in range(n_groups):
                factor = per_wanted[g, k] * carried[g, j, k]
                for i in range(g * n_here, (g + 1) * n_here):
                    wanted[k, i] -= factor * change[j, i]


@compiled
def _best_end(x, worth, coupling, cost, base, rows, next_state, quantiser, loud_class, path):
    """The state, of those that paths of these costs end in, from which x is cheapest."""
    came_from = np.zeros((len(x), len(path)), np.int8)
    chosen = np.zeros((len(x), len(path)), np.int32)
    path = path.copy()
    walk = next_state, quantiser, loud_class
    if coupling.shape[1] > 1:
        _search_coupled(x, worth, coupling, cost, base, rows, *walk, path, came_from, chosen)
    else:
        _search(x, worth, cost, base, rows, *walk, path, came_from, chosen)
    return _trace_back(came_from, chosen, np.argmin(path), np.empty(len(x), np.int32))


@compiled
def _trace_back(came_from, chosen, state, points):
    """Fill in the points of the path that ends in a state; returns the state that it began in."""
    for i in range(len(points) - 1, -1, -1):
        points[i] = chosen[i, state]
        state = np.int64(came_from[i, state])
    return state


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
def _search(x, worth, cost, base, rows, next_state, quantiser, loud_class, path, came_from, chosen):
    """Viterbi search down one column: least sum of worth * (x - point)**2 + bits of all paths into each state.

    path: (n_states,) what it costs to be in each state, before and after. Fills (n_rows, n_states) where the best path
    came from, and by which point.
    """
    n_states = len(quantiser)
    after = np.empty(n_states)
    least = np.empty((2, 2))
    best = np.empty((2, 2), np.int64)
    for i in range(len(x)):
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
        path[:] = after


@compiled
def _search_coupled(x, worth, coupling, cost, base, rows, next_state, quantiser, loud_class, path, came_from, chosen):
    """`_search` for the sum of worth * (C (x - point))**2 + bits: an error counts with those of the rows before it.

    No longer the least, since of all paths into a state only the best so far is followed, with its own errors. x may be
    rows of several columns, whole ones but for the last.
    """
    n_states = len(quantiser)
    run = coupling.shape[1]
    after = np.empty(n_states)
    errors = np.empty((run, n_states))  # of the path into each state, in this run of rows
    moved = np.empty(n_states)
    wanted = np.empty(n_states)
    for i in range(len(x)):
        at = i % run
        wanted[:] = x[i]
        for k in range(at):
            factor = coupling[i // run % len(coupling), at, k]
            for s in range(n_states):
                wanted[s] += factor * errors[k, s]
        if rows[i] == DEAD:
            for s in range(n_states):
                came_from[i, s] = s
                chosen[i, s] = 0
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
        path[:] = after
        for k in range(at):
            for s in range(n_states):
                moved[s] = errors[k, came_from[i, s]]
            for s in range(n_states):
                errors[k, s] = moved[s]
        for s in range(n_states):
            errors[at, s] = x[i] - chosen[i, s]
