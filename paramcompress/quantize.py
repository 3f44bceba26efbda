"""Trellis-coded quantisation by rate and distortion: real numbers to lattice points.

Knows neither layers nor bytes: the caller says what each magnitude costs, `entropy` writes what comes out.

How the search runs. Chains are independent, so up to LANES of them advance side by side, one number of each at
every *step*; what is known about the numbers lies step after step, lane beside lane. A group of chains passes
through five loops: `_look_up` (prices of the magnitudes beside each number), `_weigh` (the best symbol of each
subset), `_advance` (add, compare, select: the Viterbi step), these three block by block so that what they hand on
stays in the nearest cache; then `_trace` (back along the best path) and `_settle` (points).

Why they look as they do. `_weigh`, `_advance` and `_settle` must become vector instructions. LLVM makes them from
an innermost loop without branches and look-ups, of unknown length, over flat arrays at fixed distances; unsigned
indices, because numba lets negative ones count from the end; small types cast back at once, because numba widens
them.

Shapes: x (n_columns, n_rows): the numbers, in steps, column after column as the chain runs.  points: the same shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramcompress.entropy import DEAD, Scales, scale_context
from paramcompress.jit import compiled
from paramcompress.trellis import TRELLISES, Trellis, columns_per_chain

LANES = 8
"""Chains side by side. With fewer chains the lanes left over work on numbers that belong elsewhere, and nobody looks
at them."""
_BLOCK = 512
"""Numbers that are looked up and weighed before the paths advance over them."""
_ROW = _BLOCK + LANES
_FAR = np.float32(1e30)
"""Cost of a state that a chain cannot be in. Finite: infinity less infinity is not a number."""
_NOWHERE = -1
"""Place of a column that fills up a lane."""


def quantize(
    x: NDArray[np.float32], scales: Scales, trellis: Trellis, cost: NDArray[np.float32], weight: float, step: float = 1
) -> tuple[NDArray[np.int32], float]:
    """Points that minimise squared distance + weight * bits along each chain.

    Args:
        x: (n_columns, n_rows), C order, finite, |x| < 2**30; what dead rows and columns hold becomes zero.
        cost: (classes, 2, magnitudes) bits of a magnitude by class and quantiser, from `entropy.cost_table`; larger
            magnitudes
            cost as much as the last.
        weight: squared steps that one bit is worth. 0 finds the nearest points that the trellis allows.

    Returns:
        points (n_columns, n_rows), and the sum of (x - points)**2, dead rows and columns included.

    Cost:
    Source: Viterbi search; Marcellin and Fischer 1990.
    """
    points = np.zeros(x.shape, np.int32)
    n_classes, _, n_magnitudes = cost.shape
    width = n_magnitudes + 3
    price = np.zeros(
        (n_classes, 2, width), np.float32
    )  # framed, so that nobody has to ask whether a neighbour is in the table
    np.multiply(cost, np.float32(weight), out=price[:, :, 1:-2])
    price[:, :, -2:] = price[:, :, -3:-2]
    highest = [max(int(classes.max(initial=0)), 0) for classes in (scales.rows, scales.columns)]
    context = np.array([_context(scales.base + k, width) for k in range(sum(highest) + 1)], np.uintp)
    rows = np.flatnonzero(scales.rows != DEAD)
    table = price.reshape(-1), context, rows, scales.rows[rows].astype(np.int64), scales.columns.astype(np.int64), width
    if trellis.n_states == 1:
        squared = _round(x.reshape(-1), x.shape[1], *table, points.reshape(-1))
    else:
        search = _SEARCHES[trellis.n_states]
        squared = search(x.reshape(-1), x.shape[1], *table, columns_per_chain(x.shape[1]), points.reshape(-1))
    return points, squared + _dead_energy(x, scales)


def _context(scale_class: int, width: int) -> int:
    """Where in the flat price table the magnitudes of a scale class begin, and, in the low five bits, its shift."""
    c, shift = scale_context(scale_class)
    return c * 2 * width << 5 | shift


def _dead_energy(x: NDArray[np.float32], scales: Scales) -> float:
    """Sum of the squares in dead rows and columns."""
    rows, columns = scales.rows == DEAD, scales.columns == DEAD
    energy = 0.0
    if columns.any():
        energy += float(np.square(x[columns], dtype=np.float64).sum())
    if rows.any():
        energy += float(np.square(x[~columns][:, rows], dtype=np.float64).sum())
    return energy


@compiled
def _low(size, q):
    """Largest magnitude in quantiser q whose point is not beyond size."""
    return np.int32((np.int32(size) + q) >> 1)


@compiled
def _round(x, n_rows, price, context, rows, row_class, column_class, width, points):
    """The plain grid: each number decides alone between the point nearest to it and the next one towards zero."""
    most = np.int32(width - 3)
    squared = 0.0
    for j in range(len(column_class)):
        add = column_class[j]
        if add == DEAD:
            continue
        column = j * n_rows
        for r in range(np.uintp(len(rows))):
            place = np.uintp(column + rows[r])
            number = x[place]
            entry = context[np.uintp(add + row_class[r])]
            at = entry >> np.uintp(5)
            shift = np.int64(entry & np.uintp(31))
            size = abs(number)
            high = np.int32(size * np.float32(0.5) + np.float32(0.5))
            low = np.int32(high - (high > 0))
            to_high = size - np.float32(2) * np.float32(high)
            to_low = size - np.float32(2) * np.float32(low)
            at_high = to_high * to_high + price[at + np.uintp(min((high >> shift) + 1, most))]
            at_low = to_low * to_low + price[at + np.uintp(min((low >> shift) + 1, most))]
            lower = at_low < at_high
            away = to_low if lower else to_high
            squared += away * away
            point = np.int32(high - lower)
            points[place] = np.int32(-2 * point) if number < 0 else np.int32(2 * point)
    return squared


@compiled
def _look_up(
    x, price, context, rows, row_class, width, places, classes, column, row, n_steps, n_lanes, first, numbers, near
):
    """Fill numbers from first on and, in near, prices of the magnitudes below, at and above `_low`, three rows a
    quantiser."""
    one = np.uintp(1)
    two = np.uintp(2)
    most = np.int32(width - 3)
    start = column, row
    for lane in range(n_lanes):
        e = np.uintp(lane)
        out = np.uintp(first + lane)
        column, row = start
        left = n_steps
        while left > 0:
            n = min(left, len(rows) - row)
            place = places[column * n_lanes + lane]
            if place == _NOWHERE:
                for _ in range(
                    n
                ):  # prices that make every choice for a zero cost nothing, so that they change no decision
                    numbers[out] = 0
                    near[np.uintp(1 * _ROW) + e] = 0
                    near[np.uintp(2 * _ROW) + e] = -4
                    near[np.uintp(4 * _ROW) + e] = 0
                    near[np.uintp(5 * _ROW) + e] = -1
                    e += np.uintp(n_lanes)
                    out += np.uintp(n_lanes)
            else:
                add = classes[column * n_lanes + lane]
                for r in range(np.uintp(row), np.uintp(row + n)):
                    number = x[np.uintp(place + rows[r])]
                    entry = context[np.uintp(add + row_class[r])]
                    at = entry >> np.uintp(5)
                    shift = entry & np.uintp(31)
                    size = abs(number)
                    numbers[out] = number
                    if shift == 0:
                        k = at + np.uintp(min(_low(size, np.int32(0)), most))
                        near[e] = price[k]
                        near[np.uintp(1 * _ROW) + e] = price[k + one]
                        near[np.uintp(2 * _ROW) + e] = price[k + two]
                        k = at + np.uintp(width) + np.uintp(min(_low(size, np.int32(1)), most))
                        near[np.uintp(3 * _ROW) + e] = price[k]
                        near[np.uintp(4 * _ROW) + e] = price[k + one]
                        near[np.uintp(5 * _ROW) + e] = price[k + two]
                    else:
                        for q in range(2):
                            for d in range(3):
                                k = max(_low(size, np.int32(q)) + d - 1, 0) >> np.int64(shift)
                                near[np.uintp((3 * q + d) * _ROW) + e] = price[
                                    at + np.uintp(q * width + min(k + 1, most))
                                ]
                    e += np.uintp(n_lanes)
                    out += np.uintp(n_lanes)
            left -= n
            row += n
            if row == len(rows):
                row = 0
                column += 1
    return column, row


@compiled
def _weigh(numbers, first, n, near, best, choice):
    """Cost of the best symbol of each subset into the four rows of best; into choice, by quantiser, a bit where it is
    the one below.

    A subset, 2 * quantiser + parity, has `_low` or both its neighbours. No symbol further away can be better.
    """
    for e in range(np.uintp(n)):
        size = abs(numbers[np.uintp(first) + e])
        whole = np.int32(size)
        bits = np.uint8(0)
        for q in range(2):
            low = _low(size, np.int32(q))
            to_low = size - np.float32(whole) + np.float32(np.int32(whole - 2 * low + q))
            to_above = to_low - np.float32(2)
            to_below = to_low + np.float32(2 - q if low <= 1 else 2)
            to_low -= np.float32(q if low == 0 else 0)
            at_below = to_below * to_below + near[np.uintp((3 * q) * _ROW) + e]
            at_low = to_low * to_low + near[np.uintp((3 * q + 1) * _ROW) + e]
            at_above = to_above * to_above + near[np.uintp((3 * q + 2) * _ROW) + e]
            down = (at_below < at_above) & (low > 0)
            beside = at_below if down else at_above
            odd = (low & 1) != 0
            best[np.uintp((2 * q) * _ROW) + e] = beside if odd else at_low
            best[np.uintp((2 * q + 1) * _ROW) + e] = at_low if odd else beside
            bits |= np.uint8(down) << np.uint8(q)
        choice[np.uintp(first) + e] = bits


@compiled
def _trace(path, came_from, n_states, n_steps, n_lanes, choice):
    """Add to choice, above its two bits, the low bit of the state after each number and then the state before."""
    one = np.uint64(1)
    top = np.uint64(0)
    while n_states >> np.int64(top) > 2:
        top += one
    for lane in range(n_lanes):
        s = np.uint64(0)
        for t in range(np.uint64(n_states)):
            if path[t * np.uint64(LANES) + np.uint64(lane)] < path[s * np.uint64(LANES) + np.uint64(lane)]:
                s = t
        at = np.uint64((n_steps - 1) * LANES + lane)
        e = np.uint64((n_steps - 1) * n_lanes + lane)
        for _ in range(n_steps):
            before = s >> one | (came_from[at] >> s & one) << top
            choice[e] |= np.uint8((before << one | s & one) << np.uint64(2))
            s = before
            at -= np.uint64(LANES)
            e -= np.uint64(n_lanes)


@compiled
def _settle(numbers, first, n, quantisers, partners, choice, settled, away):
    """Points and squared distances of n numbers. Bit s of quantisers: that of state s; of partners: parity that leads
    to 2 s."""
    one = np.uint32(1)
    for e in range(np.uintp(n)):
        number = numbers[np.uintp(first) + e]
        size = abs(number)
        chosen = np.uint32(choice[np.uintp(first) + e])
        state = chosen >> np.uint32(3)
        q = np.int32(quantisers >> state & one)
        odd = np.int32((partners >> state ^ chosen >> np.uint32(2)) & one)
        low = _low(size, q)
        beside = np.int32(low + 1 - 2 * np.int32(chosen >> np.uint32(q) & one))
        k = low if (low & 1) == odd else beside
        point = np.int32(2 * k - (q if k > 0 else np.int32(0)))
        whole = np.int32(size)
        distance = size - np.float32(whole) + np.float32(np.int32(whole - point))
        away[e] = distance * distance
        settled[e] = np.int32(-point) if number < 0 else point


@compiled
def _write(settled, away, rows, places, column, row, n_steps, n_lanes, points):
    """Inverse of the way in of `_look_up`. Returns the sum of away and where to go on."""
    squared = 0.0
    start = column, row
    for lane in range(n_lanes):
        e = np.uintp(lane)
        column, row = start
        left = n_steps
        while left > 0:
            n = min(left, len(rows) - row)
            place = places[column * n_lanes + lane]
            for r in range(np.uintp(row), np.uintp(row + n)):
                if place != _NOWHERE:
                    points[np.uintp(place + rows[r])] = settled[e]
                    squared += away[e]
                e += np.uintp(n_lanes)
            left -= n
            row += n
            if row == len(rows):
                row = 0
                column += 1
    return squared, column, row


@compiled
def _meet(best, e, path, here, there, h, half, subsets):
    """States h and h + half, which both lead to 2 h and 2 h + 1, by the same two subsets crosswise. Returns bits of
    came_from."""
    subset = (subsets >> 2 * h) & 3
    one = best[np.uintp(subset * _ROW) + e]
    two = best[np.uintp((subset ^ 1) * _ROW) + e]
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
def _advance(best, n_steps, n_lanes, lanes, path, came_from, first, n_states, subsets):
    """Paths of all lanes over an even number of steps, from the first half of path to the second and back.

    Of states, LLVM must know the number: then it writes the loops over h out, if they are not too long, and no loop
        but that over lanes is left. It would not do so with `range`, whose variables outlive their loop. Of lanes,
        it must not know it.
    """
    half = n_states // 2
    there = np.uintp(n_states * LANES)
    for pair in range(np.uintp(n_steps >> 1)):
        e = np.uintp(2) * pair * np.uintp(n_lanes)
        out = np.uintp(first * LANES) + np.uintp(2 * LANES) * pair
        for lane in range(np.uintp(lanes)):
            taken = np.uint32(0)
            h = np.int64(0)
            while h < half // 2:
                taken |= _meet(best, e + lane, path, lane, there + lane, h, half, subsets)
                h += 1
            while h < half:
                taken |= _meet(best, e + lane, path, lane, there + lane, h, half, subsets)
                h += 1
            came_from[out + lane] = taken
        e += np.uintp(n_lanes)
        out += np.uintp(LANES)
        for lane in range(np.uintp(lanes)):
            taken = np.uint32(0)
            h = np.int64(0)
            while h < half // 2:
                taken |= _meet(best, e + lane, path, there + lane, lane, h, half, subsets)
                h += 1
            while h < half:
                taken |= _meet(best, e + lane, path, there + lane, lane, h, half, subsets)
                h += 1
            came_from[out + lane] = taken


def _search_for(trellis: Trellis) -> Callable[..., Any]:
    """The search for one trellis, whose constants it holds. Holds nothing else: numba's cache knows a closure by its
    integers."""
    n_states = trellis.n_states
    partner = [int(trellis.next_state[s, 0]) & 1 for s in range(n_states)]
    quantisers = sum(int(trellis.quantiser[s]) << s for s in range(n_states))
    partners = sum(partner[s] << s for s in range(n_states))
    subsets = sum((2 * int(trellis.quantiser[h]) + partner[h]) << 2 * h for h in range(n_states // 2))

    @compiled
    def search(x, n_rows, price, context, rows, row_class, column_class, width, per_chain, points):
        n_columns = len(column_class)
        n_chains = (n_columns + per_chain - 1) // per_chain
        n_lanes = min(n_chains, LANES)
        deepest = min(per_chain, n_columns) + 1
        longest = deepest * len(rows) + 1
        numbers = np.empty(longest * n_lanes, np.float32)
        choice = np.empty(longest * n_lanes, np.uint8)
        came_from = np.empty(longest * LANES, np.uint32)
        near = np.empty(6 * _ROW, np.float32)
        best = np.empty(4 * _ROW, np.float32)
        path = np.empty(2 * n_states * LANES, np.float32)
        settled = np.empty(_BLOCK, np.int32)
        away = np.empty(_BLOCK, np.float32)
        places = np.empty(deepest * n_lanes, np.int64)
        classes = np.empty(deepest * n_lanes, np.int64)
        near[:] = 0
        best[:] = 0
        squared = 0.0
        for chain in range(0, n_chains, LANES):
            n_lanes = min(LANES, n_chains - chain)
            places[:] = _NOWHERE
            n_deep = 0
            for lane in range(n_lanes):
                n = 0
                for j in range((chain + lane) * per_chain, min((chain + lane + 1) * per_chain, n_columns)):
                    if column_class[j] != DEAD:
                        places[n * n_lanes + lane] = j * n_rows
                        classes[n * n_lanes + lane] = column_class[j]
                        n += 1
                n_deep = max(n_deep, n)
            n_steps = n_deep * len(rows)
            n_steps += n_steps & 1
            per_block = _BLOCK // n_lanes & ~1
            path[:] = _FAR
            path[:LANES] = 0
            column = row = np.int64(0)
            for at in range(0, n_steps, per_block):
                n = min(per_block, n_steps - at)
                column, row = _look_up(
                    x,
                    price,
                    context,
                    rows,
                    row_class,
                    width,
                    places,
                    classes,
                    column,
                    row,
                    n,
                    n_lanes,
                    at * n_lanes,
                    numbers,
                    near,
                )
                _weigh(numbers, at * n_lanes, n * n_lanes, near, best, choice)
                for lane in range(LANES):
                    least = path[lane]
                    for s in range(n_states):
                        path[s * LANES + lane] -= least
                _advance(best, n, n_lanes, len(path) // (2 * n_states), path, came_from, at, n_states, subsets)
            _trace(path, came_from, n_states, n_steps, n_lanes, choice)
            column = row = np.int64(0)
            for at in range(0, n_steps, per_block):
                n = min(per_block, n_steps - at)
                _settle(
                    numbers,
                    at * n_lanes,
                    n * n_lanes,
                    np.uint32(quantisers),
                    np.uint32(partners),
                    choice,
                    settled,
                    away,
                )
                more, column, row = _write(settled, away, rows, places, column, row, n, n_lanes, points)
                squared += more
        return squared

    return search


_SEARCHES = {n_states: _search_for(trellis) for n_states, trellis in TRELLISES.items() if n_states > 1}
