"""`learned`: atoms that are trained like the coefficients, the paper's LowRank. The opponent of every other dictionary.

Shapes: atoms (n_in, a).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .contract import Dictionary


@dataclass(frozen=True)
class LearnedLowRank(Dictionary):
    """Both factors learned. The layer starts them from the singular vectors of a dense start (spectral start), and
    `predict.frobenius_decay` is the penalty on their product: without the two, such layers train badly
    (Khodak et al. 2021, arXiv:2105.01029). It has one column group: more would only multiply the atoms.
    """

    kind: ClassVar[str] = "learned"
    supports: ClassVar[str] = "leading"
    is_learned: ClassVar[bool] = True

    def bound(self, n_in: int, kernel: Sequence[int] = ()) -> LearnedLowRank:
        return self

    def n_atoms(self, n: int) -> int:
        return n

    def atoms(self, n: int, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        """Stand-ins; the layer puts its own start in their place."""
        return (np.arange(n)[:, None] == chosen).astype(np.float64)
