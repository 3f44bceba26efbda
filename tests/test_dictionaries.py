"""Dictionaries against exact oracles: near-best subspaces, orthonormal bases, the same numbers on every machine."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import gaussian, low_rank, smooth_kernels

from paramcompress.codec import COSINE_SCALE, MOST_KERNEL
from paramcompress.dictionaries import lowrank, mirror
from paramcompress.dictionaries.cosine import cosine_basis
from paramcompress.dictionaries.lowrank import EXACT_BELOW, truncated_svd
from paramcompress.dictionaries.patch import principal_basis

SHAPES = [(40, 30), (30, 40), (64, 500), (100, 90), (90, 300), (200, 70)]
"""Both sides of EXACT_BELOW, both ways round."""


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def residual(weight: torch.Tensor, rank: int) -> float:
    atoms, coefficients, _ = truncated_svd(weight, rank, generator=seeded())
    return float(torch.linalg.norm(weight.double() - coefficients.double() @ atoms.double().T))


def least_residual(weight: torch.Tensor, rank: int) -> float:
    """Eckart-Young, from the exact decomposition."""
    return math.sqrt(float(torch.linalg.svdvals(weight.double())[rank:].square().sum()))


# ------------------------------------------------------------------------------------------- lowrank


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 5, 12])
def test_near_the_best_residual(shape: tuple[int, int], rank: int, rng: np.random.Generator) -> None:
    """Within 1 % of the least where singular values fall, as 1 / j or to a floor of noise; to rounding below
    EXACT_BELOW.

    White noise has no directions to find, and the randomised method is some per cent off: there no rank pays anyway.
    """
    allowed = 1e-6 if min(shape) <= EXACT_BELOW else 0.01
    left, values, right = torch.linalg.svd(gaussian(rng, *shape), full_matrices=False)
    falling = left * (1 / torch.arange(1, len(values) + 1)) @ right
    for weight in (falling, low_rank(rng, *shape, rank, noise=0.3)):
        least = least_residual(weight, rank)
        assert least * (1 - 1e-6) <= residual(weight, rank) <= least * (1 + allowed)


def test_the_control_without_power_iterations(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: on a noisy matrix the plain range finder misses the 1 % that two power iterations keep."""
    weight = low_rank(rng, 300, 200, 5, noise=0.7)
    least = least_residual(weight, 5)
    assert residual(weight, 5) < 1.01 * least
    monkeypatch.setattr(
        lowrank,
        "_range_basis",
        lambda tall, rank, generator: torch.linalg.qr(torch.randn(tall.shape[1], rank + 8, generator=generator))[0],
    )
    assert residual(weight, 5) > 1.01 * least


@pytest.mark.parametrize("shape", SHAPES)
def test_atoms_values_and_signs(shape: tuple[int, int], rng: np.random.Generator) -> None:
    """Orthonormal atoms, singular values as the exact ones, the largest entry of each atom positive.

    All of it in float32: a sum of n products is known to eps * sqrt(n), and a few of these follow one another.
    """
    weight = low_rank(rng, *shape, 6, noise=0.01)
    atoms, coefficients, values = truncated_svd(weight, 6, generator=seeded())
    assert (atoms.shape, coefficients.shape) == ((shape[1], 6), (shape[0], 6))
    assert {one.dtype for one in (atoms, coefficients, values)} == {torch.float32}
    eps = 4 * torch.finfo(torch.float32).eps * math.sqrt(max(shape))
    assert torch.allclose(atoms.T @ atoms, torch.eye(6), atol=eps)
    assert torch.allclose(values.double(), torch.linalg.svdvals(weight.double())[:6], rtol=1e-4)
    assert torch.allclose(coefficients.norm(dim=0), values, rtol=eps)
    assert (atoms.gather(0, atoms.abs().argmax(0, keepdim=True)) > 0).all()


@pytest.mark.parametrize("shape", [(100, 90), (90, 300)])
def test_a_transposed_weight_has_the_transposed_product(shape: tuple[int, int], rng: np.random.Generator) -> None:
    weight = low_rank(rng, *shape, 4, noise=0.0)
    atoms, coefficients, _ = truncated_svd(weight, 4, generator=seeded())
    other, coefficients_of_other, _ = truncated_svd(weight.T, 4, generator=seeded())
    difference = coefficients @ atoms.T - (coefficients_of_other @ other.T).T
    assert float(difference.norm()) < 1e-5 * float(weight.norm())


def test_only_the_generator_is_random(rng: np.random.Generator) -> None:
    """The same seed gives the same bits and leaves the global generator alone; another seed another sample."""
    weight = gaussian(rng, 120, 100)
    before = torch.get_rng_state()
    first, second, third = (truncated_svd(weight, 4, generator=seeded(seed))[0] for seed in (7, 7, 8))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


@pytest.mark.parametrize("rank", [0, -1, 31])
def test_rank_out_of_range(rank: int, rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match=rf"rank {rank} .*\(40, 30\)"):
        truncated_svd(gaussian(rng, 40, 30), rank, generator=seeded())


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (70, 66)])
def test_full_rank_is_the_weight_itself(shape: tuple[int, int], rng: np.random.Generator) -> None:
    weight = gaussian(rng, *shape)
    assert residual(weight, min(shape)) < 1e-4 * float(weight.norm())


def test_half_types_and_zeros(rng: np.random.Generator) -> None:
    weight = gaussian(rng, 80, 70, dtype="bfloat16")
    assert residual(weight, 70) < 1e-4 * float(weight.float().norm())
    assert residual(torch.zeros(80, 70), 3) == 0
    assert residual(torch.zeros(20, 10), 3) == 0


# ------------------------------------------------------------------------------------------- patch


def patch_basis(kernels: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(principal_basis(kernels.numpy()))


@pytest.mark.parametrize("k", [2, 9, 25, 49])
def test_patch_basis_is_orthonormal_and_fixed_in_sign(k: int, rng: np.random.Generator) -> None:
    basis = patch_basis(gaussian(rng, 3 * k, k))
    assert (basis.dtype, basis.shape) == (torch.float64, (k, k))
    assert torch.allclose(
        basis.T @ basis, torch.eye(k, dtype=torch.float64), atol=torch.finfo(torch.float64).eps * 8 * k
    )
    assert (basis.gather(0, basis.abs().argmax(0, keepdim=True)) > 0).all()


def test_patch_basis_is_the_exact_one(rng: np.random.Generator) -> None:
    """Energies along its columns are the squared singular values of the kernels, in falling order."""
    kernels = smooth_kernels(rng, 20, 10, 3, 3).reshape(200, 9)
    energies = (kernels.double() @ patch_basis(kernels)).square().sum(0)
    assert torch.allclose(energies, torch.linalg.svdvals(kernels.double()).square(), rtol=1e-9)
    assert float(energies[:2].sum() / energies.sum()) > 0.95


def test_patch_basis_of_fewer_kernels_than_weights(rng: np.random.Generator) -> None:
    for kernels in (gaussian(rng, 1, 9), torch.zeros(2, 9)):
        basis = patch_basis(kernels)
        assert torch.allclose(basis.T @ basis, torch.eye(9, dtype=torch.float64), atol=1e-12)


# ------------------------------------------------------------------------------------------- mirror

KERNELS = [(3, 3), (4, 4), (5, 5), (2, 2), (3,), (5,), (1, 5), (3, 5), (1, 3, 3), (3, 3, 3), (2, 2, 2, 2)]


def mirrored(kernels: np.ndarray, kernel: tuple[int, ...]) -> np.ndarray:
    """Kernels (n, K) with all their mirror images, and these with axes of equal length changed."""
    axes = [n for n in kernel if n > 1]
    found = kernels.reshape(-1, *axes)
    for axis in range(1, found.ndim):
        found = np.concatenate([found, np.flip(found, axis)])
    if len(axes) == 2 and axes[0] == axes[1]:
        found = np.concatenate([found, found.transpose(0, 2, 1)])
    return found.reshape(len(found), -1)


@pytest.mark.parametrize("kernel", KERNELS)
def test_mirror_basis_is_that_of_all_mirror_images(kernel: tuple[int, ...], rng: np.random.Generator) -> None:
    """Its energies are those of the principal axes of kernels that were mirrored in all ways: no basis gathers more."""
    size = math.prod(kernel)
    kernels = rng.standard_normal((40, size)) @ rng.standard_normal((size, size))
    basis = mirror.expanded(mirror.mirror_basis(kernels, kernel), kernel)
    np.testing.assert_allclose(basis.T @ basis, np.eye(size), atol=1e-12)
    images = mirrored(kernels, kernel)
    energies = np.sort(np.square(images @ basis).sum(0))
    np.testing.assert_allclose(energies, np.sort(np.linalg.eigvalsh(images.T @ images)), rtol=1e-9)


@pytest.mark.parametrize("kernel", KERNELS)
def test_patterns_of_a_sector_have_no_position_in_common(kernel: tuple[int, ...]) -> None:
    """So that every entry of the basis is a number of it; and all patterns together are as many as positions."""
    n_atoms = 0
    for shared in mirror.sectors(kernel):
        for patterns in shared:
            assert set(np.unique(patterns)) <= {-1, 0, 1}
            assert (np.abs(patterns).sum(1) <= 1).all()
            assert (np.abs(patterns).sum(0) >= 1).all()
            n_atoms += patterns.shape[1]
    assert n_atoms == math.prod(kernel)


def test_mirror_basis_takes_few_numbers() -> None:
    counts = {kernel: mirror.n_numbers(kernel) for kernel in ((3, 3), (5, 5), (3,), (1, 3, 3), (3, 5))}
    assert counts == {(3, 3): 15, (5, 5): 91, (3,): 5, (1, 3, 3): 15, (3, 5): 65}
    numbers = np.arange(1, 16, dtype=np.int8) - 8
    assert mirror.expanded(numbers, (3, 3)).shape == (9, 9)
    assert mirror.expanded(np.full(15, -128, np.int8), (3, 3)).max() == 128  # its negative is no int8


def test_mirror_basis_of_fewer_kernels_than_weights(rng: np.random.Generator) -> None:
    for kernels in (rng.standard_normal((1, 9)), np.zeros((2, 9))):
        basis = mirror.expanded(mirror.mirror_basis(kernels, (3, 3)), (3, 3))
        np.testing.assert_allclose(basis.T @ basis, np.eye(9), atol=1e-12)


# ------------------------------------------------------------------------------------------- cosine


def test_no_entry_is_near_a_rounding_tie() -> None:
    """So every machine's cosine leads to the same integers: up to 32 as cosine.py says, above as docs/format.md
    says."""
    for n in range(1, MOST_KERNEL + 1):
        f, t = np.meshgrid(np.arange(n), np.arange(n))
        entries = COSINE_SCALE * np.sqrt(np.where(f > 0, 2, 1) / n) * np.cos(np.pi * (2 * t + 1) * f / (2 * n))
        margin = np.abs(np.abs(entries) % 1 - 0.5).min()
        assert margin > (1e-4 if n <= 32 else 1e-5), n


@pytest.mark.parametrize("kernel", [(2,), (5,), (3, 3), (7, 7), (1, 3), (4, 1, 4), (3, 3, 3), (16,)])
def test_cosine_basis_is_orthonormal_but_for_rounding(kernel: tuple[int, ...]) -> None:
    """On one axis Q = Q0 + R with |R| <= d = 1 / (2 scale): an entry of Q'Q - I is at most 2 d sqrt(n) + n d^2, since
    columns of Q0 have length 1, so sums of absolute values up to sqrt(n). Over axes, factors (1 + e) multiply.
    """
    basis = cosine_basis(kernel, COSINE_SCALE)
    size = math.prod(kernel)
    assert (basis.dtype, basis.shape) == (torch.int64, (size, size))
    d = 0.5 / COSINE_SCALE
    bound = math.prod(1 + 2 * d * math.sqrt(n) + n * d * d for n in kernel) - 1
    q = basis.double() / COSINE_SCALE ** len(kernel)
    assert float((q.T @ q - torch.eye(size)).abs().max()) <= bound


def test_cosine_basis_is_separable_and_its_first_column_flat() -> None:
    square = cosine_basis((3, 5), COSINE_SCALE)
    assert torch.equal(square, torch.kron(cosine_basis((3,), COSINE_SCALE), cosine_basis((5,), COSINE_SCALE)))
    assert len(set(square[:, 0].tolist())) == 1
    assert cosine_basis((), COSINE_SCALE).tolist() == [[1]]
    assert cosine_basis((2,), 128).tolist() == [[91, 91], [91, -91]]


def test_cosine_basis_gathers_the_energy_of_smooth_kernels(rng: np.random.Generator) -> None:
    kernels = smooth_kernels(rng, 20, 10, 5, 5).reshape(200, 25).double()
    energies = (kernels @ cosine_basis((5, 5), 128).double()).square().sum(0).sort(descending=True).values
    plain = kernels.square().sum(0).sort(descending=True).values
    assert float(energies[:6].sum() / energies.sum()) > 1.5 * float(plain[:6].sum() / plain.sum())
