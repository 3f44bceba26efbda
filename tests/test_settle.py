"""Classes and step from a sample: classes where loudness differs, none where it does not, a step that has the error."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from paramcompress import prices
from paramcompress.codec import Layout, LowRank
from paramcompress.fit import EFFORTS, Choice, fit, ranks
from paramcompress.fit.sample import Sample
from paramcompress.fit.scales import LEAST_BASE, Profile
from paramcompress.fit.settle import TRELLIS_STEP, Settled, classes_that_pay, on_plain_grid, settle
from paramcompress.fit.transforms import Transform
from paramcompress.metrics import moments
from paramcompress.quantize import quantize
from paramcompress.trellis import TRELLISES

FIT = EFFORTS["default"], Choice(), 0


def settled(x: NDArray[np.float32], share: float, gram: NDArray[np.float64] | None = None, period: int = 1) -> Settled:
    target = share * float(np.square(x, dtype=np.float64).mean())
    return settle(Sample.of_transposed(x, 1 << 13, period), Profile.of(x, target), target, gram, period)


def noise(rng: np.random.Generator, n_columns: int, n_rows: int) -> NDArray[np.float32]:
    return rng.standard_normal((n_columns, n_rows)).astype(np.float32)


@pytest.mark.parametrize("share", [1e-6, 0.02])
@pytest.mark.parametrize("loud", ["rows", "columns", "both", "neither"])
def test_sides_have_classes_where_their_loudness_differs(loud: str, share: float, rng: np.random.Generator) -> None:
    x = noise(rng, 300, 128)
    if loud in ("rows", "both"):
        x *= (2.0 ** rng.integers(-2, 3, 128)).astype(np.float32)
    if loud in ("columns", "both"):
        x *= (2.0 ** rng.integers(-2, 3, 300)).astype(np.float32)[:, None]
    scales = settled(x, share).scales
    spread = [int(np.ptp(one[one >= 0])) for one in (scales.rows, scales.columns)]  # in half octaves
    for found, name in zip(spread, ("rows", "columns"), strict=True):
        assert found >= 4 if loud in (name, "both") else found <= 1


@pytest.mark.parametrize("by_row", [True, False])
def test_very_quiet_lines_leave_the_classes_of_the_others(by_row: bool, rng: np.random.Generator) -> None:
    """A base has a byte only; where the least class lies below it, what is that quiet is told as a little louder."""
    x = noise(rng, 100, 64)
    found = []
    for quiet in (1.0, 1e-6):
        x[(slice(None), 0) if by_row else 0] *= np.float32(quiet)
        scales = Profile.of(x, 1e-12).scales(0.5, 0.0, by_row, not by_row)
        found.append(scales.base + scales.rows[None, 1:] + scales.columns[1:, None])
    assert scales.base >= LEAST_BASE
    assert np.abs(found[0] - found[1]).max() <= 1


def test_a_side_whose_classes_do_not_pay_has_none(rng: np.random.Generator) -> None:
    """Eight numbers do not tell how loud a row is: classes that follow their chance loudness cost more."""
    assert np.ptp(settled(noise(rng, 8, 256), 0.02).scales.rows) == 0


@pytest.mark.parametrize("share", [0.003, 0.02])
@pytest.mark.parametrize("n_states", [1, 8])
def test_the_step_has_nearly_the_error(share: float, n_states: int, rng: np.random.Generator) -> None:
    x = noise(rng, 400, 100) * (2.0 ** rng.normal(size=100)).astype(np.float32)
    target = share * float(np.square(x, dtype=np.float64).mean())
    found = settled(x, share)
    step = found.step * (1 if n_states == 1 else TRELLIS_STEP)
    cost = prices.cost_table(has_zero=TRELLISES[n_states].has_zero)
    points = quantize(x, found.scales, TRELLISES[n_states], cost, prices.BIT_WEIGHT, step=step)
    product, square, energy = moments(x, points, np.zeros(1, np.int64), len(x))
    assert 0.85 < (energy - product**2 / square) / x.size / target < 1.25, "the sample then says how far off it is"


def test_hardly_anything_stored_is_sparse(rng: np.random.Generator) -> None:
    x = noise(rng, 200, 100)
    assert not settled(x, 0.05).is_sparse
    assert settled(x**5, 0.3).is_sparse


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_stretch_is_what_the_basis_does_to_errors(factor: float, rng: np.random.Generator) -> None:
    x = noise(rng, 90, 64)
    assert settled(x, 0.05, factor * np.eye(9), 9).stretch == pytest.approx(factor)
    assert settled(x, 0.05).stretch == 1


def test_counts_are_those_of_the_sample(rng: np.random.Generator) -> None:
    """Every number that is not dead is counted once, so that the costs that `fast` works with are its own."""
    x = noise(rng, 60, 50)
    found = settled(x, 0.02)
    profile, sample = Profile.of(x, 0.02), Sample.of_transposed(x, 1 << 13, 1)
    sides = profile.rows, profile.columns, profile.row_rms, profile.column_rms, profile.row_peaks, profile.column_peaks
    counts = classes_that_pay(
        sample.x, sample.rows, sample.columns, *sides, profile.mean_square, 0.02 * profile.mean_square,
        np.zeros((0, 0)), 1, prices.cost_table(), TRELLISES[1].walk, prices.token_raw_bits(),
    )[4]  # fmt: skip
    assert counts.sum() == x.size
    points = np.zeros(x.shape, np.int32)
    price = prices.cost_table() * np.float32(prices.BIT_WEIGHT)
    on_plain_grid(x, found.step, found.scales.base, found.scales.rows, found.scales.columns, price, points)
    zeros = (points == 0).sum()
    assert counts[:, 0, 0].sum() == pytest.approx(zeros, rel=0.1)


def test_a_sample_is_a_part_of_the_matrix(rng: np.random.Generator) -> None:
    x = noise(rng, 600, 300)
    for sample, whole in ((Sample.of(x, 4096, 1), x), (Sample.of_transposed(x, 4096, 6), x.T)):
        picked = whole[np.ix_(sample.rows, sample.columns)]
        assert np.array_equal(sample.x, picked if whole is x else picked.T)
        assert 2000 < sample.x.size < 8200
    assert Sample.of(x, 100_000, 1).x.shape == x.shape
    kernels = Sample.of_transposed(x, 4096, 6).columns.reshape(-1, 6)
    assert (kernels % 6 == np.arange(6)).all(), "whole kernels"


def test_fast_fits_no_basis_unasked(rng: np.random.Generator) -> None:
    """Kernels of one shape each, at many loudnesses: nothing but a fitted basis suits them."""
    shape = rng.standard_normal((9, 2)).astype(np.float32)
    weight = (noise(rng, 64 * 32, 2) @ shape.T + 0.02 * noise(rng, 64 * 32, 9)).reshape(64, 32 * 9)
    layout, error = Layout.of((64, 32, 3, 3)), 0.02 * float(np.square(weight).sum())
    names = [
        fit(weight, layout, error, EFFORTS[effort], choice, 0).dictionary
        for effort, choice in (("fast", Choice()), ("default", Choice()), ("fast", Choice(dictionary="patch")))
    ]
    assert names[0] in ("none", "cosine")
    assert names[1:] == ["patch", "patch"]


@pytest.mark.parametrize("scale", [1e-29, 1e-12, 1.0, 1e12, 1e29])
def test_the_largest_direction_at_every_scale(scale: float, rng: np.random.Generator) -> None:
    """Squares of the smallest and the largest leave float32, in which the loops work."""
    weight = (noise(rng, 60, 40) * scale).astype(np.float32)
    value, atom = ranks._largest(weight, ranks.mean_squares(weight))
    exact = float(np.linalg.svd(weight.astype(np.float64))[1][0])
    assert exact / 1.15 < value <= exact * 1.0001
    assert np.linalg.norm(atom) == pytest.approx(1, rel=1e-4)
    factors = fit(weight, Layout.of(weight.shape), 0.02 * float(np.square(weight.astype(np.float64)).sum()), *FIT)
    error = np.square(weight.astype(np.float64) - factors.reconstruct()).sum()
    assert error < 0.021 * np.square(weight.astype(np.float64)).sum()


def test_a_layer_without_bits_gets_no_low_rank(rng: np.random.Generator) -> None:
    """All of it is less than the error that is allowed, so there is nothing that a direction could save."""
    weight = noise(rng, 64, 64)
    assert not tried(weight, 2.0)
    assert tried(weight + 1, 0.1)


def tried(weight: NDArray[np.float32], target: float) -> list[LowRank]:
    return list(ranks.low_ranks(weight, Transform("none"), target, None, 0, "cpu", False))


def test_nothing_has_no_direction() -> None:
    value, atom = ranks._largest(np.zeros((5, 4), np.float32), np.zeros(5))
    assert value == 0
    assert not atom.any()
