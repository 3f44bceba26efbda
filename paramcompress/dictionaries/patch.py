"""`patch`: one small orthonormal basis for all kernels of a layer, the paper's smooth filters. D = I (x) Q.

Shapes: kernels (n, K), one kernel a row; Q (K, K) with orthonormal columns.  kernel ~ Q s
"""

from __future__ import annotations

import torch
from torch import Tensor


def principal_basis(kernels: Tensor) -> Tensor:
    """Principal axes of the kernels about zero, by falling energy.

    Args:
        kernels: (n, K), floating, finite, n >= 1.

    Returns:
        Q (K, K), float64, orthonormal; the entry of largest magnitude in each column is positive.

    Cost: O(n K^2).
    """
    scaled = kernels.double()
    basis = torch.linalg.eigh(scaled.T @ scaled)[1].flip(1)
    return basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
