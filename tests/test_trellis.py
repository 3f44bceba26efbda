"""The trellis' tables are a good code, and the gain that the docstring states is there."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from helpers import uniform_scales

from paramcompress import trellis
from paramcompress.prices import cost_table
from paramcompress.quantize import quantize
from paramcompress.trellis import CHAIN, TRELLISES, Trellis, lines_per_chain

LONG = 4096
"""Rows of a column, and so the length of a chain, long enough that its ends do not matter."""
ALL = pytest.mark.parametrize("n_states", TRELLISES)
STATED = re.search(r"([\d.]+), ([\d.]+) and ([\d.]+) dB for 4, 8 and 32", trellis.__doc__ or "")


@ALL
def test_every_state_is_entered_twice(n_states: int) -> None:
    table = TRELLISES[n_states].next_state
    assert table.shape == (n_states, 2)
    assert np.bincount(table.reshape(-1), minlength=n_states).tolist() == [2] * n_states


@ALL
def test_the_search_may_take_it_that_states_shift(n_states: int) -> None:
    """State t is entered from t >> 1 and from half the states above, as `quantize` assumes."""
    for s, pair in enumerate(TRELLISES[n_states].next_state):
        assert {int(t) for t in pair} == {2 * s % n_states, (2 * s + 1) % n_states}


@pytest.mark.parametrize("n_states", [4, 8, 32])
def test_half_the_states_use_each_quantiser_and_all_are_reached(n_states: int) -> None:
    one = TRELLISES[n_states]
    assert one.quantiser.sum() == n_states // 2
    assert one.quantiser[0] == 0
    reached = {0}
    for _ in range(n_states):
        reached |= {int(t) for s in reached for t in one.next_state[s]}
    assert reached == set(range(n_states))


@pytest.mark.parametrize("n_states", [4, 8, 32])
def test_parallel_paths_differ_in_more_than_one_symbol(n_states: int) -> None:
    """Two chains that part at a state and meet again are at least three symbols apart: otherwise the code is a grid."""
    one = TRELLISES[n_states]
    for s in range(n_states):
        first, second = (int(t) for t in one.next_state[s])
        assert first != second
        assert not {int(t) for t in one.next_state[first]} & {int(t) for t in one.next_state[second]}


def mean_squared_error(one: Trellis, x: np.ndarray) -> float:
    points = quantize(x, uniform_scales(*x.shape), one, cost_table(), 0.0)
    return float(np.square(x - points, dtype=np.float64).mean())


def test_gain_of_the_docstring(rng: np.random.Generator) -> None:
    """Decibels over the uniform quantiser of step 2, whose squared error is 4 / 12 on a uniform source; at high rate,
    so that the denser points about zero do not count.

    Tolerance 0.05 dB, asked for; the estimate itself is finer: the squared errors' relative deviation is below 1 (2 /
    sqrt(5) for uniform errors), so the mean of n of them is known to 1 / sqrt(n), and five of these deviations are 5
    * 4.34 / sqrt(n) dB.
    """
    n = 1 << 18
    assert 5 * 4.34 / math.sqrt(n) < 0.05
    x = rng.uniform(-1000, 1000, (n // LONG, LONG)).astype(np.float32)
    assert STATED is not None
    for n_states, gain in zip((1, 4, 8, 32), (0.0, *map(float, STATED.groups())), strict=True):
        found = 10 * math.log10(4 / 12 / mean_squared_error(TRELLISES[n_states], x))
        assert found == pytest.approx(gain, abs=0.05), n_states


def test_the_control_the_plain_grid_gains_nothing(rng: np.random.Generator) -> None:
    """Negative control: what is measured is the trellis and not the way of measuring."""
    x = rng.uniform(-1000, 1000, (64, LONG)).astype(np.float32)
    gains = [10 * math.log10(4 / 12 / mean_squared_error(TRELLISES[n], x)) for n in (1, 4)]
    assert abs(gains[0]) < 0.05
    assert gains[1] > 0.9


@pytest.mark.parametrize("n_rows", [0, 1, 3, CHAIN - 1, CHAIN, CHAIN + 1])
def test_chains_are_the_fewest_columns_that_hold_enough(n_rows: int) -> None:
    n_columns = lines_per_chain(n_rows)
    assert (n_columns - 1) * max(n_rows, 1) < CHAIN <= n_columns * max(n_rows, 1)
