"""`cosine` as a dictionary of whole filters: waves on a grid of positions, the slow ones first.

Shapes: n positions of one channel, atoms (n, a).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from paramcompress.errors import PredictionError

from .contract import Grid, OnGrid
from .cosine import cosine_basis

SCALE = 128
"""Integer that stands for 1 on each axis."""
LONGEST_AXIS = 256
"""Up to here no entry lies near a tie of rounding, so that every machine has the same integers."""


@dataclass(frozen=True)
class Cosine(OnGrid):
    """Waves of the discrete cosine transform, the lowest frequencies unless a support is drawn.

    Args:
        grid: (rows, columns[, channels]); None takes it from the kernel of a convolution.
    """

    grid: Grid | None = None
    kind: ClassVar[str] = "cosine"
    supports: ClassVar[str] = "leading"

    def __post_init__(self) -> None:
        self.check_grid()
        if self.grid is not None and max(self.grid[:2]) > LONGEST_AXIS:
            raise PredictionError(f"cosine dictionary on the grid {self.grid}: axes may have {LONGEST_AXIS} positions")

    def atoms(self, n: int, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        waves = np.ones((1, len(chosen)))
        for length, frequencies in zip(self.shape, np.unravel_index(chosen, self.shape), strict=True):
            axis = cosine_basis((length,), SCALE).numpy().astype(np.float64)[:, frequencies] / SCALE
            waves = (waves[:, None] * axis).reshape(-1, len(chosen))
        return waves

    def leading(self, n: int, size: int) -> NDArray[np.int64]:
        """Slowest first: by the sum over the axes of (frequency / length)^2, the lower number of two that are equal."""
        shape = self.shape
        frequencies = np.stack(np.unravel_index(np.arange(n), shape))
        speeds = sum((f * (math.prod(shape) // length)) ** 2 for f, length in zip(frequencies, shape, strict=True))
        return np.sort(np.argsort(speeds, kind="stable")[:size])
