"""With what weight of a bit the parts of a matrix are quantised so that the whole has a given error. Knows sums only.

At one step, a bit that weighs more leaves a larger error: the error of a part is taken to be

    base * (1 + effect * weight ** WEIGHT_POWER),    weight in units of `prices.BIT_WEIGHT`,

with a base of its own for each part, known once it has been quantised, and one effect for the matrix. So after the
first part, which tells nearly what the rest will have, the rest is steered, and most of a matrix is quantised once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paramcompress.jit import compiled_sums

LIGHTEST, HEAVIEST = 0.4, 1.2
"""What a part may be quantised with. Heavier ones cost bytes."""
WEIGHT_POWER = 1.25
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
        self.wanted, self.tolerance, self.likely, self.effect = wanted, tolerance, likely, effect
        self._expected_effect = effect
        self._weights: list[float] = []
        self._errors: list[float] = []
        self._n_again = 0

    def note(self, part: int, weight: float, errors: Sequence[float]) -> None:
        """A part was quantised, the next one or one that had been; errors: of all that are done."""
        if part < len(self._weights):
            self._n_again += 1
            self._learn(self._weights[part], self._errors[part], weight, errors[part])
        self._weights[part : part + 1] = [weight]
        self._errors = list(errors)

    def _learn(self, weight: float, error: float, new_weight: float, new_error: float) -> None:
        if error <= 0:
            return
        grown = new_error / error
        share = new_weight**WEIGHT_POWER - grown * weight**WEIGHT_POWER
        if share and (grown - 1) / share > 0:
            least, most = self._expected_effect / _MOST_LEARNT, self._expected_effect * _MOST_LEARNT
            self.effect = min(max((grown - 1) / share, least), most)

    @property
    def is_done(self) -> bool:
        """Whether the error of the whole is what is wanted. The tolerance grows as parts are quantised again: the bytes
        that another time would save are ever fewer."""
        least = self.wanted * (1 - self.tolerance * (1 + self._n_again))
        return len(self._errors) == len(self.likely) and least <= sum(self._errors) <= self.wanted

    @property
    def at_unit_weight(self) -> float:
        """Error that the whole should have if all were quantised with weight 1; 0 where nothing is known yet."""
        return sum(self._bases()) * (1 + self.effect)

    def following(self) -> tuple[int, float] | None:
        """Part that comes next, or again, and its weight; None where no weight reaches so far and another step must."""
        bases, n_done = self._bases(), len(self._weights)
        if not sum(bases) > 0:
            return None
        if n_done < len(self.likely):
            lightest, heaviest = self._range(sum(bases[n_done:]), sum(self._errors))
            if n_done == 1 and (heaviest < LIGHTEST or lightest > HEAVIEST):
                return None
            return n_done, min(max(1.0, lightest, LIGHTEST), heaviest, HEAVIEST) if heaviest > LIGHTEST else LIGHTEST
        for part in sorted(range(n_done), key=self.likely.__getitem__):
            lightest, heaviest = self._range(bases[part], sum(self._errors) - self._errors[part])
            if lightest <= HEAVIEST and heaviest >= LIGHTEST:
                return part, min(max((lightest + heaviest) / 2, LIGHTEST), HEAVIEST)
        return None

    def _bases(self) -> list[float]:
        done = [
            error / (1 + self.effect * weight**WEIGHT_POWER)
            for error, weight in zip(self._errors, self._weights, strict=True)
        ]
        as_likely = sum(done) / (sum(self.likely[: len(done)]) or 1.0)
        return done + [as_likely * likely for likely in self.likely[len(done) :]]

    def _range(self, base: float, others: float) -> tuple[float, float]:
        """Weights with which what has this base comes to where the whole, with the others' error, is aimed at."""
        found = []
        for aim in AIMS:
            allowed = self.wanted * (1 - aim * self.tolerance) - others
            grown = max(allowed / base - 1, 0.0) if base > 0 else 0.0
            found.append((grown / self.effect) ** (1 / WEIGHT_POWER))
        return found[0], found[1]


@compiled_sums
def likely_error(x, target, chains, per_chain):
    """Squared error of some chains of x (n_columns, n_rows), but for a factor, and their effect.

    The error is the target of each number, less where a column is hardly louder than that; how much the weight of a bit
    adds to it, too, depends on how loud the column is. Measured on layers of nine nets at relative squared errors of
    0.01 and 0.05: right within a factor of 1.35 in two of three (docs/design.md).
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
            effect += error * 5 * target / (energy + 2 * target)
    return found, effect / found if found > 0 else 0.0
