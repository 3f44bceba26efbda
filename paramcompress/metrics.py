"""How far a decoded tensor is from its original. Tensors in, numbers out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK = 1 << 18
"""Weights compared at a time; bounds the memory of the float64 copies."""


@dataclass(frozen=True)
class Deviation:
    """Distance of a decoded tensor from its original; all zero where they agree bit for bit in value."""

    rel_error: float
    """||W - W_hat||_F / ||W||_F; inf where W is all zero and W_hat is not."""
    max_abs_error: float
    """Largest |w - w_hat|, in the units of the weights."""


def deviation(original: Tensor, decoded: Tensor) -> Deviation:
    """Distance between two finite tensors of one shape, summed in float64 after scaling by the largest |w|.

    The scaling keeps squares of tiny and of huge weights inside float64.
    """
    peak = max(_peak(original), _peak(decoded))
    if peak == 0:
        return Deviation(0.0, 0.0)
    scale = 2.0 ** -math.frexp(peak)[1] if math.frexp(peak)[1] > -1000 else 1.0
    squared = norm = largest = 0.0
    for w, w_hat in zip(original.reshape(-1).split(_CHUNK), decoded.reshape(-1).split(_CHUNK), strict=True):
        exact = w.double() * scale
        residual = w_hat.double().mul_(scale).sub_(exact)
        norm += float(exact.square_().sum())
        largest = max(largest, float(residual.abs().max()))
        squared += float(residual.square_().sum())
    if squared == 0:
        return Deviation(0.0, largest / scale)
    return Deviation(math.sqrt(squared / norm) if norm else math.inf, largest / scale)


def _peak(tensor: Tensor) -> float:
    return max((float(part.double().abs().max()) for part in tensor.reshape(-1).split(_CHUNK) if part.numel()), default=0.0)


def norm(tensor: Tensor) -> float:
    """Frobenius norm, summed in float64; inf where the squares do not fit."""
    return math.sqrt(sum(float(part.double().square().sum()) for part in tensor.reshape(-1).split(_CHUNK)))


def is_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite."""
    return all(bool(torch.isfinite(part.float() if part.element_size() == 1 else part).all()) for part in tensor.reshape(-1).split(_CHUNK))
