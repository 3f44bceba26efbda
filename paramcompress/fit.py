"""The factors of one weight at a given error: dictionary, rank, step, points. Knows no files and no other layer.

What is minimised is bytes, at a squared error that is given. Three nested choices:

- *Dictionary.* Every candidate (none, patch, cosine, each with and without lowrank) is quantised and packed on a sample of the
  columns, at equal error; the smallest wins. Rank by rate and distortion first: a direction pays when the bits it takes off the rest
  of the layer exceed the bits of its two vectors.
- *Step.* The quantiser trades error for bits at a fixed price, BIT_WEIGHT squared steps a bit, which is the slope of the rate-distortion
  function where the trellis works; so the step alone sets the error, and a secant search finds it.
- *Points.* `quantize`, with costs from the points of the search so far.

Shapes: W (n_out, n_in * K), x its transpose (n_in * K, n_out) in dictionary coordinates, D (n_in * K, r), C (n_out, r).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from paramcompress import entropy
from paramcompress.codec import COSINE_SCALE, PATCH_SCALE, Factors, Layout, LowRank, Symbols
from paramcompress.dictionaries.cosine import cosine_basis
from paramcompress.dictionaries.lowrank import truncated_svd
from paramcompress.dictionaries.patch import principal_basis
from paramcompress.entropy import DEAD, MOST_CLASS, UNIT_CLASS, Scales
from paramcompress.jit import compiled
from paramcompress.quantize import quantize
from paramcompress.trellis import TRELLISES, Trellis

BIT_WEIGHT = 0.46
"""Squared steps that one bit is worth: 2 ln 2 times the trellis' mean squared error of 0.254, and 1.3 times that because large errors
of the many small numbers cost less than theory, which assumes high rate, says (measured in docs/design.md)."""
MSE_OF_STEP = 0.26
"""Mean squared error in squared steps at high rate; the first guess of the search."""
MSE_OF_PLAIN_STEP = 0.34
"""The same for the plain grid."""
DEAD_PEAK, DEAD_RMS = 1.3, 0.45
"""Rows and columns whose largest number and root mean square stay below these many steps are dead: reverse water-filling gives
nothing to what has less energy than the error that is allowed."""
ATOM_NOISE = 0.5
"""Squared error of coefficients and scaled atoms / mean square of the residual they leave: what they miss, S makes good."""
MOST_RANK = 64
SPECTRUM = 12
"""Singular values looked at first; more only where all of these pay."""
LEAST_GAIN = 0.01
"""Share of the layer's bits that low rank has to promise before it is tried."""
SEARCH_SAMPLE = 1 << 14
"""Weights on which the step and the use of scale classes are looked for before all of a layer is quantised."""
MOST_SEARCHES = 6


LEAST_STEP = 1e-30
MOST_STEPS = 1 << 25
"""Largest weight in steps: float32, in which the quantiser works, tells no finer ones apart."""


class Unfit(ValueError):
    """No factors can represent the weight at this error: it has to be kept exactly."""


@dataclass(frozen=True)
class Effort:
    """What a squeeze may spend."""

    n_states: int
    """States of the trellis; more is a better quantiser and takes longer."""
    sample: int
    """Weights on which candidates are compared."""
    tolerance: float
    """The squared error found may fall short of the limit by this share."""
    low_rank: bool
    """Whether low rank is tried unasked."""


EFFORTS = {
    "fast": Effort(n_states=1, sample=1 << 14, tolerance=0.02, low_rank=False),
    "default": Effort(n_states=8, sample=1 << 15, tolerance=0.006, low_rank=True),
    "max": Effort(n_states=32, sample=1 << 19, tolerance=0.002, low_rank=True),
}


@dataclass(frozen=True)
class Choice:
    """What is fixed from outside; None is free."""

    dictionary: str | None = None
    rank: int | None = None
    density: float | None = None


@dataclass(frozen=True)
class _Candidate:
    """A dictionary, and what it leaves to quantise."""

    transform: str
    basis: NDArray[np.int8] | None
    low_rank: LowRank | None
    gram: NDArray[np.float32] | None
    """(K, K) Q^T Q of the transform as its integers are."""
    x: NDArray[np.float32]
    """(n_columns, n_out), in units of the weight."""
    n_bytes: int
    """Of the dictionary and its coefficients."""


def fit(
    weight: NDArray[np.float32],
    layout: Layout,
    squared_error: float,
    effort: Effort,
    choice: Choice,
    seed: int,
    device: str = "cpu",
) -> Factors:
    """Factors of fewest bytes with ||W - W_hat||_F^2 near, and mostly just below, `squared_error`.

    The promise is the caller's to check, on what `Factors.reconstruct` gives: rounding to the tensor's dtype comes after.

    Args:
        weight: (n_out, n_in * K) float32, finite, not all zero.
        squared_error: squared units of the weight, positive.
        choice: what the user fixed. A density given by hand limits S whatever error that leaves.
        seed: of the randomised SVD, which runs on `device`.

    Raises:
        Unfit: the step would be too small or too large for float32, or symbols too large.
    """
    target = squared_error / weight.size
    peak = float(np.abs(weight).max())
    if not (LEAST_STEP < math.sqrt(target) < 1 / LEAST_STEP) or peak > MOST_STEPS * math.sqrt(target) or peak > 1 / LEAST_STEP:
        raise Unfit(f"weights up to {peak:.3g} at an error of {math.sqrt(target):.3g} each")
    best = _choose(weight, layout, target, effort, choice, seed, device)
    x = best.x
    if choice.density is not None:
        x = _sparsest(x, choice.density)
        missed = float(np.square(best.x - x, dtype=np.float64).mean())
        target = max(target - missed, 0.1 * target)
    trellis = TRELLISES[effort.n_states]
    step, stored = _search_step(x, target, trellis, layout.kernel_size, effort.tolerance, best.gram)
    factors = Factors(layout, step, best.transform, best.basis, best.low_rank, stored)
    if not factors.is_exact:
        raise Unfit("partial sums would not be exact in float64")
    return factors


# ------------------------------------------------------------------------------------------- dictionary


def _choose(
    weight: NDArray[np.float32],
    layout: Layout,
    target: float,
    effort: Effort,
    choice: Choice,
    seed: int,
    device: str,
) -> _Candidate:
    """The candidate of fewest bytes at mean squared error `target`: first the transform, then low rank on top of it."""
    asked = None if choice.dictionary is None else choice.dictionary.split("+")

    def cheapest(candidates: list[_Candidate]) -> _Candidate:
        if len(candidates) == 1:
            return candidates[0]
        return min(candidates, key=lambda one: _estimate(one, target, layout.kernel_size, effort.sample))

    transforms = ["none", "patch", "cosine"] if layout.takes_transform else ["none"]
    if asked is not None:
        transforms = [name for name in transforms if name in asked] or ["none"]
    plain = cheapest([_transformed(weight, layout, name, None, 0) for name in transforms])
    if asked is None and not effort.low_rank and not choice.rank or asked is not None and "lowrank" not in asked:
        return plain
    if choice.rank == 0:
        return plain
    offered = [
        _transformed(weight - low_rank_matrix, layout, plain.transform, low_rank, n_bytes)
        for low_rank, low_rank_matrix, n_bytes in _low_ranks(weight, target, choice.rank, seed, device)
    ]
    forced = offered and (choice.rank is not None or asked is not None)
    return cheapest(offered if forced else [plain, *offered])


def _transformed(
    rest: NDArray[np.float32], layout: Layout, transform: str, low_rank: LowRank | None, n_bytes: int
) -> _Candidate:
    """`rest` (n_out, n_columns), what low rank leaves of the weight, in the coordinates of a transform."""
    if transform == "none":
        return _Candidate(transform, None, low_rank, None, np.ascontiguousarray(rest.T), n_bytes)
    kernels = torch.from_numpy(rest.reshape(-1, layout.kernel_size))
    basis = None
    if transform == "patch":
        scaled = principal_basis(kernels) * PATCH_SCALE
        basis = scaled.round().clamp(-128, 127).to(torch.int8).numpy()
        matrix = torch.from_numpy(basis).double() / PATCH_SCALE
    else:
        matrix = cosine_basis(layout.kernel, COSINE_SCALE).double() / COSINE_SCALE ** len(layout.kernel)
    # the integers are not quite orthonormal, so coordinates come from the inverse, not the transpose
    coordinates = (kernels @ torch.linalg.inv(matrix).T.float()).reshape(rest.shape)
    x = np.ascontiguousarray(coordinates.numpy().T)
    gram = (matrix.T @ matrix).float().numpy()
    return _Candidate(transform, basis, low_rank, gram, x, n_bytes + (0 if basis is None else basis.size))


def _estimate(candidate: _Candidate, target: float, period: int, sample: int) -> float:
    """Bytes of a candidate: its sample quantised on the plain grid and packed, scaled up."""
    x = _sample(candidate.x, sample, period)
    energy = float(np.square(x, dtype=np.float64).mean())
    if energy <= target:
        return candidate.n_bytes
    search = _Search(target, TRELLISES[1], period, candidate.gram)
    step = math.sqrt(target / MSE_OF_PLAIN_STEP)
    for _ in range(2):
        found = search.quantise(x, _Profile.of(x), step)
        if 0.7 * target < found.error < 1.4 * target:
            break
        step *= min(max(math.sqrt(target / max(found.error, 1e-30)), 0.5), 2.0)
    # what the error is off by, in bits: half a log2 for each number that is coded at all
    excess = 0.5 * np.count_nonzero(found.symbols.points) * math.log2(found.error / target) / 8 if found.error else 0.0
    return candidate.n_bytes + (len(found.symbols.pack(period)) + excess) * candidate.x.size / x.size


def _sample(x: NDArray[np.float32], size: int, period: int) -> NDArray[np.float32]:
    """About `size` numbers of x (n_columns, n_rows): evenly spaced rows and whole kernels of columns."""
    if x.size <= size:
        return x
    n_columns, n_rows = x.shape
    share = math.sqrt(size / x.size)
    rows = _spread(n_rows, max(round(n_rows * share), min(n_rows, 256)))
    kernels = _spread(n_columns // period, max(1, size // (period * len(rows))))
    columns = (kernels[:, None] * period + np.arange(period)).reshape(-1)
    return x[np.ix_(columns, rows)]


def _spread(n: int, n_kept: int) -> NDArray[np.int64]:
    return np.arange(min(n, n_kept)) * n // min(n, n_kept)


def _sparsest(x: NDArray[np.float32], density: float) -> NDArray[np.float32]:
    """x with all but its largest `density * x.size` numbers set to zero."""
    n_kept = int(density * x.size)
    if n_kept >= x.size:
        return x
    sparse = np.zeros_like(x)
    if n_kept:
        kept = np.argpartition(np.abs(x), x.size - n_kept, axis=None)[x.size - n_kept :]
        sparse.flat[kept] = x.flat[kept]
    return sparse


# ------------------------------------------------------------------------------------------- low rank


def _low_ranks(
    weight: NDArray[np.float32], target: float, rank: int | None, seed: int, device: str
) -> Iterator[tuple[LowRank, NDArray[np.float32], int]]:
    """Quantised low-rank parts worth trying, with the matrix each makes and its bytes; of the given rank if there is one."""
    smaller = min(weight.shape)
    energy = float(np.square(weight, dtype=np.float64).sum())
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.from_numpy(weight).to(device)
    if rank is not None:
        ranks = {min(rank, smaller)}
        atoms, coefficients, values = truncated_svd(matrix, min(rank, smaller), generator=generator)
    else:
        if smaller < 4:
            return
        n_looked_at = min(SPECTRUM, smaller)
        atoms, coefficients, values = truncated_svd(matrix, n_looked_at, generator=generator)
        best, gain = _best_rank(values.cpu().numpy(), energy, weight.shape, target)
        if best == n_looked_at < min(MOST_RANK, smaller):
            atoms, coefficients, values = truncated_svd(matrix, min(MOST_RANK, smaller), generator=generator)
            best, gain = _best_rank(values.cpu().numpy(), energy, weight.shape, target)
        if gain < LEAST_GAIN * weight.size * 0.5 * math.log2(max(energy / weight.size / target, 2)):
            return
        ranks = {best, best // 2} - {0}
    atoms, coefficients, values = atoms.cpu(), coefficients.cpu(), values.cpu()
    for r in sorted(ranks):
        left = max(energy - float(values[:r].square().sum()), 0.0) / weight.size
        low_rank = _quantise_low_rank(coefficients[:, :r], atoms[:, :r], values[:r], ATOM_NOISE * max(left, target))
        if low_rank is not None:
            product = low_rank.product(slice(None)).T.float().numpy()
            n_bytes = 16 + r + len(low_rank.coefficients.pack()) + len(low_rank.atoms.pack())
            yield low_rank, product, n_bytes


def _best_rank(values: NDArray[np.float64], energy: float, shape: tuple[int, ...], target: float) -> tuple[int, float]:
    """Rank of least bits, and the bits it saves, by the Gaussian rate-distortion function.

    A direction of singular value s takes the mean square that is left from e to e - s^2 / (n m), which saves n m / 2 log2 of their
    ratio, down to the target; its n + m numbers, quantised with noise ATOM_NOISE * e, cost half the log2 of their own variance over it.
    """
    n, m = shape
    left = np.maximum(energy - np.concatenate([[0.0], np.cumsum(values**2)]), 0) / (n * m)
    floor = np.maximum(left, target)
    saved = n * m / 2 * np.log2(floor[:-1] / floor[1:])
    noise = ATOM_NOISE * floor[1:]
    cost = sum(k / 2 * np.log2(1 + values**2 / (k * noise)) + 0.3 * k for k in (n, m))
    gain = np.concatenate([[0.0], np.cumsum(saved - cost)])
    return int(gain.argmax()), float(gain.max())


def _quantise_low_rank(
    coefficients: torch.Tensor, atoms: torch.Tensor, values: torch.Tensor, noise: float
) -> LowRank | None:
    """Integers for C D^T with squared error `noise` in each coefficient and each atom entry times its singular value."""
    exponents = values.log2().round()
    search = _Search(noise, TRELLISES[8], 1, None)
    found = []
    for matrix in (coefficients, atoms * exponents.exp2()):
        x = np.ascontiguousarray(matrix.T.float().numpy())
        # the noise need not be met: S makes good what these miss
        found.append(search.quantise(x, _Profile.of(x), math.sqrt(noise / MSE_OF_STEP)))
    if not all(np.any(one.symbols.points) for one in found):
        return None
    c, d = (one.symbols for one in found)
    largest = int(exponents.max())
    scale = float(np.float32(found[0].gain * found[1].gain * 2.0**-largest))
    relative = (largest - exponents).clamp(max=127).to(torch.int8).numpy()
    return LowRank(c, d, relative, scale)


# ------------------------------------------------------------------------------------------- step


def _search_step(
    x: NDArray[np.float32],
    target: float,
    trellis: Trellis,
    period: int,
    tolerance: float,
    gram: NDArray[np.float32] | None = None,
) -> tuple[float, Symbols | None]:
    """Largest step, and its points, with a mean squared error of at most `target` and at least (1 - tolerance) of it.

    Where the whole of x has less energy than that, no points at all. A large x is searched on a sample first.

    Args:
        gram: (K, K), Q^T Q where the basis is not quite orthonormal: the error is then measured in the weight's coordinates.
    """
    if float(np.square(x, dtype=np.float64).mean()) <= target:
        return 1.0, None
    search = _Search(target, trellis, period, gram)
    sample = _sample(x, SEARCH_SAMPLE, period)
    by_row = by_column = min(x.shape) > 1  # a class for every single number costs more than it can tell
    found, step = search.learn(sample, _Profile.of(sample, by_row, by_column), math.sqrt(target / MSE_OF_STEP))
    if by_row:
        by_row, by_column = _useful_classes(sample, found, x.shape, period)
    found = search.run(x, _Profile.of(x, by_row, by_column), step, tolerance)
    return found.gain, found.symbols


@dataclass(frozen=True)
class _Found:
    """One quantisation of x: weight ~ gain * point."""

    step: float
    gain: float
    error: float
    """Mean squared error after the gain."""
    symbols: Symbols


class _Search:
    """Secant search for the step; keeps what it has learnt of token costs and slope from one run to the next."""

    def __init__(self, target: float, trellis: Trellis, period: int, gram: NDArray[np.float32] | None) -> None:
        self.target, self.trellis, self.period, self.gram = target, trellis, period, gram
        self.cost = entropy.cost_table()
        self.reference: float | None = None
        """The step that scale classes are taken at: they and the costs they index must not move while the step is searched."""
        self.power = 2.0
        """The error grows with this power of the step."""

    def learn(self, x: NDArray[np.float32], profile: _Profile, step: float) -> tuple[_Found, float]:
        """Token costs from three rounds on x; afterwards they stay, so that the error is a smooth function of the step.

        Returns the last find and the step that should meet the target.
        """
        for _ in range(3):
            self.reference = step
            found = self.quantise(x, profile, step)
            self.cost = entropy.cost_table(entropy.histogram(found.symbols.points, found.symbols.scales, self.trellis))
            step *= min(max((self.target / max(found.error, 1e-30)) ** (1 / self.power), 0.25), 4.0)
        return found, step

    def run(self, x: NDArray[np.float32], profile: _Profile, step: float, tolerance: float) -> _Found:
        """The find of largest error within the target; at most MOST_SEARCHES tries, then as many as it takes to get below."""
        aim = self.target * (1 - tolerance / 2)
        best = last = None
        for n_tried in itertools.count(1):
            found = self.quantise(x, profile, step)
            if found.error <= self.target and (best is None or found.error > best.error):
                best = found
            if best is not None and (n_tried >= MOST_SEARCHES or best.error >= self.target * (1 - tolerance)):
                return best
            if last is not None and found.error * last.error > 0 and found.step != last.step:
                power = math.log(found.error / last.error) / math.log(found.step / last.step)
                self.power = min(max(power, 0.5), 2.5)
            last = found
            step *= min(max((aim / max(found.error, 1e-30)) ** (1 / self.power), 0.25), 4.0)
            if n_tried >= MOST_SEARCHES:
                step = min(step, 0.95 * found.step)
        raise AssertionError("itertools.count ended")

    def quantise(self, x: NDArray[np.float32], profile: _Profile, step: float) -> _Found:
        if profile.row_peaks.max() > MOST_STEPS * step:
            raise Unfit(f"more than {MOST_STEPS} steps")
        scales = profile.scales(self.reference or step)
        points, _ = quantize(x * np.float32(1 / step), scales, self.trellis, self.cost, BIT_WEIGHT)
        product, square, rest = _moments(x, points)
        gain = float(np.float32(product / square)) if square else step
        error = rest - 2 * gain * product + gain * gain * square
        if self.gram is not None:
            residual = (x - np.float32(gain) * points).reshape(-1, len(self.gram), x.shape[1])
            error = float((np.matmul(self.gram, residual) * residual).sum(dtype=np.float64))
        return _Found(step, gain, max(error, 0.0) / x.size, Symbols(points, scales, self.trellis))


@compiled
def _moments(x, points):  # type: ignore[no-untyped-def]
    """Sums of x * point, point**2 and x**2."""
    product = square = energy = 0.0
    for j in range(x.shape[0]):
        for i in range(x.shape[1]):
            number = np.float64(x[j, i])
            point = np.float64(points[j, i])
            product += number * point
            square += point * point
            energy += number * number
    return product, square, energy


# ------------------------------------------------------------------------------------------- scale classes


@dataclass(frozen=True)
class _Profile:
    """Scales of x, each the product of a row's and a column's, and what tells the dead rows and columns."""

    rows: NDArray[np.float64]
    columns: NDArray[np.float64]
    row_rms: NDArray[np.float64]
    column_rms: NDArray[np.float64]
    row_peaks: NDArray[np.float32]
    column_peaks: NDArray[np.float32]

    @classmethod
    def of(cls, x: NDArray[np.float32], by_row: bool = True, by_column: bool = True) -> _Profile:
        """Scales of x (n_columns, n_rows), fitted in turns; a side that is not wanted has scale 1 throughout."""
        return cls(*_fit_scales(x, by_row, by_column))

    def scales(self, step: float) -> Scales:
        """Classes on the half-octave grid for symbols of that step; a symbol is worth two steps."""
        rows = np.rint(2 * np.log2(self.rows)).astype(np.int64)
        columns = np.rint(2 * np.log2(self.columns)).astype(np.int64)
        live_rows = (self.row_peaks >= DEAD_PEAK * step) | (self.row_rms >= DEAD_RMS * step)
        live_columns = (self.column_peaks >= DEAD_PEAK * step) | (self.column_rms >= DEAD_RMS * step)
        if not live_rows.any() or not live_columns.any():
            live_rows[:] = live_columns[:] = True
        least_row, least_column = rows[live_rows].min(), columns[live_columns].min()
        base = int(least_row + least_column + round(-2 * math.log2(2 * step)) + UNIT_CLASS)
        # classes below 0 all share the first context; lifting the base to where it matters keeps it in a byte
        lift = max(0, -UNIT_CLASS - base)
        rows = np.clip(rows - least_row, 0, MOST_CLASS)
        columns = np.clip(columns - least_column, 0, MOST_CLASS)
        return Scales(
            min(base + lift, 100),
            np.where(live_rows, rows, DEAD).astype(np.int16),
            np.where(live_columns, columns, DEAD).astype(np.int16),
        )


@compiled
def _fit_scales(x, by_row, by_column):  # type: ignore[no-untyped-def]
    n_columns, n_rows = x.shape
    rows = np.ones(n_rows)
    columns = np.ones(n_columns)
    row_peaks = np.zeros(n_rows, np.float32)
    column_peaks = np.zeros(n_columns, np.float32)
    row_rms = np.zeros(n_rows)
    column_rms = np.zeros(n_columns)
    for j in range(n_columns):
        for i in range(n_rows):
            size = abs(x[j, i])
            square = np.float64(size) * size
            row_rms[i] += square
            column_rms[j] += square
            row_peaks[i] = max(row_peaks[i], size)
            column_peaks[j] = max(column_peaks[j], size)
    mean = column_rms.sum() / x.size
    row_rms = np.sqrt(row_rms / n_columns)
    column_rms = np.sqrt(column_rms / n_rows)
    if not by_row:
        rows[:] = math.sqrt(mean)
    inverse = np.ones(n_rows)
    for _ in range(3 if by_row and by_column else 1):
        if by_row:  # one pseudo-weight of average size each, so that few weights do not make a wild scale
            sums = np.full(n_rows, mean)
            for j in range(n_columns):
                weight = 1 / (columns[j] * columns[j])
                for i in range(n_rows):
                    sums[i] += np.float64(x[j, i]) * x[j, i] * weight
            for i in range(n_rows):
                rows[i] = math.sqrt(sums[i] / (n_columns + 1))
        if by_column:
            for i in range(n_rows):
                inverse[i] = 1 / (rows[i] * rows[i])
            for j in range(n_columns):
                total = 1.0
                for i in range(n_rows):
                    total += np.float64(x[j, i]) * x[j, i] * inverse[i]
                columns[j] = math.sqrt(total / (n_rows + 1))
    return rows, columns, row_rms, column_rms, row_peaks, column_peaks


def _useful_classes(x: NDArray[np.float32], found: _Found, shape: tuple[int, int], period: int) -> tuple[bool, bool]:
    """Whether rows, and columns, earn classes of their own: the points of a sample packed each way, scaled up to `shape`."""

    def n_bytes(by_row: bool, by_column: bool) -> float:
        scales = _Profile.of(x, by_row, by_column).scales(found.step)
        # what was live stays live: the chain of the points must not change
        live = replace(
            scales,
            rows=np.where(found.symbols.scales.rows < 0, DEAD, np.maximum(scales.rows, 0)).astype(np.int16),
            columns=np.where(found.symbols.scales.columns < 0, DEAD, np.maximum(scales.columns, 0)).astype(np.int16),
        )
        side = [(_class_bytes(live.columns), shape[0] / x.shape[0]), (_class_bytes(live.rows), shape[1] / x.shape[1])]
        packed = len(replace(found.symbols, scales=live).pack(period))
        data = packed - sum(n for n, _ in side)
        return data * (shape[0] * shape[1] / x.size) + sum(n * grown for n, grown in side)

    return min(itertools.product((False, True), repeat=2), key=lambda way: n_bytes(*way))


def _class_bytes(classes: NDArray[np.int16]) -> float:
    """About what the classes of one side take: their entropy."""
    counts = np.unique(classes, return_counts=True)[1]
    return float(-(counts * np.log2(counts / len(classes))).sum()) / 8
