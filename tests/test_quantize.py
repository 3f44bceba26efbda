"""The search finds what trying everything finds, and trades error for bits as it is told."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from helpers import EVERY_TRELLIS, legal_points, parity_of, uniform_scales

from paramcompress.entropy import DEAD, Scales, pack
from paramcompress.prices import N_MAGNITUDES, cost_table, histogram
from paramcompress.quantize import quantize
from paramcompress.tokens import N_CLASSES
from paramcompress.trellis import Trellis, lines_per_chain

ALL = pytest.mark.parametrize("n_states", EVERY_TRELLIS)


def price_of(
    x: np.ndarray, points: np.ndarray, scale_class: int, one: Trellis, cost: np.ndarray, weight: float
) -> float:
    """What `quantize` minimises, for one column, in plain Python; inf for points that are off the trellis."""
    state, total = 0, 0.0
    for number, point in zip(x.reshape(-1).tolist(), points.reshape(-1).tolist(), strict=True):
        q = int(one.quantiser[state])
        loud = scale_class >= one.loud_class
        if (point or loud) and (point + q) % 2:
            return np.inf
        k = (abs(point) + q) // 2
        total += (number - point) ** 2 + weight * float(cost[scale_class, q, min(k, N_MAGNITUDES - 1)])
        state = int(one.next_state[state, parity_of(point, q, loud)])
    return total


def cheapest(x: np.ndarray, scale_class: int, one: Trellis, cost: np.ndarray, weight: float) -> float:
    """The least price over every chain whose points lie at most three steps from x, or are zero."""
    near = [sorted({*range(round(number) - 3, round(number) + 4), 0}) for number in x.reshape(-1).tolist()]
    return min(price_of(x, np.array(points), scale_class, one, cost, weight) for points in itertools.product(*near))


def squared_distance(x: np.ndarray, points: np.ndarray) -> float:
    return float(np.square(x - points, dtype=np.float64).sum())


@ALL
@pytest.mark.parametrize("weight", [0.0, 0.46])
def test_best_of_all_chains(n_states: int, weight: float, rng: np.random.Generator) -> None:
    """Tolerance: prices are summed in float32, one rounding for each of about four terms a number."""
    one, cost = EVERY_TRELLIS[n_states], cost_table()
    for scale in (0.7, 2.0, 6.0):
        for _ in range(4):
            x = (scale * rng.standard_normal((1, 4))).astype(np.float32)
            points = quantize(x, uniform_scales(1, 4), one, cost, weight)
            found = price_of(x, points, 5, one, cost, weight)
            expected = cheapest(x, 5, one, cost, weight)
            assert found == pytest.approx(expected, rel=16 * float(np.finfo(np.float32).eps), abs=1e-6)


@ALL
def test_the_control_greedy_is_worse(n_states: int, rng: np.random.Generator) -> None:
    """Negative control: choosing point after point costs more on every trellis."""
    if n_states == 1:
        pytest.skip("without a trellis greedy is best")
    x = rng.uniform(-50, 50, (1, 2000)).astype(np.float32)
    greedy, state, one = 0.0, 0, EVERY_TRELLIS[n_states]
    for number in x[0].tolist():
        q = int(one.quantiser[state])
        point = 2 * round((number + q) / 2) - q
        greedy += (number - point) ** 2
        state = int(one.next_state[state, parity_of(point, q, loud=True)])
    points = quantize(x.T.copy(), uniform_scales(2000, 1), one, cost_table(), 0.0)
    assert squared_distance(x.T, points) < 0.85 * greedy


@ALL
def test_points_can_be_packed(n_states: int, rng: np.random.Generator) -> None:
    """Whatever comes out is on the trellis: the coder, which checks that, takes it."""
    for shape in [(1, 1), (1, 700), (700, 1), (30, 20), (3, 5000), (2, 4096), (5, 1365)]:
        x = (3 * rng.standard_normal(shape)).astype(np.float32)
        scales = Scales(
            3,
            np.where(rng.random(shape[1]) < 0.2, DEAD, rng.integers(0, 4, shape[1])).astype(np.int16),
            np.where(rng.random(shape[0]) < 0.2, DEAD, rng.integers(0, 4, shape[0])).astype(np.int16),
        )
        points = quantize(x, scales, EVERY_TRELLIS[n_states], cost_table(), 0.46)
        pack(points, scales, EVERY_TRELLIS[n_states])
        assert points.dtype == np.int32


@ALL
def test_dead_rows_and_columns_are_zero(n_states: int, rng: np.random.Generator) -> None:
    x = (10 + rng.random((6, 7))).astype(np.float32)
    rows, columns = np.zeros(7, np.int16), np.zeros(6, np.int16)
    rows[[0, 4]], columns[[2, 5]] = DEAD, DEAD
    points = quantize(x, Scales(9, rows, columns), EVERY_TRELLIS[n_states], cost_table(), 0.46)
    dead = (rows == DEAD)[None] | (columns == DEAD)[:, None]
    assert not points[dead].any()
    assert points[~dead].all()


@ALL
def test_what_is_dead_does_not_move_the_chain(n_states: int, rng: np.random.Generator) -> None:
    x = (4 * rng.standard_normal((40, 3))).astype(np.float32)
    columns = np.zeros(80, np.int16)
    columns[1::2] = DEAD
    assert lines_per_chain(3) >= 80, "else another column begins the second chain"
    wide = np.repeat(x, 2, axis=0)
    live = quantize(x, uniform_scales(40, 3), EVERY_TRELLIS[n_states], cost_table(), 0.46)
    among_dead = quantize(wide, Scales(5, np.zeros(3, np.int16), columns), EVERY_TRELLIS[n_states], cost_table(), 0.46)
    np.testing.assert_array_equal(among_dead[::2], live)


@ALL
def test_points_of_the_trellis_stay_as_they_are(n_states: int, rng: np.random.Generator) -> None:
    one = EVERY_TRELLIS[n_states]
    scales = uniform_scales(20, 300)
    points = legal_points(rng, scales, one, lambda: int(rng.integers(-40, 41)))
    found = quantize(points.astype(np.float32), scales, one, cost_table(), 0.0)
    np.testing.assert_array_equal(found, points)


@ALL
@pytest.mark.parametrize("size", [1e5, 2.0**24, 2.0**28])
def test_huge_numbers(n_states: int, size: float, rng: np.random.Generator) -> None:
    """Far above what the cost table tells apart, an error of a step or the rounding of float32 to its integers is
    left."""
    x = (size * rng.uniform(-1, 1, (3, 50))).astype(np.float32)
    points = quantize(x, uniform_scales(3, 50, 40), EVERY_TRELLIS[n_states], cost_table(), 0.46)
    assert abs(x - points.astype(np.float64)).max() <= max(3.0, 4 * size * np.finfo(np.float32).eps)


@ALL
def test_a_higher_price_gives_fewer_bits_and_more_error(n_states: int, rng: np.random.Generator) -> None:
    x = (3 * rng.standard_normal((100, 200))).astype(np.float32)
    one, scales = EVERY_TRELLIS[n_states], uniform_scales(100, 200)
    n_bytes, errors = [], []
    for weight in (0.0, 0.2, 0.5, 1.0, 2.0):
        cost = cost_table()
        for _ in range(2):  # the costs that lead to a choice should be those of the choice
            points = quantize(x, scales, one, cost, weight)
            cost = cost_table(histogram(points, scales, one))
        n_bytes.append(len(pack(points, scales, one)))
        errors.append(squared_distance(x, points))
    assert n_bytes == sorted(n_bytes, reverse=True)
    assert errors == sorted(errors)
    assert n_bytes[-1] < 0.9 * n_bytes[0]


def test_more_states_are_better_at_one_price(rng: np.random.Generator) -> None:
    """Squared error plus price falls from 4 to 8 to 32 states; the plain grid is worst."""
    x = (4 * rng.standard_normal((64, 1024))).astype(np.float32)
    scales, cost = uniform_scales(64, 1024, 7), cost_table()
    totals = []
    for one in (EVERY_TRELLIS[n] for n in (1, 4, 8, 32)):
        points = quantize(x, scales, one, cost, 0.46)
        cost = cost_table(histogram(points, scales, one), has_zero=one.has_zero)
        points = quantize(x, scales, one, cost, 0.46)
        totals.append(squared_distance(x, points) + 0.46 * 8 * len(pack(points, scales, one)))
    assert totals == sorted(totals, reverse=True)


def test_costs_of_every_class_are_taken_where_they_belong(rng: np.random.Generator) -> None:
    """Zero for free in class 2, dear in class 3: rows of these classes do as they are paid."""
    cost = np.zeros((N_CLASSES, 2, N_MAGNITUDES), np.float32)
    cost[2, :, 1:] = 1000
    cost[3, :, 0] = 1000
    x = rng.uniform(0.5, 1.5, (50, 2)).astype(np.float32)
    points = quantize(x, Scales(2, np.array([0, 1], np.int16), np.zeros(50, np.int16)), EVERY_TRELLIS[8], cost, 1.0)
    assert not points[:, 0].any()
    assert points[:, 1].all()


@pytest.mark.parametrize("n_states", [8, 32])
def test_loud_numbers_do_better_without_the_second_zero(n_states: int, rng: np.random.Generator) -> None:
    """Error and bits at the price of theory, at 1.5 to 2 bits a number: 0.02 bits less than with a zero in both."""
    x = rng.standard_normal((100, 1024)).astype(np.float32)
    scales, step = uniform_scales(100, 1024, 5), 0.55
    totals = []
    for one in (EVERY_TRELLIS[n_states], EVERY_TRELLIS[-n_states]):
        cost = cost_table(has_zero=one.has_zero)
        for _ in range(3):
            points = quantize(x, scales, one, cost, 0.46, step=step)
            cost = cost_table(histogram(points, scales, one), has_zero=one.has_zero)
        bits = 8 * len(pack(points, scales, one)) / x.size
        totals.append(bits + float(np.square(x / step - points).mean()) / 0.46)
        assert 1.3 < bits < 2.2
    assert totals[0] < totals[1] - 0.02


def test_what_is_zero_stays_zero_with_zero(rng: np.random.Generator) -> None:
    """Of pruned weights; and numbers of one sign keep theirs, however small."""
    x = np.where(rng.random((60, 80)) < 0.5, 0, 20 * rng.standard_normal((60, 80))).astype(np.float32)
    points = quantize(x, uniform_scales(60, 80, 9), EVERY_TRELLIS[-8], cost_table(), 0.46)
    assert (points[x == 0] == 0).mean() > 0.95
    assert (points * np.sign(x) >= 0).all()
    without = quantize(x, uniform_scales(60, 80, 9), EVERY_TRELLIS[8], cost_table(has_zero=False), 0.46)
    assert (without[x == 0] == 0).mean() < 0.9, "or there would be no need for the other"
