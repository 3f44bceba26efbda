"""Squeezing one tensor after another by what data say of them. Between the fit in a metric and the pipeline.

`Calibrated.encode` takes the place of `layer.encode` for the tensors that data say something of. One number moves: the
*level*, about the relative change of the model's output that is aimed at. It sets the price of a bit, the same for all.

`Calibrated.rehearse` goes through the model from front to back, once. Each weight is fitted to what the squeezed layers
before it really give, W* = W + W E[(x - y) y^T] E[y y^T]^-1 with x the inputs in the original and y those in the
squeezed model, so that it makes good for them as far as it can; normalisation statistics move by the difference between
the two models (measured anew from a few hundred inputs they would be worse than the old ones).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from paramcompress import layer, metrics
from paramcompress.calibration import every_module_called, tensors_of
from paramcompress.calls import Args, shapes_in
from paramcompress.checkpoint import TensorInfo
from paramcompress.codec import EXACT, Factors, Layout, to_tensor
from paramcompress.compensation import PairSums
from paramcompress.fit import Effort
from paramcompress.inputs import UnknownCallError, is_known, products, weights_of
from paramcompress.layer import Piece, Setting
from paramcompress.lockstep import called_again, calls_of, run_in_lockstep
from paramcompress.metric_fit import AT_ANY_PRICE, DAMPING, GRIDS, MetricFit
from paramcompress.metric_space import Metric
from paramcompress.modules import canonical_names, copied, for_one_run
from paramcompress.moments import Moment, SecondMoments, of_trace_one
from paramcompress.prices import BIT_WEIGHT, MSE_OF_STEP

VECTOR_ERRORS = (1e-4, 0.2)
"""Relative errors between which vectors are coded, whatever the level says."""
MADE_GOOD = 4.0
"""By what errors in scale and shift of a normalisation matter less than their sensitivities say: weights and statistics
behind them are fitted to what they became (docs/calibration.md)."""
HIGHEST_LEVEL = 0.125
"""At which dictionaries are chosen at most, where most is kept, so that they are not chosen where nothing is; and at
which a search for a size begins."""
NEAR = 3.0
"""Factor between the level at which dictionaries were chosen and one at which they still serve."""
SIZE_POWER = 0.67
"""Bytes fall with about this power of the level."""
MEAN_SLACK = 0.15
"""Standard deviations that a coarse running mean may be off, in the root mean square."""
VARIANCE_ERRORS = (0.3, 1e-3)
"""Relative errors between which variances are coded."""
VARIANCE_RATIOS = (0.5, 4.0)
"""What a coarse variance may be of what it stands for; more for channels that are scaled to next to nothing."""
QUIET = 0.1
"""Scale, in root mean squares of all, below which a channel is one of these, with the variance that it is given."""
ROW_DOUBT = 0.25
"""Mean sensitivities that are added to each row's where rows are chosen by the input: what a few hundred inputs never
chose may be chosen some day."""
GAUSS_NEWTON = 0.5
"""Share of the metric of columns that is of gradients of single samples, as far as these stand out of their noise. More
is believed of small errors only: larger ones turn units on and off, and average out less (docs/calibration.md)."""
LARGE, MET, MOST_AGAIN = 0.2, 0.01, 3
"""Weights with this share of all bytes that are still to come are tried again, so many times at most, until they have
theirs to within that much: what comes after them could not make good for it."""
TYPICAL = 0.95
"""Overlap with all moments from which on those of first calls are taken for all."""
MOST_RUNS = 8
"""Runs of each model over all batches that modules called again may take together where first calls are not typical."""
_STATISTICS, _AFFINE = ("running_mean", "running_var"), ("weight", "bias")
"""Vectors of a normalisation."""
_LARGEST_CHANGE = 20.0
"""Factor by which a variance may be corrected."""


@dataclass(frozen=True)
class Aim:
    """What steers the fits: a level, or limits on every layer."""

    level: float = 0.0
    """About the relative change of the model's output; 0 where limits steer."""
    output_error: float | None = None
    """Limit on the relative error of each layer's output."""
    rel_error: float | None = None
    """Limit on the relative error of each weight."""
    rough: bool = False
    """Whether it is only the level that is looked for: points need not be the best ones, and as long as no level is
    known to choose dictionaries at, there are none."""


@dataclass
class Calibrated:
    """A checkpoint with what data say of it."""

    moments: SecondMoments
    weights: Mapping[str, Tensor]
    """The tensors that data say something of, and that are to be squeezed by it."""
    effort: Effort
    seed: int
    device: str
    notes: list[str] = field(default_factory=list)
    means_return: bool = False
    """A rehearsal will take back what errors do to means, so that they are counted without."""
    for_size: bool = True
    """What the model gives counts; under limits it is what each layer gives, place by place."""
    workers: int = 1
    """Threads for one weight, where a rehearsal has nothing else to do meanwhile."""

    def __post_init__(self) -> None:
        self.n_weights = sum(one.numel() for name, one in self.weights.items() if name in self.moments)
        self.final: dict[str, Piece] = {}
        """What a rehearsal settled: what came after was fitted to just these."""
        self.fits = self._fits()
        self.chosen_at: float | None = None
        """Level at which dictionaries are chosen, the same for a whole search, so that bytes follow the level."""

    def choose_at(self, level: float) -> bool:
        """Choose dictionaries where none are, or anew where a level is far from the one that they were chosen at;
        whether they are to be."""
        level = min(level, HIGHEST_LEVEL)
        if self.chosen_at is not None and self.chosen_at / NEAR < level < self.chosen_at * NEAR:
            return False
        self.chosen_at = level
        for fit in self.fits.values():
            fit.dictionary = None
        return True

    def forget_rehearsal(self) -> None:
        """Back to tensors that are encoded one by one, for want of one that meets a size."""
        self.final, self.means_return, self.chosen_at = {}, False, None
        self.fits = self._fits()

    # --------------------------------------------------------------------------------------- one tensor

    def encode(self, info: TensorInfo, tensor: Tensor, aim: Aim) -> Piece | None:
        """Stream and index entry of a tensor; None for one that data say nothing of, or that is smaller exact.

        Its error is measured against `tensor`, whatever was corrected.
        """
        if info.name in self.final:
            return self.final[info.name]
        if info.name in self.fits:
            factors = self._factors(info.name, aim)
            return None if factors is None else layer.piece_of(info, tensor, factors)
        if info.name in self.weights and info.name in self.moments.vectors and aim.level > 0:
            coarse = None if self.final else self._coarse_limit(info.name)
            limit = coarse or self.vector_limit(info.name, tensor, aim)
            return self.encode_vector(info, tensor, limit, is_variance=coarse is None and layer.is_variance(info.name))
        return None

    def output_error(self, name: str, original: Tensor, decoded: Tensor) -> float | None:
        """sqrt(tr(E H E^T) / tr(W H W^T)) of a layer, H of the original model; None where nothing was seen."""
        if name not in self.moments:
            return None
        moment, layout = self.moments.layers[name], Layout.of(tuple(original.shape))
        weight, squeezed = (
            one.double().reshape(layout.n_rows, layout.n_columns).numpy() for one in (original, decoded)
        )
        return _output_error(moment, weight, squeezed)

    def _fits(self) -> dict[str, MetricFit]:
        return {name: self._fit(name) for name in self.weights if name in self.moments}

    def _fit(self, name: str) -> MetricFit:
        tensor = self.weights[name]
        layout = Layout.of(tuple(tensor.shape))
        weight = tensor.float().reshape(layout.n_rows, layout.n_columns).numpy()
        return MetricFit(weight, layout, self.metric(self.moments.layers[name], weight), self.effort, seed=self.seed)

    def metric(self, moment: Moment, weight: NDArray[np.float32]) -> Metric:
        moment = moment.about_means() if self.means_return else moment
        return _metric(moment if self.for_size else replace(moment, gauss_newton=None), weight)

    def price(self, level: float) -> float:
        """Units of cost a bit; about n_weights * price * MSE_OF_STEP / BIT_WEIGHT is the cost of all errors."""
        return level**2 * BIT_WEIGHT / (MSE_OF_STEP * max(self.n_weights, 1))

    def _factors(self, name: str, aim: Aim) -> Factors | None:
        """Factors of a weight at the level's price, or at the highest price at which it keeps its limits."""
        fit = self.fits[name]
        if fit.dictionary is None and (self.chosen_at is not None or not aim.rough):
            near = self.chosen_at or aim.output_error or aim.rel_error or HIGHEST_LEVEL
            fit.choose_dictionary(self.price(near), GRIDS if aim.level > 0 else AT_ANY_PRICE)
        if aim.level > 0:
            return fit.at(self.price(aim.level), rough=aim.rough)
        weight, moment, tensor = fit.weight.astype(np.float64), self.moments.layers[name], self.weights[name]

        def excess(found: Factors) -> float:
            """Largest squared error, in squares of its limit, of what comes back in the tensor's own dtype."""
            decoded = to_tensor(found.reconstruct(), tuple(tensor.shape), tensor.dtype)
            squeezed = decoded.double().reshape(weight.shape).numpy()
            over = 0.0
            if aim.output_error is not None:
                over = (_output_error(moment, weight, squeezed) / max(aim.output_error, 1e-9)) ** 2
            if aim.rel_error is not None:
                norm = float(np.linalg.norm(weight))
                over = max(over, (float(np.linalg.norm(weight - squeezed)) / max(norm * aim.rel_error, 1e-300)) ** 2)
            return over

        return _highest_price(fit, excess, self.price(aim.output_error or aim.rel_error or 1.0))

    def vector_limit(self, name: str, value: Tensor, aim: Aim) -> float:
        """Relative error that the sensitivity of a vector and the price of a bit call for; or of a matrix that nobody
        knows what it is multiplied with."""
        least, most = VECTOR_ERRORS
        layout = Layout.of(tuple(value.shape))
        if min(layout.n_rows, layout.n_columns) > 1:
            most = 1.0
        heeded, norm = self.moments.vectors.get(name, 0.0), metrics.survey(value).norm
        beside = name[: name.rfind(".") + 1] + "running_var"
        if self.means_return and beside in self.moments.vectors:
            heeded /= MADE_GOOD
        if aim.level == 0 or norm == 0 or heeded == 0:
            return least
        step = math.sqrt(self.price(aim.level) / (BIT_WEIGHT * heeded))
        return min(max(math.sqrt(MSE_OF_STEP * value.numel()) * step / norm, least), most)

    def encode_vector(self, info: TensorInfo, value: Tensor, limit: float, *, is_variance: bool = False) -> Piece:
        """A vector, corrected or not, to a relative error; what is stated is the error against the checkpoint's."""
        setting = Setting(limit, is_variance=is_variance)
        piece = layer.encode(info, value, setting, self.effort, self.seed, self.device)
        original = self.weights[info.name]
        if value is original or piece.entry.codec == EXACT:
            return piece
        error = metrics.deviation(original, layer.decode(piece.entry, piece.stream)).rel_error
        return Piece(layer.restated(piece.entry, error), piece.stream)

    def _coarse_limit(self, name: str) -> float | None:
        """About the error that a rehearsal will leave in a mean or variance, so that sizes are foretold before it."""
        word, names = _of_normalisation(name)
        if not self.means_return or word not in _STATISTICS or not _moved(names, self.weights) >= {*_AFFINE}:
            return None
        if word == "running_mean":
            return _mean_limit(*(self.weights[names[one]] for one in _STATISTICS))
        return VARIANCE_ERRORS[0] / 2  # entries of many are too far apart for all of it

    # --------------------------------------------------------------------------------------- the whole model

    def settled_by_rehearsal(self, name: str) -> bool:
        """Whether a rehearsal will encode that tensor: weights, biases beside them, vectors of normalisations."""
        if name not in self.weights:
            return False
        word, names = _of_normalisation(name)
        is_beside = any(bias_beside(weight) == name for weight in self.fits)
        return name in self.fits or is_beside or word in _moved(names, self.weights)

    def rehearse(self, model: nn.Module, batches: Sequence[Any], aim: Aim, budget: Budget | None = None) -> None:
        """Fit every weight to what the squeezed layers before it give; correct biases and normalisation.

        After this, `encode` gives what was found here, at whatever level.

        Args:
            model: with the weights of the checkpoint; stays as it is.
            batches: as for `calibration.calibrate`.
            budget: where all of it shall have a size.
        """
        self.final = {}
        with torch.inference_mode(False):
            original, squeezed = copied(model).eval(), copied(model).eval()
            _Rehearsal(self, original, squeezed, aim, budget).run(batches)


@dataclass
class Budget:
    """Bytes for what a rehearsal encodes: the level goes up and down a little on the way, so that they last."""

    expected: Mapping[str, int]
    """Bytes of every tensor at the level that the rehearsal begins with."""
    left: float
    """Bytes for all of these together."""

    def __post_init__(self) -> None:
        self.waiting = float(sum(self.expected.values()))

    def level(self, first: float) -> float:
        """Level at which what is still to come takes what is left."""
        ratio = self.waiting / max(self.left, 1e-3 * self.waiting, 1.0)
        return first * min(max(ratio, 0.8), 1.25) ** (1 / SIZE_POWER) if self.waiting else first

    def share(self, name: str) -> float | None:
        """Bytes that a weight shall take, of those that are left; None for one that is only a small part of what is
        still to come."""
        expected = self.expected.get(name, 0)
        if not expected or expected < LARGE * self.waiting:
            return None
        return expected * max(self.left / max(self.waiting, 1.0), 1e-3)

    def spend(self, name: str, n_bytes: int | None) -> None:
        """Take note of a tensor; None for one that was encoded as before the rehearsal."""
        expected = self.expected.get(name, 0)
        self.waiting -= expected
        self.left -= expected if n_bytes is None else n_bytes


class _Rehearsal:
    """One pass through a model and its squeezed twin."""

    def __init__(
        self, job: Calibrated, original: nn.Module, squeezed: nn.Module, aim: Aim, budget: Budget | None
    ) -> None:
        self.job, self.first_aim, self.budget = job, aim, budget
        self.original, self.squeezed = original, squeezed
        self.names = canonical_names(original, job.weights)
        self.batches: Sequence[Any] = ()
        self.alone = original, squeezed
        """The same tensors in modules that stop nowhere."""
        self.again: set[str] = set()
        """Modules that are called more than once in a run."""
        self.mislead = False
        """Whether first calls were not like all others, of a weight so far."""

    @property
    def aim(self) -> Aim:
        """What steers the next tensor."""
        if self.budget is None:
            return self.first_aim
        return replace(self.first_aim, level=self.budget.level(self.first_aim.level))

    def run(self, batches: Sequence[Any]) -> None:
        modules = self.original.named_modules()
        stations = [path for path, module in modules if is_known(module) or _keeps_statistics(module)]
        self.batches, self.alone = batches, (for_one_run(self.original), for_one_run(self.squeezed))
        with torch.no_grad(), every_module_called():
            self.again = called_again(self.original, batches[0], 1, stations)
            run_in_lockstep((self.original, self.squeezed), batches, stations, self.meet)

    def meet(self, path: str, calls: list[tuple[Args, Args]]) -> None:
        """All batches are in front of a module: squeeze its weights, or move its statistics."""
        original, squeezed = self.original.get_submodule(path), self.squeezed.get_submodule(path)
        if _keeps_statistics(original):
            every = list(self._every_call(path)) if path in self.again and self.mislead else []
            self._normalisation(path, original, squeezed, every or calls)
            return
        try:
            sums = self._sums(path, original, squeezed, calls)
            if path in self.again and not self._are_typical(path, original, sums):
                self.mislead = True
                sums = self._sums(path, original, squeezed, self._every_call(path))
        except UnknownCallError:
            sums = {}
        for weight in weights_of(original):
            self._weight(path, weight, sums.get(weight), original, squeezed)

    def _sums(
        self, path: str, original: nn.Module, squeezed: nn.Module, calls: Iterable[tuple[Args, Args]]
    ) -> dict[str, PairSums]:
        """What goes into the weights of a module in both models, where it can be fitted to."""
        sums: dict[str, PairSums] = {}
        for left, right in calls:
            if shapes_in(left) != shapes_in(right):  # as where inputs are chosen by what came before
                continue
            for mine, its in zip(products(original, left), products(squeezed, right), strict=True):
                moment = self.job.moments.layers.get(self._name(path, mine.weight))
                if moment is None or mine.inputs is None or its.inputs is None:
                    continue
                if mine.inputs.shape[-1] != moment.columns.shape[-1]:  # rows are of single channels, outputs of all
                    continue
                if mine.inputs.numel():
                    one = sums.setdefault(mine.weight, PairSums())
                    one.add(mine.inputs, its.inputs, diagonal=moment.is_diagonal)
        return sums

    def _every_call(self, path: str) -> Iterator[tuple[Args, Args]]:
        """Calls of a module in both models as they are now, the first of a run and all that follow; of some of the
        batches where there are many such modules."""
        for at in range(0, len(self.batches), -(-len(self.again) // MOST_RUNS)):
            mine, its = (calls_of(model, self.batches[at], at + 1, path) for model in self.alone)
            if len(mine) == len(its):
                yield from zip(mine, its, strict=True)

    def _are_typical(self, path: str, module: nn.Module, sums: Mapping[str, PairSums]) -> bool:
        """Whether the first calls of a module have inputs like all that were calibrated with. Those of a cell are its
        first states, of a layer in a loop its first step."""
        for weight in weights_of(module):
            moment = self.job.moments.layers.get(self._name(path, weight))
            if moment is None or moment.is_diagonal:
                continue
            if weight not in sums or _overlap(sums[weight].moment(moment).columns, moment.columns) < TYPICAL:
                return False
        return True

    def _name(self, path: str, weight: str) -> str:
        full = f"{path}.{weight}" if path else weight
        return self.names.get(full, full)

    def _weight(self, path: str, weight: str, sums: PairSums | None, original: nn.Module, squeezed: nn.Module) -> None:
        """Fit one weight, move the bias beside it, and put what will come back from the file in their place."""
        name, job = self._name(path, weight), self.job
        before = job.fits.get(name)
        if before is None or name in job.final:
            return
        tensor = job.weights[name]
        info = _info(name, tensor)
        if sums is not None and self.aim.level > 0 and not job.moments.layers[name].is_diagonal:
            before.forget_coordinates()  # the metric is another one from here on
            moment = sums.moment(job.moments.layers[name])
            metric = job.metric(moment, before.weight)
            centred = job.means_return and moment.about_means() is not moment
            target = sums.target(before.weight, metric.rows, centred=centred)
            fit = MetricFit(
                before.weight, before.layout, metric, job.effort,
                target=target, dictionary=before.dictionary, workers=job.workers,
            )  # fmt: skip
            piece = self._within_budget(info, tensor, fit)
        else:
            piece = job.encode(info, tensor, self.aim)
        found = self._settle(info, piece, squeezed.get_parameter(weight))
        bias_word = bias_beside(weight)
        bias = dict(squeezed.named_parameters()).get(bias_word)
        if found is None or sums is None or bias is None:
            return
        bias_name = self._name(path, bias_word)
        if bias_name in job.weights and bias_name not in job.final:
            lost = sums.mean_change(before.weight, found.float().reshape(before.weight.shape).numpy())
            moved = job.weights[bias_name].double() + torch.from_numpy(lost)
            self._vector(bias_name, moved, bias)

    def _within_budget(self, info: TensorInfo, tensor: Tensor, fit: MetricFit) -> Piece | None:
        """A weight at the level of the aim; a large one as near to its share as a few tries lead."""
        level = self.aim.level
        share = None if self.budget is None else self.budget.share(info.name)
        tried: dict[float, int] = {}
        best: Piece | None = None
        for _ in range(1 + MOST_AGAIN):
            piece = layer.piece_of(info, tensor, fit.at(self.job.price(level)))
            if piece is None or share is None:
                return best or piece
            tried[level] = piece.n_bytes
            if best is None or abs(piece.n_bytes - share) < abs(best.n_bytes - share):
                best = piece
            if abs(best.n_bytes / share - 1) < MET:
                break
            level = level_between(tried, share)
        return best

    def _vector(self, name: str, value: Tensor, place: Tensor, limit: float | None = None) -> Tensor:
        """Code a vector that was moved; returns what will come back from the file."""
        job = self.job
        value = value.to(job.weights[name].dtype)
        info = _info(name, value)
        piece = job.encode_vector(info, value, limit or job.vector_limit(name, value, self.aim))
        found = self._settle(info, piece if piece.entry.codec != EXACT else None, place)
        return job.weights[name] if found is None else found

    def _settle(self, info: TensorInfo, piece: Piece | None, place: Tensor) -> Tensor | None:
        """Keep what was encoded, and put what will come back from the file in the squeezed model."""
        if self.budget is not None:
            self.budget.spend(info.name, None if piece is None else piece.n_bytes)
        if piece is None:
            return None
        self.job.final[info.name] = piece
        found = layer.decode(piece.entry, piece.stream)
        place.data = found.to(place)
        return found

    def _normalisation(self, path: str, original: Any, squeezed: Any, calls: list[tuple[Args, Args]]) -> None:
        """Move mean and variance by the difference of what both models give, and code all four vectors.

        Mean and variance may be coarse, for scale and shift, coded after them, make good for what they are off.
        """
        names = {word: self._name(path, word) for word in (*_STATISTICS, *_AFFINE)}
        moved = _moved(names, self.job.weights)
        if not moved:
            return
        mine, its = (_statistics([next(tensors_of(call[at])) for call in calls]) for at in (0, 1))
        mean = original.running_mean.double() + (its[0] - mine[0])
        ratio = (its[1] + original.eps) / (mine[1] + original.eps)
        variance = original.running_var.double() * ratio.clamp(1 / _LARGEST_CHANGE, _LARGEST_CHANGE)
        deviation = (variance + original.eps).sqrt()
        coarse = self.first_aim.level > 0 and moved >= {*_AFFINE}
        scale = original.weight.detach().double() if coarse else None
        found_variance = self._variance(names["running_var"], variance, squeezed.running_var, original.eps, scale)
        limit = _mean_limit(mean, variance + original.eps) if coarse else None
        found_mean = self._vector(names["running_mean"], mean, squeezed.running_mean, limit).double()
        if coarse:
            slope = original.weight.detach().double() / deviation
            scale = slope * (found_variance + original.eps).sqrt()
            found_scale = self._vector(names["weight"], scale, squeezed.weight).double()
            per_deviation = found_scale / (found_variance + original.eps).sqrt()
            shift = original.bias.detach().double() + per_deviation * found_mean - slope * mean
            shift = shift + (slope - per_deviation) * mean
            self._vector(names["bias"], shift, squeezed.bias)

    def _variance(self, name: str, variance: Tensor, place: Tensor, eps: float, scale: Tensor | None) -> Tensor:
        """Code a variance; returns what will come back. Coarse where there is a scale to make good for it, but so that
        each entry that matters keeps its order of magnitude: the model may be trained further some day."""
        least, most = VARIANCE_RATIOS
        limit, dtype = VARIANCE_ERRORS[0], self.job.weights[name].dtype
        while scale is not None and limit > VARIANCE_ERRORS[1]:
            step = limit * float(variance.square().mean().sqrt()) / math.sqrt(MSE_OF_STEP)
            may_rise = scale.square() * (step + eps) / (variance + eps) < QUIET**2 * scale.square().mean()
            lifted = torch.maximum(variance, torch.where(may_rise, step, (most / 2 * variance).clamp(max=step)))
            value = lifted.to(dtype)
            piece = self.job.encode_vector(_info(name, value), value, limit)
            ratio = (layer.decode(piece.entry, piece.stream).double() + eps) / (variance + eps)
            if bool(((ratio > least) & ((ratio < most) | may_rise)).all()):
                break
            limit *= 0.7
        else:
            value = variance.to(dtype)
            piece = self.job.encode_vector(_info(name, value), value, VARIANCE_ERRORS[1], is_variance=True)
        found = self._settle(_info(name, value), piece if piece.entry.codec != EXACT else None, place)
        return self.job.weights[name].double() if found is None else found.double()


def _of_normalisation(name: str) -> tuple[str, dict[str, str]]:
    """The last word of a tensor's name, and the names of a normalisation's vectors beside it, by theirs."""
    at = name.rfind(".") + 1
    return name[at:], {word: name[:at] + word for word in (*_STATISTICS, *_AFFINE)}


def _moved(names: Mapping[str, str], weights: Mapping[str, Tensor]) -> set[str]:
    """Which vectors of a normalisation a rehearsal moves, of those that may be: mean and variance, and scale and shift
    where it is all four."""
    may = {word for word, name in names.items() if name in weights}
    if len(may) < len(names):
        may = {*_STATISTICS} if may >= {*_STATISTICS} else set()
    return may


def level_between(tried: Mapping[float, int], n_bytes: float) -> float:
    """Level at which a weight may take so many bytes, from what it took at others: on a line between the nearest on
    either side, in logarithms; by the power law where all are on one."""
    over = max((level for level, found in tried.items() if found > n_bytes), default=math.inf)
    under = min((level for level, found in tried.items() if found <= n_bytes), default=math.inf)
    if over < under < math.inf:
        part = math.log(tried[over] / n_bytes) / math.log(tried[over] / tried[under])
        return float(over * (under / over) ** min(max(part, 0.1), 0.9))
    nearest = min(tried, key=lambda level: abs(tried[level] - n_bytes))
    return float(nearest * min(max(tried[nearest] / n_bytes, 0.5), 2.0) ** (1 / SIZE_POWER))


def _metric(moment: Moment, weight: NDArray[np.float32]) -> Metric:
    """Costs in squared relative change of the model's output; where that is not known, of the layer's own."""
    columns = moment.columns
    if moment.sensitivity is None or not moment.sensitivity.any():
        energy = moment.output_energy(weight)
        return Metric(moment.rows / (energy if energy > 1e-300 else 1.0), columns, noise=moment.noise)
    columns = of_trace_one(columns)
    if np.ptp(moment.rows) == 0:
        return Metric(moment.sensitivity, _toward_gauss_newton(columns, moment), moment.coupling, moment.noise)
    if moment.coupling is not None:  # of inputs: believed as far as their moments are elsewhere
        return Metric(moment.sensitivity, columns, moment.coupling, doubt=DAMPING)
    return Metric(moment.sensitivity + ROW_DOUBT * moment.sensitivity.mean(), columns)


def _toward_gauss_newton(columns: NDArray[np.float64], moment: Moment) -> NDArray[np.float64]:
    """Matrices of trace 1 brought nearer to what gradients of single samples say, where it is about the same means.

    Of the distance to these, the share that their noise accounts for is not gone (Ledoit and Wolf 2004, with `columns`
    for the target).
    """
    if moment.gauss_newton is None or moment.gauss_newton_noise is None or moment.means is not None:
        return columns
    newton = of_trace_one(moment.gauss_newton)
    change = newton - columns
    scatter = moment.gauss_newton_noise * (np.square(newton).sum((1, 2)) - 1 / newton.shape[1])
    beyond = 1 - scatter / np.maximum(np.square(change).sum((1, 2)), 1e-300)
    reached = np.einsum("gjj->g", newton) > 0
    share = GAUSS_NEWTON * np.where(reached, np.clip(beyond, 0, 1), 0)
    return columns + share[:, None, None] * change


def _output_error(moment: Moment, weight: NDArray[np.floating[Any]], squeezed: NDArray[np.floating[Any]]) -> float:
    energy = moment.output_energy(weight)
    return math.sqrt(max(moment.output_energy(weight - squeezed), 0.0) / energy) if energy > 0 else 0.0


def _highest_price(fit: MetricFit, excess: Any, price: float) -> Factors | None:
    """Factors at nearly the highest price at which `excess` is at most 1; None if none is found."""
    best: tuple[float, Factors] | None = None
    over = math.inf
    for _ in range(12):
        found = fit.at(price)
        error = excess(found)
        if error <= 1:
            if best is None or price > best[0]:
                best = (price, found)
            if error > 0.97 or found.stored is None:
                break
        else:
            over = min(over, price)
        guess = price * min(max(0.985 / max(error, 1e-12), 1e-3), 1e3)
        low = 0.0 if best is None else best[0]
        price = (
            guess
            if low * 1.001 < guess < over * 0.999
            else math.sqrt(low * over)
            if low and over < math.inf
            else price / 4
        )
        if low and over / low < 1.01:
            break
    return None if best is None else best[1]


def _overlap(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Cosine of the angle between two stacks of matrices."""
    return float((one * other).sum() / max(np.linalg.norm(one) * np.linalg.norm(other), 1e-300))


def bias_beside(weight: str) -> str:
    """Name of the bias that is added to what a weight of that name gives; nothing where names do not tell.

    >>> bias_beside("fc.weight"), bias_beside("weight"), bias_beside("attn.in_proj_weight")
    ('fc.bias', 'bias', '')
    """
    path, _, word = weight.rpartition(".")
    return f"{path}.bias".removeprefix(".") if word == "weight" else ""


def _mean_limit(mean: Tensor, variance: Tensor) -> float:
    """Relative error of a coarse running mean."""
    deviation = variance.double().sqrt().norm()
    return min(float(MEAN_SLACK * deviation / mean.double().norm().clamp(min=1e-30)), 1.0)


def _keeps_statistics(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None


def _info(name: str, tensor: Tensor) -> TensorInfo:
    return TensorInfo(name, str(tensor.dtype)[6:], tuple(tensor.shape))


def _statistics(inputs: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel (axis 1)."""
    n, total, square = 0, torch.zeros(()), torch.zeros(())
    for x in inputs:
        channels = x.double().transpose(0, 1).reshape(x.shape[1], -1)
        n, total, square = n + channels.shape[1], total + channels.sum(1), square + channels.square().sum(1)
    mean = total / n
    return mean, (square / n - mean**2).clamp(min=0)
