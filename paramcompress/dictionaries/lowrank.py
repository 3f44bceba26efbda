"""`lowrank`: atoms fitted to one layer, as many as pay for themselves. Knows no bytes and no layer name.

Shapes: W (n_out, n_in) with kernel axes flattened, D (n_in, r) with orthonormal columns, C (n_out, r).  W ~ C D^T
The paper stores the transpose: its W is (n_in, n_out), its U our D, its V our C^T.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from paramcompress.jit import compiled, compiled_sums

EXACT_BELOW = 32
"""Shorter side up to which the Gram matrix is decomposed whole; above, the randomised range finder is quicker."""
OVERSAMPLING = 8
N_PASSES = 3
"""Times that the random start is multiplied by W^T W. Weights with low rank take 0.5 % fewer bytes than with two passes
and an oversampling of 4, those of many directions 1.3 %."""


def truncated_svd(weight: Tensor, rank: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Near-best rank-`rank` factors of `weight` in the Frobenius norm.

    Seeks min ||W - C D^T||_F; the minimum is the root of the sum of the squared singular values from index `rank` on
    (Eckart-Young). With a shorter side of up to EXACT_BELOW it is reached to rounding; above, this method stays
    within 1 % of it on the test matrices (test_dictionaries.py).

    Args:
        weight: (n_out, n_in), floating, finite, of magnitudes whose squares float32 can hold.
        rank: r, 1 <= r <= min(n_out, n_in).
        generator: source of the random test matrix; the only randomness here.

    Returns:
        D (n_in, r) with orthonormal columns, C (n_out, r), and the r singular values in falling order; float32.
        Signs are fixed: the entry of largest magnitude in each column of D is positive.

    Raises:
        ValueError: rank out of range. The message carries rank and shape.

    Cost: O(n_out n_in r) time, O((n_out + n_in) r) extra memory.
    Source: Halko, Martinsson, Tropp 2011, arXiv:0909.4061, Algorithms 4.4 and 5.1.

    >>> D, C, s = truncated_svd(torch.ones(4, 3), 1, generator=torch.Generator())
    >>> D.shape, C.shape
    (torch.Size([3, 1]), torch.Size([4, 1]))
    """
    n_out, n_in = weight.shape
    if not 1 <= rank <= min(n_out, n_in):
        raise ValueError(f"rank {rank} of a weight of shape {tuple(weight.shape)}")
    # a basis of the shorter side is quicker to make orthonormal; the other side's factor then has columns of length s
    wide = n_in > n_out
    tall = (weight.T if wide else weight).float()
    basis = _gram_basis(tall)[:, :rank] if min(n_out, n_in) <= EXACT_BELOW else _range_basis(tall, rank, generator)
    image = tall @ basis
    # within the subspace found, rotate to singular directions: eigenvectors of the small Gram matrix
    rotation = torch.linalg.eigh(image.T @ image)[1].flip(1)[:, :rank]
    # what is left is small, and each call of torch would take longer than what it does
    atoms, coefficients = ((one @ rotation).cpu().numpy() for one in (basis, image))
    values = _lengths(coefficients)
    if wide and values[-1] > 1e-4 * values[0]:
        atoms, coefficients = coefficients / values, atoms * values
    elif wide:  # what is divided by next to nothing would not be orthonormal
        left = torch.linalg.qr(image @ rotation)[0]
        atoms, coefficients = left.cpu().numpy(), (weight.float() @ left).cpu().numpy()
    _orient(atoms, coefficients)
    first, second, third = (torch.from_numpy(one).to(weight.device) for one in (atoms, coefficients, values))
    return first, second, third


@compiled_sums
def _lengths(columns):
    """Of the columns of (n, r)."""
    squares = np.zeros(columns.shape[1])
    for i in range(columns.shape[0]):
        for k in range(columns.shape[1]):
            squares[k] += np.float64(columns[i, k]) * columns[i, k]
    return np.sqrt(squares).astype(np.float32)


@compiled
def _orient(atoms, coefficients):
    """Change signs so that the entry of largest magnitude of each atom, a column, is positive."""
    for k in range(atoms.shape[1]):
        largest = atoms[0, k]
        for i in range(1, atoms.shape[0]):
            if abs(atoms[i, k]) > abs(largest):
                largest = atoms[i, k]
        if largest < 0:
            for i in range(atoms.shape[0]):
                atoms[i, k] = -atoms[i, k]
            for i in range(coefficients.shape[0]):
                coefficients[i, k] = -coefficients[i, k]


def _gram_basis(tall: Tensor) -> Tensor:
    """Right singular vectors (n_in, n_in) of a matrix with n_in <= n_out, largest first."""
    return torch.linalg.eigh(tall.double().T @ tall.double())[1].flip(1).float()


def _range_basis(tall: Tensor, rank: int, generator: torch.Generator) -> Tensor:
    """Orthonormal (n_in, rank + OVERSAMPLING) that spans nearly the leading right singular vectors."""
    n_in = tall.shape[1]
    size = n_in, min(rank + OVERSAMPLING, n_in)
    basis = torch.randn(size, generator=generator, dtype=torch.float32, device="cpu").to(tall.device)
    for _ in range(N_PASSES):
        basis = torch.linalg.qr(tall.T @ (tall @ basis))[0]
    return basis
