"""`patch`: one small orthonormal basis for all kernels of a layer, the paper's smooth filters. D = I (x) Q.

Shapes: kernels (n, K), one kernel a row; Q (K, K) with orthonormal columns.  kernel ~ Q s
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from paramcompress.jit import compiled_sums


def principal_basis(kernels: NDArray[np.float32]) -> NDArray[np.float64]:
    """Principal axes of the kernels about zero, by falling energy.

    Args:
        kernels: (n, K), float32 or float64, finite, n >= 1.

    Returns:
        Q (K, K), orthonormal; the entry of largest magnitude in each column is positive.

    Cost: O(n K^2).
    """
    # numpy is much quicker than torch with so small a matrix, and a plain loop than either with so narrow a product
    return upright(np.linalg.eigh(gram(kernels))[1][:, ::-1])


def upright(basis: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns (n, a), each with the sign that makes its entry of largest magnitude positive."""
    return basis * np.sign(basis[np.abs(basis).argmax(0), np.arange(basis.shape[1])])


@compiled_sums
def gram(kernels):
    """(K, K): the sum of k^T k over the rows of (n, K)."""
    n, size = kernels.shape
    sums = np.zeros((size, size))
    for i in range(n):
        for a in range(size):
            factor = np.float64(kernels[i, a])
            for b in range(a + 1):
                sums[a, b] += factor * kernels[i, b]
    for a in range(size):
        for b in range(a):
            sums[b, a] = sums[a, b]
    return sums
