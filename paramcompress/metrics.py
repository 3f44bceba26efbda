"""How far a decoded tensor is from its original. Tensors in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paramcompress.jit import compiled, compiled_sums

_CHUNK = 1 << 22
"""Weights compared at a time; bounds the memory of what numpy has to be given as float32."""
_OF_NUMPY = torch.float32, torch.float64


@dataclass(frozen=True)
class Deviation:
    """Distance of a decoded tensor from its original; all zero where they agree bit for bit in value."""

    rel_error: float
    """||W - W_hat||_F / ||W||_F; inf where W is all zero and W_hat is not."""
    max_abs_error: float
    """Largest |w - w_hat|, in the units of the weights."""


def deviation(original: Tensor, decoded: Tensor) -> Deviation:
    """Distance between two tensors of one shape, summed in float64; infinite where an entry of either is not finite."""
    return deviation_of_parts([(original, decoded)])


def deviation_of_arrays(original: NDArray[np.float32], decoded: NDArray[np.float32]) -> Deviation:
    """The same for two arrays of one shape, without the detour through torch."""
    return _deviation(*_sums(original.reshape(-1), decoded.reshape(-1), 1.0))


def deviation_of_parts(pairs: Iterable[tuple[Tensor, Tensor]]) -> Deviation:
    """The same for a tensor that comes in parts. float64 comes in one: squares may not fit, so these are scaled."""
    squared = norm = largest = 0.0
    for original, decoded in pairs:
        if original.shape != decoded.shape:
            raise ValueError(f"tensors of shapes {tuple(original.shape)} and {tuple(decoded.shape)}")
        scale = 1.0
        if torch.float64 in (original.dtype, decoded.dtype):
            peak = max((largest_of(one) for part in _parts(original, decoded) for one in part), default=0.0)
            scale = 2.0 ** -max(math.frexp(peak)[1], -1000)
        for part in _parts(original, decoded):
            sums = _sums(*part, scale)
            squared, norm, largest = squared + sums[0], norm + sums[1], max(largest, sums[2])
    return _deviation(squared, norm, largest)


def _deviation(squared: float, norm: float, largest: float) -> Deviation:
    """From the sums of squared differences and of squared originals, and the largest difference."""
    if not math.isfinite(squared):  # NaN would be under every limit
        return Deviation(math.inf, math.inf)
    if largest == 0:
        return Deviation(0.0, 0.0)
    return Deviation(math.sqrt(squared / norm) if norm else math.inf, largest)


@dataclass(frozen=True)
class Survey:
    """What has to be known of a tensor before it is squeezed."""

    is_finite: bool
    """Whether no entry is NaN or infinite."""
    norm: float
    """Frobenius norm, summed in float64; inf where the squares do not fit."""


def survey(tensor: Tensor) -> Survey:
    """One pass over a tensor of real numbers."""
    nothing = squares = 0.0
    for (part,) in _parts(tensor):
        found = _survey(part)
        nothing, squares = nothing + found[0], squares + found[1]
    return Survey(nothing == 0, math.sqrt(squares) if nothing == 0 else math.nan)


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
    for part in _parts(a, b):  # each scaled by its largest entry, so that squares have room
        left, right = (torch.from_numpy(one).double() / peak for one, peak in zip(part, peaks, strict=True))
        inner += float(left @ right)
        a_squared += float(left @ left)
        b_squared += float(right @ right)
    return max(-1.0, min(1.0, inner / math.sqrt(a_squared * b_squared)))


def _parts(*tensors: Tensor) -> Iterator[tuple[NDArray[np.floating[Any]], ...]]:
    """Flat pieces of all as numpy arrays; dtypes that numpy lacks as float32, which holds them."""
    n = tensors[0].numel()
    flat = [tensor.numpy().reshape(-1) if tensor.dtype in _OF_NUMPY else tensor.reshape(-1) for tensor in tensors]
    if n <= _CHUNK:
        yield tuple(map(_as_numpy, flat))
        return
    for first in range(0, n, _CHUNK):
        yield tuple(_as_numpy(whole[first : first + _CHUNK]) for whole in flat)


def _as_numpy(part: NDArray[np.floating[Any]] | Tensor) -> NDArray[np.floating[Any]]:
    return part if isinstance(part, np.ndarray) else part.float().numpy()


@compiled_sums
def _survey(part):
    """Zero if all is finite and NaN otherwise; the sum of the squares."""
    nothing = squares = 0.0
    for i in range(len(part)):
        w = np.float64(part[i])
        nothing += w * 0.0
        squares += w * w
    return nothing, squares


@compiled
def largest_of(part):
    """Largest magnitude in an array (n,), NaN where there is one."""
    largest = np.int64(0)
    for i in range(len(part)):
        # numbers that are not negative are in the order of their bits, and whole numbers several at a time
        largest = max(largest, np.float64(abs(np.float64(part[i]))).view(np.int64))
    return np.int64(largest).view(np.float64)


@compiled_sums
def _sums(original, decoded, scale):
    """Sums of squared differences and of squared originals, scaled; largest difference as it is."""
    squared = norm = 0.0
    largest = np.int64(0)
    for i in range(len(original)):
        w = np.float64(original[i])
        w_hat = np.float64(decoded[i])
        largest = max(largest, np.float64(abs(w - w_hat)).view(np.int64))  # as in `largest_of`
        residual = w_hat * scale - w * scale
        squared += residual * residual
        norm += w * scale * (w * scale)
    return squared, norm, np.int64(largest).view(np.float64)


@compiled_sums
def moments(x, points, chains, per_chain):
    """Sums of x * point, point**2 and x**2 over some chains of so many columns; both arrays in C order."""
    product = square = energy = 0.0
    numbers, symbols = x.reshape(-1), points.reshape(-1)
    length = per_chain * x.shape[1]
    for chain in chains:
        for e in range(np.uintp(chain * length), np.uintp(min((chain + 1) * length, x.size))):
            number, point = np.float64(numbers[e]), np.float64(symbols[e])
            product += number * point
            square += point * point
            energy += number * number
    return product, square, energy
