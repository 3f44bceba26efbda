"""The search for the step: the error that was asked for, hardly below it, and most numbers quantised only once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from paramcompress.fit import search
from paramcompress.fit.scales import Profile
from paramcompress.fit.search import Search, search_step
from paramcompress.prices import cost_table
from paramcompress.quantize import LANES, quantize
from paramcompress.trellis import TRELLISES, lines_per_chain


def matrix(n_columns: int, n_rows: int, loudness: float = 0.0) -> NDArray[np.float32]:
    """Gaussian numbers; columns of equal loudness, or of one that varies by so many octaves."""
    chance = np.random.default_rng(n_columns * n_rows)
    x = chance.standard_normal((n_columns, n_rows))
    return (x * 2.0 ** (loudness * chance.random((n_columns, 1)))).astype(np.float32)


@pytest.fixture
def n_quantised(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many numbers a search has quantised, each as often as it was."""
    sizes: list[int] = []

    def counted(*args, **keywords):  # type: ignore[no-untyped-def]
        sizes.append(len(keywords["chains"]) * lines_per_chain(args[0].shape[1]) * args[0].shape[1])
        return quantize(*args, **keywords)

    monkeypatch.setattr(search, "quantize", counted)
    return lambda: sum(sizes)


@pytest.mark.parametrize("share", [0.003, 0.05, 0.3])
@pytest.mark.parametrize("n_states", [1, 8, 32])
@pytest.mark.parametrize(
    ("shape", "loudness"), [((300, 256), 0.0), ((1200, 64), 4.0), ((40, 30), 2.0), ((1, 40000), 0.0)]
)
def test_the_error_is_the_one_asked_for(shape: tuple[int, int], loudness: float, n_states: int, share: float) -> None:
    x = matrix(*shape, loudness)
    target = share * float(np.square(x, dtype=np.float64).mean())
    gain, stored = search_step(x, target, TRELLISES[n_states], 1, 0.02)
    assert stored is not None
    error = float(np.square(x - gain * stored.points).mean())
    least = 0.97 if x.size > 10_000 else 0.8
    assert least * target <= error <= target * (1 + 1e-6)


@pytest.mark.parametrize("share", [0.01, 0.05])
@pytest.mark.parametrize("loudness", [0.0, 3.0])
def test_most_numbers_are_quantised_once(loudness: float, share: float, n_quantised: Callable[[], int]) -> None:
    x = matrix(1000, 200, loudness)
    search_step(x, share * float(np.square(x).mean()), TRELLISES[8], 1, 0.02)
    assert n_quantised() < 1.6 * x.size, "with the sample, on which classes and step are settled"


@pytest.mark.parametrize("n_states", [1, 8])
def test_part_by_part_gives_the_same_points_as_all_at_once(n_states: int) -> None:
    x = matrix(500, 100)
    scales = Profile.of(x, 0.01).scales(0.2, 0.2)
    whole = quantize(x, scales, TRELLISES[n_states], cost_table(), 0.46, step=0.2)
    points = np.full_like(whole, 7)
    for part in search._parts(*x.shape):
        quantize(x, scales, TRELLISES[n_states], cost_table(), 0.46, step=0.2, chains=part, points=points)
    assert np.array_equal(points, whole)
    assert np.array_equal(whole, quantize(x * np.float32(5), scales, TRELLISES[n_states], cost_table(), 0.46))


@pytest.mark.parametrize("n_columns", [1, 40, 85, 86, 130, 4000])
def test_parts_hold_every_chain_once(n_columns: int) -> None:
    parts = search._parts(n_columns, 100)
    chains = np.concatenate(parts)
    assert sorted(chains) == list(range(-(-n_columns // lines_per_chain(100))))
    assert all(len(part) % LANES == 0 for part in parts[:-1])
    assert all(len(part) for part in parts)


@pytest.mark.parametrize("n_silent", [1, 2])
def test_parts_in_which_nothing_is(n_silent: int) -> None:
    """Was a division by zero: the first part tells nothing of the rest."""
    x = matrix(600, 100)
    per_chain = lines_per_chain(100)
    for part in search._parts(*x.shape)[:n_silent]:
        for chain in part:
            x[chain * per_chain : (chain + 1) * per_chain] = 0
    target = 0.02 * float(np.square(x).mean())
    gain, stored = search_step(x, target, TRELLISES[8], 1, 0.02)
    assert stored is not None
    assert 0.9 * target <= np.square(x - gain * stored.points).mean() <= target * (1 + 1e-6)


@pytest.mark.parametrize("off", [2.0, 0.4])
def test_an_error_out_of_reach_of_the_weight_changes_the_step(off: float, n_quantised: Callable[[], int]) -> None:
    """The sample can be wrong: then the first part shows it, and another start is nearer."""
    x = matrix(600, 100)
    target = 0.02
    profile = Profile.of(x, target)
    one = Search(target, profile.peak, TRELLISES[8])
    step = float(np.sqrt(target / 0.26))
    found = one.run(x, profile.scales(step, step), off * step, 0.02)
    assert 0.96 * target <= found.error <= target
    assert n_quantised() < 1.7 * x.size, "a quarter at each step but the last"


@pytest.mark.parametrize("n", [2, 17, 500, 5000])
@pytest.mark.parametrize("share", [1e-9, 0.003, 0.05, 0.5])
def test_a_vector_on_the_plain_grid(n: int, share: float) -> None:
    """One class, and an error that is as near below the one asked for as its few numbers allow."""
    x = matrix(n, 1).T.copy()
    target = share * float(np.square(x, dtype=np.float64).mean())
    gain, stored = search_step(x, target, TRELLISES[1], 1, 0.02)
    assert stored is not None
    assert stored.scales is not None
    error = float(np.square(x - gain * stored.points, dtype=np.float64).mean())
    assert error <= target * (1 + 1e-6)
    assert error >= (0.2 if n > 2 else 0.0) * target
    assert not stored.scales.rows.any()
    assert not stored.scales.columns.any()


@pytest.mark.parametrize("shape", [(1, 40), (60, 40)])
def test_more_steps_than_the_plain_grid_has(shape: tuple[int, int]) -> None:
    with pytest.raises(search.Unfit, match="steps"):
        search_step(matrix(*shape), 1e-18, TRELLISES[1], 1, 0.02)


def test_nothing_of_a_quiet_vector_is_stored() -> None:
    assert search_step(matrix(1, 40), 2.0, TRELLISES[1], 1, 0.02)[1] is None


def test_a_basis_that_stretches_counts_on_the_plain_grid() -> None:
    """The error asked for is that of the weight: with twice the squares the one of the coordinates is half of it."""
    x = matrix(360, 50)
    target = 0.02 * float(np.square(x).mean())
    gain, stored = search_step(x, target, TRELLISES[1], 9, 0.02, 2 * np.eye(9))
    assert stored is not None
    assert 0.95 * target <= 2 * np.square(x - gain * stored.points).mean() <= target * (1 + 1e-6)


@pytest.mark.parametrize(("share", "has_zero"), [(0.5, True), (0.03, True), (0.01, False), (0.0, False)])
def test_matrices_with_zeros_keep_them(share: float, has_zero: bool, rng: np.random.Generator) -> None:
    """More than 2 % of zeros, without those of a dead row and ten dead columns."""
    x = matrix(80, 200, 0.0)
    x[rng.random(x.shape) < share] = 0
    x[3], x[:, 50:60] = 0, 0
    _, stored = search_step(x, 0.01 * float(np.square(x).mean()), TRELLISES[8], 1, 0.02)
    assert stored is not None
    assert stored.trellis.has_zero == has_zero
    kept = (stored.points[x == 0] == 0).mean()
    assert kept > 0.95 or not has_zero


def test_numbers_of_one_sign_keep_theirs() -> None:
    """Tiny variances beside large ones, in a vector and in a matrix."""
    for shape in ((1, 4000), (40, 100)):
        x = np.square(matrix(*shape, 0.0)) ** 2
        for sign in (1, -1):
            gain, stored = search_step(
                (sign * x).astype(np.float32), 0.003 * float(np.square(x).mean()), TRELLISES[8], 1, 0.02
            )
            assert stored is not None
            assert (sign * gain * stored.points >= 0).all()
