"""`pca`: the directions in which the inputs vary most. A baseline that the paper's reviewers missed.

Shapes: samples (n_samples, n_in), atoms (n_in, a).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .data import FromMoments


@dataclass(frozen=True, eq=False)
class PCA(FromMoments):
    """Eigenvectors of the inputs' covariance, the largest first; every column group has the same unless a support is
    drawn.

    Args:
        data: inputs (n_samples, n_in), or StreamedMoments of them; None until `layerwise` gives them.
        centred: of the covariance, not of the second moments about zero.
    """

    centred: bool = True
    kind: ClassVar[str] = "pca"
    supports: ClassVar[str] = "leading"

    def atoms(self, n: int, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        return self._axes[:, chosen]

    @cached_property
    def _axes(self) -> NDArray[np.float64]:
        """(n_in, n_in) by falling variance; the largest entry of each is positive."""
        axes = np.linalg.eigh(self.moments.second(centred=self.centred).numpy())[1][:, ::-1]
        signs = np.sign(np.take_along_axis(axes, np.abs(axes).argmax(0)[None], 0))
        fixed: NDArray[np.float64] = axes * signs
        return fixed
