"""With what weight of a bit the parts of a matrix are quantised so that the whole has a given error. Knows sums only.

At one step, a bit that weighs more leaves a larger error: the error of a part is taken to be

    base * (1 + effect * weight),    weight in units of `prices.BIT_WEIGHT`,

with a base of its own for each part, known once it has been quantised, and one effect for the matrix. So after the
first part, which tells nearly what the rest will have, the rest is steered, and most of a matrix is quantised once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paramcompress.jit import compiled, compiled_sums

LIGHTEST, HEAVIEST = 0.4, 1.2
"""What a part may be quantised with. Heavier ones cost bytes."""
AIMS = 0.75, 0.2
"""Of the tolerance, below the target: between these the error of the whole is steered."""
_MOST_LEARNT = 3.0
"""Times what was expected, or one part in so many of it: an effect that was measured."""


class Steering:
    """The parts of one matrix, quantised at one step.

    Args:
        wanted: squared error of the whole that is not to be exceeded.
        tolerance: how far it may stay below, as a share.
        likely: of each part, a number in proportion to the error it will have.
        effect: expected.
    """

    def __init__(self, wanted: float, tolerance: float, likely: Sequence[float], effect: float) -> None:
        self.wanted, self.tolerance, self.effect = wanted, tolerance, effect
        self.likely = np.array(likely, np.float64)
        self._expected_effect = effect
        self._weights, self._errors = np.zeros(len(likely)), np.zeros(len(likely))
        self._total = 0.0
        self._n_done = self._n_again = 0

    def note(self, part: int, weight: float, errors: Sequence[float]) -> None:
        """A part was quantised, the next one or one that had been; errors: of all that are done."""
        if part < self._n_done:
            self._n_again += 1
            self._learn(self._weights[part], self._errors[part], weight, errors[part])
        self._n_done = len(errors)
        self._weights[part] = weight
        self._errors[: self._n_done] = errors
        self._total = sum(errors)

    def _learn(self, weight: float, error: float, new_weight: float, new_error: float) -> None:
        if error <= 0:
            return
        grown = new_error / error
        share = new_weight - grown * weight
        if share and (grown - 1) / share > 0:
            least, most = self._expected_effect / _MOST_LEARNT, self._expected_effect * _MOST_LEARNT
            self.effect = min(max((grown - 1) / share, least), most)

    @property
    def is_done(self) -> bool:
        """Whether the error of the whole is what is wanted. The tolerance grows as parts are quantised again: the bytes
        that another time would save are ever fewer."""
        least = self.wanted * (1 - self.tolerance * (1 + self._n_again))
        return self._n_done == len(self.likely) and least <= self._total <= self.wanted

    @property
    def at_unit_weight(self) -> float:
        """Error that the whole should have if all were quantised with weight 1; 0 where nothing is known yet."""
        bases = _bases(self._errors, self._weights, self.likely, self._n_done, self.effect)
        return float(bases.sum() * (1 + self.effect))

    def following(self) -> tuple[int, float] | None:
        """Part that comes next, or again, and its weight; None where no weight reaches so far and another step must."""
        part, weight = _following(
            self._errors, self._weights, self.likely, self._n_done, self.effect, self.wanted, self.tolerance
        )
        return None if part < 0 else (part, weight)


@compiled
def _bases(errors, weights, likely, n_done, effect):
    """Of all parts: of those that are done, and as likely of the others."""
    bases = likely.copy()
    done = before = 0.0
    for part in range(n_done):
        bases[part] = errors[part] / (1 + effect * weights[part])
        done += bases[part]
        before += likely[part]
    for part in range(n_done, len(likely)):
        bases[part] *= done / (before if before > 0 else 1.0)
    return bases


@compiled
def _following(errors, weights, likely, n_done, effect, wanted, tolerance):
    """Part and weight; part -1 where there is none."""
    bases, total = _bases(errors, weights, likely, n_done, effect), errors[:n_done].sum()
    if not bases.sum() > 0:
        return -1, 0.0
    if n_done < len(likely):
        lightest, heaviest = _range(bases[n_done:].sum(), total, effect, wanted, tolerance)
        if n_done == 1 and (heaviest < LIGHTEST or lightest > HEAVIEST):
            return -1, 0.0
        return n_done, max(min(max(1.0, lightest), heaviest, HEAVIEST), LIGHTEST)
    tried = np.zeros(n_done, np.bool_)
    for _ in range(n_done):  # the smallest first
        part = -1
        for one in range(n_done):
            if not tried[one] and (part < 0 or likely[one] < likely[part]):
                part = one
        tried[part] = True
        lightest, heaviest = _range(bases[part], total - errors[part], effect, wanted, tolerance)
        if lightest <= HEAVIEST and heaviest >= LIGHTEST:
            return part, min(max((lightest + heaviest) / 2, LIGHTEST), HEAVIEST)
    return -1, 0.0


@compiled
def _range(base, others, effect, wanted, tolerance):
    """Weights with which what has this base comes to where the whole, with the others' error, is aimed at."""
    least, most = AIMS
    return (
        _weight(base, wanted * (1 - least * tolerance) - others, effect),
        _weight(base, wanted * (1 - most * tolerance) - others, effect),
    )


@compiled
def _weight(base, allowed, effect):
    """Weight with which what has this base comes to the error that is allowed."""
    grown = max(allowed / base - 1, 0.0) if base > 0 else 0.0
    return grown / effect


@compiled_sums
def likely_error(x, target, chains, per_chain):
    """Squared error of some chains of x (n_columns, n_rows), but for a factor, and their effect.

    The error is the target of each number, less where a column is hardly louder than that. The weight of a bit adds to
    it 2.5 times the target's share of the column's energy (docs/design.md).
    """
    found = effect = 0.0
    for chain in chains:
        for j in range(chain * per_chain, min((chain + 1) * per_chain, len(x))):
            energy = 0.0
            for i in range(x.shape[1]):
                energy += np.float64(x[j, i]) * x[j, i]
            energy /= x.shape[1]
            error = x.shape[1] * energy * target / (energy + target)
            found += error
            effect += error * 2.5 * target / max(energy, 0.1 * target)
    return found, effect / found if found > 0 else 0.0
