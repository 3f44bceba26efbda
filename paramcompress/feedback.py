"""Trellis quantisation where errors have a metric: what one column does wrong, the columns after it make good.

Knows neither layers nor bytes, as `quantize`, whose cost of a point it shares. That search treats all errors alike, and
is several times faster; this one minimises, over points S on a trellis that runs along the rows,

    sum over rows i of  worth_i (x_i - s_i)^T M (x_i - s_i)  +  bits of S

or, where the output heeds rows together, worth_i (C (x - s))_i in place of worth_i (x_i - s_i), C lower triangular.

A row is chosen by a Viterbi search along its columns in which the path into each state carries its own errors on, as
decision feedback does along each survivor (Duel-Hallen and Heegard 1989, delayed decision-feedback sequence
estimation): so of as many ways to begin a row as there are states, the one is kept that can still be made good best.
The trellis runs along rows for just this reason. Run down columns it can only be told what earlier columns have settled
on, which costs some 0.1 bits a weight in a convolution. Where the output heeds rows together more than inputs go
together, it is the other way round: then the transposed problem is solved (`Worth.turned`).

Two stages. *Feeding forward* (Frantar et al. 2022, arXiv:2210.17323): with M = V V^T, V an upper triangle, the cost is
the sum over columns j of (sum over k <= j of V_kj e_k)^2; an error in column j then costs what no later column can make
good, V_jj^2. Of rows that are heeded together each is first told the errors of those before it only, by C, and then
chosen anew, told those of all others. *Descending*: row after row is chosen again, given all others; what a path costs
is then the change of the whole sum if nothing behind it changed, so that the path that changes nothing is among those
that compete.

Rows of a chain follow on each other: a row ends in the state from which it and AHEAD numbers of those behind it, as
they look now, are cheapest together.

Shapes: x, points (n_columns, n_rows) in steps.  M (n_groups, n_columns, n_columns), rows in n_groups equal runs, each
with its own metric (1 but for grouped convolutions).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramcompress.entropy import DEAD, Scales
from paramcompress.jit import compiled
from paramcompress.prices import N_MAGNITUDES
from paramcompress.threads import in_order
from paramcompress.tokens import POINT_LIMIT, scale_context
from paramcompress.trellis import Trellis, lines_per_chain

AHEAD = 48
"""Numbers behind a row, in the rows that follow, that are looked at before it is settled in which state it ends."""
STRETCH = 32
"""Columns over which every path has sums of its own, which then stay in the nearest cache."""
ABREAST = 8
"""Runs of rows that go through a wide metric together."""
_PIECE = 32
"""Rows of a diagonal metric that are dealt with at a time."""
_LANES = np.uintp(32)
"""Numbers in a row of what is worked with, one for each state; the most states that there are. Rows lie at fixed
distances in one flat array, and indices are unsigned, or LLVM would make no vector instructions (`quantize`)."""
_QUANTISER, _MOVED, _SIZE, _NEAR, _ZERO = (_LANES * np.uintp(at) for at in range(5))
_PRICES = _LANES * np.uintp(5)
"""Four rows, and then two each for even and odd symbols."""
_TOTALS = _PRICES + np.uintp(4) * _LANES
_POINTS = _TOTALS + np.uintp(2) * _LANES
_WORK = int(_POINTS) + 2 * int(_LANES)
_FARTHEST = float((POINT_LIMIT >> 1) - 4)
"""Symbol next to which points are looked for at most, so that they are below the limit."""
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
        # a copy of a single column, too: its strides would stay negative, which torch does not take
        return np.array(turned[:, ::-1, ::-1], np.float64, order="C")


@dataclass(frozen=True)
class Worth:
    """What errors cost, in bits."""

    rows: NDArray[np.float64]
    """(n_rows,) bits that one squared step costs in each row, for a metric of 1."""
    feedings: Sequence[Feeding]
    """Metrics of the blocks of columns that have something to do with each other, one after another."""
    coupling: NDArray[np.float64] | None = None
    """(n_runs, run, run) C, for rows in n_runs equal runs: unit lower triangles. None where each row counts alone."""

    @cached_property
    def pivots(self) -> NDArray[np.float64]:
        """(n_groups, n_columns) cost of an error in a column, once those after it have made good what they can."""
        return np.concatenate([np.diagonal(one.root, axis1=1, axis2=2) ** 2 for one in self.feedings], 1)

    @cached_property
    def own(self) -> NDArray[np.float64]:
        """(n_groups, n_columns) cost of an error in a column, if none makes it good."""
        return np.concatenate([np.diagonal(one.metric, axis1=1, axis2=2) for one in self.feedings], 1)

    def image(self, errors: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n_rows, n_columns) what each error pulls at: half the gradient of the cost, for errors of that shape."""
        n_groups = len(self.feedings[0].metric)
        grouped = errors.reshape(n_groups, -1, errors.shape[1])
        found, at = np.empty_like(grouped), 0
        for one in self.feedings:
            here = slice(at, at := at + one.metric.shape[1])
            found[:, :, here] = grouped[:, :, here] @ one.metric
        runs = self.gram @ found.reshape(len(self.gram), -1, errors.shape[1])
        return np.ascontiguousarray(runs.reshape(errors.shape))

    @cached_property
    def turned(self) -> Worth | None:
        """The same for the transposed matrix: what the cost is, a product of what rows and what columns do, lets them
        change places. None where it is no such product, since groups have metrics of their own, and where blocks of
        columns would have to be coupled, which are not all of one size."""
        if len(self.feedings[0].metric) > 1:
            return None
        if len(self.gram[0]) > 1:
            blocks = [Feeding(one[None]) for one in self.gram]
        else:
            pieces = range(0, len(self.rows), _PIECE)
            blocks = [Feeding(np.diag(self.rows[at : at + _PIECE])[None]) for at in pieces]
        if len(self.feedings) == 1:
            root = self.feedings[0].root[0]
            pivots = np.diagonal(root)
            return Worth(pivots**2, blocks, np.ascontiguousarray((root / pivots).T[None]))
        is_diagonal = all(np.count_nonzero(one.metric) <= one.metric.shape[1] for one in self.feedings)
        return Worth(self.own[0], blocks) if is_diagonal else None

    @property
    def chained(self) -> NDArray[np.float64]:
        """(n_runs, run, run) C; runs of one row where each counts alone."""
        return np.ones((len(self.rows), 1, 1)) if self.coupling is None else self.coupling

    @cached_property
    def gram(self) -> NDArray[np.float64]:
        """(n_runs, run, run) C^T diag(worth) C."""
        chained = self.chained
        return chained.transpose(0, 2, 1) @ (self.rows.reshape(len(chained), -1, 1) * chained)


def quantize_in_metric(
    x: NDArray[np.float64],
    scales: Scales,
    trellis: Trellis,
    cost: NDArray[np.float32],
    worth: Worth,
    n_passes: int,
    workers: int = 1,
) -> NDArray[np.int32]:
    """Points, on a trellis along the rows, that nearly minimise the cost of their errors plus their bits.

    Args:
        x: (n_columns, n_rows), finite, |x| < 2**30.
        cost: (classes, 2, magnitudes) bits, from `prices.cost_table`.
        n_passes: times that every row is chosen again; 0 feeds forward only. Each lowers the cost, but for rare ones in
            which a row leads where the rest of its chain pays more than what was looked at.
        workers: threads, for runs of rows that have nothing to do with one another. Points do not depend on it.

    Returns:
        points (n_columns, n_rows), zero in dead rows and columns.

    Raises:
        numpy.linalg.LinAlgError: a metric that is not positive definite.

    Cost: O(n_rows n_columns (n_columns + n_states (STRETCH + until paths meet))) for each stage, and O(n_columns^3) for
    each block of each group, n_columns being those of a block.
    """
    rows = np.ascontiguousarray(x.T)
    points = np.zeros(rows.shape, np.int32)
    starts = np.cumsum([0, *(one.metric.shape[1] for one in worth.feedings)])
    sides = cost.astype(np.float64), scales.base, scales.rows.astype(np.int64), scales.columns.astype(np.int64)
    walk = _into(trellis), trellis.quantiser.astype(np.int64), trellis.loud_class
    per_chain = lines_per_chain(len(x))
    roots, gram = _flat([one.root for one in worth.feedings]), worth.gram
    weights = np.ascontiguousarray(np.einsum("rii->ri", gram)).reshape(-1)
    carried = np.zeros_like(rows)  # errors of the rows that were chosen
    run = gram.shape[1]
    abreast = min(ABREAST, -(-len(rows) // (run * workers))) if per_chain == 1 else 1
    size = math.lcm(run, per_chain) * abreast
    stretches = [range(at, min(at + size, len(rows))) for at in range(0, len(rows), size)]

    def choose_rows(*how: Any) -> None:
        def choose(stretch: range) -> None:
            _choose_rows(rows, *how, stretch.start, stretch.stop, abreast, points)

        for _ in in_order(choose, stretches, workers, len):
            pass

    def feed(rows_worth: _Array, coupling: _Array) -> None:
        choose_rows(carried, roots, starts, worth.pivots, rows_worth, coupling, *sides, *walk, per_chain, False)

    feed(worth.rows, worth.chained)
    if n_passes:
        if run > 1:
            feed(weights, gram / weights.reshape(len(gram), -1, 1))
        metric, pull = _flat([one.metric for one in worth.feedings]), worth.image(points - rows)
        for _ in range(n_passes):
            choose_rows(pull, metric, starts, worth.own, weights, gram, *sides, *walk, per_chain, True)
    return np.ascontiguousarray(points.T)


def _into(trellis: Trellis) -> NDArray[np.int64]:
    """(n_states, 2): from where each state is reached, as parity * _LANES + the state before."""
    by_target = np.argsort(trellis.next_state.reshape(-1), kind="stable").reshape(-1, 2)
    return (by_target & 1) * int(_LANES) + (by_target >> 1)


def _flat(blocks: Sequence[_Array]) -> _Array:
    """(n_groups, sum of n^2) of matrices (n_groups, n, n)."""
    flat = [one.reshape(len(one), -1) for one in blocks]
    return np.ascontiguousarray(flat[0] if len(flat) == 1 else np.concatenate(flat, 1))


@compiled
def _choose_rows(
    x, carried, matrix, starts, pivots, worth, coupling, cost, base, rows, columns, into, quantiser, loud_class,
    per_chain, again, begin, end, abreast, points,
):  # fmt: skip
    """Choose row after row, from `begin` to before `end`, feeding forward or, what was chosen, `again`; `abreast` runs
    at once, one row of each at a time, which may be more than one only where every row is a chain of its own.

    matrix: V or, again, M, the blocks one after another, which begin at columns `starts`; pivots (n_groups, n_columns):
    what an error costs for a worth of 1. coupling: by what the errors of other rows move what is wanted of a row; or,
    again, G. carried: errors of the rows, filled on the way; or, again, `Worth.image`, kept up to date.
    """
    n_rows, n_columns = x.shape
    n_here = n_rows // len(matrix)
    run = coupling.shape[1]
    n_states = len(quantiser)
    lanes = np.empty(abreast, np.int64)
    path = np.empty((abreast, n_states))
    came_from = np.zeros((abreast, n_columns, n_states), np.int8)
    chosen = np.zeros((abreast, n_columns, n_states), np.int32)
    centre = np.empty((abreast, n_columns))
    pull = np.empty((abreast, n_columns))
    ahead = np.empty((1, n_states)), np.zeros((AHEAD, n_states), np.int8), np.zeros((AHEAD, n_states), np.int32)
    nodes = np.empty((n_columns, n_states), np.int8)
    owed = np.zeros((2, n_states, STRETCH))  # zeros, since states that no path leads to are weighed with the others
    before = np.empty(n_columns, np.int32)
    costs = matrix, n_here, starts, pivots, worth, cost, base, rows, columns, into, quantiser, loud_class, again
    state = 0
    for first in range(begin, end, abreast * run):
        past = min(first + abreast * run, end)
        for leader in range(first, first + run):
            n_lanes = 0
            for i in range(leader, past, run):
                if i % per_chain == 0:
                    state = 0
                if rows[i] == DEAD:
                    if not again:
                        carried[i] = x[i]
                    continue
                _aim(i, x, points, carried, worth, coupling, again, centre[n_lanes], pull[n_lanes])
                path[n_lanes] = _FAR
                path[n_lanes, state] = 0.0
                came_from[n_lanes] = 0  # or a cost that is no number would lead out of them
                chosen[n_lanes] = 0
                lanes[n_lanes] = i
                n_lanes += 1
            _search(lanes[:n_lanes], centre, pull, *costs, path, came_from, chosen, nodes, owed)
            for lane in range(n_lanes):
                i = lanes[lane]
                before[:] = points[i]
                last = np.argmin(path[lane])
                _trace_back(came_from[lane], chosen[lane], last, points[i])
                if not again:
                    carried[i] = x[i] - points[i]
                chain = range(i + 1, min(i - i % per_chain + per_chain, end) if n_states > 1 else 0)
                state = _state_between(
                    path[lane], chain, x, points, carried, worth, coupling, again, rows, costs, lanes, centre, pull,
                    *ahead, nodes, owed,
                )  # fmt: skip
                if state != last:
                    _trace_back(came_from[lane], chosen[lane], state, points[i])
                if not again:
                    carried[i] = x[i] - points[i]
                else:
                    _spread(i, before, points, matrix[i // n_here], starts, coupling, pull[lane], carried)


@compiled
def _state_between(
    path, chain, x, points, carried, worth, coupling, again, rows, costs, lanes, centre, pull, ahead, came_from, chosen,
    nodes, owed,
):  # fmt: skip
    """State from which a row and AHEAD numbers of the rows behind it, its `chain`, are cheapest together, where `path`
    is what it costs to be in each. `lanes` and all after it are to work in."""
    n_states = len(path)
    ahead[0] = path
    n = 0
    for i in chain:
        if n == AHEAD:
            break
        if rows[i] == DEAD:
            continue
        more = min(x.shape[1], AHEAD - n)
        _aim(i, x, points, carried, worth, coupling, again, centre[0, :more], pull[0])
        came_from[n : n + more] = 0
        lanes[0] = i
        _search(
            lanes[:1], centre[0, :more].reshape(1, more), pull, *costs, ahead,
            came_from[n : n + more].reshape(1, more, n_states), chosen[n : n + more].reshape(1, more, n_states),
            nodes, owed,
        )  # fmt: skip
        n += more
    state = np.argmin(ahead[0])
    for at in range(n - 1, -1, -1):
        state = np.int64(came_from[at, state])
    return state


@compiled
def _spread(i, before, points, matrix, starts, coupling, pull, carried):
    """Keep `Worth.image` up to date, row i having been chosen once more. pull: to work in."""
    run = coupling.shape[1]
    at = 0
    for b in range(len(starts) - 1):
        first, stop = starts[b], starts[b + 1]
        changed = False
        pull[first:stop] = 0.0
        for j in range(first, stop):
            if points[i, j] != before[j]:
                changed = True
                _add(np.float64(points[i, j] - before[j]), matrix[at : at + stop - first], pull[first:stop])
            at += stop - first
        if changed:
            for other in range(i - i % run, i - i % run + run):
                _add(coupling[i // run, other % run, i % run], pull[first:stop], carried[other, first:stop])


@compiled
def _aim(i, x, points, carried, worth, coupling, again, centre, pull):
    """What is wanted of a row before any of its own points is chosen: centre, less pull over the pivots."""
    run = coupling.shape[1]
    if again:
        for j in range(len(centre)):
            centre[j] = points[i, j]
            pull[j] = carried[i, j] / worth[i]
        return
    for j in range(len(centre)):
        centre[j] = x[i, j]
    pull[:] = 0.0
    for k in range(i - i % run, i - i % run + run):
        factor = coupling[i // run, i % run, k % run]
        if k != i and factor != 0:
            _add(factor, carried[k, : len(centre)], centre)


@compiled
def _search(
    lanes, centre, pull, matrix, n_here, starts, pivots, worth, cost, base, rows, columns, into, quantiser, loud_class,
    again, path, came_from, chosen, nodes, owed,
):  # fmt: skip
    """Viterbi search along rows, `lanes`, or as much of them as there are numbers in `centre` (lanes, numbers).

    What column j changes, its point less its centre, moves what is wanted of column k of its block by -matrix[j, k] /
    matrix[k, k] times that. Every path carries its own sum of these, `owed`, over STRETCH columns. Before the next ones
    begin, what all paths have in common is added to `pull`, which is spent by that: some tens of columns back they
    have met, and only what came after has to be added path by path. All rows go through the same columns before any
    goes on, since a large matrix is too slow to be read for each of them.

    path: (lanes, n_states) what it costs to be in each state, before and after. Fills (lanes, n, n_states) where the
    best path came from, and by which point. To work in: nodes (n, n_states), owed (2, n_states, STRETCH).
    """
    n_states = len(quantiser)
    n = centre.shape[1]
    n_nodes = np.empty(n, np.int64)
    settled = np.empty(len(lanes), np.int64)
    work = np.empty(_WORK)
    for s in range(n_states):
        work[_QUANTISER + np.uintp(s)] = quantiser[s]
    now, then = owed[0], owed[1]
    at = 0
    for b in range(len(starts) - 1):
        first, stop, width = starts[b], min(starts[b + 1], n), starts[b + 1] - starts[b]
        settled[:] = first
        for left in range(first, stop, STRETCH):
            right = min(left + STRETCH, stop)
            for lane in range(len(lanes)):
                i = lanes[lane]
                block = matrix[i // n_here, at : at + width * width].reshape(width, width)
                now, then, settled[lane] = _gather(
                    settled[lane], left, right, first, stop, block, centre[lane], path[lane], came_from[lane],
                    chosen[lane], nodes, n_nodes, pull[lane], now, then,
                )  # fmt: skip
                now, then = _walk(
                    left, right, first, block, centre[lane], worth[i], pivots[i // n_here], cost, base + rows[i],
                    columns, into, loud_class, again, path[lane], came_from[lane], chosen[lane], now, then, work,
                )  # fmt: skip
        at += width * width


@compiled
def _walk(
    left, right, first, block, centre, worth, pivots, cost, base, columns, into, loud_class, again, path, came_from,
    chosen, now, then, work,
):  # fmt: skip
    """Take the search along a row from column `left` to before `right`, both of a block that begins at `first`."""
    n_states = len(path)
    for j in range(left, right):
        row = block[j - first, left - first : right - first]
        pivot = row[j - left]
        per_error = worth * pivots[j]
        if columns[j] == DEAD:
            for s in range(n_states):
                came_from[j, s] = s
                chosen[j, s] = 0
                wanted = centre[j] - now[s, j - left] / pivot
                path[s] += 0.0 if again else per_error * wanted * wanted
                for k in range(j + 1 - left, right - left):
                    now[s, k] -= row[k] * centre[j]
            continue
        c, shift = scale_context(base + columns[j])
        _weigh(centre[j], now, j - left, pivot, per_error, cost[c], shift, c >= loud_class, again, path, work)
        _advance(into, work, path, came_from[j], chosen[j])
        for s in range(n_states):
            _carry(j + 1 - left, now[came_from[j, s]], chosen[j, s] - centre[j], row, then[s])
        now, then = then, now
    return now, then


@compiled
def _carry(begin, source, change, row, into):
    """into = source + change * row from an index on."""
    for k in range(np.uintp(begin), np.uintp(len(row))):
        into[k] = source[k] + row[k] * change


@compiled
def _add(change, row, into):
    """into += change * row. (With `_carry` LLVM would have to make sure that it reads no number twice.)"""
    for k in range(np.uintp(len(row))):
        into[k] += row[k] * change


@compiled
def _add_four(changes, places, block, begin, into):
    """What four times `_add` does, but that numbers are fetched and put back once."""
    one, two, three, four = block[places[0]], block[places[1]], block[places[2]], block[places[3]]
    first, second, third, fourth = changes[0], changes[1], changes[2], changes[3]
    for k in range(np.uintp(len(into))):
        at = np.uintp(begin) + k
        into[k] = into[k] + one[at] * first + two[at] * second + three[at] * third + four[at] * fourth


@compiled
def _gather(settled, left, right, first, stop, block, centre, path, came_from, chosen, nodes, n_nodes, pull, now, then):
    """Fill now or then (n_states, STRETCH) with what the changes before column `left` move the columns up to `right` of
    each path by. Returns which of them, the other one, and up to where all paths agree.

    Up to `settled` they did before, and what came until there is in `pull` already. From there on they are a tree, that
    is gone through once from the leaves, to find what is still part of a path, and once from the root, adding up.

    nodes, n_nodes: to work in: the states that paths are in behind each column, and how many these are.
    """
    n_states = len(path)
    seen = np.full(n_states, -1)
    changes, places = np.empty(4), np.empty(4, np.int64)
    here = np.empty(n_states, np.int64)
    n = 0
    for s in range(n_states):
        if path[s] != _FAR:
            here[n] = s
            n += 1
    begin, state = left, np.int64(0)
    while begin > settled:
        begin -= 1
        n_nodes[begin] = n
        n = 0
        for at in range(n_nodes[begin]):
            nodes[begin, at] = here[at]
            state = np.int64(came_from[begin, here[at]])
            if seen[state] != begin:
                seen[state] = begin
                here[n] = state
                n += 1
        if n == 1:
            break
    n = 0
    for j in range(begin - 1, settled - 1, -1):
        changes[n] = chosen[j, state] - centre[j]
        state = np.int64(came_from[j, state])
        places[n] = j - first
        if changes[n] != 0:
            n += 1
        if n == 4:
            _add_four(changes, places, block, left - first, pull[left:stop])
            n = 0
    for at in range(n):
        _add(changes[at], block[places[at], left - first : stop - first], pull[left:stop])
    for s in range(n_states):
        now[s, : right - left] = pull[left:right]
    for j in range(begin, left):
        row = block[j - first, left - first : right - first]
        for at in range(n_nodes[j]):
            s = nodes[j, at]
            _carry(0, now[came_from[j, s]], chosen[j, s] - centre[j], row, then[s])
        now, then = then, now
    return now, then, begin


@compiled
def _trace_back(came_from, chosen, state, points):
    """Fill in the points of the path that ends in a state."""
    for i in range(len(points) - 1, -1, -1):
        points[i] = chosen[i, state]
        state = np.int64(came_from[i, state])


@compiled
def _weigh(centre, owed, at, pivot, worth, bits, shift, loud, again, path, work):
    """What each path costs with the best point of either parity behind it, and that point: rows _TOTALS and _POINTS.

    Of the points of a quantiser only those count that are as large as the wanted number or next to that, two above and
    two below, and zero. No branches, since nobody could foresee which way they go; the loops with prices apart, since
    looking them up is no vector instruction.
    """
    n_states = np.uintp(len(path))
    is_loud = 1.0 if loud else 0.0
    for s in range(n_states):
        work[_MOVED + s] = owed[s, at]
    for s in range(n_states):
        moved = work[_MOVED + s] / pivot
        size = abs(centre - moved)
        near = np.floor((size + work[_QUANTISER + s]) * 0.5) - 1
        near = near if near > 0 else 0.0  # also where it is no number
        work[_MOVED + s] = moved
        work[_SIZE + s] = size
        work[_NEAR + s] = near if near < _FARTHEST else _FARTHEST
    for s in range(n_states):
        of_q = bits[np.uintp(work[_QUANTISER + s])]
        near = np.int64(work[_NEAR + s])
        beyond_zero = np.int64(is_loud * work[_QUANTISER + s]) & np.int64(near == 0)
        work[_PRICES + s] = _price(of_q, near + beyond_zero, shift)
        for k in range(np.uintp(1), np.uintp(4)):
            work[_PRICES + k * _LANES + s] = _price(of_q, near + np.int64(k), shift)
        work[_ZERO + s] = of_q[0]
    for s in range(n_states):
        q, near, size, moved = work[_QUANTISER + s], work[_NEAR + s], work[_SIZE + s], work[_MOVED + s]
        no_zero = q * is_loud > 0
        first = 2 * near - q
        # quantiser 1's innermost point is zero, or, where it has none, that of magnitude 1 on the other side
        a_point = 0.0 if near == 0 and not no_zero else first
        b_point, c_point, d_point = first + 2, first + 4, first + 6
        a = worth * (size - a_point) ** 2 + work[_PRICES + s]
        b = worth * (size - b_point) ** 2 + work[_PRICES + _LANES + s]
        c = worth * (size - c_point) ** 2 + work[_PRICES + np.uintp(2) * _LANES + s]
        d = worth * (size - d_point) ** 2 + work[_PRICES + np.uintp(3) * _LANES + s]
        a_point = c_point if c < a else a_point
        a = c if c < a else a
        b_point = d_point if d < b else b_point
        b = d if d < b else b
        odd_first = near - 2 * np.floor(near * 0.5) > 0
        even, even_point = b if odd_first else a, b_point if odd_first else a_point
        odd, odd_point = a if odd_first else b, a_point if odd_first else b_point
        zero = _FAR if no_zero else worth * size * size + work[_ZERO + s]
        even_point = even_point if even < zero else 0.0
        even = even if even < zero else zero
        negative = centre - moved < 0
        turned = negative and no_zero
        total = path[s] - (worth * moved * moved if again else 0.0)
        work[_TOTALS + s] = total + (odd if turned else even)
        work[_TOTALS + _LANES + s] = total + (even if turned else odd)
        even_point = -even_point if negative else even_point
        odd_point = -odd_point if negative else odd_point
        work[_POINTS + s] = odd_point if turned else even_point
        work[_POINTS + _LANES + s] = even_point if turned else odd_point


@compiled
def _price(bits, magnitude, shift):
    return bits[np.uintp(min(magnitude >> shift, N_MAGNITUDES - 1))]


@compiled
def _advance(into, work, path, came_from, chosen):
    """Of the two ways into each state the cheaper one; none where both cost more than there is."""
    for s in range(np.uintp(len(path))):
        one, other = np.uintp(into[s, 0]), np.uintp(into[s, 1])
        least = work[_TOTALS + one] if work[_TOTALS + one] < _FAR else _FAR  # or no number would stay for ever
        is_other = work[_TOTALS + other] < least
        least = work[_TOTALS + other] if is_other else least
        way = other if is_other else one
        path[s] = least
        came_from[s] = way % _LANES
        chosen[s] = np.int32(work[_POINTS + way]) if least < _FAR else 0
