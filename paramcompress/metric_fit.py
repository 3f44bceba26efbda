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
  for its kernel. Directions that the data never use cost no bits (`metric_space`).
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
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from paramcompress import prices
from paramcompress.codec import Factors, Layout, LowRank, Symbols
from paramcompress.dictionaries.lowrank import truncated_svd
from paramcompress.entropy import Scales
from paramcompress.feedback import Worth, quantize_in_metric
from paramcompress.fit import Effort, ranks
from paramcompress.fit.scales import DEAD_PEAK, Profile, live_lines, wants_zero, without_empty
from paramcompress.fit.transforms import FITTED, Transform
from paramcompress.metric_space import Coordinates, Metric, Space
from paramcompress.prices import BIT_WEIGHT, MSE_OF_STEP
from paramcompress.trellis import TRELLISES, WITH_ZERO

DAMPING = 0.01
"""Share of the metric's mean diagonal that is added to it: what a few hundred inputs say is not the whole truth."""
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
RANKS = (2, 8, 32, 128)
"""Of low-rank parts that are tried; the last only where the one before it is the best of them."""
LEAST_SIDE = 16
"""Shorter side below which low rank is not looked for."""
WIDEST_TURNED = 1024
"""Columns with something to do with each other up to which a trellis down columns is tried: it takes several matrices
more, and wide layers are those of many inputs."""
COMPARED = 1 << 19
"""Weights of a layer, in whole rows, that dictionaries are compared with, at most about."""
WIDEST_COMPARED = 1024
"""Columns with something to do with each other up to which rows are shrunk precisely for what is only compared, too."""


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
        self._last: Coordinates | None = None

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
            self._last.forget_price()
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
        found = few._with_low_rank(best, self._low_ranks(), price)
        if found is not best:
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
        self.forget_coordinates()  # there is no room for two
        few = copy.copy(self)
        few.rows, few.weight, few.target = rows, self.weight[rows], self.target[rows]
        few.layout = replace(self.layout, n_rows=len(rows))
        coupling = None if coupling is None else coupling[runs]
        few.metric = Metric(self.metric.rows[rows], self.metric.columns, coupling)
        few.share = len(rows) / len(self.weight)
        return few

    def _with_low_rank(self, alone: _Priced, low_ranks: Iterator[LowRank], price: float) -> _Priced:
        """The low-rank part beside a dictionary that costs least; `alone` where that is none."""
        best = alone
        for one in low_ranks:
            found = self._priced(replace(alone.dictionary, low_rank=one), price)
            if found.cost < best.cost:
                best = found
            elif len(one.exponents) == RANKS[-2]:
                break
        return best

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

    def _coordinates(self, dictionary: Dictionary) -> Coordinates:
        """Those of a dictionary: the last ones, or with what they have in common with these."""
        transform, low_rank = dictionary.transform, dictionary.low_rank
        if self._last is None or not self._last.are_those_of(transform, low_rank):
            space = None if self._last is None else self._last.space
            if space is None or not space.is_that_of(transform):
                self._last = None  # there is no room for two
                space = Space(transform, self.target, self.metric)
            self._last = Coordinates(space, self.target, low_rank, self.rows)
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
        scaled = torch.from_numpy(worth * (self.weight * root if root.ndim == 1 else self.weight @ root))
        for some in (RANKS[:-1], RANKS[-1:]):  # few layers want the last
            if some[0] > min(shape) // 2:
                return
            generator = torch.Generator().manual_seed(self.seed)
            directions, image, _ = truncated_svd(scaled, min(some[-1], *shape), generator=generator)
            atoms = directions.double().numpy()
            atoms = atoms / root[:, None] if root.ndim == 1 else np.linalg.solve(root.T, atoms)
            lengths = np.linalg.norm(atoms, axis=0)
            atoms, coefficients = atoms / lengths, image.double().numpy() / worth * lengths
            for r in some:
                if r > min(shape) // 2:
                    return
                left = float(np.square(self.weight - coefficients[:, :r] @ atoms[:, :r].T).mean())
                values = np.linalg.norm(coefficients[:, :r], axis=0)
                if left > 0 and (values > 0).all():
                    noise = ranks.ATOM_NOISE * left
                    found = ranks.quantise_factors(coefficients[:, :r], atoms[:, :r], values, noise)
                    if found is not None:
                        yield found

    def _factors(self, one: Coordinates, grid: Grid, price: float, *, rough: bool) -> Factors:
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
        transform = one.space.transform
        return Factors(
            self.layout,
            float(np.float32(step)),
            transform.name,
            transform.basis,
            one.part,
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
