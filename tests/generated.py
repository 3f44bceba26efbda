"""Tensors of every shape, dtype and kind of value, each named by a number, and what has to hold when they are
squeezed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from helpers import raw
from torch import Tensor

import paramcompress

FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
OTHERS = ("int64", "int32", "int16", "int8", "uint8", "bool", "complex64", "complex128", "float8_e8m0fnu")
LIMITS = (0.0, 1e-6, 1e-3, 0.01, 0.03, 0.1, 0.3, 0.9)
AXES = (0, 1, 1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 31, 32, 61, 127)
MOST_ITEMS = 2000
SLACK_BYTES = 128
"""What the index may say of one tensor; beside it a file has at most FILE_SLACK_BYTES of its own."""
FILE_SLACK_BYTES = 1024
VALUES = (
    "gaussian", "constant", "tiny", "huge", "denormal", "outlier", "zero", "sparse", "nan", "infinite", "low rank",
    "scales",
    "integers", "negative zero", "heavy tails", "one nonzero",
)  # fmt: skip


def generated(number: int) -> Tensor:
    """The tensor of that number: 0 to 5 axes, lengths with 0, 1 and primes among them, any dtype, any kind of value."""
    rng = np.random.default_rng((7, number))
    shape = [int(rng.choice(AXES)) for _ in range(int(rng.integers(0, 6)))]
    while math.prod(shape) > MOST_ITEMS:
        shape[int(np.argmax(shape))] //= 2
    if rng.random() < 0.15:
        return _not_a_float(rng, shape)
    values = _values(rng, tuple(shape), VALUES[int(rng.integers(len(VALUES)))])
    return torch.from_numpy(values).to(getattr(torch, str(rng.choice(FLOATS))))


def _not_a_float(rng: np.random.Generator, shape: list[int]) -> Tensor:
    dtype = getattr(torch, str(rng.choice(OTHERS)))
    n_bytes = math.prod(shape) * dtype.itemsize
    bits = torch.from_numpy(rng.integers(0, 2 if dtype == torch.bool else 256, n_bytes, np.uint8))
    return bits.view(dtype).reshape(shape) if n_bytes else torch.empty(shape, dtype=dtype)


def _values(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> np.ndarray:
    values = np.asarray(rng.standard_normal(shape))
    flat = values.reshape(-1)
    one = int(rng.integers(max(flat.size, 1)))
    if kind == "constant":
        flat[:] = rng.standard_normal()
    elif kind in ("tiny", "huge", "denormal"):
        flat *= {"tiny": 1e-30, "huge": 1e30, "denormal": 1e-40}[kind]
    elif kind in ("outlier", "negative zero") and flat.size:
        flat[one] = {"outlier": 1e30, "negative zero": -0.0}[kind]
    elif kind == "zero":
        flat[:] = 0
    elif kind == "sparse":
        flat[rng.random(flat.size) < 0.95] = 0
    elif kind in ("nan", "infinite"):
        flat[rng.random(flat.size) < 0.05] = math.nan if kind == "nan" else rng.choice((math.inf, -math.inf))
    elif kind == "low rank" and len(shape) >= 2:
        n = shape[0]
        flat[:] = (rng.standard_normal((n, 1)) @ rng.standard_normal((1, flat.size // max(n, 1)))).reshape(-1)
    elif kind == "scales" and len(shape) >= 1:
        values *= np.exp2(rng.integers(-12, 13, (shape[0], *[1] * (len(shape) - 1))))
    elif kind == "integers":
        flat[:] = np.round(3 * flat)
    elif kind == "heavy tails":
        flat[:] = np.sign(flat) * np.abs(flat) ** 5
    elif kind == "one nonzero":
        flat[:] = np.where(np.arange(flat.size) == one, flat, 0)
    return flat.reshape(shape)


def violations(numbers: range, folder: Path) -> list[str]:
    """Squeeze the tensors of these numbers into one file, expand it, and say what does not hold; ideally nothing.

    Held are: dtype, shape, the limit on the relative error, the error that the file states, bits of all that is no
    float or not finite or has the limit 0, and the size.
    """
    tensors = {str(number): generated(number) for number in numbers}
    rng = np.random.default_rng((8, numbers.start))
    limit = float(rng.choice(LIMITS))
    options = {"layers": {"*": {"max_rel_error": limit}}} if limit and rng.random() < 0.5 else {"max_rel_error": limit}
    path = folder / "generated.safetensors"
    effort = str(rng.choice(("fast", "default", "max")))
    report = paramcompress.squeeze(tensors, path, effort=effort, force=True, **options)
    stated = {layer.name: layer.rel_error for layer in report.layers}
    found = paramcompress.load_file(path)
    wrong = []
    for name, tensor in tensors.items():
        back = found[name]
        if (back.dtype, back.shape) != (tensor.dtype, tensor.shape):
            wrong.append(f"{name}: {back.dtype} {tuple(back.shape)}")
        elif raw(back) != raw(tensor):
            is_plain = str(tensor.dtype).removeprefix("torch.") in FLOATS and bool(tensor.double().isfinite().all())
            error = float((back.double() - tensor.double()).norm() / tensor.double().norm()) if is_plain else math.inf
            if not error <= min(limit, stated[name]) * (1 + 1e-9):
                wrong.append(f"{name}: error {error:.6g}, limit {limit}, stated {stated[name]}")
    n_raw = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if path.stat().st_size > n_raw + SLACK_BYTES * len(tensors) + FILE_SLACK_BYTES:
        wrong.append(f"{numbers}: {path.stat().st_size} bytes for {n_raw}")
    return wrong
