"""The factors of one weight at a given price of a bit, where data say what an error costs. Knows no files, no models.

`fit` minimises bytes at a given squared error; here the error of row i, e_i, costs worth_i e_i^T M e_i, M (the
*metric*) being the second moment of what the layer multiplies its weights with, and what is minimised is

    sum over rows of  worth_i e_i^T M e_i  +  price * bits

or, where the output is known to heed rows alike, sum over pairs of rows of G_ij e_i^T M e_j, G_ii being worth_i: an
error in one row may then make good one in another.

- *Metric.* Measured from few inputs it is brought nearer to a flat one, or errors would all go where those inputs
  happen to have nothing.
- *Shrinkage.* A number s drawn from a Gaussian of variance v costs s^2 / (2 v ln 2) bits, so the target is first moved
  to T = W M (M + mu_i)^-1, mu_i = SHRINKAGE * price / (worth_i v): the paper's kernel ridge regression, with the metric
  for its kernel. Directions that the data never use cost no bits.
- *Step.* The quantiser works at one slope, BIT_WEIGHT squared steps a bit, so that price and metric give the step.
  What costs so much a bit is an error in the mean column of those that are worth coding at all.
- *Points.* `feedback`, in the coordinates of a dictionary that is chosen by cost; then one gain for all of them.

Shapes: W (n_out, n_in * K), M (n_groups, n_in * K, n_in * K), x its transpose in dictionary coordinates.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from paramcompress import prices
from paramcompress.codec import Factors, Layout, LowRank, Symbols
from paramcompress.dictionaries.lowrank import truncated_svd
from paramcompress.entropy import Scales
from paramcompress.feedback import Feeding, Worth, quantize_in_metric
from paramcompress.fit import Effort, ranks
from paramcompress.fit.scales import DEAD_PEAK, Profile, live_lines, wants_zero, without_empty
from paramcompress.fit.transforms import FITTED, Transform
from paramcompress.prices import BIT_WEIGHT, MSE_OF_STEP
from paramcompress.trellis import TRELLISES, WITH_ZERO

SHRINKAGE = 0.15
"""In units of price / (worth * variance). Theory for high rates says 1 / (2 ln 2) = 0.72; less is better, since the
search for points shrinks, too (docs/calibration.md)."""
DAMPING = 0.01
"""Share of the metric's mean diagonal that is added to it: what a few hundred inputs say is not the whole truth."""
COUPLING_DOUBT = 0.5
"""Share of the coupling of rows that is not believed where the output heeds them: together errors are no longer small,
and units turn on and off (docs/calibration.md)."""
N_PASSES = 4
"""Times that every row is chosen again."""
ROUGH_STATES = 8
"""Of the trellis, at most, where points are found to compare what they cost, and not to be kept."""
FLOOR = 0.01
"""Least worth of a row, in mean worths: a row that seems to matter not at all is still a row."""
QUIET = 1 / 16
"""Share of the step by which rows and columns are too small for points where small numbers are heeded."""
HEAD_BITS = 100
"""Of a stream that has any points, beside these and their classes, about."""
FINEST = 2.0**24
"""Steps that the largest number may have: float32 tells no more apart."""
RANKS = (2, 8, 32)
"""Of low-rank parts that are tried."""
LEAST_SIDE = 16
"""Shorter side below which low rank is not looked for."""
WIDEST_TURNED = 1024
"""Columns with something to do with each other up to which a trellis down columns is tried: it takes several matrices
more, and wide layers are those of many inputs."""
COMPARED = 1 << 19
"""Weights of a layer, in whole rows, that dictionaries are compared with, at most about."""
WIDEST_COMPARED = 1024
"""Columns with something to do with each other up to which rows are shrunk precisely for what is only compared, too."""
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


@dataclass(frozen=True)
class Grid:
    """How a weight meets the lattice of points."""

    fineness: float = 1.0
    """What theory's step is divided by."""
    by_row: bool = True
    """Whether the trellis runs along rows, or down columns."""
    quiet: bool = False
    """Whether points are looked for also in rows and columns whose numbers are all small beside the step. Where few
    directions cost most, points in some of these make good what all of them are worth along those."""

    @property
    def live_step(self) -> float:
        """Step by which it is decided what is too small, in steps."""
        return QUIET if self.quiet else 1.0


GRIDS = (Grid(), Grid(fineness=1.4), Grid(quiet=True))
"""That are tried, theory's first."""
AT_ANY_PRICE = tuple(one for one in GRIDS if one.fineness == 1)
"""That are tried where the price at which points will be found is not known: a finer step that is less at one price may
be 6 % more bytes at another."""


@dataclass(frozen=True)
class Dictionary:
    """All that is fixed before a layer is quantised at one price or another."""

    transform: Transform
    low_rank: LowRank | None = None
    grid: Grid = GRIDS[0]

    @property
    def n_bytes(self) -> int:
        return self.transform.n_bytes + (0 if self.low_rank is None else ranks.n_bytes(self.low_rank))


class _Priced(NamedTuple):
    """A dictionary, and what a weight costs with it."""

    cost: float
    dictionary: Dictionary


_cost_of = attrgetter("cost")


class MetricFit:
    """One layer, ready to be fitted at any price.

    Args:
        weight: (n_out, n_in * K), finite.
        target: what is to be approximated in its place where later layers have to make good for earlier ones; the
            dictionary is still that of the weight.
        workers: threads. Factors do not depend on it.
    """

    def __init__(
        self,
        weight: NDArray[np.float32],
        layout: Layout,
        metric: Metric,
        effort: Effort,
        *,
        target: NDArray[np.float64] | None = None,
        dictionary: Dictionary | None = None,
        seed: int = 0,
        workers: int = 1,
    ) -> None:
        self.weight, self.layout, self.effort = weight, layout, effort
        self.target = weight.astype(np.float64) if target is None else target
        worth = np.maximum(metric.rows, FLOOR * max(float(metric.rows.mean()), 1e-300))
        columns = metric.columns if metric.noise is None else _nearer_to_flat(metric.columns, metric.noise)
        diagonal = columns if columns.ndim == 2 else np.einsum("gjj->gj", columns)
        damping = DAMPING * max(float(diagonal.mean()), 1e-300)
        columns = columns + (damping if columns.ndim == 2 else damping * np.eye(columns.shape[1]))
        coupling = metric.coupling
        if coupling is not None:
            coupling = (1 - metric.doubt) * coupling + metric.doubt * np.eye(coupling.shape[1])
        self.metric = Metric(worth, columns, coupling)
        self.dictionary, self.seed, self.workers = dictionary, seed, workers
        self.rows: NDArray[np.int64] | None = None
        """Of a larger layer, which ones these are."""
        self.share = 1.0
        """Of the rows of that layer, how many these are."""
        self._last: _Coordinates | None = None

    def at(self, price: float, *, rough: bool = False) -> Factors:
        """Factors at `price` units of cost a bit; at the first, the dictionary is chosen that costs least there.

        Args:
            rough: in a fraction of the time, and of nearly as many bytes: to search for a price by. With the dictionary
                that was chosen, or none.
        """
        if self.dictionary is None and not rough:
            self.choose_dictionary(price)
        plain = Dictionary(Transform.fitted("none", self.weight, self.layout))
        dictionary = self.dictionary or plain
        found = self._worthwhile(dictionary, price, rough=rough)
        if found.stored is None and dictionary.low_rank is not None:  # which may not be worth its bits here, either
            found = self._worthwhile(self._cheapest([dictionary, plain], price).dictionary, price, rough=rough)
        if self._last is not None:
            self._last.space.forget_feedings()
        return found

    def forget_coordinates(self) -> None:
        """What was prepared for the next price: twice the memory of the metric."""
        self._last = None

    def choose_dictionary(self, price: float, grids: Sequence[Grid] = GRIDS) -> None:
        """Settle for the dictionary that costs least at a price: first the transform, then low rank beside it; after
        each the grid, one of some, and in the end the order of points."""
        # a search begins with none, and ends with the likeliest to stay: so fewer coordinates are prepared twice
        fitted = FITTED if self.effort.fitted else ()
        few = self._of_few_rows()
        names = ("none", "cosine", *fitted) if self.layout.takes_transform else ("none",)
        plain = [Dictionary(Transform.fitted(name, self.weight, self.layout)) for name in names]
        best = few._with_grid(few._cheapest(plain, price), price, grids)
        beside = [replace(best.dictionary, low_rank=one) for one in self._low_ranks()]
        if beside and (found := few._cheapest(beside, price)).cost < best.cost:
            best = few._with_grid(found, price, grids)
        self.dictionary = few._with_order(best.dictionary, price)

    def _of_few_rows(self) -> MetricFit:
        """This layer with rows, or whole runs of coupled ones, spread over all; itself where there are few weights."""
        apart = -(-self.weight.size // COMPARED)
        coupling = self.metric.coupling
        run = 1 if coupling is None else coupling.shape[1]
        runs = np.arange(apart // 2, len(self.weight) // run, apart)
        if apart == 1 or len(runs) == 0 or len(self.metric.columns) > 1:
            return self
        rows = (runs[:, None] * run + np.arange(run)).reshape(-1)
        few = copy.copy(self)
        few.rows, few.weight, few.target, few._last = rows, self.weight[rows], self.target[rows], None
        few.layout = replace(self.layout, n_rows=len(rows))
        coupling = None if coupling is None else coupling[runs]
        few.metric = Metric(self.metric.rows[rows], self.metric.columns, coupling)
        few.share = len(rows) / len(self.weight)
        return few

    def _part(self, low_rank: LowRank | None) -> LowRank | None:
        return low_rank if low_rank is None or self.rows is None else low_rank.of_rows(self.rows)

    def _with_grid(self, priced: _Priced, price: float, grids: Sequence[Grid]) -> _Priced:
        """A dictionary with the grid that costs least."""
        dictionary = priced.dictionary
        others = [replace(dictionary, grid=one) for one in grids if one != dictionary.grid]
        return min([priced, *(self._priced(one, price) for one in others)], key=_cost_of)

    def _with_order(self, dictionary: Dictionary, price: float) -> Dictionary:
        """The same with the trellis along rows or down columns; what one gains over the other shows only in full."""
        is_diagonal = self.metric.columns.ndim == 2
        may_turn = dictionary.transform.matrix is None if is_diagonal else self.layout.n_columns <= WIDEST_TURNED
        if not may_turn or len(self.metric.columns) > 1:
            return dictionary
        orders = [replace(dictionary, grid=replace(dictionary.grid, by_row=one)) for one in (True, False)]
        return min((self._priced(one, price, rough=False) for one in orders), key=_cost_of).dictionary

    def _cheapest(self, candidates: Sequence[Dictionary], price: float) -> _Priced:
        return min((self._priced(one, price) for one in candidates), key=_cost_of)

    def _priced(self, dictionary: Dictionary, price: float, *, rough: bool = True) -> _Priced:
        """A dictionary with about what a weight costs with it, its error and its bits together."""
        found = self._factors(self._coordinates(dictionary), dictionary.grid, price, rough=rough)
        cost = self.metric.cost(found.reconstruct() - self.target) / self.share
        return _Priced(cost + price * (8.0 * dictionary.n_bytes + self._stored_bits(found)), dictionary)

    def _worthwhile(self, dictionary: Dictionary, price: float, *, rough: bool) -> Factors:
        """Factors with a dictionary, and with points only if these save more than they take."""
        found = self._factors(self._coordinates(dictionary), dictionary.grid, price, rough=rough)
        if found.stored is None:
            return found
        without = replace(found, stored=None)
        costs = [self.metric.cost(one.reconstruct() - self.target) for one in (found, without)]
        return found if costs[0] + price * self._stored_bits(found) <= costs[1] else without

    def _stored_bits(self, found: Factors) -> float:
        """About the bits of points and classes, and of what a stream begins and ends with; for all rows of a layer."""
        if (stored := found.stored) is None or stored.scales is None:
            return 0.0
        points = prices.point_bits(*stored.in_order, stored.trellis)
        rows, columns = prices.side_bits(stored.scales.rows, stored.scales.columns, self.layout.kernel_size)
        return HEAD_BITS + (points + rows) / self.share + columns

    def _coordinates(self, dictionary: Dictionary) -> _Coordinates:
        """Those of a dictionary: the last ones, or with what they have in common with these."""
        if self._last is None or not self._last.are_those_of(dictionary):
            low_rank = self._part(dictionary.low_rank)
            rest = self.target if low_rank is None else self.target - low_rank.product()
            space = None if self._last is None else self._last.space
            if space is None or not space.is_that_of(dictionary.transform):
                self._last = None  # there is no room for two
                space = _Space(dictionary.transform, self.target, self.metric)
            self._last = _Coordinates(dictionary, rest, space)
        return self._last

    def _low_ranks(self) -> Iterator[LowRank]:
        """Quantised low-rank parts worth trying: nearest to the weight where its errors cost (a decomposition of the
        weight times a root of the metric, activation-aware)."""
        shape = self.weight.shape
        if not self.effort.fitted or min(shape) < LEAST_SIDE or len(self.metric.columns) > 1:
            return
        metric = self.metric.columns[0]
        root = np.sqrt(metric) if metric.ndim == 1 else np.linalg.cholesky(metric)
        worth = np.sqrt(self.metric.rows / self.metric.rows.mean())[:, None]
        generator = torch.Generator().manual_seed(self.seed)
        rank = min(max(RANKS), min(shape))
        scaled = torch.from_numpy(worth * (self.weight * root if root.ndim == 1 else self.weight @ root))
        directions, image, _ = truncated_svd(scaled, rank, generator=generator)
        atoms = directions.double().numpy()
        atoms = atoms / root[:, None] if root.ndim == 1 else np.linalg.solve(root.T, atoms)
        lengths = np.linalg.norm(atoms, axis=0)
        atoms, coefficients = atoms / lengths, image.double().numpy() / worth * lengths
        for r in RANKS:
            if r > min(shape) // 2:
                return
            left = float(np.square(self.weight - coefficients[:, :r] @ atoms[:, :r].T).mean())
            values = np.linalg.norm(coefficients[:, :r], axis=0)
            if left > 0 and (values > 0).all():
                noise = ranks.ATOM_NOISE * left
                found = ranks.quantise_factors(coefficients[:, :r], atoms[:, :r], values, noise)
                if found is not None:
                    yield found

    def _factors(self, one: _Coordinates, grid: Grid, price: float, *, rough: bool) -> Factors:
        wide = self.metric.columns.ndim == 3 and self.layout.n_columns > WIDEST_COMPARED
        x = one.shrunk(price, rough=rough and wide)
        alone, coupling = self.metric.chained
        bits = alone / price  # a unit of squared error costs, for a metric of 1
        worth = Worth(bits, one.space.feedings(price)[1], coupling)
        step = _step(x, bits, worth.pivots) / grid.fineness
        step = max(step, float(np.abs(x).max(initial=0)) / FINEST)
        worth = replace(worth, rows=bits * step**2)
        x = x / step
        kind = WITH_ZERO if wants_zero(self.weight) else TRELLISES
        n_states = self.effort.n_states_in_metric
        trellis = kind[min(n_states, ROUGH_STATES) if rough else n_states]
        profile = Profile.of(x.astype(np.float32), MSE_OF_STEP)
        by_class = min(x.shape) > 1
        scales = profile.scales(1.0, grid.live_step, by_class, by_class)
        cost = prices.cost_table(has_zero=trellis.has_zero)
        symbols: Symbols | None = None
        nothing = not profile.peak >= DEAD_PEAK * grid.live_step  # no number is worth its bits
        for passes in () if nothing else (0, 0 if rough else N_PASSES):
            turned = None if grid.by_row else worth.turned
            if turned is None:
                points = quantize_in_metric(x, scales, trellis, cost, worth, passes, self.workers)
            else:
                points = quantize_in_metric(x.T, scales.turned, trellis, cost, turned, passes, self.workers).T
                points = np.ascontiguousarray(points)
            symbols = Symbols(points, scales, trellis, by_row=turned is None)
            if not points.any():
                symbols = None
                break
            if passes == 0 and by_class:
                scales = self._worthwhile_classes(symbols, profile, grid)
            counts = prices.histogram(*replace(symbols, scales=scales).in_order, trellis)
            cost = prices.cost_table(counts, has_zero=trellis.has_zero)
        step = 1.0 if symbols is None else step * one.gain(points * step)
        transform = one.dictionary.transform
        return Factors(
            self.layout,
            float(np.float32(step)),
            transform.name,
            transform.basis,
            self._part(one.dictionary.low_rank),
            symbols,
        )

    def _worthwhile_classes(self, symbols: Symbols, profile: Profile, grid: Grid) -> Scales:
        """Classes for rows, columns, both or neither, or for columns by their place in the kernel: what saves most."""
        period = self.layout.kernel_size
        sides = itertools.product((True, False), repeat=2)
        ways = [profile.scales(1.0, grid.live_step, *way) for way in sides]
        if period > 1:
            places = profile.columns.reshape(-1, period)
            columns = np.broadcast_to(np.sqrt((places**2).mean(0)), places.shape).reshape(-1)
            ways.append(replace(profile, columns=columns).scales(1.0, grid.live_step))
        if grid.quiet:
            ways = [without_empty(one, symbols.points) for one in ways]

        points, _ = symbols.in_order

        def n_bits(one: Scales) -> float:
            in_order = one.turned if symbols.by_row else one
            return prices.class_bits(one, period) + prices.point_bits(points, in_order, symbols.trellis)

        return min(ways, key=n_bits)


def _nearer_to_flat(columns: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Matrices (n_groups, n, n) with a share of each taken from a multiple of the identity of the same trace."""
    flat = np.einsum("gjj->g", columns) / columns.shape[1]
    found: NDArray[np.float64] = (1 - shares)[:, None, None] * columns
    found += (shares * flat)[:, None, None] * np.eye(columns.shape[1])
    return found


def _row_square(squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n_rows,) mean square of each row, none of them nothing."""
    mean: NDArray[np.float64] = squares.mean(1)
    return np.maximum(mean, 1e-4 * max(float(mean.mean()), 1e-300))


def _shrinkage(price: float, worth: NDArray[np.float64], row_square: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n_rows,) mu."""
    return SHRINKAGE * price / (worth * row_square)


def _step(x: NDArray[np.float64], bits: NDArray[np.float64], pivots: NDArray[np.float64]) -> float:
    """The step at which an error in the columns that are worth coding costs, in their mean, what BIT_WEIGHT says.

    Which ones these are depends on the step: columns that data hardly use have numbers near zero, however much an error
    in them would be told to cost.

    Args:
        bits: (n_rows,) that an error of 1 in x (n_columns, n_rows) costs where the metric is 1.
        pivots: (n_groups, n_columns) `Worth.pivots`.
    """
    size = np.abs(x)
    peaks, rms = size.max(1), np.sqrt(np.square(size, out=size).mean(1))
    live, step = np.ones(len(x), np.bool_), 1.0
    for _ in range(3):
        step = 1 / math.sqrt(BIT_WEIGHT * float(bits.mean()) * float(pivots[:, live].mean()))
        live = live_lines(peaks, rms, x.shape[1], step)
        if not live.any():
            break
    return step


class _Space:
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
        """They take as much memory as the metric, and as much again for their roots."""
        self._fed = None


class _Coordinates:
    """A target in the coordinates of a dictionary."""

    def __init__(self, dictionary: Dictionary, rest: NDArray[np.float64], space: _Space) -> None:
        self.dictionary, self.space = dictionary, space
        x = space.coordinates(rest)
        self.x = np.ascontiguousarray(x.T)
        self.row_square = _row_square(x**2)
        self._shrunk: tuple[tuple[float, bool], NDArray[np.float64]] | None = None

    def are_those_of(self, dictionary: Dictionary) -> bool:
        """Whether another dictionary has the same: it differs in fineness only."""
        return dictionary.low_rank is self.dictionary.low_rank and self.space.is_that_of(dictionary.transform)

    def shrunk(self, price: float, *, rough: bool) -> NDArray[np.float64]:
        """x (n_columns, n_rows) shrunk; the last one is kept, for grids are compared at one price."""
        if self._shrunk is None or self._shrunk[0] != (price, rough):
            self._shrunk = (price, rough), self.space.shrunk(self.x, price, self.row_square, rough=rough)
        return self._shrunk[1]

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
