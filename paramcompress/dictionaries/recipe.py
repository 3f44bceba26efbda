"""A predicted layer's dictionary in a few words, and the dictionary from them: the same bits on every machine.

A recipe is JSON. It is kept in a checkpoint beside the learned numbers, and in a squeezed file (docs/format.md).

Shapes: W (n_out, n_in) with kernel axes flattened; J column groups, group j having the rows from j n_out // J up to
(j + 1) n_out // J; D_j^T (n_support, n_in).
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramcompress.errors import PredictionError

from .contract import UNBOUNDED, Dictionary
from .cosine_atoms import Cosine
from .downsampling import DownSampling
from .orthonormal import on_grid, orthonormalised, weight_of
from .random_atoms import RandomConnections, RandomFixed
from .squared_exponential import SquaredExponential
from .supports import FOLLOW_FROM_SEED, support

REGENERATED: dict[str, type[Dictionary]] = {
    one.kind: one for one in (SquaredExponential, Cosine, RandomFixed, RandomConnections, DownSampling)
}
"""Dictionaries that a recipe brings back, by kind."""
MOST_POSITIONS = 2**16
"""Inputs of one channel."""
MOST_ENTRIES = 2**28
"""Entries of all dictionaries of a layer."""
MOST_WORK = 2**37
"""Products that make all of a layer's dictionaries orthonormal: a minute or two. Above, a recipe is no bargain."""


@dataclass(frozen=True)
class Recipe:
    """How the dictionaries of one layer are made."""

    kind: str
    shape: tuple[int, ...]
    """Of the dense weight."""
    groups: int
    """J, column groups."""
    n_support: int
    """Learned numbers of each feature."""
    supports: str | list[list[int]]
    """How they are drawn; or, for each group, what was drawn."""
    seed: list[int]
    """Words that the draw starts from."""
    orthonormal: bool = True
    stored: bool = False
    """Whether the dictionaries stand beside the recipe, since it does not bring them back."""
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def n_out(self) -> int:
        return self.shape[0]

    @property
    def n_in(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def n_entries(self) -> int:
        """Of all dictionaries together."""
        return self.groups * self.n_support * self.n_in

    def rows(self, group: int) -> slice:
        """Features of a column group."""
        return slice(group * self.n_out // self.groups, (group + 1) * self.n_out // self.groups)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Recipe:
        """Read what `to_json` wrote, or a stranger.

        Raises:
            ValueError: not a recipe, or one of sizes that do not fit together or ask for too much.
        """
        try:
            found = json.loads(text)
            recipe = cls(**{**found, "shape": tuple(found["shape"])})
            recipe._check()
        except (KeyError, TypeError, AttributeError, RecursionError, OverflowError, PredictionError) as error:
            raise ValueError(f"no recipe of a predicted layer: {error}") from error
        return recipe

    def _check(self) -> None:
        """Raise ValueError or TypeError for anything that cannot be cooked."""
        wholes = [*self.shape, self.groups, self.n_support, *self.seed]
        if not all(type(n) is int and 0 <= n < 2**62 for n in wholes) or not isinstance(self.kind, str):
            raise ValueError("numbers out of range")
        if len(self.shape) < 2 or not 1 <= self.groups <= self.n_out or not 1 <= self.n_support <= self.n_in:
            raise ValueError("sizes that do not fit together")
        if self.n_entries > MOST_ENTRIES:
            raise ValueError(f"dictionaries of {self.n_entries} numbers")
        if self.stored:
            return
        dictionary = self._dictionary()
        n = self.n_in // dictionary.channels
        if n > MOST_POSITIONS or n_products(self.n_in, self.n_support, self.groups, dictionary.channels) > MOST_WORK:
            raise ValueError("dictionaries too large to regenerate")
        if dictionary.sized(self.n_support // dictionary.channels)[0] is not dictionary:
            raise ValueError("a dictionary of no size")
        if isinstance(self.supports, str):
            endless = dictionary.n_atoms(n) == UNBOUNDED
            if self.supports not in FOLLOW_FROM_SEED or endless != (self.supports == "fresh"):
                raise ValueError(f"supports {self.supports}")
            if self.supports != "uniform" and self.n_support % dictionary.channels:
                raise ValueError("a support that is no whole number for each channel")
            if self.n_support > dictionary.n_atoms(n) * dictionary.channels:
                raise ValueError("more atoms than there are")
            return
        if len(self.supports) != self.groups:
            raise ValueError("supports for another number of groups")
        for chosen in self.supports:
            rising = all(type(k) is int for k in chosen) and all(a < b for a, b in pairwise(chosen))
            if len(chosen) != self.n_support or not rising:
                raise ValueError("a support of another size")
            if not 0 <= chosen[0] <= chosen[-1] < dictionary.n_atoms(n) * dictionary.channels:
                raise ValueError("atoms that there are not")

    def _dictionary(self) -> Dictionary:
        if self.kind not in REGENERATED:
            raise ValueError(f"a dictionary of kind {self.kind!r} that is not there")
        parameters = {key: tuple(value) if isinstance(value, list) else value for key, value in self.parameters.items()}
        return REGENERATED[self.kind](**parameters).bound(self.n_in)

    def regenerated(self) -> NDArray[np.float32]:
        """D^T (J, n_support, n_in) of all column groups. The last few layers' are remembered."""
        return _regenerated(self.to_json())

    def weight(self, learned: NDArray[np.float32], dictionary: NDArray[np.float32]) -> NDArray[np.float32]:
        """W (n_out, n_in) of learned numbers (n_out, n_support), in the same bits everywhere."""
        return np.concatenate([weight_of(learned[self.rows(j)], dictionary[j]) for j in range(self.groups)])

    def group(self, group: int) -> NDArray[np.float32]:
        """D_j^T (n_support, n_in) of a column group, regenerated."""
        dictionary = self._dictionary()
        chosen = (
            support(self.supports, dictionary, self.n_in, self.n_support, group, tuple(self.seed))
            if isinstance(self.supports, str)
            else np.array(self.supports[group], np.int64)
        )
        return group_atoms(dictionary, self.n_in, chosen, orthonormal=self.orthonormal)


@lru_cache(maxsize=8)
def _regenerated(text: bytes) -> NDArray[np.float32]:
    recipe = Recipe.from_json(text)
    made = np.stack([recipe.group(j) for j in range(recipe.groups)])
    made.flags.writeable = False
    return made


def n_products(n_in: int, n_support: int, groups: int, channels: int) -> int:
    """About what it takes to make the dictionaries of a layer orthonormal."""
    return 4 * groups * (n_in // channels) * (n_support // channels + 1) ** 2


def group_atoms(
    dictionary: Dictionary, n_in: int, chosen: NDArray[np.int64], *, orthonormal: bool
) -> NDArray[np.float32]:
    """D_j^T (len(chosen), n_in): the chosen atoms as a layer uses them, on their grid.

    Each channel is made by itself, and channels with the same support once. Where every input of a channel is in the
    support, the unit matrix is a basis as good as any.
    """
    channels = dictionary.channels
    n = n_in // channels
    n_atoms = dictionary.n_atoms(n)
    out = np.zeros((len(chosen), n_in))
    made: dict[bytes, NDArray[np.float64]] = {}
    for channel in range(channels):
        rows = np.flatnonzero(chosen // n_atoms == channel)
        local = chosen[rows] - channel * n_atoms
        if not len(rows):
            continue
        if (key := local.tobytes()) not in made:
            if orthonormal and len(local) >= n:
                made[key] = np.eye(len(local), n)
            else:
                atoms = dictionary.atoms(n, local)
                made[key] = (orthonormalised(atoms, local % n) if orthonormal else atoms).T
        out[rows, channel * n : (channel + 1) * n] = made[key]
    return on_grid(out)
