"""The quantiser in a metric against plain twins: the search without one, all rows there are, a point changed alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from helpers import EVERY_TRELLIS, parity_of, uniform_scales

from paramcompress import entropy, feedback, prices
from paramcompress.entropy import DEAD, Scales
from paramcompress.feedback import STRETCH, Feeding, Worth, quantize_in_metric
from paramcompress.quantize import quantize
from paramcompress.trellis import CHAIN, Trellis, lines_per_chain

ALL = pytest.mark.parametrize("n_states", EVERY_TRELLIS)
ALL_ROWS = {False: 1.03, True: 1.012}
"""How far above the least sum, for the plain grid and for trellises; measured: 1.020, and at most 1.006."""
CLASS = 5
COUPLED = pytest.mark.parametrize("coupled", [False, True])


def a_metric(rng: np.random.Generator, n: int, *, n_groups: int = 1, correlation: float = 0.7) -> np.ndarray:
    """(n_groups, n, n) positive definite, neighbours alike."""
    mix = np.stack([rng.standard_normal((n, n)) for _ in range(n_groups)])
    distance = np.abs(np.arange(n)[:, None] - np.arange(n))
    return correlation**distance + 0.1 * mix @ mix.transpose(0, 2, 1) / n


def bits_of(points: np.ndarray, scales: Scales, trellis: Trellis, cost: np.ndarray) -> float:
    """Bits of points, walked along the trellis, row by row, in plain Python; raises where one is off it."""
    total = 0.0
    state = 0
    for i, j in np.ndindex(points.T.shape):
        if j == 0 and i % lines_per_chain(len(points)) == 0:
            state = 0
        if scales.rows[i] == DEAD or scales.columns[j] == DEAD:
            assert points[j, i] == 0
            continue
        q = int(trellis.quantiser[state])
        point = int(points[j, i])
        c, shift = entropy.scale_context(scales.base + int(scales.rows[i]) + int(scales.columns[j]))
        assert (point == 0 and c < trellis.loud_class) or point % 2 == q
        k = (abs(point) + q) // 2
        total += cost[c, q, min(k >> shift, cost.shape[2] - 1)]
        state = int(trellis.next_state[state, parity_of(point, q, c >= trellis.loud_class)])
    return total


def sum_of(
    x: np.ndarray, points: np.ndarray, scales: Scales, trellis: Trellis, cost: np.ndarray, worth: Worth
) -> float:
    """What the quantiser minimises, by its formula."""
    metric = block_diagonal([one.metric for one in worth.feedings])
    n_here = x.shape[1] // len(metric)
    error = x - points
    if worth.coupling is not None:
        runs = error.reshape(len(x), len(worth.coupling), -1)
        error = np.einsum("rik,jrk->jri", worth.coupling, runs).reshape(error.shape)
    squares = sum(worth.rows[i] * error[:, i] @ metric[i // n_here] @ error[:, i] for i in range(x.shape[1]))
    return float(squares) + bits_of(points, scales, trellis, cost)


def block_diagonal(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """(n_groups, n, n) of matrices (n_groups, m, m) along its diagonal."""
    starts = np.cumsum([0, *(one.shape[1] for one in blocks)])
    out = np.zeros((len(blocks[0]), starts[-1], starts[-1]))
    for one, first, stop in zip(blocks, starts[:-1], starts[1:], strict=True):
        out[:, first:stop, first:stop] = one
    return out


def a_coupling(rng: np.random.Generator, n_runs: int, run: int, correlation: float = 0.7) -> np.ndarray:
    """(n_runs, run, run) unit lower triangles."""
    return np.tril(correlation * rng.standard_normal((n_runs, run, run)) / np.sqrt(run), -1) + np.eye(run)


@pytest.mark.parametrize(("n_columns", "n_rows", "run"), [(520, 12, 4), (40, 60, 6), (40, 60, 1), (30, 20, 20)])
def test_workers_change_no_point(n_columns: int, n_rows: int, run: int, rng: np.random.Generator) -> None:
    """Chains of one row and of thirteen, runs that they fit and that they do not; two groups."""
    x = rng.standard_normal((n_columns, n_rows)) * 3
    metric = np.concatenate([a_metric(rng, n_columns), a_metric(rng, n_columns)])
    coupling = a_coupling(rng, n_rows // run, run) if run > 1 else None
    worth = Worth(rng.random(n_rows) + 0.5, [Feeding(metric if n_rows // run > 1 else metric[:1])], coupling)
    search = x, uniform_scales(n_columns, n_rows), EVERY_TRELLIS[8], prices.cost_table(), worth, 2
    np.testing.assert_array_equal(quantize_in_metric(*search, 3), quantize_in_metric(*search))


@pytest.mark.parametrize("run", [1, 3])
@pytest.mark.parametrize("abreast", [3, 8])
def test_rows_that_go_abreast_are_chosen_as_if_alone(
    run: int, abreast: int, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """Chains of one row, so that they may; fewer runs in the last, rows and columns dead, two groups."""
    n_columns, n_rows = CHAIN + 8, 30
    x = rng.standard_normal((n_columns, n_rows)) * 3
    metric = np.concatenate([a_metric(rng, n_columns), a_metric(rng, n_columns)])
    coupling = a_coupling(rng, n_rows // run, run) if run > 1 else None
    rows, columns = np.zeros(n_rows, np.int16), np.zeros(n_columns, np.int16)
    rows[[0, 4, 15, 16, 17]] = columns[[1, 40]] = DEAD
    worth = Worth(rng.random(n_rows) + 0.5, [Feeding(metric)], coupling)
    search = x, Scales(CLASS, rows, columns), EVERY_TRELLIS[8], prices.cost_table(), worth, 1
    together = []
    for n_runs in (1, abreast):
        monkeypatch.setattr(feedback, "ABREAST", n_runs)
        together.append(quantize_in_metric(*search))
    np.testing.assert_array_equal(*together)


@ALL
def test_in_a_flat_metric_it_is_the_other_search(n_states: int, rng: np.random.Generator) -> None:
    """Without correlations there is nothing to make good: along a row as down a column the search finds the one
    optimum; but that the plain grid takes the costs of large magnitudes to lie on a line."""
    x = rng.standard_normal((300, 1)) * 3
    trellis, scales, cost = EVERY_TRELLIS[n_states], uniform_scales(300, 1), prices.cost_table()
    weight = 0.46
    plain = quantize(x.T.astype(np.float32), scales.turned, trellis, cost, weight).T
    worth = Worth(np.full(1, 1 / weight), [Feeding(np.eye(300)[None])])
    found = quantize_in_metric(x, scales, trellis, cost, worth, 0)
    sums = [sum_of(x, points, scales, trellis, cost, worth) for points in (plain, found)]
    assert sums[1] == pytest.approx(sums[0], rel=1e-5 if n_states > 1 else 3e-3)
    assert sums[1] <= sums[0] * (1 + 1e-5)


def best_points(number: float, worth: float, bits: np.ndarray, q: int, loud: bool) -> tuple[float, int, float, int]:
    """Least worth * (number - point)**2 + bits of the points of quantiser q that lead on by an even symbol, and that
    point; the same of those that do by an odd one. Two on either side of the number's size, or zero."""
    no_zero = q == 1 and loud
    found = {0: (np.inf, 0) if no_zero else (worth * number * number + bits[0], 0), 1: (np.inf, 0)}
    near = max(((int(abs(number)) + q) >> 1) - 1, 0)
    for k in range(near, near + 4):
        point = 2 * k - q if k or no_zero else 0
        magnitude = k if k or not no_zero else 1
        total = worth * (abs(number) - point) ** 2 + bits[min(magnitude, len(bits) - 1)]
        if total < found[k & 1][0]:
            found[k & 1] = total, point
    if number < 0:
        found = {parity: (total, -point) for parity, (total, point) in found.items()}
        if no_zero:
            found = {0: found[1], 1: found[0]}
    return *found[0], *found[1]


def slow_row(
    centre: np.ndarray, pull: np.ndarray, matrix: np.ndarray, costs: np.ndarray, trellis: Trellis, bits: np.ndarray,
    *, again: bool,
) -> list[int]:  # fmt: skip
    """Points of a row by the search as its docstring has it: every path with sums over all columns of its own.

    costs (n,): of a squared error in each column. bits (2, magnitudes): of one class.
    """
    paths: dict[int, tuple[float, list[int], np.ndarray]] = {0: (0.0, [], pull)}
    for j in range(len(centre)):
        best: dict[int, tuple[float, int, int]] = {}
        for s in sorted(paths):
            moved, q = paths[s][2][j] / matrix[j, j], int(trellis.quantiser[s])
            found = best_points(centre[j] - moved, costs[j], bits[q], q, trellis.loud_class <= CLASS)
            for parity in range(2):
                to = int(trellis.next_state[s, parity])
                total = paths[s][0] + found[2 * parity] - costs[j] * moved**2 * again
                if to not in best or total < best[to][0]:
                    best[to] = total, s, int(found[2 * parity + 1])
        paths = {
            to: (total, [*paths[s][1], point], paths[s][2] + matrix[j] * (point - centre[j]))
            for to, (total, s, point) in best.items()
        }
    return min((paths[s] for s in sorted(paths)), key=lambda path: path[0])[1]


@pytest.mark.parametrize("n_passes", [0, 1, 2])
@pytest.mark.parametrize("n_states", [1, 4, 8, -8])
def test_what_paths_have_in_common_is_added_once_and_nothing_shows_of_it(
    n_states: int, n_passes: int, rng: np.random.Generator
) -> None:
    """Two coupled rows, each a chain, stage by stage: fed forward, fed forward with all errors known, descending."""
    n = CHAIN + 8
    assert n > 10 * STRETCH
    x = rng.standard_normal((n, 2)) * 2
    trellis, scales, cost = EVERY_TRELLIS[n_states], uniform_scales(n, 2, CLASS), prices.cost_table()
    coupling = np.array([[[1.0, 0.0], [0.8, 1.0]]])
    worth = Worth(np.array([1.0, 1.5]), [Feeding(a_metric(rng, n, correlation=0.97))], coupling)
    root, metric, gram = worth.feedings[0].root[0], worth.feedings[0].metric[0], worth.gram[0]
    bits, pivots = cost[CLASS].astype(np.float64), np.diagonal(root) ** 2
    points, nothing = np.zeros((2, n)), np.zeros(n)
    how = {"trellis": trellis, "bits": bits}
    points[0] = slow_row(x[:, 0], nothing, root, worth.rows[0] * pivots, **how, again=False)
    told = x[:, 1] + coupling[0, 1, 0] * (x[:, 0] - points[0])
    points[1] = slow_row(told, nothing, root, worth.rows[1] * pivots, **how, again=False)
    for i in (0, 1) if n_passes else ():
        told = x[:, i] + gram[0, 1] / gram[i, i] * (x[:, 1 - i] - points[1 - i])
        points[i] = slow_row(told, nothing, root, gram[i, i] * pivots, **how, again=False)
    for i in [0, 1] * n_passes:
        pull = (gram @ (points - x.T) @ metric)[i] / gram[i, i]
        points[i] = slow_row(points[i], pull, metric, gram[i, i] * np.diagonal(metric), **how, again=True)
    np.testing.assert_array_equal(quantize_in_metric(x, scales, trellis, cost, worth, n_passes), points.T)


@ALL
def test_nearly_the_best_of_all_rows(n_states: int, rng: np.random.Generator) -> None:
    """Rows of five numbers, quantised by trying all there are. In a steep metric: errors in neighbours add up."""
    n, trellis, cost = 5, EVERY_TRELLIS[n_states], prices.cost_table()
    scales = uniform_scales(n, 1)
    candidates = [np.array(row)[:, None] for row in itertools.product(range(-3, 4), repeat=n)]
    legal = [row for row in candidates if is_legal(row, scales, trellis)]
    bits = np.array([bits_of(row, scales, trellis, cost) for row in legal])
    worth = Worth(np.ones(1), [Feeding(a_metric(rng, n, correlation=0.9))])
    metric = worth.feedings[0].metric[0]
    found = least = 0.0
    for _ in range(30):
        x = rng.standard_normal((n, 1))
        errors = x[:, 0] - np.array(legal)[:, :, 0]
        least += float((np.einsum("ri,ij,rj->r", errors, metric, errors) + bits).min())
        points = quantize_in_metric(x, scales, trellis, cost, worth, 4)
        found += sum_of(x, points, scales, trellis, cost, worth)
    assert least * (1 - 1e-6) <= found <= least * ALL_ROWS[abs(n_states) > 1]


def is_legal(points: np.ndarray, scales: Scales, trellis: Trellis) -> bool:
    try:
        bits_of(points, scales, trellis, prices.cost_table())
    except AssertionError:
        return False
    return True


@COUPLED
@ALL
def test_points_are_on_the_trellis_and_pack(n_states: int, coupled: bool, rng: np.random.Generator) -> None:
    """Several chains, blocks, groups of rows, dead rows and columns."""
    n_columns, n_rows = 150, 24  # chains of 4 rows
    x = rng.standard_normal((n_columns, n_rows)) * 2
    scales = uniform_scales(n_columns, n_rows)
    scales.rows[[3, 17]] = DEAD
    scales.columns[[0, 1, 70, 149]] = DEAD
    coupling = a_coupling(rng, 6, 4) if coupled else None
    blocks = [Feeding(a_metric(rng, n, n_groups=3)) for n in (100, 50)]
    worth = Worth(rng.random(n_rows) + 0.5, blocks, coupling)
    trellis, cost = EVERY_TRELLIS[n_states], prices.cost_table()
    points = quantize_in_metric(x, scales, trellis, cost, worth, 2)
    bits_of(points, scales, trellis, cost)  # asserts
    assert points.any()
    packed = entropy.pack(points, scales, trellis, by_row=True)
    np.testing.assert_array_equal(entropy.unpack(packed, n_rows, n_columns, by_row=True), points)


@ALL
def test_short_rows_are_chosen_nearly_as_one_long(n_states: int, rng: np.random.Generator) -> None:
    """Where rows have nothing to do with each other, a chain of 32 short ones is the problem of one long row, of which
    the search finds the optimum."""
    x = rng.standard_normal((4, 512)) * 1.5
    trellis, cost = EVERY_TRELLIS[n_states], prices.cost_table()
    sums = []
    for shape in (x.shape, (128, 16)):
        one, scales = x.reshape(shape).T, uniform_scales(*shape[::-1])
        worth = Worth(np.full(shape[0], 2.0), [Feeding(np.eye(shape[1])[None])])
        points = quantize_in_metric(one, scales, trellis, cost, worth, 0)
        sums.append(sum_of(one, points, scales, trellis, cost, worth))
    assert sums[0] * (1 - 1e-6) <= sums[1] <= sums[0] * 1.006  # each for itself: 1.014 to 1.032


@COUPLED
@ALL
def test_every_pass_lowers_the_sum(n_states: int, coupled: bool, rng: np.random.Generator) -> None:
    """Nearly every one: what lies ahead of a row is seen as far as AHEAD only."""
    x = rng.standard_normal((90, 40)) * 1.5
    trellis, scales, cost = EVERY_TRELLIS[n_states], uniform_scales(90, 40), prices.cost_table()
    coupling = a_coupling(rng, 4, 10) if coupled else None
    worth = Worth(rng.random(40) + 0.5, [Feeding(a_metric(rng, 90, n_groups=2))], coupling)
    sums = [
        sum_of(x, quantize_in_metric(x, scales, trellis, cost, worth, n), scales, trellis, cost, worth)
        for n in range(4)
    ]
    assert all(later <= earlier * 1.002 for earlier, later in itertools.pairwise(sums))
    assert sums[3] < sums[0]


def test_no_point_can_be_chosen_better(rng: np.random.Generator) -> None:
    """After many passes, on a tiny matrix: every point is tried, the others held."""
    n_columns, n_rows, trellis = 6, 4, EVERY_TRELLIS[1]
    x = rng.standard_normal((n_columns, n_rows)) * 2
    scales, cost = uniform_scales(n_columns, n_rows), prices.cost_table()
    worth = Worth(np.array([2.0, 0.7, 1.0, 1.5]), [Feeding(a_metric(rng, n_columns))], a_coupling(rng, 2, 2))
    points = quantize_in_metric(x, scales, trellis, cost, worth, 50)
    least = sum_of(x, points, scales, trellis, cost, worth)
    for at in np.ndindex(points.shape):
        for point in range(-8, 9, 2):
            other = points.copy()
            other[at] = point
            assert sum_of(x, other, scales, trellis, cost, worth) >= least - 1e-4  # float32 prices


@ALL
def test_feeding_errors_forward_pays(n_states: int, rng: np.random.Generator) -> None:
    """The control: quantised as if the metric were its diagonal, the same numbers cost more."""
    x = rng.standard_normal((64, 48)) * 2
    trellis, scales, cost = EVERY_TRELLIS[n_states], uniform_scales(64, 48), prices.cost_table()
    metric = a_metric(rng, 64, correlation=0.9)
    worth = Worth(np.ones(48), [Feeding(metric)])
    diagonal = Worth(np.ones(48), [Feeding(np.diag(np.diag(metric[0]))[None])])
    alone = quantize_in_metric(x, scales, trellis, cost, diagonal, 2)
    together = quantize_in_metric(x, scales, trellis, cost, worth, 2)
    sums = [sum_of(x, points, scales, trellis, cost, worth) for points in (together, alone)]
    assert sums[0] < 0.9 * sums[1]  # measured: 0.85


@ALL
def test_rows_that_are_heeded_together_make_good_for_one_another(n_states: int, rng: np.random.Generator) -> None:
    """The control: each row quantised for itself, at what an error costs that no other row makes good."""
    x = rng.standard_normal((64, 48)) * 2
    trellis, scales, cost = EVERY_TRELLIS[n_states], uniform_scales(64, 48), prices.cost_table()
    worth = Worth(np.ones(48), [Feeding(a_metric(rng, 64))], a_coupling(rng, 2, 24, correlation=1.5))
    together = quantize_in_metric(x, scales, trellis, cost, worth, 2)
    alone = quantize_in_metric(x, scales, trellis, cost, replace(worth, coupling=None), 2)
    sums = [sum_of(x, points, scales, trellis, cost, worth) for points in (together, alone)]
    assert sums[0] < 0.95 * sums[1]  # measured: 0.91


@ALL
def test_the_transposed_problem_is_the_same(n_states: int, rng: np.random.Generator) -> None:
    """What points cost, the trellis aside, whichever side is chosen line by line; and both searches find good ones."""
    n_columns, n_rows = 40, 24
    x = rng.standard_normal((n_columns, n_rows)) * 2
    trellis, scales, cost = EVERY_TRELLIS[n_states], uniform_scales(n_columns, n_rows), prices.cost_table()
    worth = Worth(rng.random(n_rows) + 0.5, [Feeding(a_metric(rng, n_columns))], a_coupling(rng, 3, 8))
    turned = worth.turned
    assert turned is not None
    along = quantize_in_metric(x, scales, trellis, cost, worth, 2)
    down = quantize_in_metric(x.T, scales.turned, trellis, cost, turned, 2)
    sums = []
    for points in (along, down.T):
        errors = x - points
        images = worth.image(errors.T), turned.image(errors).T
        np.testing.assert_allclose(images[0], images[1], rtol=1e-9, atol=1e-9 * np.abs(images[0]).max())
        sums.append(float((images[0] * errors.T).sum()))
    assert sums[0] == pytest.approx(
        sum_of(x, along, scales, trellis, cost, worth) - bits_of(along, scales, trellis, cost), rel=1e-5
    )
    sums[0] += bits_of(along, scales, trellis, cost)
    sums[1] += bits_of(down, scales.turned, trellis, cost)
    assert sums[1] == pytest.approx(sums[0], rel=0.1)


def test_what_has_no_transposed_problem(rng: np.random.Generator) -> None:
    """Groups with metrics of their own, and blocks of columns that are no diagonals; diagonals have one."""
    grouped = Worth(np.ones(6), [Feeding(a_metric(rng, 4, n_groups=2))])
    blocks = Worth(np.ones(6), [Feeding(a_metric(rng, n)) for n in (4, 2)])
    assert grouped.turned is None
    assert blocks.turned is None
    diagonal = Worth(np.arange(1.0, 41), [Feeding(np.diag(np.arange(1.0, n + 1))[None]) for n in (4, 2)])
    assert diagonal.turned is not None
    np.testing.assert_array_equal(diagonal.turned.rows, [1, 2, 3, 4, 1, 2])
    np.testing.assert_array_equal(diagonal.turned.own[0], np.arange(1.0, 41))


@ALL
def test_runs_that_are_not_coupled_are_rows_alone(n_states: int, rng: np.random.Generator) -> None:
    x = rng.standard_normal((40, 24)) * 2
    trellis, scales, cost = EVERY_TRELLIS[n_states], uniform_scales(40, 24), prices.cost_table()
    worth = Worth(rng.random(24) + 0.5, [Feeding(a_metric(rng, 40))])
    plain = quantize_in_metric(x, scales, trellis, cost, worth, 1)
    unity = np.stack([np.eye(8)] * 3)
    found = quantize_in_metric(x, scales, trellis, cost, replace(worth, coupling=unity), 1)
    np.testing.assert_array_equal(found, plain)


def test_rows_of_no_worth_are_left_at_zero(rng: np.random.Generator) -> None:
    x = rng.standard_normal((20, 30)) * 3
    worth = Worth(np.where(np.arange(30) < 15, 5.0, 1e-9), [Feeding(np.eye(20)[None])])
    points = quantize_in_metric(x, uniform_scales(20, 30), EVERY_TRELLIS[8], prices.cost_table(), worth, 1)
    assert np.count_nonzero(points[:, 15:]) < 0.3 * np.count_nonzero(points[:, :15])


def test_a_metric_that_is_none_is_refused() -> None:
    with pytest.raises(np.linalg.LinAlgError):
        quantize_in_metric(
            np.ones((2, 2)),
            uniform_scales(2, 2),
            EVERY_TRELLIS[8],
            prices.cost_table(),
            Worth(np.ones(2), [Feeding(-np.eye(2)[None])]),
            0,
        )
