"""Trellis-coded quantisation by rate and distortion: real numbers to lattice points.

Knows neither layers nor bytes: the caller says what each magnitude costs, `entropy` writes what comes out.

How the search runs. Chains are independent, so up to LANES of them advance side by side, one number of each at every
*step*; what is known about the numbers lies step after step, lane beside lane. A group of chains passes through three
loops block by block, so that what they hand on stays in the nearest cache: `_look_up` (prices of the magnitudes beside
each number), `_weigh` (the best symbol of each subset) and `_advance` (add, compare, select: the Viterbi step). Then
follow `_trace` (back along the best path) and `_settle` (which points that path means).

Why they look as they do. `_weigh`, `_advance` and most of `_settle` have to become vector instructions, and LLVM makes
these from innermost loops without branches or look-ups, over flat arrays at fixed distances. Indices are unsigned,
because numba lets negative ones count from the end; small integers are cast back at once, because numba widens them.

Shapes: x (n_columns, n_rows): the numbers, in steps, column after column as the chain runs.  points: the same shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramcompress.entropy import DEAD, Scales
from paramcompress.jit import compiled
from paramcompress.tokens import classes_in, scale_context, scale_contexts
from paramcompress.trellis import TRELLISES, WITH_ZERO, Trellis, lines_per_chain

LANES = 8
"""Chains side by side. With fewer, the lanes left over work on numbers of others, and nobody looks at their outcome."""
_BLOCK = 512
"""Numbers that are looked up and weighed before the paths advance over them."""
_ROW = _BLOCK + LANES
_BEST = 6 * _ROW
"""Layout of `costs`: six rows of prices (below, at, above, by quantiser), then the best of each subset in four rows.

A subset is 2 * quantiser + parity of the magnitude.
"""
_FAR = np.float32(1e30)
"""Cost of a state that a chain cannot be in. Finite: infinity less infinity is not a number."""
_FILLER = -1
"""Column number in lanes that have fewer columns than their neighbours."""


def quantize(
    x: NDArray[np.float32],
    scales: Scales,
    trellis: Trellis,
    cost: NDArray[np.float32],
    weight: float,
    *,
    step: float = 1.0,
    chains: NDArray[np.int64] | None = None,
    points: NDArray[np.int32] | None = None,
) -> NDArray[np.int32]:
    """Points that minimise squared distance + weight * bits along each chain.

    Args:
        x: (n_columns, n_rows), C order, finite, |x| < 2**30 steps; what dead rows and columns hold becomes zero.
        cost: (classes, 2, magnitudes) bits of a magnitude by class and quantiser, from `prices.cost_table`; larger
            magnitudes cost as much as the last.
        weight: squared steps that one bit is worth. 0 finds the nearest points that the trellis allows.
        step: in the units of x.
        chains: numbers of the chains to be quantised; without it all. LANES of them cost hardly more than one.
        points: (n_columns, n_rows), where the points of these chains go; the rest of it stays as it is. Zero in dead
            rows and columns.

    Returns:
        points (n_columns, n_rows).

    With 1 state magnitudes from 3 on count as if each next one cost the same more.

    Cost: 0.3 ns a number with 1 state, 7 with 8, 8 with 32 (one core of a quiet machine); with more than one state
        twice that where there is only one chain, and each call takes 10 us besides.
    Source: Viterbi search; Marcellin and Fischer 1990.
    """
    n_columns, n_rows = x.shape
    per_chain = lines_per_chain(n_rows)
    if points is None:
        points = np.zeros(x.shape, np.int32)
    if chains is None:
        chains = np.arange(-(-n_columns // per_chain))
    inverse = np.float32(1 / step)
    sides = scales.base, scales.rows, scales.columns
    if trellis.n_states == 1:
        round_points(x, inverse, *sides, cost, np.float32(weight), chains, per_chain, points)
        return points
    search = _SEARCHES[trellis.n_states, trellis.has_zero]
    search(x.reshape(-1), inverse, n_rows, *sides, cost, np.float32(weight), chains, per_chain, points.reshape(-1))
    return points


@compiled
def _tables(base, rows, columns, cost, weight, loud_class):
    """What the search looks up: prices, the width of a row of these, contexts, live rows, their classes, those of the
    columns.

    Prices have one more magnitude below and two above, so that nobody has to ask whether a neighbour is in the table.
    """
    n_classes, _, n_magnitudes = cost.shape
    width = n_magnitudes + 3
    price = np.zeros(n_classes * 2 * width, np.float32)
    at = 0
    for c in range(n_classes):
        for q in range(2):
            for k in range(n_magnitudes + 2):
                # in a loud context quantiser 1 has -1 in place of zero
                magnitude = 1 if k == 0 and q == 1 and c >= loud_class else min(k, n_magnitudes - 1)
                price[at + 1 + k] = cost[c, q, magnitude] * weight
            at += width
    live = np.flatnonzero(rows != DEAD)
    context = scale_contexts(base, rows, columns).astype(np.uintp)
    for k in range(len(context)):  # where in flat prices a context's begin, in place of its class
        context[k] = (context[k] >> np.uintp(5)) * np.uintp(2 * width) << np.uintp(5) | context[k] & np.uintp(31)
    return price, width, context, live, rows[live].astype(np.int64), columns.astype(np.int64)


@compiled
def round_points(x, inverse, base, rows, columns, cost, weight, chains, per_chain, points):
    """The plain grid: each number decides alone.

    inverse: of the step.

    LLVM makes vector instructions of the loop over rows: columns are gone through class by class, so that what each row
    needs lies beside it, and there is nothing to look up and nothing to branch on.
    """
    n_rows = x.shape[1]
    dead = np.flatnonzero(rows == DEAD)
    # of each row: sizes from which on a magnitude is 1, 2, 3, and what to add to sizes from 6 on before they are halved
    edges = np.empty(4 * n_rows, np.float32)
    second, third, above = np.uintp(n_rows), np.uintp(2 * n_rows), np.uintp(3 * n_rows)
    classes, which = classes_in(columns)
    for at in range(len(classes)):
        if classes[at] == DEAD:
            continue
        for i in range(n_rows):
            c, shift = scale_context(base + classes[at] + max(rows[i], 0))
            for k in range(4):
                # tokens above stand for several magnitudes each, so that their slope is a mean
                slope = (cost[c, 0, 7] - cost[c, 0, 3]) / 4 if k == 3 else cost[c, 0, k + 1] - cost[c, 0, k]
                # how far beyond 2 k (size - 2 k)^2 + weight * cost of k is more than the same of k + 1
                beyond = 1.0 if shift else max(1 + weight * slope / 4, 1)
                edges[k * n_rows + i] = 2 - beyond if k == 3 else 2 * k + beyond
        for chain in chains:
            for j in range(chain * per_chain, min((chain + 1) * per_chain, len(x))):
                if which[j] != at:
                    continue
                for i in range(np.uintp(n_rows)):
                    number = x[j, i] * inverse
                    size = abs(number)
                    large = np.int32((size + edges[above + i]) * np.float32(0.5))
                    k = np.int32(size >= edges[i])
                    k += np.int32(size >= edges[second + i])
                    k += np.int32(size >= edges[third + i])
                    k = large if size >= np.float32(6) else np.int32(k)
                    point = np.int32(k + k)
                    points[j, i] = np.int32(-point) if number < 0 else point
                for i in dead:
                    points[j, i] = 0


@compiled
def _low(size, q):
    """Largest magnitude in quantiser q whose point is not beyond size."""
    return np.int32((np.int32(size) + q) >> 1)


@compiled
def _look_up(
    x, inverse, n_rows, price, width, loud_class, context, rows, row_class, column_class,
    lanes, n_lanes, column, row, first, n, numbers, louds, costs,
):  # fmt: skip
    """Numbers of n steps, whether their contexts are loud, and the prices around each; returns the column and the row
    after them."""
    one = np.uintp(1)
    two = np.uintp(2)
    stride = np.uintp(n_lanes)
    most = np.int32(width - 3)
    loud_from = np.uintp(2 * width * loud_class)
    start = column, row
    for lane in range(n_lanes):
        e = np.uintp(lane)
        out = np.uintp(first * n_lanes + lane)
        column, row = start
        left = n
        while left > 0:
            n_run = min(left, len(rows) - row)
            j = lanes[column * n_lanes + lane]
            if j == _FILLER:
                for _ in range(n_run):  # every choice for a zero costs nothing, so that the best path stays the best
                    numbers[out] = 0
                    louds[out] = 0
                    costs[np.uintp(1 * _ROW) + e] = 0
                    costs[np.uintp(2 * _ROW) + e] = -4
                    costs[np.uintp(4 * _ROW) + e] = 0
                    costs[np.uintp(5 * _ROW) + e] = -1
                    e += stride
                    out += stride
            else:
                place = j * n_rows
                add = column_class[j]
                for r in range(np.uintp(row), np.uintp(row + n_run)):
                    number = x[np.uintp(place + rows[r])] * inverse
                    entry = context[np.uintp(add + row_class[r])]
                    at = entry >> np.uintp(5)
                    shift = np.int64(entry & np.uintp(31))
                    size = abs(number)
                    numbers[out] = number
                    louds[out] = np.uint8(at >= loud_from)
                    if shift == 0:
                        k = at + np.uintp(min(_low(size, np.int32(0)), most))
                        costs[e] = price[k]
                        costs[np.uintp(1 * _ROW) + e] = price[k + one]
                        costs[np.uintp(2 * _ROW) + e] = price[k + two]
                        k = at + np.uintp(width) + np.uintp(min(_low(size, np.int32(1)), most))
                        costs[np.uintp(3 * _ROW) + e] = price[k]
                        costs[np.uintp(4 * _ROW) + e] = price[k + one]
                        costs[np.uintp(5 * _ROW) + e] = price[k + two]
                    else:
                        for q in range(2):
                            for d in range(3):
                                k = at + np.uintp(min((max(_low(size, np.int32(q)) + d - 1, 0) >> shift) + 1, most))
                                costs[np.uintp((3 * q + d) * _ROW) + e] = price[k]
                            at += np.uintp(width)
                    e += stride
                    out += stride
            left -= n_run
            row += n_run
            if row == len(rows):
                row = 0
                column += 1
    return column, row


@compiled
def _weigh(numbers, louds, first, n, costs, choice):
    """Cost of the best symbol of each subset and, as bit q of choice, whether in quantiser q that is the one below.

    Of the two subsets of a quantiser one has `_low`, the other its neighbours on both sides. None beyond is better.
    """
    for e in range(np.uintp(n)):
        number = numbers[np.uintp(first) + e]
        loud = np.int32(louds[np.uintp(first) + e])
        size = abs(number)
        whole = np.int32(size)
        bits = np.uint8(0)
        for q in range(2):
            low = _low(size, np.int32(q))
            to_low = size - np.float32(whole) + np.float32(np.int32(whole - 2 * low + q))
            to_above = to_low - np.float32(2)
            zero = np.int32(q & ~loud)  # what its neighbours are nearer to it than elsewhere
            to_below = to_low + np.float32(np.int32(2 - zero) if low <= 1 else np.int32(2))
            to_low -= np.float32(zero if low == 0 else np.int32(0))
            at_below = to_below * to_below + costs[np.uintp(3 * q * _ROW) + e]
            at_low = to_low * to_low + costs[np.uintp((3 * q + 1) * _ROW) + e]
            at_above = to_above * to_above + costs[np.uintp((3 * q + 2) * _ROW) + e]
            down = (at_below < at_above) & (low > 0)
            beside = at_below if down else at_above
            odd = ((low ^ np.int32(np.int32(number < 0) & q & loud)) & 1) != 0
            costs[np.uintp(_BEST + 2 * q * _ROW) + e] = beside if odd else at_low
            costs[np.uintp(_BEST + (2 * q + 1) * _ROW) + e] = at_low if odd else beside
            bits |= np.uint8(down) << np.uint8(q)
        choice[np.uintp(first) + e] = bits


@compiled
def _meet(costs, e, path, here, there, h, half, subsets):
    """States h and h + half both lead to 2 h and 2 h + 1, by two subsets, crosswise. Returns bits of came_from."""
    subset = (subsets >> 2 * h) & 3
    one = costs[np.uintp(_BEST + subset * _ROW) + e]
    two = costs[np.uintp(_BEST + (subset ^ 1) * _ROW) + e]
    lower = path[np.uintp(h * LANES) + here]
    upper = path[np.uintp((h + half) * LANES) + here]
    a = lower + one
    b = upper + two
    path[np.uintp(2 * h * LANES) + there] = b if b < a else a
    c = lower + two
    d = upper + one
    path[np.uintp((2 * h + 1) * LANES) + there] = d if d < c else c
    return (np.uint32(b < a) | np.uint32(d < c) << np.uint32(1)) << np.uint32(2 * h)


@compiled
def _advance(costs, n_lanes, first, n_steps, lanes, n_states, subsets, path, came_from):
    """Paths over an even number of steps, from the first half of `path` to the second and back.

    Bit t of came_from: whether state t was entered from the upper of its two.

    LLVM has to know the number of states when it compiles: it then writes out the loops over h, which are halved
    because it does so with short ones only, and is left with the one over lanes, whose number it must not know. (With
    `range`, a variable would outlive its loop, and LLVM would treat the first lane apart.)
    """
    half = n_states // 2
    other = np.uintp(n_states * LANES)
    for pair in range(np.uintp(n_steps >> 1)):
        e = np.uintp(2) * pair * np.uintp(n_lanes)
        out = np.uintp(first * LANES) + np.uintp(2 * LANES) * pair
        for lane in range(np.uintp(lanes)):
            taken = np.uint32(0)
            h = np.int64(0)
            while h < half // 2:
                taken |= _meet(costs, e + lane, path, lane, other + lane, h, half, subsets)
                h += 1
            while h < half:
                taken |= _meet(costs, e + lane, path, lane, other + lane, h, half, subsets)
                h += 1
            came_from[out + lane] = taken
        e += np.uintp(n_lanes)
        out += np.uintp(LANES)
        for lane in range(np.uintp(lanes)):
            taken = np.uint32(0)
            h = np.int64(0)
            while h < half // 2:
                taken |= _meet(costs, e + lane, path, other + lane, lane, h, half, subsets)
                h += 1
            while h < half:
                taken |= _meet(costs, e + lane, path, other + lane, lane, h, half, subsets)
                h += 1
            came_from[out + lane] = taken


@compiled
def _trace(path, n_states, came_from, n_steps, n_lanes, choice):
    """Add to choice, above its two bits, the low bit of the state after each number and then the state before."""
    one = np.uintp(1)
    top = np.uintp(0)
    while np.uintp(n_states) >> top > np.uintp(2):
        top += one
    for lane in range(np.uintp(n_lanes)):
        state = np.uintp(0)
        for s in range(np.uintp(n_states)):
            if path[s * np.uintp(LANES) + lane] < path[state * np.uintp(LANES) + lane]:
                state = s
        e = np.uintp(n_steps * n_lanes) + lane
        at = np.uintp(n_steps * LANES) + lane
        for _ in range(n_steps):
            e -= np.uintp(n_lanes)
            at -= np.uintp(LANES)
            before = state >> one | (came_from[at] >> state & one) << top
            choice[e] |= np.uint8((before << one | state & one) << np.uintp(2))
            state = before


@compiled
def _settle(
    numbers, louds, choice, quantisers, partners, n_rows, rows, lanes, n_lanes, column, row, first, n, settled, points
):
    """Points of n steps; returns the column and the row after them.

    Bit s of quantisers: the quantiser of state s; of partners: the parity of the symbols that lead from s to 2 s.
    """
    one = np.uint32(1)
    for e in range(np.uintp(n * n_lanes)):
        number = numbers[np.uintp(first * n_lanes) + e]
        loud = np.int32(louds[np.uintp(first * n_lanes) + e])
        size = abs(number)
        chosen = np.uint32(choice[np.uintp(first * n_lanes) + e])
        state = chosen >> np.uint32(3)
        q = np.int32(quantisers >> state & one)
        odd = np.int32((partners >> state ^ chosen >> np.uint32(2)) & one)
        low = _low(size, q)
        beside = np.int32(low + 1 - 2 * np.int32(chosen >> np.uint32(q) & one))
        k = low if ((low ^ np.int32(np.int32(number < 0) & q & loud)) & 1) == odd else beside
        point = np.int32(2 * k - (q if np.int32(k > 0) | loud else np.int32(0)))
        settled[e] = np.int32(-point) if number < 0 else point
    start = column, row
    for lane in range(n_lanes):
        e = np.uintp(lane)
        column, row = start
        left = n
        while left > 0:
            n_run = min(left, len(rows) - row)
            j = lanes[column * n_lanes + lane]
            for r in range(np.uintp(row), np.uintp(row + n_run)):
                if j != _FILLER:
                    points[np.uintp(j * n_rows + rows[r])] = settled[e]
                e += np.uintp(n_lanes)
            left -= n_run
            row += n_run
            if row == len(rows):
                row = 0
                column += 1
    return column, row


def _search_for(trellis: Trellis) -> Callable[..., Any]:
    """The search through one trellis. Encloses integers only, because by these numba's cache tells closures apart."""
    n_states, loud_class = trellis.n_states, trellis.loud_class
    partner = [int(trellis.next_state[s, 0]) & 1 for s in range(n_states)]
    quantisers = sum(int(trellis.quantiser[s]) << s for s in range(n_states))
    partners = sum(partner[s] << s for s in range(n_states))
    branch = [2 * int(trellis.quantiser[s]) + partner[s] for s in range(n_states)]
    half = n_states // 2
    assert all(branch[h + half] == branch[h] ^ 1 for h in range(half)), "_meet takes this for granted"
    subsets = sum(branch[h] << 2 * h for h in range(half))

    @compiled
    def search(
        x, inverse, n_rows, base, row_classes, column_classes, cost, weight, chains, per_chain, points
    ):  # fmt: skip
        price, width, context, rows, row_class, column_class = _tables(
            base, row_classes, column_classes, cost, weight, loud_class
        )
        most_lanes, n_columns = min(len(chains), LANES), min(per_chain, len(column_class))
        most_steps = n_columns * len(rows) + 1
        lanes = np.empty((n_columns + 1) * most_lanes, np.int64)  # column numbers
        numbers = np.empty(most_steps * most_lanes, np.float32)
        louds = np.empty(most_steps * most_lanes, np.uint8)
        choice = np.empty(most_steps * most_lanes, np.uint8)
        came_from = np.empty(most_steps * LANES, np.uint32)
        costs = np.zeros(10 * _ROW, np.float32)  # zeros, because lanes left over begin with what lies there
        path = np.empty(2 * n_states * LANES, np.float32)
        settled = np.empty(_BLOCK, np.int32)
        for group in range(0, len(chains), LANES):
            n_lanes = min(LANES, len(chains) - group)
            lanes[:] = _FILLER
            n_steps = 0
            for lane in range(n_lanes):
                n = 0
                start = chains[group + lane] * per_chain
                for j in range(start, min(start + per_chain, len(column_class))):
                    if column_class[j] != DEAD:
                        lanes[n * n_lanes + lane] = j
                        n += 1
                n_steps = max(n_steps, n * len(rows))
            n_steps += n_steps & 1
            per_block = _BLOCK // n_lanes & ~1
            path[:] = _FAR
            path[:LANES] = 0
            column = row = np.int64(0)
            for first in range(0, n_steps, per_block):
                n = min(per_block, n_steps - first)
                column, row = _look_up(
                    x, inverse, n_rows, price, width, loud_class, context, rows, row_class, column_class,
                    lanes, n_lanes, column, row, first, n, numbers, louds, costs,
                )  # fmt: skip
                _weigh(numbers, louds, first * n_lanes, n * n_lanes, costs, choice)
                for lane in range(LANES):
                    least = path[lane]
                    for s in range(n_states):
                        path[s * LANES + lane] -= least
                _advance(costs, n_lanes, first, n, len(path) // (2 * n_states), n_states, subsets, path, came_from)
            _trace(path, n_states, came_from, n_steps, n_lanes, choice)
            column = row = np.int64(0)
            for first in range(0, n_steps, per_block):
                n = min(per_block, n_steps - first)
                column, row = _settle(
                    numbers, louds, choice, np.uint32(quantisers), np.uint32(partners), n_rows, rows,
                    lanes, n_lanes, column, row, first, n, settled, points,
                )  # fmt: skip

    return search


_SEARCHES = {
    (n_states, trellis.has_zero): _search_for(trellis)
    for kind in (TRELLISES, WITH_ZERO)
    for n_states, trellis in kind.items()
    if n_states > 1
}
