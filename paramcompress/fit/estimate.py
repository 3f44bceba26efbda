"""About how many bits a matrix takes at a given error, found without coding it. One compiled pass over a sample.

The matrix is quantised on the plain grid, and the entropy of its tokens counted. The trellis saves about the same
share of bits on all candidates for a layer, so what is least here is least there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from paramcompress import prices
from paramcompress.fit.scales import fit_scales, to_classes
from paramcompress.fit.settle import on_plain_grid
from paramcompress.jit import compiled
from paramcompress.tokens import N_CLASSES, N_TOKENS, count_tokens, shifted_bits
from paramcompress.trellis import TRELLISES


def estimated_bits(x: NDArray[np.float32], target: float) -> float:
    """Bits of x (n_columns, n_rows) at a mean squared error of `target`, classes of rows and columns left out."""
    return float(_estimate(x, target, prices.cost_table(), TRELLISES[1].walk, prices.token_raw_bits()))


@compiled
def _estimate(x, target, cost, walk, raw_bits):
    rows, columns, row_rms, column_rms, row_peaks, column_peaks, mean_square = fit_scales(x, target)
    if mean_square <= target:
        return 0.0
    step = np.sqrt(target / prices.MSE_OF_PLAIN_STEP)
    error = 0.0
    sides = rows, columns, row_rms, column_rms, row_peaks, column_peaks, mean_square
    yes, fine = np.bool_(True), np.int64(1)
    for turn in range(2):
        base, row_classes, column_classes = to_classes(*sides, step, step, yes, yes, fine)
        points = np.zeros(x.shape, np.int32)
        _, error = on_plain_grid(x, step, base, row_classes, column_classes, cost, points)
        if turn == 1 or 0.7 * target < error < 1.4 * target:
            break
        step *= min(max(np.sqrt(target / max(error, 1e-30)), 0.5), 2.0)
    counts = np.zeros((N_CLASSES, 2, N_TOKENS), np.int32)
    count_tokens(points, base, row_classes, column_classes, walk, np.int64(1), counts)
    n_nonzero = 0
    for j in range(x.shape[0]):
        for i in range(x.shape[1]):
            n_nonzero += points[j, i] != 0
    # what the error is off by, in bits: half a log2 for each number that is coded at all
    excess = 0.5 * n_nonzero * np.log2(error / target) if error > 0 else 0.0
    shifted = shifted_bits(base, row_classes, column_classes)
    return max(prices.token_bits(counts, raw_bits) + shifted + excess, 0.0)
