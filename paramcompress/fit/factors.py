"""The factors of one weight at a given error: dictionary, rank, step, points. Knows no files and no other layer.

What is minimised is bytes, at a squared error that is given. The dictionary comes first: candidates are compared by
their estimated bits on a sample (`estimate`), first the transform (none, cosine, fitted), then low rank beside it
(`ranks`). What it leaves is quantised at the step that has the error (`search`).

Shapes: W (n_out, n_in * K), x its transpose (n_in * K, n_out) in dictionary coordinates, D (n_in * K, r), C (n_out, r).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from paramcompress import heap
from paramcompress.codec import Factors, Layout, LowRank
from paramcompress.fit import ranks
from paramcompress.fit.estimate import estimated_bits
from paramcompress.fit.sample import Sample
from paramcompress.fit.search import MOST_STEPS, Unfit, search_sparse, search_step
from paramcompress.fit.transforms import FITTED, NONE, Transform
from paramcompress.jit import compiled
from paramcompress.metrics import largest_of
from paramcompress.trellis import TRELLISES

LEAST_STEP = 1e-30
MOST_LOST, LEAST_REFINED = 0.02, 0.7
"""Where low rank leaves more than half of this share of the features, what it leaves may keep that share as error, also
where the limit would allow to leave it all: it is no noise, but features that are quiet beside the others."""
MOST_BASIS = 0.5
"""Of the bytes of a layer without one: what a basis fitted to its kernels may cost, or it is not even fitted."""


@dataclass(frozen=True)
class Effort:
    """What a squeeze may spend."""

    n_states: int
    """States of the trellis; more is a better quantiser and takes longer."""
    n_states_in_metric: int
    """The same where data say what errors cost: there it is a smaller part of the time."""
    sample: int
    """Weights on which candidates are compared."""
    tolerance: float
    """The squared error found may fall short of the limit by this share."""
    fitted: bool
    """Whether bases and low rank, which are fitted to a layer, are tried unasked."""
    may_prefix: bool = False
    """Whether stored weights may have prefix codes, which take less time and more bytes."""
    thorough: bool = False
    """Whether half the rank that theory says is tried beside it."""


EFFORTS = {
    "fast": Effort(n_states=1, n_states_in_metric=1, sample=1 << 11, tolerance=0.02, fitted=False, may_prefix=True),
    "default": Effort(n_states=8, n_states_in_metric=32, sample=1 << 12, tolerance=0.02, fitted=True),
    "max": Effort(n_states=32, n_states_in_metric=32, sample=1 << 18, tolerance=0.003, fitted=True, thorough=True),
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
    peak = largest_of(weight.reshape(-1))
    if (
        not (LEAST_STEP < math.sqrt(target) < 1 / LEAST_STEP)
        or peak > MOST_STEPS * math.sqrt(target)
        or peak > 1 / LEAST_STEP
    ):
        raise Unfit(f"weights up to {peak:.3g} at an error of {math.sqrt(target):.3g} each")
    transform, low_rank = _choose(weight, layout, target, effort, choice, seed, device)
    heap.make_room(weight.nbytes)
    rest = weight
    if low_rank is not None:
        rest = low_rank.product()
        np.subtract(weight, rest, out=rest)
        if choice.rank is None:
            target = min(target, _refined(weight, rest))
    x = transform.coordinates(rest)
    del rest
    trellis, period = TRELLISES[effort.n_states], layout.kernel_size
    if choice.density is None:
        step, stored = search_step(x, target, trellis, period, effort.tolerance, transform.gram)
    else:
        step, stored = search_sparse(x, target, trellis, period, choice.density, transform.gram)
    if stored is not None and effort.may_prefix:
        stored = replace(stored, may_prefix=True)
    factors = Factors(layout, step, transform.name, transform.basis, low_rank, stored)
    if not factors.is_exact:
        raise Unfit("partial sums would not be exact in float64")
    return factors


def _choose(
    weight: NDArray[np.float32], layout: Layout, target: float, effort: Effort, choice: Choice, seed: int, device: str
) -> tuple[Transform, LowRank | None]:
    """Dictionary of fewest bytes at mean squared error `target`: the transform first, then low rank on top of it."""
    if 1 in weight.shape and choice == Choice() and not layout.takes_transform:
        return NONE, None
    asked = None if choice.dictionary is None else choice.dictionary.split("+")
    names: tuple[str, ...] = ("none", *FITTED, "cosine") if layout.takes_transform else ("none",)
    if asked is not None:
        names = tuple(name for name in names if name in asked) or ("none",)
    wanted = choice.rank != 0 and (effort.fitted or bool(choice.rank) if asked is None else "lowrank" in asked)
    if len(names) == 1 and not wanted:
        return Transform.fitted(names[0], weight, layout), None
    sample = Sample.of(weight, effort.sample, layout.kernel_size)

    def n_bytes(transform: Transform, low_rank: LowRank | None) -> float:
        rest, allowed = sample.x, target
        if low_rank is not None:
            rest = sample.x - low_rank.part(sample.rows, sample.columns)
            allowed = min(target, _refined(sample.x, rest))
        bits = estimated_bits(transform.coordinates(rest), allowed / transform.stretch)
        n = transform.n_bytes + bits * weight.size / sample.x.size / 8
        return n if low_rank is None else n + ranks.n_bytes(low_rank)

    transforms = [Transform.fitted(names[0], weight, layout)]
    sizes = [n_bytes(transforms[0], None) if len(names) > 1 else 0.0]
    for name in names[1:]:
        may_pay = effort.fitted and layout.basis_bytes(name) <= MOST_BASIS * sizes[0]
        if name in FITTED and asked is None and not may_pay:
            continue
        transforms.append(Transform.fitted(name, weight, layout))
        sizes.append(n_bytes(transforms[-1], None))
    best = transforms[sizes.index(min(sizes))]
    if not wanted or (choice == Choice() and ranks.is_too_small(weight)):
        return best, None
    alone = min(sizes) or n_bytes(best, None)
    least = alone if choice.rank is None and asked is None else math.inf
    chosen = None
    for low_rank in ranks.low_ranks(weight, best, target, choice.rank, seed, device, effort.thorough):
        n = n_bytes(best, low_rank)
        if n < least:
            least, chosen = n, low_rank
    return best, chosen


@compiled
def _refined(weight, rest):
    """Mean squared error to which what low rank leaves of a weight has to be refined; inf where no feature is lost."""
    energies, left = ranks.mean_squares(weight), ranks.mean_squares(rest)
    n_lost = 0
    for i in range(len(left)):
        n_lost += left[i] > energies[i] / 2 and energies[i] > 0
    return LEAST_REFINED * left.mean() if n_lost > MOST_LOST * len(left) else np.inf
