"""What people do today, as pairs of encode and decode: casts, rounding, lossless coding, low rank beside a sparse part.

A codec turns {name: float32 tensor} into bytes and back. Names and shapes are not counted, in the baselines' favour.
Used by compare.py; each round trip is checked there.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from torch import Tensor

Weights = dict[str, Tensor]
ZSTD_LEVEL = 19
COO_BYTES = 6
"""A number of the sparse part: two int16 indices and a float16 value."""


@dataclass(frozen=True)
class Codec:
    """A baseline; `decode` is given the tensors it has to fill, whose values it does not look at."""

    name: str
    setting: str
    encode: Callable[[Weights], bytes]
    decode: Callable[[bytes, Weights], Weights]
    lossless: bool = False


class Cursor:
    """Arrays one after the other out of bytes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, dtype: str, count: int) -> NDArray[Any]:
        found = np.frombuffer(self.data, dtype, count, self.at)
        self.at += found.nbytes
        return found


def compress(arrays: list[NDArray[Any]]) -> bytes:
    return zstandard.compress(b"".join(array.tobytes() for array in arrays), ZSTD_LEVEL)


def cursor(data: bytes) -> Cursor:
    return Cursor(zstandard.decompress(data))


def matrix(weight: Tensor) -> NDArray[np.float32]:
    """(n_out, n_in * K) view of a tensor."""
    return weight.reshape(weight.shape[0], -1).numpy()


# ---- casts


def cast(dtype: torch.dtype) -> Codec:
    """Every number in 16 bits, then zstd."""

    def encode(weights: Weights) -> bytes:
        return compress([weight.to(dtype).view(torch.int16).numpy() for weight in weights.values()])

    def decode(data: bytes, like: Weights) -> Weights:
        numbers = cursor(data)
        return {
            name: torch.from_numpy(numbers.take("<i2", one.numel()).copy()).view(dtype).float().reshape(one.shape)
            for name, one in like.items()
        }

    name = {torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    return Codec(f"{name} + zstd", f"level {ZSTD_LEVEL}", encode, decode)


# ---- rounding by channel


def rounding(bits: int) -> Codec:
    """Matrices as integers times a float32 scale for each output channel; vectors stay float32; then zstd."""
    largest = 2 ** (bits - 1) - 1

    def encode(weights: Weights) -> bytes:
        arrays: list[NDArray[Any]] = []
        for weight in weights.values():
            if weight.ndim < 2:
                arrays.append(weight.numpy())
                continue
            rows = matrix(weight)
            scale = (np.abs(rows).max(1, keepdims=True) / largest).astype(np.float32)
            numbers = np.rint(rows / np.where(scale > 0, scale, 1)).astype(np.int8)
            arrays += [scale, numbers if bits == 8 else nibbles(numbers)]
        return compress(arrays)

    def decode(data: bytes, like: Weights) -> Weights:
        parts, weights = cursor(data), {}
        for name, one in like.items():
            if one.ndim < 2:
                weights[name] = torch.from_numpy(parts.take("<f4", one.numel()).copy()).reshape(one.shape)
                continue
            scale = parts.take("<f4", one.shape[0])[:, None]
            numbers = (
                parts.take("i1", one.numel())
                if bits == 8
                else halves(parts.take("u1", -(-one.numel() // 2)), one.numel())
            )
            weights[name] = torch.from_numpy(numbers.reshape(one.shape[0], -1) * scale).reshape(one.shape)
        return weights

    return Codec(f"int{bits} per channel + zstd", f"level {ZSTD_LEVEL}", encode, decode)


def nibbles(numbers: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two numbers of -7 to 7 in each byte."""
    flat = (numbers.reshape(-1) + 8).astype(np.uint8)
    flat = np.pad(flat, (0, flat.size % 2))
    return flat[::2] | flat[1::2] << 4


def halves(packed: NDArray[np.uint8], count: int) -> NDArray[np.int8]:
    """Numbers that `nibbles` packed."""
    return (np.stack([packed & 15, packed >> 4], 1).reshape(-1)[:count].astype(np.int8) - 8).astype(np.int8)


# ---- lossless


def zipnn() -> Codec | None:
    """ZipNN on the float32 bytes; None where it is not installed."""
    if importlib.util.find_spec("zipnn") is None:
        return None
    library = importlib.import_module("zipnn")

    def coder() -> Any:
        return library.ZipNN(bytearray_dtype="float32", input_format="byte", threads=1)

    def encode(weights: Weights) -> bytes:
        # it works in its argument's memory, so it gets a copy
        return bytes(coder().compress(bytearray(b"".join(weight.numpy().tobytes() for weight in weights.values()))))

    def decode(data: bytes, like: Weights) -> Weights:
        numbers = Cursor(bytes(coder().decompress(data)))
        return {
            name: torch.from_numpy(numbers.take("<f4", one.numel()).copy()).reshape(one.shape)
            for name, one in like.items()
        }

    return Codec("ZipNN", "lossless", encode, decode, lossless=True)


# ---- low rank and sparse


def low_rank_sparse(n_bytes: int, shares: Mapping[str, int], setting: str) -> Codec:
    """float16 factors and the largest residuals as (int16, int16, float16), split as is best; vectors in float16.

    Args:
        n_bytes: of the whole; what vectors leave is shared out.
        shares: by matrix, what it gets of them, in any unit.
    """

    def encode(weights: Weights) -> bytes:
        matrices = [name for name, weight in weights.items() if weight.ndim >= 2]
        left = n_bytes - sum(2 * weight.numel() for weight in weights.values() if weight.ndim < 2) - 8 * len(matrices)
        total = sum(shares[name] for name in matrices)
        arrays: list[NDArray[Any]] = []
        for name, weight in weights.items():
            if weight.ndim < 2:
                arrays.append(weight.numpy().astype(np.float16))
            else:
                arrays += split(matrix(weight), max(left, 0) * shares[name] // max(total, 1))
        return b"".join(array.tobytes() for array in arrays)

    def decode(data: bytes, like: Weights) -> Weights:
        parts, weights = Cursor(data), {}
        for name, one in like.items():
            if one.ndim < 2:
                weights[name] = torch.from_numpy(parts.take("<f2", one.numel()).astype(np.float32)).reshape(one.shape)
                continue
            n_rows, n_columns = one.shape[0], one.numel() // one.shape[0]
            rank, n_stored = map(int, parts.take("<u4", 2))
            left = parts.take("<f2", n_rows * rank).reshape(n_rows, rank).astype(np.float32)
            right = parts.take("<f2", rank * n_columns).reshape(rank, n_columns).astype(np.float32)
            rows, columns = parts.take("<u2", n_stored), parts.take("<u2", n_stored)
            found = left @ right
            found[rows, columns] += parts.take("<f2", n_stored).astype(np.float32)
            weights[name] = torch.from_numpy(found).reshape(one.shape)
        return weights

    return Codec("fp16 low rank + sparse", setting, encode, decode)


def split(rows: NDArray[np.float32], n_bytes: int) -> list[NDArray[Any]]:
    """Best of a dozen ranks, with all residuals that fit: (rank, count), factors, rows, columns, values."""
    n_out, n_in = rows.shape
    if max(n_out, n_in) > 1 << 16:
        raise ValueError(f"{n_out} x {n_in} does not fit int16 indices")
    most = min(n_bytes // (2 * (n_out + n_in)), n_out, n_in)
    u, s, vt = np.linalg.svd(rows, full_matrices=False)
    best: tuple[float, list[NDArray[Any]]] | None = None
    for rank in sorted({0, *np.unique(np.geomspace(1, most, 11).astype(int))} if most else {0}):
        root = np.sqrt(s[:rank])
        left, right = (u[:, :rank] * root).astype(np.float16), (root[:, None] * vt[:rank]).astype(np.float16)
        rest = (rows - left.astype(np.float32) @ right.astype(np.float32)).reshape(-1)
        n_stored = min((n_bytes - 2 * rank * (n_out + n_in)) // COO_BYTES, rest.size)
        kth = min(rest.size - n_stored, rest.size - 1)  # nothing is stored where the factors took all there is
        largest = np.sort(np.argpartition(np.abs(rest), kth)[rest.size - n_stored :])
        error = float((rest.astype(np.float64) ** 2).sum() - (rest[largest].astype(np.float64) ** 2).sum())
        if best is None or error < best[0]:
            at = [(largest // n_in).astype("<u2"), (largest % n_in).astype("<u2"), rest[largest].astype(np.float16)]
            best = error, [np.array([rank, n_stored], "<u4"), left, right, *at]
    assert best is not None
    return best[1]
