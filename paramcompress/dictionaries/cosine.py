"""`cosine`: the discrete cosine basis of a kernel, generated, so that it costs no bytes.

Shapes: Q (K, K) with K the product of the kernel's axes, columns by rising frequency, last axis fastest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def cosine_basis(kernel: Sequence[int], scale: int) -> Tensor:
    """Separable DCT-II basis of a kernel in integers: round(scale * entry) on each axis, multiplied over the axes.

    No entry lies within 1e-4 of a rounding tie for the axes up to 32 and scale 128 (test_dictionaries.py), so every
    machine generates the same integers.

    Args:
        kernel: lengths of the axes.
        scale: integer that stands for 1 on each axis.

    Returns:
        Q (K, K) int64; Q / scale ** len(kernel) is orthonormal but for rounding.
    """
    basis = torch.ones(1, 1, dtype=torch.int64)
    for n in kernel:
        f, at = np.arange(n), np.arange(n)[:, None]
        entries = scale * np.sqrt(np.where(f > 0, 2, 1) / n) * np.cos(math.pi * (2 * at + 1) * f / (2 * n))
        basis = torch.kron(basis, torch.from_numpy(np.rint(entries)).long())
    return basis
