"""A weight where errors have a metric, in the coordinates of a transform, and shrunk. Looks for no points.

All of a fit in a metric that takes the cube of the number of columns is here: roots, and what is solved with them.

Shapes: W (n_out, n_in * K), M (n_groups, n_in * K, n_in * K), x (n_in * K, n_out) the transpose of W in coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paramcompress.codec import LowRank
from paramcompress.feedback import Feeding
from paramcompress.fit.transforms import Transform

SHRINKAGE = 0.15
"""In units of price / (worth * variance). Theory for high rates says 1 / (2 ln 2) = 0.72; less is better, since the
search for points shrinks, too (docs/calibration.md)."""
COUPLING_DOUBT = 0.5
"""Share of the coupling of rows that is not believed where the output heeds them: together errors are no longer small,
and units turn on and off (docs/calibration.md)."""
NODES = 16.0
"""Factor between the mu that rows are shrunk with but for a correction, each by the nearest one."""
_PIECE = 32
"""Columns of a diagonal metric that are dealt with at a time, about: whole kernels."""


@dataclass(frozen=True)
class Metric:
    """What the errors of one layer cost."""

    rows: NDArray[np.float64]
    """(n_out,) worth of each row, not negative."""
    columns: NDArray[np.float64]
    """(n_groups, n_in * K, n_in * K) second moments, the rows lying in n_groups equal runs; or only their diagonals,
    (n_groups, n_in * K)."""
    coupling: NDArray[np.float64] | None = None
    """(n_runs, run, run) how alike the output heeds the rows of n_runs equal runs, none of which lies in two groups:
    1 on the diagonals, positive definite. None where each row counts alone."""
    noise: NDArray[np.float64] | None = None
    """(n_groups,) share of `columns` that a multiple of the identity should have, for they were measured from few
    inputs."""
    doubt: float = COUPLING_DOUBT
    """Share of the coupling that is not believed."""

    @cached_property
    def gram(self) -> NDArray[np.float64]:
        """(n_runs, run, run) G; runs of one row where each counts alone."""
        if self.coupling is None:
            return self.rows[:, None, None].astype(np.float64)
        root = np.sqrt(self.rows).reshape(len(self.coupling), -1)
        return self.coupling * root[:, :, None] * root[:, None, :]

    def cost(self, error: NDArray[np.floating]) -> float:
        """Sum over pairs of rows of G_ij e_i^T M e_j, for an error (n_out, n_in * K)."""
        grouped = error.astype(np.float64).reshape(len(self.columns), -1, error.shape[1])
        image = grouped * self.columns[:, None] if self.columns.ndim == 2 else grouped @ self.columns
        runs = len(self.gram), -1, error.shape[1]
        return float((self.gram * (image.reshape(runs) @ grouped.reshape(runs).transpose(0, 2, 1))).sum())

    @cached_property
    def chained(self) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """(n_out,) d and (n_runs, run, run) C, unit lower triangles, of G = C^T diag(d) C: what an error costs that no
        later row makes good."""
        if self.coupling is None:
            return self.rows, None
        upper = np.linalg.cholesky(self.gram[:, ::-1, ::-1])[:, ::-1, ::-1]
        pivots = np.einsum("rii->ri", upper)
        return (pivots**2).reshape(-1), np.ascontiguousarray((upper / pivots[:, None]).transpose(0, 2, 1))


def _row_square(squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n_rows,) mean square of each row, none of them nothing."""
    mean: NDArray[np.float64] = squares.mean(1)
    return np.maximum(mean, 1e-4 * max(float(mean.mean()), 1e-300))


def _shrinkage(price: float, worth: NDArray[np.float64], row_square: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n_rows,) mu."""
    return SHRINKAGE * price / (worth * row_square)


class Space:
    """A metric in the coordinates of a transform, and all of it that takes n_columns^3.

    A transform mixes columns of one kernel only, so of a metric that is a diagonal no more than pieces along it are
    ever written out: for n columns they take n times the columns of a piece, not n^2.
    """

    def __init__(self, transform: Transform, target: NDArray[np.float64], metric: Metric) -> None:
        self.transform, self.worth, self.gram = transform, metric.rows, metric.gram
        self.n_groups = len(metric.columns)
        n_columns = target.shape[1]
        period = 1 if transform.matrix is None else len(transform.matrix)
        width = n_columns if metric.columns.ndim == 3 else period * max(1, _PIECE // period)
        self.places = [slice(at, min(at + width, n_columns)) for at in range(0, n_columns, width)]
        if metric.columns.ndim == 3:
            self.metrics = [metric.columns]
        else:
            self.metrics = [np.stack([np.diag(one) for one in metric.columns[:, at]]) for at in self.places]
        if transform.matrix is not None:
            self.metrics = [_transformed(one, transform.matrix) for one in self.metrics]
        squares = self.coordinates(target) ** 2
        self.row_square, columns = _row_square(squares), squares.mean(0)
        self.column_square = columns / max(float(columns.mean()), 1e-300) + 1e-3
        self._fed: tuple[float, NDArray[np.float64], list[Feeding]] | None = None

    def coordinates(self, weight: NDArray[np.float64]) -> NDArray[np.float64]:
        """A weight (n_out, n_in * K) in the transform's coordinates."""
        basis = self.transform.matrix
        if basis is None:
            return weight
        return (weight.reshape(-1, len(basis)) @ np.linalg.inv(basis).T).reshape(weight.shape)

    def is_that_of(self, transform: Transform) -> bool:
        """Whether a transform leads here, fitted once more or not."""
        mine, its = self.transform.matrix, transform.matrix
        return mine is its or (mine is not None and its is not None and np.array_equal(mine, its))

    def feedings(self, price: float) -> tuple[NDArray[np.float64], list[Feeding]]:
        """(n_groups,) what shrinking adds to the metric, in the mean over the rows of each group, and the metrics of
        all pieces with that. Those of the last price are kept, for steps are compared at one."""
        if self._fed is None or self._fed[0] != price:
            self._fed = None  # there is no room for two
            mu = _shrinkage(price, self.worth, self.row_square).reshape(self.n_groups, -1)
            added = np.exp(np.log(mu).mean(1))
            self._fed = price, added, [Feeding(one) for one in self._with(added)]
        return self._fed[1:]

    def _with(self, mu: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
        """(n_groups, n, n) M + mu D of each piece, mu (n_groups,) and D the reciprocals of `column_square`."""
        for metric, at in zip(self.metrics, self.places, strict=True):
            total = metric.copy()
            np.einsum("gjj->gj", total)[...] += mu[:, None] / self.column_square[at]
            yield total

    def shrunk(
        self, x: NDArray[np.float64], price: float, row_square: NDArray[np.float64], *, rough: bool
    ) -> NDArray[np.float64]:
        """x (n_columns, n_rows), rows of these mean squares, shrunk: each loses B x, B = mu (M + mu D)^-1 D.

        That takes a root for each of a few mu only. What is lost with r mu is r B (1 - (1 - r) B)^-1 x, for which
        a B + (1 - a) B^2, a = (3 r - 1) / (1 + r), is right in directions of which nothing, half or all is lost with
        mu, and nearly right in the others while r is between 1/4 and 4. So each row goes with the nearest of the mu,
        NODES apart, one of which is what errors are fed forward with; roughly, all rows go with that one.
        """
        mu = _shrinkage(price, self.worth, row_square).reshape(self.n_groups, -1)
        added, feedings = self.feedings(price)
        if rough:
            mu = np.clip(mu, added[:, None] / NODES, added[:, None] * NODES)
        nodes = np.rint(np.log(mu / added[:, None]) / math.log(NODES)) if not rough else np.zeros(mu.shape)
        out = x.copy()
        for node in np.unique(nodes).tolist():
            is_near = nodes == node
            rows = np.flatnonzero(is_near.any(0))  # of any group
            near = added * NODES**node
            ratio = (mu / near[:, None])[:, None, rows]
            share = (3 * ratio - 1) / (1 + ratio)
            others: Iterator[NDArray[Any]] = map(np.linalg.cholesky, self._with(near))
            roots = others if node else (one.root for one in feedings)
            for root, at in zip(roots, self.places, strict=True):
                here = out[at].reshape(-1, *mu.shape)
                scale = near[:, None, None] / self.column_square[at, None]
                once = _solved(root, scale * x[at].reshape(here.shape)[:, :, rows].transpose(1, 0, 2), upper=not node)
                twice = _solved(root, scale * once, upper=not node)
                lost = is_near[:, None, rows] * (share * once + (1 - share) * twice)
                here[:, :, rows] -= lost.transpose(1, 0, 2)
        return out

    def forget_feedings(self) -> None:
        self._fed = None


class Coordinates:
    """What low rank leaves of a target, in a transform's coordinates."""

    def __init__(
        self,
        space: Space,
        target: NDArray[np.float64],
        low_rank: LowRank | None = None,
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        """rows: those that the target has of a larger one, whose the low rank is."""
        self.space, self.low_rank = space, low_rank
        self.part = low_rank if low_rank is None or rows is None else low_rank.of_rows(rows)
        x = space.coordinates(target if self.part is None else target - self.part.product())
        self.x = np.ascontiguousarray(x.T)
        self.row_square = _row_square(x**2)
        self._shrunk: tuple[tuple[float, bool], NDArray[np.float64]] | None = None

    def are_those_of(self, transform: Transform, low_rank: LowRank | None) -> bool:
        """Whether these are the coordinates of another dictionary, which differs in its grid only."""
        return low_rank is self.low_rank and self.space.is_that_of(transform)

    def shrunk(self, price: float, *, rough: bool) -> NDArray[np.float64]:
        """x (n_columns, n_rows) shrunk; the last one is kept, for grids are compared at one price."""
        if self._shrunk is None or self._shrunk[0] != (price, rough):
            self._shrunk = (price, rough), self.space.shrunk(self.x, price, self.row_square, rough=rough)
        return self._shrunk[1]

    def forget_price(self) -> None:
        """What is kept for the last one: twice the memory of the metric, and that of the target."""
        self._shrunk = None
        self.space.forget_feedings()

    def gain(self, found: NDArray[np.floating]) -> float:
        """What to multiply `found` (n_columns, n_rows) with so that its error costs least."""
        gram, n_groups = self.space.gram, self.space.n_groups
        n_here = self.x.shape[1] // n_groups
        product = square = 0.0
        run = gram.shape[1]
        for metric, at in zip(self.space.metrics, self.space.places, strict=True):
            for g in range(n_groups):
                rows = slice(g * n_here, (g + 1) * n_here)
                image = (metric[g] @ found[at, rows]).reshape(len(metric[g]), -1, 1, run)
                image = (image @ gram[rows.start // run : rows.stop // run]).reshape(len(metric[g]), -1)
                product += float((image * self.x[at, rows]).sum())
                square += float((image * found[at, rows]).sum())
        return product / square if square > 0 else 1.0


def _solved(roots: NDArray[Any], x: NDArray[np.float64], *, upper: bool) -> NDArray[np.float64]:
    """(n_groups, n, rows) (V V^T)^-1 x, for triangles V."""
    root = torch.from_numpy(roots)
    half = torch.linalg.solve_triangular(root, torch.from_numpy(x), upper=upper)
    found: NDArray[np.float64] = torch.linalg.solve_triangular(root.mT, half, upper=not upper).numpy()
    return found


def _transformed(metric: NDArray[np.float64], basis: NDArray[np.float64]) -> NDArray[np.float64]:
    """A metric (n_groups, n, n) in the coordinates of a basis (K, K) of the kernels."""
    n_groups, n_columns, _ = metric.shape
    period = len(basis)
    kernels = metric.reshape(n_groups, -1, period, n_columns).transpose(0, 1, 3, 2) @ basis
    half = kernels.transpose(0, 1, 3, 2).reshape(metric.shape)
    whole = (half.reshape(n_groups, -1, period) @ basis).reshape(metric.shape)
    return (whole + whole.transpose(0, 2, 1)) / 2
