"""`covariance`: weights are alike where their inputs vary together. The paper's Emp.

    k(i, j) = (1 - shrinkage) E[x_i x_j] + shrinkage * (mean of E[x_i^2]) * (i = j)

Directions that the inputs never take do not change what a layer gives, so nothing is lost by not learning them.

Shapes: samples (n_samples, n_in), kernel (n_in, n_in).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paramcompress.errors import PredictionError

from .contract import FromData, as_samples


class StreamedMoments:
    """First and second moments of inputs that come in batches, in float64.

    >>> moments = StreamedMoments().add(torch.eye(3)).add(torch.eye(3))
    >>> moments.n_samples, moments.second(centred=False)[0, 0].item()
    (6, 0.3333333333333333)
    """

    def __init__(self, batches: Iterable[Tensor] = ()) -> None:
        self.n_samples = 0
        self._sum: Tensor | None = None
        self._squares: Tensor | None = None
        for batch in batches:
            self.add(batch)

    def add(self, batch: Tensor) -> StreamedMoments:
        """Take in a batch (n_samples, ...); axes after the first are flattened.

        Raises:
            PredictionError: no numbers, not finite, or of another width than those before.
        """
        samples = as_samples("covariance", batch).double()
        if self._sum is not None and samples.shape[1] != len(self._sum):
            raise PredictionError(f"a batch of {samples.shape[1]} inputs after batches of {len(self._sum)}")
        if self._sum is None or self._squares is None:
            self._sum = samples.new_zeros(samples.shape[1])
            self._squares = samples.new_zeros(samples.shape[1], samples.shape[1])
        self._sum = self._sum + samples.sum(0)
        self._squares = self._squares.addmm(samples.T, samples)
        self.n_samples += len(samples)
        return self

    @property
    def width(self) -> int:
        """n_in; 0 before the first batch."""
        return 0 if self._sum is None else len(self._sum)

    def second(self, *, centred: bool) -> Tensor:
        """(n_in, n_in) E[x x^T], or the covariance."""
        if self._sum is None or self._squares is None:
            raise PredictionError("second moments of no samples")
        mean = self._sum / self.n_samples
        squares = self._squares / self.n_samples
        return squares - mean.outer(mean) if centred else squares


@dataclass(frozen=True, eq=False)
class Covariance(FromData):
    """Rows of the inputs' second moments.

    Args:
        data: inputs (n_samples, n_in), or StreamedMoments of them; None until `layerwise` gives them.
        shrinkage: share of white noise in the kernel, 0 to 1. With 0, inputs that never vary have atoms of zeros.
        ridge: the paper's lambda, in units of the mean variance.
        centred: covariance, not second moments about zero.
    """

    data: Tensor | StreamedMoments | None = None
    shrinkage: float = 1e-3
    ridge: float = 1e-3
    centred: bool = True
    kind: ClassVar[str] = "covariance"
    is_kernel: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.shrinkage <= 1 or not 0 <= self.ridge < float("inf"):
            raise PredictionError(f"covariance dictionary with shrinkage {self.shrinkage} and ridge {self.ridge}")
        if isinstance(self.data, Tensor):
            object.__setattr__(self, "data", StreamedMoments([self.data]))

    def given(self, data: Tensor) -> Covariance:
        return replace(self, data=data)

    @property
    def width(self) -> int:
        assert isinstance(self.data, StreamedMoments)
        return self.data.width

    def n_atoms(self, n: int) -> int:
        return n

    def atoms(self, n: int, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        return self.kernel(n)[:, chosen]

    def kernel(self, n: int) -> NDArray[np.float64]:
        return self._kernel

    @cached_property
    def _kernel(self) -> NDArray[np.float64]:
        assert isinstance(self.data, StreamedMoments)
        second = self.data.second(centred=self.centred)
        level = float(second.diagonal().mean()) or 1.0
        unit = torch.eye(len(second), dtype=torch.float64)
        mixed: NDArray[np.float64] = ((1 - self.shrinkage) * second / level + self.shrinkage * unit).numpy()
        return mixed
