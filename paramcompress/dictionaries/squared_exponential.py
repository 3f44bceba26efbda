"""`squared-exponential`: weights that lie near one another are alike. The paper's SE.

    k(i, j) = exp(-|i - j|^2 / (2 sigma^2)) within a channel, 0 between channels        |i - j| in positions

Shapes: n positions of one channel, atoms (n, a).
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from paramcompress.errors import PredictionError

from .contract import Grid, OnGrid

_EXACTLY = Context(prec=40, Emin=-(10**6), Emax=10**6)
"""Decimal arithmetic is the same on every machine, what a C library's exp gives in the last bit is not."""


@dataclass(frozen=True)
class SquaredExponential(OnGrid):
    """Bumps on a grid of positions, the same in every channel; supports tied over the channels where there are some.

    Args:
        grid: (rows, columns[, channels]); None takes it from the kernel of a convolution.
        sigma: width of a bump, in positions.
        ridge: the paper's lambda.
    """

    grid: Grid | None = None
    sigma: float = 1.0
    ridge: float = 0.1
    kind: ClassVar[str] = "squared-exponential"
    supports: ClassVar[str] = "tied"
    is_kernel: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.check_grid()
        if not 0 < self.sigma < float("inf") or not 0 <= self.ridge < float("inf"):
            raise PredictionError(f"{self.kind} dictionary with sigma {self.sigma} and ridge {self.ridge}")

    def atoms(self, n: int, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        places = np.stack(np.unravel_index(np.arange(n), self.shape))
        squares = ((places[:, :, None] - places[:, None, chosen]) ** 2).sum(0)
        distinct, where = np.unique(squares, return_inverse=True)
        return bump(self.sigma, distinct)[where].reshape(squares.shape)

    def kernel(self, n: int) -> NDArray[np.float64]:
        return self.atoms(n, np.arange(n))

    def parameters(self) -> dict[str, Any]:
        return {**super().parameters(), "sigma": self.sigma}


def bump(sigma: float, squares: NDArray[np.int64]) -> NDArray[np.float64]:
    """exp(-d / (2 sigma^2)) for rising squared distances d; correctly rounded."""
    width = _EXACTLY.multiply(Decimal(2), _EXACTLY.multiply(Decimal(sigma), Decimal(sigma)))
    values = np.zeros(len(squares))
    for i, d in enumerate(squares.tolist()):
        values[i] = float(_EXACTLY.exp(_EXACTLY.divide(Decimal(-d), width)))
        if values[i] == 0:  # so are all that are further away
            break
    return values
