"""`random` and `connections`: dictionaries that know nothing of the weights, the paper's RandFixU and RandCon.

Shapes: atoms (n_in, a).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .contract import UNBOUNDED, Dictionary, check_seed
from .numbers import numbers


@dataclass(frozen=True)
class RandomFixed(Dictionary):
    """Atoms of independent uniform numbers, as in the authors' code; their paper draws Gaussian ones.

    Args:
        seed: of the atoms; which of them a layer has follows from the layer's seed.
    """

    seed: int = 0
    kind: ClassVar[str] = "random"
    supports: ClassVar[str] = "fresh"
    is_regenerated: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_seed(self.kind, self.seed)

    def bound(self, n_in: int, kernel: Sequence[int] = ()) -> RandomFixed:
        return self

    def n_atoms(self, n: int) -> int:
        return UNBOUNDED

    def atoms(self, n: int, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        """Entries from -1 up to 1."""
        whole = np.stack([numbers((self.seed, 1, int(k)), n) >> np.uint64(11) for k in chosen], axis=1)
        return whole.astype(np.float64) * 2.0**-52 - 1

    def parameters(self) -> dict[str, Any]:
        return {"seed": self.seed}

    @property
    def seed_words(self) -> tuple[int, ...]:
        return (self.seed,)


@dataclass(frozen=True)
class RandomConnections(Dictionary):
    """Columns of the unit matrix: the features of a column group see a random part of the inputs and no other.

    Args:
        seed: of the connections; a layer's own seed is added to it.
    """

    seed: int = 0
    kind: ClassVar[str] = "connections"
    is_regenerated: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_seed(self.kind, self.seed)

    def bound(self, n_in: int, kernel: Sequence[int] = ()) -> RandomConnections:
        return self

    def n_atoms(self, n: int) -> int:
        return n

    def atoms(self, n: int, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        return (np.arange(n)[:, None] == chosen).astype(np.float64)

    def parameters(self) -> dict[str, Any]:
        return {"seed": self.seed}

    @property
    def seed_words(self) -> tuple[int, ...]:
        return (self.seed,)
