"""`autoencoder`: what a small net found worth encoding in the inputs. The paper's AE.

Shapes: samples (n_samples, n_in), encoder (n_hidden, n_in), atoms (n_in, a).
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
class Autoencoder(FromSamples):
    """Encoder weights of a sigmoid autoencoder with tied weights, trained on the layer's inputs.

    Args:
        data: inputs (n_samples, n_in); None until `layerwise` gives them.
        hidden: hidden units, that is, atoms to choose from.
        seed: of its start and of the order of samples.
        epochs, rate, batch: of Adam on the squared error; inputs are best between 0 and 1.
    """

    hidden: int = 1000
    seed: int = 0
    epochs: int = 20
    rate: float = 1e-3
    batch: int = 100
    kind: ClassVar[str] = "autoencoder"

    def __post_init__(self) -> None:
        check_seed(self.kind, self.seed)
        if not (is_whole(self.hidden, 1) and is_whole(self.epochs, 0) and is_whole(self.batch, 1)):
            raise PredictionError(
                f"autoencoder dictionary with {self.hidden} hidden units, {self.epochs} epochs, batches of {self.batch}"
            )
        if not 0 < self.rate < float("inf"):
            raise PredictionError(f"autoencoder dictionary with a rate of {self.rate}")
        super().__post_init__()

    def n_atoms(self, n: int) -> int:
        return self.hidden

    def atoms(self, n: int, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        return self._encoder.double().numpy()[chosen].T

    @cached_property
    def _encoder(self) -> Tensor:
        weight, _ = tied_autoencoder(self.samples, self.hidden, self.seed, self.epochs, self.rate, self.batch)
        return weight


def tied_autoencoder(
    samples: Tensor, n_hidden: int, seed: int, epochs: int, rate: float, batch: int
) -> tuple[Tensor, Tensor]:
    """Weight (n_hidden, n_in) and bias (n_hidden,) of the encoder of x ~ sigmoid(W^T sigmoid(W x + b) + c)."""
    generator = torch.Generator().manual_seed(seed)
    n_in = samples.shape[1]
    weight = (samples.new_empty(n_hidden, n_in).normal_(generator=generator) / n_in**0.5).requires_grad_()
    bias = samples.new_zeros(n_hidden).requires_grad_()
    mean = samples.mean(0).clamp(1e-3, 1 - 1e-3)
    visible = torch.logit(mean).requires_grad_()
    optimizer = torch.optim.Adam([weight, bias, visible], lr=rate)
    with torch.enable_grad():
        for _ in range(epochs):
            for some in torch.randperm(len(samples), generator=generator).split(batch):  # type: ignore[no-untyped-call]
                x = samples[some]
                again = torch.sigmoid(torch.sigmoid(x @ weight.T + bias) @ weight + visible)
                loss = (again - x).square().sum(1).mean()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return weight.detach(), bias.detach()
