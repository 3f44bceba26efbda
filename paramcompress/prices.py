"""What lattice points cost in bits, for those who choose them: the quantiser and the search for step and dictionary.

Not part of the format. A price is what the adaptive coder of `entropy` comes near to without having learnt
anything yet: the entropy of the tokens in their contexts, from a histogram of points that were chosen before.

Shapes: points (n_columns, n_rows): the matrix column after column, as the trellis runs.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from paramcompress.entropy import COUNT, MOST_CLASS, Scales, distance_bits
from paramcompress.jit import compiled
from paramcompress.prior import prior_of
from paramcompress.tokens import ESCAPE_FROM, N_CLASSES, N_TOKENS, count_tokens, entropy_bits, shifted_bits, token_of
from paramcompress.trellis import Trellis, lines_per_chain

BIT_WEIGHT = 0.46
"""Squared steps that one bit is worth: 2 ln 2 times the trellis' mean squared error of 0.254, and 1.3 times that
because large errors of the many small numbers cost less than theory, which assumes high rate, says (measured in
docs/design.md)."""
MSE_OF_STEP = 0.26
"""Mean squared error in squared steps at high rate; the first guess of the search."""
MSE_OF_PLAIN_STEP = 0.34
"""The same of the plain grid."""
N_MAGNITUDES = 128
"""Magnitudes whose cost the quantiser tells apart; all above cost as much as the last."""
_LEARNING = 2
"""Bits that it takes to learn how likely a token is in a context."""
_LEARNING_CLASS = 3
"""The same of a class."""


def histogram(points: NDArray[np.int32], scales: Scales, trellis: Trellis) -> NDArray[np.int32]:
    """(N_CLASSES, 2, N_TOKENS): how often each token occurs in points as for `pack`, by context class and quantiser."""
    counts = np.zeros((N_CLASSES, 2, N_TOKENS), np.int32)
    walk = trellis.walk, lines_per_chain(points.shape[1])
    count_tokens(points, scales.base, scales.rows, scales.columns, *walk, counts)
    return counts


def cost_table(counts: NDArray[np.int32] | None = None, *, has_zero: bool = True) -> NDArray[np.float32]:
    """(N_CLASSES, 2, N_MAGNITUDES) bits of a magnitude, sign and mantissa included, after such a histogram.

    The prior, that of trellises with or without a zero in both quantisers, always counts along, so that no token costs
    infinitely much. Used by the quantiser alone: not part of the format.
    """
    if counts is None:
        return _prior_costs(has_zero)
    costs: NDArray[np.float32] = costs_after(counts, prior_of(has_zero), *magnitudes())
    return costs


@cache
def _prior_costs(has_zero: bool) -> NDArray[np.float32]:
    return cost_table(np.zeros((N_CLASSES, 2, N_TOKENS), np.int32), has_zero=has_zero)


@compiled
def costs_after(counts, prior, tokens, raw_bits):
    """`cost_table`; tokens and raw_bits from `magnitudes`."""
    costs = np.empty((N_CLASSES, 2, len(tokens)), np.float32)
    bits = np.empty(N_TOKENS, np.float32)
    for c in range(N_CLASSES):
        for q in range(2):
            total = 0.0
            for t in range(N_TOKENS):
                total += prior[2 * c + q, t] / COUNT + counts[c, q, t]
            for t in range(N_TOKENS):
                bits[t] = np.log2(total) - np.log2(prior[2 * c + q, t] / COUNT + counts[c, q, t])
            for k in range(len(tokens)):
                costs[c, q, k] = bits[tokens[k]] + raw_bits[k]
    return costs


@cache
def token_raw_bits() -> NDArray[np.int64]:
    """(N_TOKENS,) raw bits that follow each token, a sign included; those of the escape as if it were the next half
    octave."""
    firsts = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64, ESCAPE_FROM]
    return np.array([raw_bits_of(first) for first in firsts])


@cache
def magnitudes() -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Token and raw bits of the magnitudes 0 to N_MAGNITUDES - 1."""
    some = range(N_MAGNITUDES)
    return np.array([token_of(k) for k in some]), np.array([raw_bits_of(k) for k in some], np.float32)


def class_bits(scales: Scales, period: int) -> float:
    """Bits of the classes and dead flags as they are coded: their entropy and 3 bits for each class that occurs, which
    have to be learnt."""
    return float(sum(side_bits(scales.rows, scales.columns, period)))


def point_bits(points: NDArray[np.int32], scales: Scales, trellis: Trellis) -> float:
    """Bits of points as for `pack`: entropy of the tokens by context, what learning it costs, and the raw bits."""
    counts = histogram(points, scales, trellis)
    shifted = shifted_bits(scales.base, scales.rows, scales.columns)
    return float(token_bits(counts, token_raw_bits()) + shifted)


@compiled
def raw_bits_of(magnitude: int) -> int:
    """Raw bits that follow the token of a magnitude: its sign and what the token left open."""
    if magnitude < 8:
        return 1 if magnitude else 0
    if magnitude >= ESCAPE_FROM:
        length = 0
        while (magnitude - 95) >> (length + 1):
            length += 1
        return 6 + length
    octave = 3
    while magnitude >> (octave + 1):
        octave += 1
    return octave


@compiled
def side_bits(rows, columns, period):
    """Bits of the classes of the rows, and of those of the columns."""
    return _side_bits(rows, np.int64(1), False), _side_bits(columns, np.int64(period), True)


@compiled
def _side_bits(classes, period, may_follow):
    """Bits of the classes of one side; `may_follow`: the last class may be the forecast instead of the mean."""
    if len(classes) == 0 or classes.min() == classes.max():
        return 0.0
    bits = distance_bits(classes, period, np.int64(0))
    if may_follow and bits > 0:
        bits = min(bits, distance_bits(classes, period, np.int64(1)))
    occurs = np.zeros(MOST_CLASS + 1, np.int64)
    for one in classes:
        if one >= 0:
            occurs[one] += 1
    n_live = occurs.sum()
    n_kinds = (occurs > 0).sum() + (n_live < len(classes))
    return bits + entropy_bits(np.array([n_live, len(classes) - n_live])) + _LEARNING_CLASS * (n_kinds - 1)


@compiled
def token_bits(counts, raw_bits):
    """Bits of tokens that occur so often: `counts` (N_CLASSES, 2, N_TOKENS), their `raw_bits` (N_TOKENS,)."""
    bits = 0.0
    for c in range(counts.shape[0]):
        for q in range(counts.shape[1]):
            bits += entropy_bits(counts[c, q])
            for t in range(N_TOKENS):
                if counts[c, q, t] > 0:
                    bits += _LEARNING + counts[c, q, t] * raw_bits[t]
    return bits
