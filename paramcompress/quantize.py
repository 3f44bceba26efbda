"""Trellis-coded quantisation by rate and distortion: real numbers to lattice points.

Knows neither layers nor bytes: the caller says what each magnitude costs, `entropy` writes what comes out.

Shapes: x (n_columns, n_rows): the numbers, in steps, column after column as the chain runs.  points: the same shape.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from paramcompress.entropy import DEAD, Scales, scale_context
from paramcompress.jit import compiled
from paramcompress.trellis import Trellis, columns_per_chain

def quantize(
    x: NDArray[np.float32], scales: Scales, trellis: Trellis, cost: NDArray[np.float32], weight: float
) -> tuple[NDArray[np.int32], float]:
    """Points that minimise squared distance + weight * bits along each chain.

    Args:
        x: (n_columns, n_rows), C order, finite, |x| < 2**30; what dead rows and columns hold becomes zero.
        cost: (classes, 2, magnitudes) bits of a magnitude by class and quantiser, from `entropy.cost_table`; larger magnitudes
            cost as much as the last.
        weight: squared steps that one bit is worth. 0 finds the nearest points that the trellis allows.

    Returns:
        points (n_columns, n_rows), and the sum of (x - points)**2, dead rows and columns included.

    Cost: 35 ns a number with 1 state, 65 with 8, 130 with 32 (one core, shared machine).
    Source: Viterbi search; Marcellin and Fischer 1990.
    """
    points = np.zeros(x.shape, np.int32)
    price = cost * np.float32(weight)
    if trellis.n_states == 1:
        squared = _round(x, scales.base, scales.rows, scales.columns, price, points)
    else:
        walk = trellis.next_state, trellis.quantiser, columns_per_chain(x.shape[1])
        squared = _search(x, scales.base, scales.rows, scales.columns, price, *walk, points)
    return points, float(squared)


@compiled
def _round(x, base, rows, columns, price, points):  # type: ignore[no-untyped-def]
    """The plain grid: each number decides alone between the points around it and the next one towards zero."""
    most = price.shape[2] - 1
    squared = 0.0
    for j in range(x.shape[0]):
        for i in range(x.shape[1]):
            number = x[j, i]
            size = abs(number)
            if rows[i] == DEAD or columns[j] == DEAD:
                squared += number * number
                continue
            c, shift = scale_context(base + rows[i] + columns[j])
            k = np.int64(size * np.float32(0.5) + np.float32(0.5))
            away = size - np.float32(2 * k)
            least = away * away + price[c, 0, min(k >> shift, most)]
            if k:
                lower = k - 1
                away = size - np.float32(2 * lower)
                other = away * away + price[c, 0, min(lower >> shift, most)]
                if other < least:
                    k = lower
            away = size - np.float32(2 * k)
            squared += away * away
            points[j, i] = -2 * k if number < 0 else 2 * k
    return squared


@compiled
def _around(size, q, c, shift, price, best, magnitude):  # type: ignore[no-untyped-def]
    """Price and magnitude of the best even and the best odd symbol of quantiser q, at 2 q and 2 q + 1.

    Of one parity the largest k whose point is not beyond size, of the other the better of the two beside it. Without
    branches: which way they went could not be foreseen, and a wrong guess costs more than all the arithmetic.
    """
    most = price.shape[2] - 1
    low = np.int64((size + np.float32(q)) * np.float32(0.5))
    above = low + 1
    below = max(low - 1, 0)
    to_low = size - np.float32(2 * low - q * (low > 0))
    to_above = size - np.float32(2 * above - q)
    to_below = size - np.float32(2 * below - q * (below > 0))
    at_low = to_low * to_low + price[c, q, min(low >> shift, most)]
    at_above = to_above * to_above + price[c, q, min(above >> shift, most)]
    at_below = to_below * to_below + price[c, q, min(below >> shift, most)]
    down = (at_below < at_above) & (low > 0)
    odd = low & 1
    best[2 * q + odd] = at_low
    magnitude[2 * q + odd] = low
    best[2 * q + 1 - odd] = at_below if down else at_above
    magnitude[2 * q + 1 - odd] = below if down else above


@compiled
def _search(x, base, rows, columns, price, next_state, quantiser, per_chain, points):  # type: ignore[no-untyped-def]
    """Viterbi search, chain by chain. State t is entered from t >> 1 and from half the states above that."""
    n_columns, n_rows = x.shape
    n_states = len(quantiser)
    half = n_states >> 1
    longest = min(per_chain, n_columns) * n_rows
    came_from = np.empty(longest, np.uint32)  # bit t: state t was entered from the upper of its two
    magnitude = np.empty((longest, 4), np.int32)
    place = np.empty(longest, np.int64)
    best = np.empty(4, np.float32)  # by subset, 2 * quantiser + parity
    path = np.full(n_states, np.inf, np.float32)
    path[0] = 0
    following = np.empty(n_states, np.float32)
    subset = np.empty(n_states, np.int64)  # of the branch from state s to state 2 s mod n_states; the one beside has its partner
    for s in range(n_states):
        subset[s] = 2 * quantiser[s] + (0 if next_state[s, 0] & 1 == 0 else 1)
    squared = 0.0
    n_here = 0
    numbers = x.reshape(-1)
    out = points.reshape(-1)
    for j in range(n_columns):
        for i in range(n_rows):
            number = x[j, i]
            if rows[i] == DEAD or columns[j] == DEAD:
                squared += number * number
            else:
                size = abs(number)
                c, shift = scale_context(base + rows[i] + columns[j])
                place[n_here] = j * n_rows + i
                _around(size, 0, c, shift, price, best, magnitude[n_here])
                _around(size, 1, c, shift, price, best, magnitude[n_here])
                taken = np.uint32(0)
                for h in range(half):
                    lower = path[h]
                    upper = path[h + half]
                    from_lower = subset[h]
                    from_upper = subset[h + half]
                    a = lower + best[from_lower]
                    b = upper + best[from_upper]
                    following[2 * h] = min(a, b)
                    taken |= np.uint32(b < a) << np.uint32(2 * h)
                    a = lower + best[from_lower ^ 1]
                    b = upper + best[from_upper ^ 1]
                    following[2 * h + 1] = min(a, b)
                    taken |= np.uint32(b < a) << np.uint32(2 * h + 1)
                came_from[n_here] = taken
                path, following = following, path
                n_here += 1
        if (j + 1) % per_chain == 0 or j == n_columns - 1:
            s = 0
            for t in range(n_states):
                if path[t] < path[s]:
                    s = t
            path[:] = np.inf
            path[0] = 0
            for at in range(n_here - 1, -1, -1):
                before = (s >> 1) + half * np.int64(came_from[at] >> np.uint32(s) & np.uint32(1))
                branch = subset[before] ^ (s & 1)
                s = before
                k = magnitude[at, branch]
                point = 2 * k - (branch >> 1 if k else 0)
                number = numbers[place[at]]
                away = abs(number) - point
                squared += away * away
                out[place[at]] = -point if number < 0 else point
            n_here = 0
    return squared
