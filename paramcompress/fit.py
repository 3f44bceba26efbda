"""The factors of one weight at a given error: dictionary, rank, step, points. Knows no files and no other layer.

What is minimised is bytes, at a squared error that is given. Three nested choices:

- *Dictionary.* Candidates are quantised on the plain grid, on a sample; the least entropy at equal error wins. First
  the transform (none, patch, cosine), then low rank beside it: a direction pays when the bits it takes off the rest
  of the layer exceed the bits of its two vectors.
- *Step.* The quantiser trades error for bits at a fixed price, BIT_WEIGHT squared steps a bit, which is the slope of
  the rate-distortion function where the trellis works; so the step alone sets the error, and a secant search finds it.
- *Points.* `quantize`, with costs from the points of the search so far.

Shapes: W (n_out, n_in * K), x its transpose (n_in * K, n_out) in dictionary coordinates, D (n_in * K, r), C (n_out, r).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

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
"""Squared steps that one bit is worth: 2 ln 2 times the trellis' mean squared error of 0.254, and 1.3 times that
because large errors of the many small numbers cost less than theory, which assumes high rate, says (measured in
docs/design.md)."""
MSE_OF_STEP = 0.26
"""Mean squared error in squared steps at high rate; the first guess of the search."""
MSE_OF_PLAIN_STEP = 0.34
"""The same for the plain grid."""
DEAD_PEAK, DEAD_RMS = 1.3, 0.45
"""Rows and columns whose largest number and root mean square stay below these many steps are dead: reverse
water-filling gives nothing to what has less energy than the error that is allowed."""
DEAD_LENGTH = 16
"""Rows and columns shorter than this are not looked at for death: their flags would cost more than their zeros."""
ATOM_NOISE = 0.5
"""Squared error of coefficients and scaled atoms / mean square of the residual they leave: what they miss, S makes
good."""
SPECTRUM = (3, 32)
"""Singular values looked at; more only where all of these pay. The last is the largest rank that is chosen unasked."""
LEAST_LOW_RANK = 2048
"""Weights below which low rank is not looked for unasked."""
LEAST_GAIN = 0.01
"""Share of the layer's bits that low rank has to promise before it is tried."""
SEARCH_SAMPLE = 1 << 14
"""Weights on which the step and the use of scale classes are looked for before all of a layer is quantised."""
IN_PLACE = 1 << 22
"""Numbers from which x is scaled where it lies."""
LEAST_LEARNT = 2048
"""Weights below which token costs are left at the prior's."""
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
    thorough: bool = False
    """Whether half the rank that theory says is tried beside it."""


EFFORTS = {
    "fast": Effort(n_states=1, sample=1 << 12, tolerance=0.02, low_rank=False),
    "default": Effort(n_states=8, sample=1 << 13, tolerance=0.02, low_rank=True),
    "max": Effort(n_states=32, sample=1 << 18, tolerance=0.003, low_rank=True, thorough=True),
}


@dataclass(frozen=True)
class Choice:
    """What is fixed from outside; None is free."""

    dictionary: str | None = None
    rank: int | None = None
    density: float | None = None


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

    The promise is the caller's to check, on what `Factors.reconstruct` gives: rounding to the tensor's dtype comes
    after.

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
    if (
        not (LEAST_STEP < math.sqrt(target) < 1 / LEAST_STEP)
        or peak > MOST_STEPS * math.sqrt(target)
        or peak > 1 / LEAST_STEP
    ):
        raise Unfit(f"weights up to {peak:.3g} at an error of {math.sqrt(target):.3g} each")
    dictionary, x = _choose(weight, layout, target, effort, choice, seed, device)
    trellis, period = TRELLISES[effort.n_states], layout.kernel_size
    if choice.density is None:
        step, stored = _search_step(x, target, trellis, period, effort.tolerance, dictionary.gram)
    else:
        step, stored = _search_sparse(x, target, trellis, period, choice.density, dictionary.gram)
    factors = Factors(layout, step, dictionary.transform, dictionary.basis, dictionary.low_rank, stored)
    if not factors.is_exact:
        raise Unfit("partial sums would not be exact in float64")
    return factors


# ------------------------------------------------------------------------------------------- dictionary


@dataclass(frozen=True)
class _Dictionary:
    """A transform and a low-rank part: all that is fixed before S is quantised."""

    transform: str
    basis: NDArray[np.int8] | None = None
    matrix: torch.Tensor | None = None
    """Q (K, K) float64 as its integers make it; None for no transform."""
    low_rank: LowRank | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of basis, atoms and coefficients."""
        n = 0 if self.basis is None else self.basis.size
        if self.low_rank is None:
            return n
        one = self.low_rank
        return n + 16 + len(one.exponents) + round(sum(_bits(part) for part in (one.coefficients, one.atoms)) / 8)

    @property
    def gram(self) -> NDArray[np.float32] | None:
        """Q^T Q: not quite the identity, since Q was rounded."""
        return None if self.matrix is None else (self.matrix.T @ self.matrix).float().numpy()

    @cached_property
    def inverse(self) -> torch.Tensor:
        """(K, K) float32: the inverse of Q, not its transpose, since the integers are not quite orthonormal."""
        assert self.matrix is not None
        return torch.linalg.inv(self.matrix).float()

    def coordinates(self, rest: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n_columns, n_rows) of what is left to quantise: `rest` (n_rows, n_columns), whole kernels, in the
        transform's coordinates."""
        if self.matrix is None:
            return np.array(rest.T, order="C")
        period = len(self.matrix)
        kernels = torch.from_numpy(np.ascontiguousarray(rest.T)).view(-1, period, len(rest))
        return (self.inverse @ kernels).view(-1, len(rest)).numpy()


def _choose(
    weight: NDArray[np.float32], layout: Layout, target: float, effort: Effort, choice: Choice, seed: int, device: str
) -> tuple[_Dictionary, NDArray[np.float32]]:
    """Dictionary of fewest bytes at mean squared error `target`, and x (n_columns, n_rows), what it leaves to quantise.

    First the transform, then low rank on top of it; candidates are compared on a sample.
    """
    asked = None if choice.dictionary is None else choice.dictionary.split("+")
    sample = _Sample.of(weight, effort.sample, layout.kernel_size)

    def n_bytes(one: _Dictionary, rest: NDArray[np.float32]) -> float:
        return one.n_bytes + _estimate(one, rest, target, layout, weight.size)

    names: tuple[str, ...] = ("none", "patch", "cosine") if layout.takes_transform else ("none",)
    if asked is not None:
        names = tuple(name for name in names if name in asked) or ("none",)
    plain = [_transform(name, weight, layout) for name in names]
    sizes = [n_bytes(one, sample.x) if len(plain) > 1 else 0.0 for one in plain]
    best = plain[sizes.index(min(sizes))]
    wanted = choice.rank != 0 and (effort.low_rank or bool(choice.rank) if asked is None else "lowrank" in asked)
    if not wanted:
        return best, best.coordinates(weight)
    forced = choice.rank is not None or asked is not None
    least = math.inf if forced else sizes[plain.index(best)] or n_bytes(best, sample.x)
    chosen = best
    for low_rank in _low_ranks(weight, best, target, choice.rank, seed, device, effort.thorough):
        one = replace(best, low_rank=low_rank)
        n = n_bytes(one, sample.x - low_rank.part(sample.rows, sample.columns))
        if n < least:
            least, chosen = n, one
    if chosen.low_rank is None:
        return chosen, chosen.coordinates(weight)
    rest = chosen.low_rank.product()
    np.subtract(weight, rest, out=rest)
    return chosen, chosen.coordinates(rest)


def _transform(name: str, weight: NDArray[np.float32], layout: Layout) -> _Dictionary:
    """A transform fitted to the kernels of a layer."""
    if name == "patch":
        basis = principal_basis(torch.from_numpy(weight.reshape(-1, layout.kernel_size))) * PATCH_SCALE
        rounded = basis.round().clamp(-128, 127).to(torch.int8)
        return _Dictionary(name, rounded.numpy(), rounded.double() / PATCH_SCALE)
    if name == "cosine":
        scale = COSINE_SCALE ** len(layout.kernel)
        return _Dictionary(name, None, cosine_basis(layout.kernel, COSINE_SCALE).double() / scale)
    return _Dictionary(name)


def _estimate(one: _Dictionary, rest: NDArray[np.float32], target: float, layout: Layout, size: int) -> float:
    """Bytes of S: `rest`, a sample of what low rank leaves of the weight, on the plain grid; its entropy scaled up to
    `size`."""
    x = one.coordinates(rest)
    profile = _Profile.of(x, target)
    if profile.mean_square <= target:
        return 0.0
    search = _Search(target, TRELLISES[1], one.gram)
    step = math.sqrt(target / MSE_OF_PLAIN_STEP)
    for _ in range(2):
        found = search.quantise(x, profile.scales(step), step)
        if 0.7 * target < found.error < 1.4 * target:
            break
        step *= min(max(math.sqrt(target / max(found.error, 1e-30)), 0.5), 2.0)
    # what the error is off by, in bits: half a log2 for each number that is coded at all
    excess = 0.5 * np.count_nonzero(found.symbols.points) * math.log2(found.error / target) if found.error else 0.0
    return (_data_bits(found.symbols) + excess) * size / x.size / 8


def _bits(symbols: Symbols) -> float:
    assert symbols.scales is not None
    return _data_bits(symbols) + _class_bits(symbols.scales, 1)


def _data_bits(symbols: Symbols) -> float:
    """Bits of the points themselves: entropy of the tokens by context, what learning it costs, and the raw bits."""
    assert symbols.scales is not None
    counts = entropy.histogram(symbols.points, symbols.scales, symbols.trellis).reshape(-1, entropy.N_TOKENS)
    total = counts.sum(1, keepdims=True)
    used = counts > 0
    bits = (counts * np.log2(np.where(used, total / np.maximum(counts, 1), 1))).sum()
    return float(bits + 2 * used.sum() + (counts * entropy.token_raw_bits()).sum())


def _class_bits(scales: Scales, period: int) -> float:
    """About what the classes of both sides take."""
    return entropy.class_bits(scales, period) + 3 * sum(
        len(np.unique(side)) - 1 for side in (scales.rows, scales.columns)
    )


@dataclass(frozen=True)
class _Sample:
    """Evenly spaced rows and whole kernels of columns of a matrix (n_rows, n_columns), or of its transpose."""

    x: NDArray[np.float32]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    @classmethod
    def of(cls, matrix: NDArray[np.float32], size: int, period: int) -> _Sample:
        """About `size` numbers of matrix (n_rows, n_columns); all of it where that is not much more."""
        n_rows, n_columns = matrix.shape
        if matrix.size <= 2 * size:
            return cls(matrix, np.arange(n_rows), np.arange(n_columns))
        rows = _spread(n_rows, max(round(n_rows * math.sqrt(size / matrix.size)), min(n_rows, 256)))
        kernels = _spread(n_columns // period, max(1, size // (period * len(rows))))
        columns = (kernels[:, None] * period + np.arange(period)).reshape(-1)
        return cls(matrix[np.ix_(rows, columns)], rows, columns)

    @classmethod
    def of_transposed(cls, x: NDArray[np.float32], size: int, period: int) -> _Sample:
        """The same of x (n_columns, n_rows)."""
        found = cls.of(x.T, size, period)
        return cls(np.ascontiguousarray(found.x.T), found.rows, found.columns)

    def of_scales(self, scales: Scales) -> Scales:
        return Scales(scales.base, scales.rows[self.rows], scales.columns[self.columns])


def _spread(n: int, n_kept: int) -> NDArray[np.int64]:
    """n_kept of the first n numbers, evenly spaced."""
    return np.arange(min(n, n_kept)) * n // min(n, n_kept)


def _search_sparse(
    x: NDArray[np.float32],
    target: float,
    trellis: Trellis,
    period: int,
    density: float,
    gram: NDArray[np.float32] | None,
) -> tuple[float, Symbols | None]:
    """As `_search_step`, with at most `density` of the points nonzero: the largest numbers, the rest taken as zero.

    The trellis makes a few zeros nonzero to get its parities right, so fewer numbers are kept until all of them count.
    """
    n_most = n_kept = int(density * x.size)
    while True:
        sparse = np.zeros_like(x)
        if n_kept:
            kept = np.argpartition(np.abs(x), x.size - n_kept, axis=None)[x.size - n_kept :]
            sparse.flat[kept] = x.flat[kept]
        missed = float(np.square(x - sparse, dtype=np.float64).mean())
        step, stored = _search_step(sparse, max(target - missed, 0.1 * target), trellis, period, 0.05, gram)
        n_stored = 0 if stored is None else int(np.count_nonzero(stored.points))
        if n_stored <= n_most:
            return step, stored
        n_kept = min(n_kept - 1, int(n_kept * 0.99 * n_most / n_stored))


# ------------------------------------------------------------------------------------------- low rank


def _low_ranks(
    weight: NDArray[np.float32],
    transform: _Dictionary,
    target: float,
    rank: int | None,
    seed: int,
    device: str,
    thorough: bool,
) -> Iterator[LowRank]:
    """Quantised low-rank parts worth trying beside a transform; of the given rank if there is one."""
    smaller = min(weight.shape)
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.from_numpy(weight).to(device)
    energy = float(np.vdot(weight, weight))

    def factors(n: int) -> tuple[torch.Tensor, ...]:
        return tuple(one.cpu() for one in truncated_svd(matrix, min(n, smaller), generator=generator))

    if rank is not None:
        ranks = {min(rank, smaller)}
        atoms, coefficients, values = factors(rank)
    else:
        if smaller < 4 or weight.size < LEAST_LOW_RANK:
            return
        energies = np.square(transform.coordinates(weight[_spread(len(weight), 64)])).mean(1)
        bits = len(weight) / 2 * float(np.log2(np.maximum(energies / target, 1)).sum()) + weight.size / 4
        for n_looked_at in SPECTRUM:
            atoms, coefficients, values = factors(n_looked_at)
            directions = transform.coordinates(np.ascontiguousarray((atoms * values).T.float().numpy()))
            best, gain = _best_rank(values.numpy(), directions, energies, len(weight), target)
            if best < min(n_looked_at, smaller):
                break
        if gain < LEAST_GAIN * bits:
            return
        ranks = {best, best // 2} - {0} if thorough else {best}
    for r in sorted(ranks, reverse=True):
        left = max(energy - float(values[:r].square().sum()), 0.0) / weight.size
        low_rank = _quantise_low_rank(coefficients[:, :r], atoms[:, :r], values[:r], ATOM_NOISE * max(left, target))
        if low_rank is not None:
            yield low_rank


def _best_rank(
    values: NDArray[np.float64], directions: NDArray[np.float32], energies: NDArray[np.float32], n: int, target: float
) -> tuple[int, float]:
    """Rank of least bits, and the bits it saves, by the Gaussian rate-distortion function.

    Taking directions out of the layer takes each column from its mean square to what is left of it, which saves n /
    2 log2 of their ratio, down to the target. The n + m numbers of a direction, quantised with the noise of
    ATOM_NOISE times the mean square that is left, cost half the log2 of their own variance over it.

    Args:
        values: (r,) singular values, falling.
        directions: (m, r) atoms times singular values, in the coordinates that are quantised.
        energies: (m,) mean squares of the columns there.
        n: features.
    """
    m = len(energies)
    taken = np.cumsum(np.square(directions, dtype=np.float64) / n, axis=1)
    left = np.maximum(energies[:, None] - taken, target)
    saved = n / 2 * (np.log2(np.maximum(energies, target))[:, None] - np.log2(left)).sum(0)
    noise = ATOM_NOISE * left.mean(0)
    cost = np.cumsum(sum(k / 2 * np.log2(1 + values**2 / (k * noise)) + 0.4 * k for k in (n, m)))
    gain = np.concatenate([[0.0], saved - cost])
    return int(gain.argmax()), float(gain.max())


def _quantise_low_rank(
    coefficients: torch.Tensor, atoms: torch.Tensor, values: torch.Tensor, noise: float
) -> LowRank | None:
    """Integers for C D^T, squared error `noise` in each coefficient and in each atom entry times its singular value."""
    exponents = values.log2().round()
    search = _Search(noise, TRELLISES[8], None)
    found = []
    step = math.sqrt(noise / MSE_OF_STEP)
    for matrix in (coefficients, atoms * exponents.exp2()):
        x = np.ascontiguousarray(matrix.T.float().numpy())
        # the noise need not be met: S makes good what these miss
        found.append(search.quantise(x, _Profile.of(x, noise).scales(step, by_row=False), step))
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
    """Largest step, and its points, with a mean squared error of at most `target` and hardly less than (1 - tolerance)
    of it.

    Where the whole of x has less energy than that, no points at all. Token costs and the use of scale classes are
    settled on a sample; the step is then searched on all of x.

    Args:
        gram: (K, K), Q^T Q where the basis is not quite orthonormal: the error is then that of the weight.
    """
    profile = _Profile.of(x, target)
    if profile.mean_square <= target:
        return 1.0, None
    search = _Search(target, trellis, gram)
    step = math.sqrt(target / MSE_OF_STEP)
    tolerance = max(tolerance, 1.5 / math.sqrt(x.size))
    if min(x.shape) == 1:  # a class for every single number costs more than it can tell
        scales = profile.scales(step, by_row=False, by_column=False)
        if x.size >= LEAST_LEARNT:
            step = search.next_step(search.learn(x, scales, step))
    else:
        scales, step = _settle(x, profile, search, step, period)
    found = search.run(x, scales, step, tolerance)
    return found.gain, found.symbols


def _settle(
    x: NDArray[np.float32], profile: _Profile, search: _Search, step: float, period: int
) -> tuple[Scales, float]:
    """Scale classes that pay and nearly the right step, from a sample of x; `search` learns token costs on the way."""
    part = _Sample.of_transposed(x, min(max(x.size // 8, LEAST_LEARNT), SEARCH_SAMPLE), period)
    scales = profile.scales(step)
    found = search.learn(part.x, part.of_scales(scales), step)
    step = search.next_step(found)
    ways = itertools.product((True, False), repeat=2)
    classes = [_keep_live(profile.scales(found.step, *way), scales) for way in ways]
    scales = min(classes, key=lambda one: _class_bits(one, period) + _grown_bits(found, part.of_scales(one), x.size))
    found = search.learn(part.x, part.of_scales(scales), step)
    return scales, search.next_step(found)


def _grown_bits(found: _Found, scales: Scales, size: int) -> float:
    """Bits of `size` points like those found, under other scale classes."""
    return _data_bits(replace(found.symbols, scales=scales)) * size / found.symbols.points.size


def _keep_live(scales: Scales, live: Scales) -> Scales:
    """`scales` with the dead of `live`: the chain of points that were chosen must not change."""
    rows = np.where(live.rows == DEAD, DEAD, np.maximum(scales.rows, 0)).astype(np.int16)
    columns = np.where(live.columns == DEAD, DEAD, np.maximum(scales.columns, 0)).astype(np.int16)
    return Scales(scales.base, rows, columns)


@dataclass(frozen=True)
class _Found:
    """One quantisation of x: weight ~ gain * point."""

    step: float
    gain: float
    error: float
    """Mean squared error after the gain."""
    symbols: Symbols


class _Search:
    """Secant search for the step; keeps what it has learnt of token costs and slope."""

    def __init__(self, target: float, trellis: Trellis, gram: NDArray[np.float32] | None) -> None:
        self.target, self.trellis, self.gram = target, trellis, gram
        self.cost = entropy.cost_table()
        self.stretch: float | None = None
        """Squared error of the weight / squared error of x; hardly depends on the step."""
        self.power = 1.8
        """The error grows with this power of the step."""

    def learn(self, x: NDArray[np.float32], scales: Scales, step: float) -> _Found:
        """One quantisation, after which costs are those of its tokens."""
        found = self.quantise(x, scales, step)
        self.cost = entropy.cost_table(entropy.histogram(found.symbols.points, scales, self.trellis))
        return found

    def next_step(self, found: _Found, aim: float | None = None) -> float:
        """The step that should make the error `aim`, or the target."""
        ratio = (aim or self.target) / max(found.error, 1e-30)
        return found.step * min(max(ratio ** (1 / self.power), 0.25), 4.0)

    def run(self, x: NDArray[np.float32], scales: Scales, step: float, tolerance: float) -> _Found:
        """The find of largest error within the target; at most MOST_SEARCHES tries, then as many as it takes to get
        below.

        Scales and costs stay: only so is the error a smooth function of the step.
        """
        best: tuple[float, float] | None = (
            None  # step and error; a copy of the points of a large layer would be too many
        )
        last: tuple[float, float] | None = None
        aim = self.target * (1 - tolerance / 2)
        for n_tried in itertools.count(1):
            found = self.quantise(x, scales, step)
            if found.error <= self.target and (best is None or found.error > best[1]):
                best = (step, found.error)
            if best is not None and (n_tried >= MOST_SEARCHES or best[1] >= self.target * (1 - tolerance)):
                return found if best[0] == step else self.quantise(x, scales, best[0])
            if last is not None and found.error * last[1] > 0 and step != last[0]:
                power = math.log(found.error / last[1]) / math.log(step / last[0])
                self.power = min(max(power, 0.5), 2.5)
            last = (step, found.error)
            step = self.next_step(found, aim)
            if n_tried >= MOST_SEARCHES:
                step = min(step, 0.95 * found.step)
            del found
        raise AssertionError("itertools.count ended")

    def quantise(self, x: NDArray[np.float32], scales: Scales, step: float) -> _Found:
        # a large layer is scaled where it lies, to and fro, since there is no room for another; that costs its last bit
        scaled = x if x.size >= IN_PLACE else np.empty_like(x)
        np.multiply(x, np.float32(1 / step), out=scaled)
        if not max(float(scaled.max()), -float(scaled.min())) < MOST_STEPS:
            raise Unfit(f"more than {MOST_STEPS} steps")
        points, _ = quantize(scaled, scales, self.trellis, self.cost, BIT_WEIGHT)
        if scaled is x:
            np.multiply(x, np.float32(step), out=x)
        product, square, energy = _moments(x, points)
        gain = float(np.float32(product / square)) if square else step
        error = energy - 2 * gain * product + gain * gain * square
        if self.gram is not None:
            if self.stretch is None:
                self.stretch = _stretch(x, points, gain, self.gram)
            error *= self.stretch
        return _Found(step, gain, max(error, 0.0) / x.size, Symbols(points, scales, self.trellis))


def _stretch(x: NDArray[np.float32], points: NDArray[np.int32], gain: float, gram: NDArray[np.float32]) -> float:
    """Squared error of the weight / squared error of x, from a few of the kernels."""
    period = len(gram)
    some = _spread(len(x) // period, max(1, (1 << 14) // (period * x.shape[1])))[:, None] * period + np.arange(period)
    residual = x[some] - np.float32(gain) * points[some]
    squared = float(np.square(residual, dtype=np.float64).sum())
    return float((np.matmul(gram, residual) * residual).sum(dtype=np.float64)) / squared if squared else 1.0


@compiled
def _moments(x, points):
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
    mean_square: float

    @classmethod
    def of(cls, x: NDArray[np.float32], floor: float) -> _Profile:
        """Scales of x (n_columns, n_rows), fitted in turns. Below the mean square `floor` nothing is told apart: what
        the quantiser leaves at zero must not shape the scales of the rest."""
        return cls(*_fit_scales(x, floor))

    def scales(self, step: float, by_row: bool = True, by_column: bool = True) -> Scales:
        """Classes on the half-octave grid for symbols of that step; a symbol is worth two steps."""
        if by_row and by_column:
            row_scales, column_scales = self.rows, self.columns
        else:
            row_scales = self.row_rms if by_row else np.full(len(self.rows), 1.0)
            column_scales = self.column_rms if by_column else np.full(len(self.columns), 1.0)
            if not by_row and not by_column:
                row_scales = row_scales * math.sqrt(self.mean_square)
        few_rows, few_columns = len(self.rows) < DEAD_LENGTH, len(self.columns) < DEAD_LENGTH
        live_rows = few_columns | (self.row_peaks >= DEAD_PEAK * step) | (self.row_rms >= DEAD_RMS * step)
        live_columns = few_rows | (self.column_peaks >= DEAD_PEAK * step) | (self.column_rms >= DEAD_RMS * step)
        if not live_rows.any() or not live_columns.any():
            live_rows[:] = live_columns[:] = True
        rows, columns = _classes(row_scales, live_rows), _classes(column_scales, live_columns)
        least_row, least_column = int(rows[live_rows].min()), int(columns[live_columns].min())
        base = least_row + least_column + round(-2 * math.log2(2 * step)) + UNIT_CLASS
        # classes below 0 share the first context, and the base has a byte
        base = min(max(base, -2 * UNIT_CLASS), MOST_CLASS)
        return Scales(
            base,
            np.where(live_rows, np.minimum(rows - least_row, MOST_CLASS), DEAD).astype(np.int16),
            np.where(live_columns, np.minimum(columns - least_column, MOST_CLASS), DEAD).astype(np.int16),
        )


def _classes(scales: NDArray[np.float64], live: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Half octaves; whatever for the dead, whose scale may be 0."""
    return np.rint(2 * np.log2(np.where(live & (scales > 0), scales, 1.0))).astype(np.int64)


@compiled
def _fit_scales(x, floor):
    n_columns, n_rows = x.shape
    row_peaks = np.zeros(n_rows, np.float32)
    column_peaks = np.zeros(n_columns, np.float32)
    row_rms = np.zeros(n_rows)
    column_rms = np.zeros(n_columns)
    for j in range(n_columns):
        peak = np.float32(0)
        total = 0.0
        for i in range(n_rows):
            size = abs(x[j, i])
            square = np.float64(size) * size
            row_rms[i] += square
            total += square
            row_peaks[i] = max(row_peaks[i], size)
            peak = max(peak, size)
        column_peaks[j] = peak
        column_rms[j] = total
    mean = column_rms.sum() / x.size
    row_rms = np.sqrt(row_rms / n_columns)
    column_rms = np.sqrt(column_rms / n_rows)
    # one pseudo-weight of average size for each row and column, so that a few weights do not make a wild scale
    rows = np.sqrt((row_rms**2 * n_columns + mean) / (n_columns + 1))
    columns = np.ones(n_columns)
    if mean > 0:
        least = max(min(floor / mean, 1.0), 1e-12)
        for turn in range(2):
            inverse = 1 / np.maximum(rows**2, least * mean)
            for j in range(n_columns):
                total = 1.0
                for i in range(n_rows):
                    total += np.float64(x[j, i]) * x[j, i] * inverse[i]
                columns[j] = math.sqrt(total / (n_rows + 1))
            if turn == 0:
                sums = np.full(n_rows, mean)
                for j in range(n_columns):
                    weight = 1 / max(columns[j] * columns[j], least)
                    for i in range(n_rows):
                        sums[i] += np.float64(x[j, i]) * x[j, i] * weight
                rows = np.sqrt(sums / (n_columns + 1))
    return rows, columns, row_rms, column_rms, row_peaks, column_peaks, mean
