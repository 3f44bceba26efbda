"""`k-means`: typical inputs. Lloyd's algorithm on whitened samples, as the authors' code offers.

Shapes: samples (n_samples, n_in), centres (k, n_in), atoms (n_in, a).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paramcompress.errors import PredictionError

from .contract import check_seed, is_whole
from .data import FromSamples


@dataclass(frozen=True, eq=False)
class KMeans(FromSamples):
    """Centres of clusters of the inputs, about their mean.

    Args:
        data: inputs (n_samples, n_in); None until `layerwise` gives them.
        seed: of the first centres.
        k: clusters, that is, atoms to choose from; at most as many as samples are used.
        whiten: cluster whitened inputs, and take the filters that see their centres.
        passes: of Lloyd's algorithm.
    """

    seed: int = 0
    k: int = 500
    whiten: bool = True
    passes: int = 20
    kind: ClassVar[str] = "k-means"

    def __post_init__(self) -> None:
        check_seed(self.kind, self.seed)
        if not is_whole(self.k, 1) or not is_whole(self.passes, 0):
            raise PredictionError(f"k-means dictionary with {self.k} clusters and {self.passes} passes")
        super().__post_init__()

    def n_atoms(self, n: int) -> int:
        return min(self.k, len(self.samples))

    def atoms(self, n: int, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        return self._filters.double().numpy()[chosen].T

    @cached_property
    def _filters(self) -> Tensor:
        samples = self.samples - self.samples.mean(0)
        if not self.whiten:
            return centres(samples, self.n_atoms(0), self.seed, self.passes)
        # a tenth of the mean variance is added: whitening would blow up directions that hardly vary
        values, axes = torch.linalg.eigh(samples.T @ samples / len(samples))
        whitening = axes / (values.clamp(min=0) + 0.1 * values.clamp(min=0).mean() + 1e-12).sqrt() @ axes.T
        return centres(samples @ whitening, self.n_atoms(0), self.seed, self.passes) @ whitening


def centres(samples: Tensor, k: int, seed: int, passes: int) -> Tensor:
    """(k, n_in) centres after so many passes, from k random samples; a cluster that runs empty keeps its centre."""
    generator = torch.Generator().manual_seed(seed)
    found = samples[torch.randperm(len(samples), generator=generator)[:k]].clone()
    for _ in range(passes):
        parts = samples.split(4096)  # type: ignore[no-untyped-call]
        nearest = torch.cat([torch.cdist(some, found).argmin(1) for some in parts])
        counts = torch.bincount(nearest, minlength=k)
        sums = torch.zeros_like(found).index_add_(0, nearest, samples)
        found = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], found)
    return found
