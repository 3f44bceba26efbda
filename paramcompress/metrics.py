"""How far a decoded tensor is from its original. Tensors in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paramcompress.jit import compiled

_CHUNK = 1 << 22
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
    if original.shape != decoded.shape:
        raise ValueError(f"tensors of shapes {tuple(original.shape)} and {tuple(decoded.shape)}")
    peak = largest = 0.0
    for part in _parts(original, decoded):
        peaks = _peaks(*part)
        peak, largest = max(peak, peaks[0]), max(largest, peaks[1])
    if largest == 0:
        return Deviation(0.0, 0.0)
    scale = 2.0 ** -max(math.frexp(peak)[1], -1000)
    squared = norm = 0.0
    for part in _parts(original, decoded):
        sums = _sums(*part, scale)
        squared, norm = squared + sums[0], norm + sums[1]
    return Deviation(math.sqrt(squared / norm) if norm else math.inf, largest)


def cosine(a: Tensor, b: Tensor) -> float | None:
    """Cosine of the angle between two finite tensors of one shape, read as vectors; None where one is all zero.

    >>> cosine(torch.tensor([1.0, 0.0]), torch.tensor([1e30, 1e30]))
    0.7071067811865475
    """
    if a.shape != b.shape:
        raise ValueError(f"tensors of shapes {tuple(a.shape)} and {tuple(b.shape)}")
    if a.numel() == 0 or (peaks := [float(one.abs().max()) for one in (a, b)]).count(0.0):
        return None
    inner = a_squared = b_squared = 0.0
    for part in zip(_split(a), _split(b), strict=True):  # each scaled by its largest entry, so that squares have room
        left, right = (one.double() / peak for one, peak in zip(part, peaks, strict=True))
        inner += float(left @ right)
        a_squared += float(left @ left)
        b_squared += float(right @ right)
    return max(-1.0, min(1.0, inner / math.sqrt(a_squared * b_squared)))


def _parts(original: Tensor, decoded: Tensor) -> Iterator[tuple[NDArray[np.floating[Any]], ...]]:
    """Flat pieces of both as numpy arrays; dtypes that numpy lacks as float32, which holds them."""
    for pair in zip(_split(original), _split(decoded), strict=True):
        yield tuple(
            part.numpy() if part.dtype in (torch.float32, torch.float64) else part.float().numpy() for part in pair
        )


@compiled
def _peaks(original, decoded):
    """Largest magnitude in either, and largest difference."""
    peak = largest = 0.0
    for i in range(len(original)):
        w = np.float64(original[i])
        w_hat = np.float64(decoded[i])
        peak = max(peak, abs(w), abs(w_hat))
        largest = max(largest, abs(w - w_hat))
    return peak, largest


@compiled
def _sums(original, decoded, scale):
    """Sums of squared differences and of squared originals, scaled."""
    squared = norm = 0.0
    for i in range(len(original)):
        w = np.float64(original[i]) * scale
        residual = np.float64(decoded[i]) * scale - w
        squared += residual * residual
        norm += w * w
    return squared, norm


def norm(tensor: Tensor) -> float:
    """Frobenius norm, summed in float64; inf where the squares do not fit."""
    return math.sqrt(sum(_sums(*part, 1.0)[1] for part in _parts(tensor, tensor)))


def is_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite."""
    return all(bool(torch.isfinite(part if part.element_size() > 1 else part.float()).all()) for part in _split(tensor))


def _split(tensor: Tensor) -> list[Tensor]:
    """Flat pieces of bounded size."""
    flat = tensor.reshape(-1)
    return [flat[first : first + _CHUNK] for first in range(0, flat.numel(), _CHUNK)]
