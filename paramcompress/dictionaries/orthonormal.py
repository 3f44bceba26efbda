"""Atoms made orthonormal, and put on a grid of integers: the same bits on every machine.

Sums run in a fixed order, in float64, every operation rounded once: no BLAS, no LAPACK, no fused multiply-add.

Shapes: atoms (n_in, a), one atom a column.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from paramcompress.jit import compiled

GRID_BITS = 15
"""The largest entry of a dictionary is at most 2**15 units of its grid."""
_DEPENDENT = 2.0**-80
"""Squared share of an atom that has to be left after those before it; with less it would be rounding noise."""


def orthonormalised(atoms: NDArray[np.float64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Orthonormal atoms that span what `atoms` span: modified Gram-Schmidt, twice, in the order of the atoms.

    An atom that depends on those before it gives way to the unit vector at its position, so that its number is not
    wasted; where that depends too, to zero.

    Args:
        atoms: (n_in, a), a <= n_in, finite.
        positions: (a,) from 0 to n_in - 1.

    Returns:
        (n_in, a) with Q^T Q = 1 to 1e-14, but for columns of zeros.

    Cost: O(n_in a^2).
    Source: Giraud, Langou, Rozloznik 2005, "The loss of orthogonality in the Gram-Schmidt process": twice is enough.
    """
    basis = np.array(atoms, np.float64, order="C")
    _gram_schmidt(basis, positions, _DEPENDENT)
    _gram_schmidt(basis, positions, 0.0)
    return basis


@compiled
def _gram_schmidt(a, positions, dependent):
    """Orthonormalise the columns of `a` in place, every sum in the order of rows."""
    n, size = a.shape
    before = np.zeros(size)
    for i in range(n):
        for j in range(size):
            before[j] += a[i, j] * a[i, j]
    dots = np.empty(size)
    for k in range(size):
        left = 0.0
        for i in range(n):
            left += a[i, k] * a[i, k]
        if left <= dependent * before[k]:
            for i in range(n):
                a[i, k] = 0.0
            a[positions[k], k] = 1.0
            for j in range(k):
                dot = 0.0
                for i in range(n):
                    dot += a[i, j] * a[i, k]
                for i in range(n):
                    a[i, k] -= dot * a[i, j]
            left = 0.0
            for i in range(n):
                left += a[i, k] * a[i, k]
            if left <= dependent:
                for i in range(n):
                    a[i, k] = 0.0
                continue
        length = np.sqrt(left)
        for i in range(n):
            a[i, k] /= length
        dots[k + 1 :] = 0.0
        for i in range(n):
            factor = a[i, k]
            for j in range(k + 1, size):
                dots[j] += factor * a[i, j]
        for i in range(n):
            factor = a[i, k]
            for j in range(k + 1, size):
                a[i, j] -= dots[j] * factor


def on_grid(atoms: NDArray[np.float64]) -> NDArray[np.float32]:
    """`atoms` rounded to whole multiples of a power of two, the largest of them between 2**14 and 2**15 units.

    The values are exact in float32, and a product with any float32 is exact in float64.
    """
    exponent = GRID_BITS - math.frexp(float(np.abs(atoms).max(initial=0)))[1]
    return np.ldexp(np.rint(np.ldexp(atoms, exponent)), -exponent).astype(np.float32)


def weight_of(coefficients: NDArray[np.float32], dictionary: NDArray[np.float32]) -> NDArray[np.float32]:
    """W = C D^T of one column group, summed in the order of atoms in float64, rounded to float32 once.

    Args:
        coefficients: C (n_out, a).
        dictionary: D^T (a, n_in), one atom a row.

    Returns:
        (n_out, n_in); the same bits everywhere, since every product is exact and the order is fixed.
    """
    out = np.empty((coefficients.shape[0], dictionary.shape[1]), np.float32)
    _multiply(np.ascontiguousarray(coefficients, np.float64), np.ascontiguousarray(dictionary, np.float64), out)
    return out


@compiled
def _multiply(coefficients, atoms, out):
    """out = float32(coefficients @ atoms), each sum from the first atom to the last."""
    sums = np.empty(out.shape[1])
    for i in range(len(coefficients)):
        sums[:] = 0.0
        for k in range(len(atoms)):
            factor = coefficients[i, k]
            for j in range(len(sums)):
                sums[j] += factor * atoms[k, j]
        for j in range(len(sums)):
            out[i, j] = sums[j]
