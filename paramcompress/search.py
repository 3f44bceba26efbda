"""The step of the quantiser at which a matrix has a given error, and the points that come out there.

The quantiser trades error for bits at a fixed price, `prices.BIT_WEIGHT` squared steps a bit, which is the slope of the
rate-distortion function where the trellis works. So the step alone sets the error, and a secant search finds it. Which
scale classes pay is settled before, on a sample.

Shapes: x (n_columns, n_rows): the matrix to be quantised, column after column, as the trellis runs.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paramcompress import prices
from paramcompress.codec import Symbols
from paramcompress.entropy import Scales
from paramcompress.jit import compiled_sums
from paramcompress.metrics import moments
from paramcompress.quantize import quantize
from paramcompress.sample import Sample, spread
from paramcompress.scales import Profile
from paramcompress.trellis import TRELLISES, Trellis

SEARCH_SAMPLE = 1 << 14
"""Weights on which the step and the use of scale classes are looked for before all of a layer is quantised."""
LEAST_LEARNT = 2048
"""Weights below which token costs are left at the prior's."""
IN_PLACE = 1 << 22
"""Numbers from which x is scaled where it lies."""
AIM = 0.985
"""Of the target, for the first quantisation of all of x: the costs that it has learnt make it a little more daring than
the sample, which had those of the prior."""
SPARSE_STEP = 1.4
"""Times the step of high rate."""
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
    profile = Profile.of(x, target)
    if profile.mean_square <= target:
        return 1.0, None
    search = Search(target, profile.peak, trellis, gram)
    tolerance = max(tolerance, min((3 if 1 in x.shape else 1.5) / math.sqrt(x.size), 0.5))
    if 1 in x.shape:  # a class for every single number costs more than it can tell
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
    part = Sample.of_transposed(x, min(max(x.size // 8, LEAST_LEARNT), SEARCH_SAMPLE), period)
    # the plain grid tells as well what classes are worth, and much sooner
    plain = Search(search.target, search.peak, TRELLISES[1], search.gram)
    step = math.sqrt(plain.target / prices.MSE_OF_PLAIN_STEP)
    live_step = math.sqrt(plain.target / prices.MSE_OF_STEP)
    found = plain.quantise(part.x, part.of_scales(profile.scales(step, live_step)), step)
    step = plain.next_step(found) * math.sqrt(prices.MSE_OF_PLAIN_STEP / prices.MSE_OF_STEP)
    search.stretch = plain.stretch
    grown = x.size / part.x.size

    def n_bits(one: Scales) -> float:
        points = prices.point_bits(found.symbols.points, part.of_scales(one), TRELLISES[1])
        return prices.class_bits(one, period) + grown * points

    # where hardly anything is stored, the true step would leave all contexts but the lowest unused, classes are dear,
    # and the prior is far
    sparse = step > SPARSE_STEP * live_step
    ways = itertools.product((step, live_step) if sparse else (step,), (True, False), (True, False))
    candidates = [
        profile.scales(one, live_step, by_row, by_column, grid)
        for one, by_row, by_column in ways
        for grid in ((1, 2) if sparse else (1,))
    ]
    scales = min(candidates, key=n_bits)
    for _ in range(2 if sparse else 1):
        found = search.learn(part.x, part.of_scales(scales), step)
        step = search.next_step(found, AIM * search.target)
    return scales, step


class Search:
    """Secant search for the step; keeps what it has learnt of token costs and slope."""

    def __init__(self, target: float, peak: float, trellis: Trellis, gram: NDArray[np.float64] | None = None) -> None:
        self.target, self.peak, self.trellis, self.gram = target, peak, trellis, gram
        self.cost = prices.cost_table()
        self.stretch: float | None = None
        """Squared error of the weight / squared error of x; hardly depends on the step."""
        self.power = 1.8
        """The error grows with this power of the step."""

    def learn(self, x: NDArray[np.float32], scales: Scales, step: float) -> Found:
        """One quantisation, after which costs are those of its tokens."""
        found = self.quantise(x, scales, step)
        self.cost = prices.cost_table(prices.histogram(found.symbols.points, scales, self.trellis))
        return found

    def next_step(self, found: Found, aim: float | None = None) -> float:
        """The step that should make the error `aim`, or the target."""
        ratio = (aim or self.target) / max(found.error, 1e-30)
        return found.step * min(max(ratio ** (1 / self.power), 0.25), 4.0)

    def run(self, x: NDArray[np.float32], scales: Scales, step: float, tolerance: float) -> Found:
        """The find of largest error within the target; at most MOST_SEARCHES tries, then as many as it takes to get
        below.

        Scales and costs stay: only so is the error a smooth function of the step.
        """
        # step and error; a copy of the points of a large layer would be too many
        best: tuple[float, float] | None = None
        last: tuple[float, float] | None = None
        aim = self.target * (1 - tolerance / 2)
        for n_tried in itertools.count(1):
            found = self.quantise(x, scales, step)
            if found.error <= self.target and (best is None or found.error > best[1]):
                best = (step, found.error)
            if best is not None and (n_tried >= MOST_SEARCHES or best[1] >= self.target * (1 - tolerance)):
                if best[0] == step:
                    return found
                del found  # there is no room for the points of two
                return self.quantise(x, scales, best[0])
            if last is not None and found.error * last[1] > 0 and step != last[0]:
                power = math.log(found.error / last[1]) / math.log(step / last[0])
                self.power = min(max(power, 0.5), 2.5)
            last = (step, found.error)
            step = self.next_step(found, aim)
            if n_tried >= MOST_SEARCHES:
                step = min(step, 0.95 * found.step)
            del found
        raise AssertionError("itertools.count ended")

    def quantise(self, x: NDArray[np.float32], scales: Scales, step: float) -> Found:
        # a large layer is scaled where it lies, to and fro, since there is no room for another; that costs its last bit
        scaled = x if x.size >= IN_PLACE else np.empty_like(x)
        np.multiply(x, np.float32(1 / step), out=scaled)
        if not self.peak < MOST_STEPS * step:
            raise Unfit(f"more than {MOST_STEPS} steps")
        points = quantize(scaled, scales, self.trellis, self.cost, prices.BIT_WEIGHT)
        if scaled is x:
            np.multiply(x, np.float32(step), out=x)
        product, square, energy = moments(x, points)
        gain = float(np.float32(product / square)) if square else step
        error = energy - 2 * gain * product + gain * gain * square
        if self.gram is not None:
            if self.stretch is None:
                self.stretch = _stretch(x, points, gain, self.gram)
            error *= self.stretch
        return Found(step, gain, max(error, 0.0) / x.size, Symbols(points, scales, self.trellis))


def _stretch(x: NDArray[np.float32], points: NDArray[np.int32], gain: float, gram: NDArray[np.float64]) -> float:
    """Squared error of the weight / squared error of x, from a few of the kernels."""
    period = len(gram)
    some = spread(len(x) // period, max(1, (1 << 12) // (period * x.shape[1])))
    squared, turned = _squared(x, points, gain, gram, some)
    return turned / squared if squared else 1.0


@compiled_sums
def _squared(x, points, gain, gram, some):
    """Sums of e^T e and e^T gram e over the errors e of some kernels."""
    squared = turned = 0.0
    period = len(gram)
    errors = np.empty((period, x.shape[1]))
    for kernel in some:
        for k in range(period):
            for i in range(x.shape[1]):
                errors[k, i] = x[kernel * period + k, i] - gain * points[kernel * period + k, i]
        for a in range(period):
            for b in range(a + 1):
                total = 0.0
                for i in range(x.shape[1]):
                    total += errors[a, i] * errors[b, i]
                turned += total * gram[a, b] * (1 if a == b else 2)
                squared += total if a == b else 0.0
    return squared, turned
