"""`pca`: the directions in which the inputs vary most. A baseline that the paper's reviewers missed.

Shapes: samples (n_samples, n_in), atoms (n_in, a).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .contract import FromData
from .covariance import StreamedMoments


@dataclass(frozen=True, eq=False)
class PCA(FromData):
    """Eigenvectors of the inputs' covariance, the largest first; every column group has the same unless a support is
    drawn.

    Args:
        data: inputs (n_samples, n_in), or StreamedMoments of them; None until `layerwise` gives them.
        centred: of the covariance, not of the second moments about zero.
    """

    data: Tensor | StreamedMoments | None = None
    centred: bool = True
    kind: ClassVar[str] = "pca"
    supports: ClassVar[str] = "leading"

    def __post_init__(self) -> None:
        if isinstance(self.data, Tensor):
            object.__setattr__(self, "data", StreamedMoments([self.data]))

    def given(self, data: Tensor) -> PCA:
        return replace(self, data=data)

    @property
    def width(self) -> int:
        assert isinstance(self.data, StreamedMoments)
        return self.data.width

    def n_atoms(self, n: int) -> int:
        return n

    def atoms(self, n: int, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        return self._axes[:, chosen]

    @cached_property
    def _axes(self) -> NDArray[np.float64]:
        """(n_in, n_in) by falling variance; the largest entry of each is positive."""
        assert isinstance(self.data, StreamedMoments)
        axes = np.linalg.eigh(self.data.second(centred=self.centred).numpy())[1][:, ::-1]
        signs = np.sign(np.take_along_axis(axes, np.abs(axes).argmax(0)[None], 0))
        fixed: NDArray[np.float64] = axes * signs
        return fixed
