"""What a layer can make good of the errors of the layers before it: sums over its inputs in two models, and a fit.

x are the inputs of a weight W in the original model, y those in the squeezed one. W + W E[(x - y) y^T] E[y y^T]^-1
gives on y most nearly what W gives on x. From a few hundred inputs that is a noisy regression, of hundreds of columns
in later layers, so it takes a ridge; and how large a one, the inputs say themselves: a fit to either half of them is
checked on the other.

Shapes: inputs (n_groups, n, n_columns) as `inputs.products` gives them, W (n_out, n_columns), its rows in n_groups
equal runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paramcompress.moments import Moment, Scatter, second_moment

RIDGES = (0.002, 0.005, 0.015, 0.05, 0.15, 0.5, 1.5, 5.0, 50.0)
"""That may be tried, in mean squares of a column."""
CHECKED = 64
"""Rows of each group that the ridge is looked for with, at most."""
_FIRST_RIDGE = RIDGES.index(0.05)
"""From where the best one is looked for; of a single input, which has no halves, the one that is taken."""


@dataclass
class _Sums:
    """Over some inputs."""

    squares: Any = 0.0
    """(n_groups, n_columns, n_columns) of y y^T; 0 where nobody asked for them."""
    differences: Any = 0.0
    """(n_groups, n_columns, n_columns) of (x - y) y^T; 0 where nobody asked for them."""
    totals: Any = 0.0
    """(2, n_groups, n_columns) of x and y."""
    count: int = 0

    def add(self, x: Tensor, y: Tensor, *, diagonal: bool) -> None:
        if not diagonal:
            self.squares = self.squares + second_moment(y, y)
            self.differences = self.differences + second_moment(x - y, y)
        self.totals = self.totals + torch.stack([one.double().sum(1) for one in (x, y)]).cpu().numpy()
        self.count += y.shape[1]

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.squares + other.squares,
            self.differences + other.differences,
            self.totals + other.totals,
            self.count + other.count,
        )

    def moments(self, *, centred: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """E[y y^T] and E[(x - y) y^T], or both about the means."""
        squares, differences = self.squares / self.count, self.differences / self.count
        if centred:
            x, y = self.totals / self.count
            squares, differences = squares - _products(y, y), differences - _products(x - y, y)
        return squares, differences


class PairSums:
    """Sums over the inputs of a weight in the original and in the squeezed model."""

    def __init__(self) -> None:
        self._halves = _Sums(), _Sums()

    def add(self, x: Tensor, y: Tensor, *, diagonal: bool) -> None:
        """Add inputs of both models, the same ones in the same order; `diagonal` where no fit is wanted."""
        middle = y.shape[1] // 2
        for half, part in zip(self._halves, (slice(middle), slice(middle, None)), strict=True):
            half.add(x[:, part], y[:, part], diagonal=diagonal)

    def moment(self, before: Moment) -> Moment:
        """A moment of the original model with the inputs of the squeezed one."""
        whole = self._whole
        columns, means = whole.squares / whole.count, (whole.totals / whole.count)[1]
        scatter = Scatter()
        for half in self._halves:
            if half.count:
                scatter.add(half.squares / half.count, (half.totals / half.count)[1])
        noise, mean_free_noise = scatter.noise(columns, means)
        return replace(
            before,
            columns=columns,
            means=None if before.means is None else means,
            noise=noise,
            mean_free_noise=mean_free_noise,
        )

    def target(self, weight: NDArray[np.float32], worth: NDArray[np.float64], *, centred: bool) -> NDArray[np.float64]:
        """(n_out, n_columns) what to approximate in place of a weight, so that the layer gives what it gave.

        Args:
            worth: (n_out,) of errors in each row.
            centred: something behind the layer takes back what happens to the mean of its output.

        Cost: O(n_columns^3) for each group, some seven times, and O(n_out n_columns^2) once.
        """
        grouped = weight.astype(np.float64).reshape(len(self._halves[1].squares), -1, weight.shape[1])
        few = slice(None, None, -(-grouped.shape[1] // CHECKED))
        worths = worth.reshape(*grouped.shape[:2], 1)[:, few]

        def problem(sums: _Sums, rows: slice = few) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            squares, differences = sums.moments(centred=centred)
            return squares, grouped[:, rows] @ differences

        @cache
        def unexplained(at: int) -> float:
            """What a fit to one half leaves of the other, both ways, up to a constant."""
            if not 0 <= at < len(RIDGES):
                return math.inf
            total = 0.0
            for fitted, (squares, lost) in ((first, second), (second, first)):
                found = _regression(*fitted, RIDGES[at])
                total += float((worths * found * (found @ squares - 2 * lost)).sum())
            return total

        at, share = _FIRST_RIDGE, 1.0
        if self._halves[0].count:
            first, second = map(problem, self._halves)
            way = 1 if unexplained(at + 1) < unexplained(at) else -1
            while unexplained(at + way) < unexplained(at):
                at += way
            share = 0.5  # of all inputs, which are twice as many
        found = _regression(*problem(self._whole, slice(None)), share * RIDGES[at])
        return (grouped + found).reshape(weight.shape)

    def mean_change(self, weight: NDArray[np.float32], squeezed: NDArray[np.float32]) -> NDArray[np.float64]:
        """(n_out,) what the mean of the layer's output has lost."""
        whole = self._whole
        x, y = whole.totals / whole.count
        shape = len(x), -1, weight.shape[1]
        grouped = weight.astype(np.float64).reshape(shape), squeezed.astype(np.float64).reshape(shape)
        return np.concatenate([a @ mine - b @ its for a, b, mine, its in zip(*grouped, x, y, strict=True)])

    @property
    def _whole(self) -> _Sums:
        return self._halves[0] + self._halves[1]


def _products(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    return left[:, :, None] * right[:, None, :]


def _regression(squares: NDArray[np.float64], lost: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
    """lost (squares + ridge)^-1, group by group."""
    n = squares.shape[1]
    mean = np.einsum("gjj->g", squares) / n
    damped = squares + np.maximum(ridge * mean, 1e-300)[:, None, None] * np.eye(n)
    root = torch.linalg.cholesky(torch.from_numpy(damped))
    found: NDArray[np.float64] = torch.cholesky_solve(torch.from_numpy(lost).mT, root).mT.numpy()
    return found
