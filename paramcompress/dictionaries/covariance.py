"""`covariance`: weights are alike where their inputs vary together. The paper's Emp.

    k(i, j) = (1 - shrinkage) E[x_i x_j] + shrinkage * (mean of E[x_i^2]) * (i = j)

Directions that the inputs never take do not change what a layer gives, so nothing is lost by not learning them.

Shapes: samples (n_samples, n_in), kernel (n_in, n_in).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from paramcompress.errors import PredictionError

from .data import FromMoments


@dataclass(frozen=True, eq=False)
class Covariance(FromMoments):
    """Rows of the inputs' second moments.

    Args:
        data: inputs (n_samples, n_in), or StreamedMoments of them; None until `layerwise` gives them.
        shrinkage: share of white noise in the kernel, 0 to 1. With 0, inputs that never vary have atoms of zeros.
        ridge: the paper's lambda, in units of the mean variance.
        centred: covariance, not second moments about zero.
    """

    shrinkage: float = 1e-3
    ridge: float = 1e-3
    centred: bool = True
    kind: ClassVar[str] = "covariance"
    is_kernel: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.shrinkage <= 1 or not 0 <= self.ridge < float("inf"):
            raise PredictionError(f"covariance dictionary with shrinkage {self.shrinkage} and ridge {self.ridge}")
        super().__post_init__()

    def atoms(self, n: int, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        return self.kernel(n)[:, chosen]

    def kernel(self, n: int) -> NDArray[np.float64]:
        return self._kernel

    @cached_property
    def _kernel(self) -> NDArray[np.float64]:
        second = self.moments.second(centred=self.centred)
        level = float(second.diagonal().mean()) or 1.0
        unit = torch.eye(len(second), dtype=torch.float64)
        mixed: NDArray[np.float64] = ((1 - self.shrinkage) * second / level + self.shrinkage * unit).numpy()
        return mixed
