"""Low rank by rate and distortion: how many directions of a layer pay for their two vectors, and these in integers.

A direction pays when the bits that it takes off the rest of the layer exceed the bits of its atom and coefficients.
In wide layers the largest one alone is asked first, by power iteration, since in most not even that one pays; only
then are they decomposed.

Shapes: W (n_out, n_in * K), D (n_in * K, r), C (n_out, r).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paramcompress import metrics, prices
from paramcompress.codec import LowRank
from paramcompress.dictionaries.lowrank import truncated_svd
from paramcompress.fit.sample import spread
from paramcompress.fit.scales import Profile
from paramcompress.fit.search import Search
from paramcompress.fit.transforms import Transform, turn
from paramcompress.jit import compiled, compiled_sums
from paramcompress.tokens import peak
from paramcompress.trellis import TRELLISES

ATOM_NOISE = 1.2
"""Squared error of coefficients and scaled atoms / mean square of the residual they leave: what they miss, S makes
good."""
SPECTRUM = (8, 16, 32, 64, 128, 256)
"""Singular values looked at; more only where all of these pay. The last is the largest rank that is chosen unasked."""
FEW = 32
"""Directions, up to which what theory promises is about right, if they are less than a quarter of all. Where it says
more, half as many are tried, too."""
WIDE = 96
"""Shorter side from which on the second of these is where it begins: fewer are rarely enough there."""
LEAST_LOW_RANK = 1024
"""Weights below which low rank is not looked for unasked."""
ASKED_ALONE = 32
"""Shorter side from which on the largest direction has to pay before more of them are found. Below, that is done as
soon, and a few directions may pay where one does not."""
_ENERGY_ROWS = 32
"""Features from which the energies of the columns are measured."""
_POWER_STEPS = 3
_POWER_MARGIN = 1.15
"""What power iteration after so few steps may fall short of the largest squared singular value by."""


def is_too_small(weight: NDArray[np.float32]) -> bool:
    """Whether low rank is not even looked for unasked."""
    return min(weight.shape) < 4 or weight.size < LEAST_LOW_RANK


def low_ranks(
    weight: NDArray[np.float32],
    transform: Transform,
    target: float,
    rank: int | None,
    seed: int,
    device: str,
    thorough: bool,
) -> Iterator[LowRank]:
    """Quantised low-rank parts worth trying beside a transform; of the given rank if there is one."""
    smaller = min(weight.shape)

    def factors(n: int) -> tuple[NDArray[np.float32], ...]:
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.from_numpy(weight).to(device)
        return tuple(one.cpu().numpy() for one in truncated_svd(matrix, min(n, smaller), generator=generator))

    if rank is not None:
        ranks = {min(rank, smaller)}
        atoms, coefficients, values = factors(rank)
    else:
        some_rows = spread(len(weight), _ENERGY_ROWS)
        if smaller > ASKED_ALONE and _largest_gain(weight, some_rows, transform.inverse, target) <= 0:
            return
        energies = mean_squares(transform.coordinates(weight))
        for n_looked_at in SPECTRUM[smaller >= WIDE :]:
            atoms, coefficients, values = factors(n_looked_at)
            directions = transform.coordinates(np.ascontiguousarray((atoms * values).T))
            best, gain = _best_rank(values, directions, energies, len(weight), target)
            if best < min(n_looked_at, smaller):
                break
        if gain <= 0:
            return
        ranks = {best, best // 2} - {0} if thorough or best > min(FEW, smaller // 4) else {best}
    energy = float(metrics.survey(torch.from_numpy(weight)).norm) ** 2
    residuals = np.maximum(energy - np.cumsum(np.square(values, dtype=np.float64)), 0.0) / weight.size
    if rank is None:
        ranks |= _sufficient(residuals, sum(weight.shape) / weight.size, target)
    for r in sorted(ranks, reverse=True):
        left = float(residuals[r - 1])
        low_rank = quantise_factors(coefficients[:, :r], atoms[:, :r], values[:r], ATOM_NOISE * max(left, target))
        if low_rank is not None:
            yield low_rank


def _sufficient(residuals: NDArray[np.float64], numbers: float, target: float) -> set[int]:
    """The fewest directions that alone leave no more than `target`, with the noise of their numbers; none if there are
    not so few. numbers: of a direction / weights of the layer."""
    noise = ATOM_NOISE * np.maximum(residuals, target) * numbers * np.arange(1, len(residuals) + 1)
    return set((np.flatnonzero(residuals + noise <= target)[:1] + 1).tolist())


def n_bytes(low_rank: LowRank) -> int:
    """About what atoms and coefficients take."""
    bits = 0.0
    for part in (low_rank.coefficients, low_rank.atoms):
        assert part.scales is not None
        bits += prices.point_bits(part.points, part.scales, part.trellis) + prices.class_bits(part.scales, 1)
    return 16 + len(low_rank.exponents) + round(bits / 8)


@compiled_sums
def _largest_gain(weight, some_rows, inverse, target):
    """Bits that the largest direction saves, by the energies of some rows in the coordinates of a transform."""
    n_rows, n_columns = weight.shape
    some = np.empty((len(some_rows), n_columns), np.float32)
    for i in range(len(some_rows)):
        for j in range(n_columns):
            some[i, j] = weight[some_rows[i], j]
    x = np.empty((n_columns, len(some_rows)), np.float32)
    turn(some, inverse, x)
    energies = mean_squares(x)
    of_rows = mean_squares(weight)
    if energies.sum() > 0:  # in most rows there may be next to nothing
        energies *= of_rows.mean() / energies.mean()
    value, atom = _largest(weight, of_rows)
    value *= np.sqrt(_POWER_MARGIN)
    direction = np.empty((n_columns, 1), np.float32)
    turn((atom * np.float32(value)).reshape(1, -1), inverse, direction)
    return _best_rank(np.array([value]), direction, energies, n_rows, target)[1]


@compiled_sums
def _largest(weight, energies):
    """About the largest singular value and its right singular vector, by power iteration from the loudest row on. Both
    are zero where all of the weight is. energies: (n_rows,) mean squares."""
    loudest = np.argmax(energies)
    vector = np.zeros(weight.shape[1], np.float32)
    if energies[loudest] == 0:
        return 0.0, vector
    norm = np.sqrt(energies[loudest] * weight.shape[1])
    for j in range(len(vector)):
        vector[j] = weight[loudest, j] / np.float32(norm)
    inverse = np.float32(1 / norm)  # squares of small weights would leave float32
    value = 0.0
    for _ in range(_POWER_STEPS):
        following = np.zeros_like(vector)
        for i in range(len(weight)):
            row = weight[i]
            along = np.float32(0)
            for j in range(len(row)):
                along += row[j] * vector[j]
            along *= inverse
            for j in range(len(row)):
                following[j] += along * row[j]
        value = 0.0
        for j in range(len(vector)):
            value += np.float64(following[j]) * following[j]
        value = np.sqrt(value)
        if value == 0:
            return 0.0, following
        for j in range(len(vector)):
            vector[j] = following[j] / value
    return np.sqrt(value * norm), vector


@compiled_sums
def mean_squares(x):
    """(n,) of the lines of x (n, m)."""
    found = np.empty(len(x))
    for j in range(len(x)):
        total = 0.0
        for i in range(x.shape[1]):
            total += np.float64(x[j, i]) * x[j, i]
        found[j] = total / x.shape[1]
    return found


@compiled
def _best_rank(values, directions, energies, n, target):
    """Rank of least bits, and the bits it saves, by the Gaussian rate-distortion function.

    It is right for layers like noise. Many others take fewer bits than it says, and then save less, too, and their
    directions cost less: about by the same share, which so does not matter here.

    Taking directions out of the layer takes each column from its mean square to what is left of it, which saves n /
    2 log2 of their ratio, down to the target. The n + m numbers of a direction, quantised with the noise of
    ATOM_NOISE times the mean square that is left, cost half the log2 of their own variance over it, and that noise is
    added to what is left.

    values: (r,) singular values, falling. directions: (m, r) atoms times singular values, in the coordinates that are
    quantised. energies: (m,) mean squares of the columns there. n: features.
    """
    m = len(energies)
    left = energies.copy()
    best, best_gain, cost = 0, 0.0, 0.0
    for r in range(len(values)):
        saved = total = 0.0
        for j in range(m):
            left[j] -= np.float64(directions[j, r]) ** 2 / n
            now = max(left[j], target)
            total += now
            saved += np.log2(max(energies[j], target) / now)
        noise = ATOM_NOISE * total / m
        for k in (n, m):
            cost += k / 2 * np.log2(1 + np.float64(values[r]) ** 2 / (k * noise)) + 0.7 * k
        added = n * m / 2 * np.log2(1 + ATOM_NOISE * (r + 1) * (n + m) / (n * m))
        gain = n / 2 * saved - added - cost
        if gain > best_gain:
            best, best_gain = r + 1, gain
    return best, best_gain


def quantise_factors(
    coefficients: NDArray[Any], atoms: NDArray[Any], values: NDArray[Any], noise: float
) -> LowRank | None:
    """Integers for C D^T, squared error `noise` in each coefficient and in each atom entry times its singular value."""
    with np.errstate(divide="ignore"):  # a rank set by hand may exceed that of the matrix
        exponents = np.rint(np.log2(values))
    found = []
    step = math.sqrt(noise / prices.MSE_OF_STEP)
    for matrix in (coefficients, atoms * np.exp2(exponents)):
        x = np.ascontiguousarray(matrix.T, np.float32)
        profile = Profile.of(x, noise)
        # the noise need not be met: S makes good what these miss
        search = Search(noise, profile.peak, TRELLISES[8])
        found.append(search.quantise(x, profile.scales(step, step, by_row=False), step))
    if not all(peak(one.symbols.points) for one in found):
        return None
    c, d = (one.symbols for one in found)
    largest = int(exponents.max())
    scale = float(np.float32(found[0].gain * found[1].gain * 2.0**-largest))
    relative = np.minimum(largest - exponents, 127).astype(np.int8)
    return LowRank(c, d, relative, scale)
