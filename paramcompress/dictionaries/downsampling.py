"""`down-sampling`: filters that are constant on the cells of a coarser grid. A baseline that reviewers missed.

Shapes: n positions of one channel, atoms (n, a).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from paramcompress.errors import PredictionError

from .contract import Grid, OnGrid, is_grid


@dataclass(frozen=True)
class DownSampling(OnGrid):
    """Boxes: atom c is 1 on the positions of cell c. Every column group has the same.

    Args:
        grid: (rows, columns[, channels]); None takes it from the kernel of a convolution.
        coarse: cells along rows and columns; None takes as many as there are atoms, in the grid's proportions.
    """

    grid: Grid | None = None
    coarse: Grid | None = None
    kind: ClassVar[str] = "down-sampling"
    supports: ClassVar[str] = "leading"

    def __post_init__(self) -> None:
        self.check_grid()
        if self.coarse is not None and (
            self.grid is None
            or not is_grid(self.coarse)
            or len(self.coarse) != len(self.shape)
            or not all(1 <= a <= b for a, b in zip(self.coarse, self.shape, strict=True))
        ):
            raise PredictionError(f"down-sampling of the grid {self.grid} to {self.coarse}")

    def sized(self, n_support: int) -> tuple[DownSampling, int]:
        shape = self.shape
        if self.coarse is not None:
            return self, math.prod(self.coarse)
        if len(shape) == 1:
            coarse: Grid = (min(n_support, shape[0]),)
        else:
            offers = [(a, min(n_support // a, shape[1])) for a in range(1, min(shape[0], n_support) + 1)]
            # nearest to square cells among the grids that waste least
            coarse = min(
                offers,
                key=lambda cells: (
                    abs(math.log(cells[0] * shape[1] / (cells[1] * shape[0]))) + 4 * (1 - math.prod(cells) / n_support)
                ),
            )
        return replace(self, coarse=coarse), math.prod(coarse)

    def n_atoms(self, n: int) -> int:
        return n if self.coarse is None else math.prod(self.coarse)

    def atoms(self, n: int, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        assert self.coarse is not None
        places = np.unravel_index(np.arange(n), self.shape)
        cells = [at * cells // length for at, cells, length in zip(places, self.coarse, self.shape, strict=True)]
        return (np.ravel_multi_index(cells, self.coarse)[:, None] == chosen).astype(np.float64)

    def parameters(self) -> dict[str, Any]:
        return {**super().parameters(), "coarse": list(self.coarse or ())}
