"""The step of the quantiser at which a matrix has a given error, and the points that come out there.

The quantiser trades error for bits at a price, about `prices.BIT_WEIGHT` squared steps a bit, which is the slope of the
rate-distortion function where the trellis works. Which scale classes pay is settled on a sample, and nearly the right
step; what that is off by, the price makes good while the parts of the matrix are quantised one after the other. Where
the price does not reach so far, and where there are no parts, a secant search finds the step.

Shapes: x (n_columns, n_rows): the matrix to be quantised, column after column, as the trellis runs.
"""

from __future__ import annotations

import itertools
import math
import operator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from paramcompress import prices
from paramcompress.codec import Symbols
from paramcompress.entropy import Scales
from paramcompress.fit.plain import points_of_error
from paramcompress.fit.sample import Sample
from paramcompress.fit.scales import Profile, wants_zero
from paramcompress.fit.settle import STEP_POWER, TRELLIS_STEP, settle, stretch_of, stride
from paramcompress.fit.steer import Steering, likely_error
from paramcompress.metrics import moments
from paramcompress.quantize import LANES, quantize
from paramcompress.trellis import WITH_ZERO, Trellis, lines_per_chain

SEARCH_SAMPLE = 1 << 14
"""Weights on which the step and the use of scale classes are looked for before all of a layer is quantised."""
LEAST_LEARNT = 2048
"""Weights below which token costs are left at the prior's."""
PARTS = (0.25, 0.75, 1.0)
"""Of the chains: how many are quantised when the error is looked at."""
GOLDEN = 0.6180339887498949
"""Multiples of it, modulo 1, are spread evenly however many there are."""
MOST_STARTS = 4
"""Steps at which part after part is quantised; most of these end with the first part."""
MOST_AGAIN = 3
"""Parts quantised another time at one step."""
MOST_SEARCHES = 6
MOST_STEPS = 1 << 25
"""Largest weight in steps: float32, in which the quantiser works, tells no finer ones apart."""


class Unfit(ValueError):
    """No factors can represent the weight at this error: it has to be kept exactly."""


@dataclass(frozen=True)
class Found:
    """One quantisation of x: weight ~ gain * point."""

    step: float
    gain: float
    error: float
    """Mean squared error after the gain."""
    symbols: Symbols


def search_step(
    x: NDArray[np.float32],
    target: float,
    trellis: Trellis,
    period: int,
    tolerance: float,
    gram: NDArray[np.float64] | None = None,
) -> tuple[float, Symbols | None]:
    """Largest step, and its points, with a mean squared error of at most `target` and hardly less than (1 - tolerance)
    of it. Where the whole of x has less energy than that, no points at all.

    Args:
        gram: (K, K), Q^T Q where the basis is not quite orthonormal: the error is then that of the weight.

    Raises:
        Unfit: some weight would be more than MOST_STEPS steps.
    """
    is_line = 1 in x.shape
    tolerance = max(tolerance, min((3 if is_line else 1.5) / math.sqrt(x.size), 0.5))
    if trellis.n_states == 1:
        gain, points, scales = points_of_error(x, target, tolerance, _n_sample(x), period, gram, MOST_STEPS)
        if gain == 0:
            raise Unfit(f"more than {MOST_STEPS} steps")
        return gain, Symbols(points, scales, trellis) if points.size else None
    profile = Profile.of(x, target)
    if profile.mean_square <= target:
        return 1.0, None
    if is_line or wants_zero(x):
        trellis = WITH_ZERO[trellis.n_states]
    search = Search(target, profile.peak, trellis, gram)
    if is_line:  # a class for every single number costs more than it can tell
        step = math.sqrt(target * (1 - tolerance / 2) / prices.MSE_OF_STEP)
        scales = profile.scales(step, step, by_row=False, by_column=False)
        if x.size >= LEAST_LEARNT:
            step = search.next_step(search.learn(x, scales, step))
    else:
        scales, step = _settle(x, profile, search, period)
    found = search.run(x, scales, step, tolerance)
    return found.gain, found.symbols


def search_sparse(
    x: NDArray[np.float32],
    target: float,
    trellis: Trellis,
    period: int,
    density: float,
    gram: NDArray[np.float64] | None,
) -> tuple[float, Symbols | None]:
    """As `search_step`, with at most `density` of the points nonzero: the largest numbers, the rest taken as zero.

    The trellis makes a few zeros nonzero to get its parities right, so fewer numbers are kept until all of them count.
    """
    n_most = n_kept = int(density * x.size)
    while True:
        sparse = np.zeros_like(x)
        if n_kept:
            kept = np.argpartition(np.abs(x), x.size - n_kept, axis=None)[x.size - n_kept :]
            sparse.flat[kept] = x.flat[kept]
        missed = float(np.square(x - sparse, dtype=np.float64).mean())
        step, stored = search_step(sparse, max(target - missed, 0.1 * target), trellis, period, 0.05, gram)
        n_stored = 0 if stored is None else int(np.count_nonzero(stored.points))
        if n_stored <= n_most:
            return step, stored
        n_kept = min(n_kept - 1, int(n_kept * 0.99 * n_most / n_stored))


def _settle(x: NDArray[np.float32], profile: Profile, search: Search, period: int) -> tuple[Scales, float]:
    """Scale classes that pay and nearly the right step, from a sample of x; `search` learns token costs on the way."""
    part = Sample.of_transposed(x, _n_sample(x), period)
    settled = settle(part, profile, search.target, search.gram, period)
    search.stretch = settled.stretch
    step = settled.step * TRELLIS_STEP
    for _ in range(2 if settled.is_sparse else 1):
        found = search.learn(part.x, part.of_scales(settled.scales), step)
        step = search.next_step(found)  # a lighter weight then brings the error below: as good as a finer step
    return settled.scales, step


class Search:
    """Search for points of a given error; keeps what it has learnt of token costs and slope."""

    def __init__(self, target: float, peak: float, trellis: Trellis, gram: NDArray[np.float64] | None = None) -> None:
        self.target, self.peak, self.trellis, self.gram = target, peak, trellis, gram
        self.cost = prices.cost_table(has_zero=trellis.has_zero)
        self.stretch: float | None = None
        """Squared error of the weight / squared error of x; hardly depends on the step."""
        self.power = STEP_POWER

    def learn(self, x: NDArray[np.float32], scales: Scales, step: float) -> Found:
        """One quantisation, after which costs are those of its tokens."""
        found = self.quantise(x, scales, step)
        counts = prices.histogram(found.symbols.points, scales, self.trellis)
        self.cost = prices.cost_table(counts, has_zero=self.trellis.has_zero)
        return found

    def next_step(self, found: Found, aim: float | None = None) -> float:
        """The step that should make the error `aim`, or the target."""
        return found.step * stride((aim or self.target) / max(found.error, 1e-30), self.power)

    def run(self, x: NDArray[np.float32], scales: Scales, step: float, tolerance: float) -> Found:
        """Points whose error is within `tolerance` below the target, or as near below it as MOST_SEARCHES tries come.

        Scales and costs stay: only so is the error a smooth function of step and weight.
        """
        parts = _parts(*x.shape)
        if len(parts) > 1:
            found, step = self._by_weight(x, scales, step, tolerance, parts)
            if found is not None:
                return found
        return self._by_step(x, scales, step, tolerance)

    def _by_weight(
        self, x: NDArray[np.float32], scales: Scales, step: float, tolerance: float, parts: list[NDArray[np.int64]]
    ) -> tuple[Found | None, float]:
        """Quantise part after part at one step, each with a weight of a bit that brings the error of the whole to the
        target: so most of x is quantised only once. None, and a better step, where that is not to be had."""
        wanted, per_chain = self.target * x.size, lines_per_chain(x.shape[1])
        likely, effects = zip(*(likely_error(x, self.target, part, per_chain) for part in parts), strict=True)
        effect = sum(map(operator.mul, likely, effects)) / sum(likely)
        points = np.zeros(x.shape, np.int32)
        last: tuple[float, float] | None = None
        for _ in range(MOST_STARTS):
            steering = Steering(wanted, tolerance, likely, effect)
            sums: list[tuple[float, float, float]] = []
            following: tuple[int, float] | None = (0, 1.0)
            for _ in range(len(parts) + MOST_AGAIN):
                if following is None:
                    break
                part, weight = following
                sums[part : part + 1] = [self._quantise(x, scales, step, points, parts[part], weight)]
                gain, errors = self._errors(x, points, sums, step)
                steering.note(part, weight, errors)
                if steering.is_done:
                    return Found(step, gain, sum(errors) / x.size, Symbols(points, scales, self.trellis)), step
                following = steering.following()
            error = steering.at_unit_weight
            if error == 0:  # nothing is there, which tells nothing of the rest
                break
            if last is not None:
                self._learn_power(*last, step, error)
            last = step, error
            step *= stride(wanted * (1 - tolerance / 2) / error, self.power)
        return None, step

    def _by_step(self, x: NDArray[np.float32], scales: Scales, step: float, tolerance: float) -> Found:
        """The same by quantising all of x at step after step: MOST_SEARCHES, then as many as it takes to get below."""
        # step and error; a copy of the points of a large layer would be too many
        best: tuple[float, float] | None = None
        last: tuple[float, float] | None = None
        aim = self.target * (1 - tolerance / 2)
        for n_tried in itertools.count(1):
            found = self.quantise(x, scales, step)
            if found.error <= self.target and (best is None or found.error > best[1]):
                best = (step, found.error)
            # as parts that are quantised again: see Steering.is_done
            enough = self.target * (1 - tolerance * n_tried)
            if best is not None and (n_tried >= MOST_SEARCHES or best[1] >= enough):
                if best[0] == step:
                    return found
                del found  # there is no room for the points of two
                return self.quantise(x, scales, best[0])
            if last is not None:
                self._learn_power(*last, step, found.error)
            last = (step, found.error)
            step = self.next_step(found, aim)
            if n_tried >= MOST_SEARCHES:
                step = min(step, 0.95 * found.step)
            del found
        raise AssertionError("itertools.count ended")

    def _learn_power(self, step: float, error: float, other_step: float, other_error: float) -> None:
        if error * other_error > 0 and step != other_step:
            self.power = min(max(math.log(other_error / error) / math.log(other_step / step), 0.5), 2.5)

    def quantise(self, x: NDArray[np.float32], scales: Scales, step: float) -> Found:
        """All of x at one step."""
        points = np.zeros(x.shape, np.int32)
        sums = self._quantise(x, scales, step, points, np.arange(_n_chains(*x.shape)))
        gain, (error,) = self._errors(x, points, [sums], step)
        return Found(step, gain, error / x.size, Symbols(points, scales, self.trellis))

    def _quantise(
        self,
        x: NDArray[np.float32],
        scales: Scales,
        step: float,
        points: NDArray[np.int32],
        chains: NDArray[np.int64],
        weight: float = 1.0,
    ) -> tuple[float, float, float]:
        """Fill in the points of some chains; their `moments`. weight: times BIT_WEIGHT."""
        if not self.peak < MOST_STEPS * step:
            raise Unfit(f"more than {MOST_STEPS} steps")
        quantize(
            x, scales, self.trellis, self.cost, weight * prices.BIT_WEIGHT, step=step, chains=chains, points=points
        )
        found: tuple[float, float, float] = moments(x, points, chains, lines_per_chain(x.shape[1]))
        return found

    def _errors(
        self, x: NDArray[np.float32], points: NDArray[np.int32], sums: list[tuple[float, float, float]], step: float
    ) -> tuple[float, list[float]]:
        """Best gain for all parts together, and the squared error of each with it. sums: `moments` of each."""
        product, square = sum(one[0] for one in sums), sum(one[1] for one in sums)
        gain = float(np.float32(product / square)) if square else step
        if self.gram is not None and self.stretch is None:
            self.stretch = stretch_of(x, points, gain, self.gram)
        stretch = 1.0 if self.stretch is None else self.stretch
        return gain, [stretch * max(e - 2 * gain * p + gain * gain * s, 0.0) for p, s, e in sums]


def _n_sample(x: NDArray[np.float32]) -> int:
    """Numbers of x on which classes and step are settled."""
    return min(max(x.size // 8, LEAST_LEARNT), SEARCH_SAMPLE)


def _n_chains(n_columns: int, n_rows: int) -> int:
    return -(-n_columns // lines_per_chain(n_rows))


@lru_cache(maxsize=64)
def _parts(n_columns: int, n_rows: int) -> list[NDArray[np.int64]]:
    """Chains in parts as PARTS says, each from all over the matrix and each but the last a multiple of LANES; all in
    one where there are hardly any."""
    n_chains = _n_chains(n_columns, n_rows)
    n_groups = -(-n_chains // LANES)
    if n_groups < len(PARTS):
        return [np.arange(n_chains)]
    order = np.argsort(np.arange(n_chains) * GOLDEN % 1, kind="stable")
    cuts = [LANES * max(1 + k, round(end * n_groups)) for k, end in enumerate(PARTS[:-1])]
    return np.split(order, cuts)
