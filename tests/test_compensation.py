"""What a layer makes good of the layers before it, against problems whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paramcompress import compensation
from paramcompress.compensation import PairSums

N_COLUMNS, N_ROWS = 24, 8


def sums_of(x: np.ndarray, y: np.ndarray, n_batches: int = 4) -> PairSums:
    """Of inputs (n_groups, n, n_columns)."""
    sums = PairSums()
    for mine, its in zip(np.array_split(x, n_batches, 1), np.array_split(y, n_batches, 1), strict=True):
        sums.add(torch.from_numpy(mine), torch.from_numpy(its), diagonal=False)
    return sums


def a_weight(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((N_ROWS, N_COLUMNS)).astype(np.float32)


def left(weight: np.ndarray, target: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    """Mean square of what the layer gives too much or too little."""
    return float(np.square(x[0] @ weight.T - y[0] @ target.T).mean())


@pytest.mark.parametrize("n_groups", [1, 4])
def test_what_is_linear_is_made_good(n_groups: int, rng: np.random.Generator) -> None:
    weight = a_weight(rng)
    x = rng.standard_normal((n_groups, 4000, N_COLUMNS))
    mix = np.eye(N_COLUMNS) + 0.2 * rng.standard_normal((n_groups, N_COLUMNS, N_COLUMNS)) / np.sqrt(N_COLUMNS)
    y = x @ mix
    target = sums_of(x, y).target(weight, np.ones(N_ROWS), centred=False)
    run = N_ROWS // n_groups
    for g in range(n_groups):
        mine = weight[g * run : (g + 1) * run]
        np.testing.assert_allclose(target[g * run : (g + 1) * run], mine @ np.linalg.inv(mix[g]).T, atol=0.01)


def test_noise_is_not_taken_for_an_answer(rng: np.random.Generator) -> None:
    """Of few inputs, errors that have nothing to do with them seem to; fitted to, other inputs would be worse off."""
    weight, n = a_weight(rng), 60
    y = rng.standard_normal((1, n + 4000, N_COLUMNS))
    x = y + 0.3 * rng.standard_normal(y.shape)
    target = sums_of(x[:, :n], y[:, :n]).target(weight, np.ones(N_ROWS), centred=False)
    solved = weight @ np.linalg.lstsq(y[0, :n], x[0, :n], rcond=None)[0].T
    before, after, naive = (left(weight, one, x[:, n:], y[:, n:]) for one in (weight, target, solved))
    assert naive > 1.3 * before
    assert after < 1.02 * before


def test_rows_of_no_worth_have_no_say_in_the_ridge(rng: np.random.Generator) -> None:
    """The error of two columns is plain, that of the others noise: which of them the rows look at decides."""
    n, exact = 60, slice(0, 2)
    y = rng.standard_normal((1, n, N_COLUMNS))
    x = y + 0.3 * rng.standard_normal(y.shape)
    x[:, :, exact] = 1.3 * y[:, :, exact]
    weight = np.zeros((2, N_COLUMNS), np.float32)
    weight[0, exact], weight[1, 2:] = 1.0, 10.0
    sums = sums_of(x, y)
    plain, noisy = (sums.target(weight, np.array(worth), centred=False) for worth in ([1.0, 0.0], [0.0, 1.0]))
    np.testing.assert_allclose(plain[0, exact], 1.3, atol=0.02)
    assert np.abs(noisy[0, exact] - 1.3).max() > 0.05


def test_of_many_rows_some_say_what_the_ridge_is(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """And all are fitted with it."""
    monkeypatch.setattr(compensation, "CHECKED", 4)
    y = rng.standard_normal((1, 60, N_COLUMNS))
    x = y + 0.3 * rng.standard_normal(y.shape)
    x[:, :, :2] = 1.3 * y[:, :, :2]
    weight = np.zeros((N_ROWS, N_COLUMNS), np.float32)
    weight[::2, :2], weight[1::2, 2:] = 1.0, 10.0
    sums = sums_of(x, y)
    found = sums.target(weight, np.ones(N_ROWS), centred=False)
    np.testing.assert_allclose(found, sums.target(weight, np.array([1.0, 0.0] * 4), centred=False), rtol=1e-12)
    monkeypatch.setattr(compensation, "CHECKED", N_ROWS)
    assert np.abs(found - sums.target(weight, np.ones(N_ROWS), centred=False)).max() > 0.05


def test_a_shift_is_left_to_what_takes_back_means(rng: np.random.Generator) -> None:
    weight = a_weight(rng)
    y = rng.standard_normal((1, 2000, N_COLUMNS)) + 3
    sums = sums_of(y + 0.5, y)
    centred, raw = (sums.target(weight, np.ones(N_ROWS), centred=centred) for centred in (True, False))
    np.testing.assert_allclose(centred, weight, atol=1e-4)
    assert np.abs(raw - weight).max() > 0.01
    np.testing.assert_allclose(sums.mean_change(weight, weight), 0.5 * weight.sum(1), rtol=1e-4, atol=1e-4)


def test_a_single_input_is_enough_to_go_on(rng: np.random.Generator) -> None:
    weight = a_weight(rng)
    y = rng.standard_normal((1, 1, N_COLUMNS))
    target = sums_of(1.1 * y, y, n_batches=1).target(weight, np.ones(N_ROWS), centred=False)
    assert left(weight, target, 1.1 * y, y) < 0.1 * left(weight, weight, 1.1 * y, y)


def test_inputs_that_are_all_zero_change_nothing(rng: np.random.Generator) -> None:
    weight, nothing = a_weight(rng), np.zeros((1, 20, N_COLUMNS))
    np.testing.assert_array_equal(sums_of(nothing, nothing).target(weight, np.ones(N_ROWS), centred=True), weight)
