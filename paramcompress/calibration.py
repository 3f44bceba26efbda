"""Second moments and sensitivities of a model from a few batches of what it is called with. Trains nothing.

Three things are measured in one pass. Hooks see what every weight is multiplied with and sum up its second moments. The
output is followed back: the gradient of <v, output>, v white noise, has for its mean square at each weight the
squared change of the output for a unit change of that weight, summed over all inputs. So it is known how much the
output heeds each row, with no loss and no label (a stochastic estimate of the diagonal of J^T J; Hutchinson 1989). And
what comes back to a layer is taken apart into its samples, for the columns: `per_sample`.

Where a bias or a normalisation behind a layer can take back what an error does to the mean of its output, what is left
is measured beside it: the gradient at a weight about the mean input is that at the weight, less mean times that at a
shift of the output.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from paramcompress.calls import Args, called, is_out_of_memory, noise_of
from paramcompress.codec import Layout
from paramcompress.errors import CalibrationError
from paramcompress.inputs import SHIFTED, UnknownCallError, is_known, products, weights_of
from paramcompress.modules import canonical_names, copied
from paramcompress.moments import (
    WIDEST,
    Moment,
    Scatter,
    SecondMoments,
    as_coupling,
    longest_run,
    row_products,
    second_moment,
)
from paramcompress.per_sample import GaussNewton

N_PROBES = 4
"""Random directions of the output, for each batch."""
_NOT_NUMBERS = "holds NaN or Inf"
_NOT_READ = "{}: its shape is not read as its module uses it; coded without data"


def calibrate(
    model: nn.Module, batches: Iterable[Any], *, widest: int = WIDEST, n_probes: int = N_PROBES, seed: int = 0,
    known: Collection[str] = (),
) -> SecondMoments:  # fmt: skip
    """Second moments of the inputs of every weight, and how much the output heeds it.

    Args:
        model: is copied; neither its weights nor its mode or gradients change. Runs in eval mode, where it lies.
        batches: each is what the model is called with: a tensor, a tuple or list of arguments, or a dict of keywords.
        widest: columns of a weight's matrix above which only the diagonal of its second moment is kept.
        n_probes: random directions in which each batch's output is followed back; 0 leaves sensitivities out.
        known: names of a checkpoint: of the names that a weight has, it gets that which comes first among these.

    Raises:
        CalibrationError: no batches, a batch that the model cannot be called with, numbers that are not finite, or a
            model that cannot be copied.

    Cost: one forward and n_probes backward passes; O(n_columns^2) memory for each weight, and that of one batch.
    """
    later = iter(batches)
    first = list(itertools.islice(later, 1))
    with torch.inference_mode(False), torch.enable_grad():
        try:
            return _calibrated(copied(model).eval(), itertools.chain(first, later), widest, n_probes, seed, known)
        except _OverwrittenError:
            how = torch.autograd.graph.allow_mutation_on_saved_tensors()  # takes copies, and a tenth of the time more
            later, spare = itertools.tee(later)
            with contextlib.suppress(CalibrationError), how:  # not every tensor can be copied so
                return _calibrated(
                    copied(model).eval(), itertools.chain(first, later), widest, n_probes, seed, known, again=True
                )
            return _calibrated(
                copied(model).eval(), itertools.chain(first, spare), widest, n_probes, seed, known, again=True
            )


class _OverwrittenError(Exception):
    """The first batch cannot be followed back as it is: something that it takes was changed in place since."""


def _calibrated(
    model: nn.Module, batches: Iterable[Any], widest: int, n_probes: int, seed: int, known: Collection[str],
    *, again: bool = False,
) -> SecondMoments:  # fmt: skip
    """`calibrate` for a model that may be changed.

    Raises _OverwrittenError, unless `again`.
    """
    gathered = _Gathered(model, widest, known)
    generator = torch.Generator().manual_seed(seed)
    heeded: dict[str, NDArray[np.float64]] = {}
    mean_free: dict[str, NDArray[np.float64]] = {}
    energy, n_batches, notes, is_blind = 0.0, 0, [], False
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    parameters = {gathered.names[name]: one for name, one in model.named_parameters() if one.requires_grad}
    with _watched(model, gathered):
        for n_batches, batch in enumerate(batches, 1):
            gathered.new_batch()
            with noise_of(n_batches):
                found = run(model, batch, n_batches)
            outputs = list(tensors_of(found))
            if not all(bool(torch.isfinite(one).all()) for one in outputs):
                raise CalibrationError(f"batch {n_batches}: the model's output {_NOT_NUMBERS}")
            followed = [one for one in outputs if one.requires_grad]
            is_blind = is_blind or bool(outputs and not followed)
            energy += sum(float(one.detach().double().square().sum()) for one in followed)
            for _ in range(n_probes if followed and not is_blind else 0):
                directions = [torch.randn(one.shape, generator=generator).to(one) for one in followed]
                try:
                    found_at = _gradients(followed, parameters, directions)
                except RuntimeError as error:
                    if gathered.failed is not None or is_out_of_memory(error):
                        raise
                    if n_batches == 1 and not again:
                        raise _OverwrittenError from error
                    is_blind = True
                    break
                for name, gradient in found_at.items():
                    heeded[name] = heeded.get(name, 0.0) + gradient**2
                    gathered.follow_columns(name, gradient)
                    if name in gathered.sums and name not in gathered.rows:
                        gathered.follow(name, gradient, gathered.row_products)
                for name, gradient in gathered.about_means(found_at):
                    mean_free[name] = mean_free.get(name, 0.0) + (gradient**2).sum(1)
                    gathered.follow(name, gradient, gathered.mean_free_products)
            del found, outputs, followed
    if n_batches == 0:
        raise CalibrationError("there are no batches to calibrate with", hint="an iterator is empty once it was used")
    if is_blind and n_probes:
        n_probes, heeded, mean_free = 0, {}, {}
        notes.append("the model's output cannot be differentiated: layers share alike what the output may change")
    per_energy = 1 / (n_probes * energy) if n_probes and energy > 0 else 0.0
    sensitivity = {name: squares * per_energy for name, squares in heeded.items()} if per_energy else {}
    if lost := [name for name, squares in sensitivity.items() if not np.isfinite(squares).all()]:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        notes.append(
            f"gradients at {', '.join(lost[:3])}{more} are not finite: what the output heeds is not known there"
        )
        sensitivity = {name: squares for name, squares in sensitivity.items() if name not in lost}
    mean_free = {name: rows * per_energy for name, rows in mean_free.items() if name in sensitivity}
    layers, shapes = gathered.moments(sensitivity, mean_free)
    vectors = {name: float(squares.mean()) for name, squares in sensitivity.items() if name not in layers}
    vectors.update(_of_statistics(model, sensitivity))
    return SecondMoments(layers, shapes, vectors, n_batches, (*notes, *gathered.notes))


def _gradients(
    outputs: list[Tensor], parameters: Mapping[str, Tensor], directions: list[Tensor]
) -> dict[str, NDArray[np.float64]]:
    """Gradients of <directions, outputs> at the parameters that these depend on."""
    found = torch.autograd.grad(outputs, [*parameters.values()], directions, retain_graph=True, allow_unused=True)
    return {
        name: (one if one.layout == torch.strided else one.to_dense()).detach().double().cpu().numpy()
        for name, one in zip(parameters, found, strict=True)
        if one is not None
    }


def run(model: nn.Module, batch: Any, number: int) -> Any:
    """What the model gives for a batch; CalibrationError where it cannot be called with it."""
    return called(model, batch, number, CalibrationError)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Tensors of real numbers in what a model gives, however they are nested."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.numel():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_of(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_of(item)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from tensors_of(getattr(value, name))


class Shift(NamedTuple):
    """A parameter that shifts what a layer gives."""

    name: str
    slope: NDArray[np.float64]
    """(n_rows,) or (1,): shift of the parameter for a unit shift of what the layer gives."""


class _Gathered:
    """Sums over all calls of all modules."""

    def __init__(self, model: nn.Module, widest: int, known: Collection[str]) -> None:
        self.widest = widest
        self.names = canonical_names(model, known)
        self.left_out: set[str] = set()
        """Weights of modules that are called as their kind is not."""
        self.totals: dict[str, NDArray[np.float64]] = {}
        self.shifts: dict[str, Shift] = {}
        self.called: set[str] = set()
        self.repeated: set[str] = set()
        self.last: tuple[str, Any] | None = None
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.counts: dict[str, int] = {}
        self.scatter: dict[str, Scatter] = {}
        self.rows: dict[str, NDArray[np.float64]] = {}
        self.row_counts: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.row_products: dict[str, NDArray[np.float64]] = {}
        self.mean_free_products: dict[str, NDArray[np.float64]] = {}
        self.scale_products: dict[str, NDArray[np.float64]] = {}
        self.gauss_newton: dict[str, GaussNewton] = {}
        self.waiting: set[str] = set()
        self.by_sample: set[str] = set()
        self.notes: list[str] = []
        self.failed: Exception | None = None
        """An error of our own while torch followed an output back."""

    def see(self, path: str, module: nn.Module, call: Args) -> None:
        """A module is about to be called."""
        names = {self._of(path, weight) for weight in weights_of(module)}
        try:
            self._see(path, module, call)
        except UnknownCallError:
            if not names <= self.left_out:
                self.notes.append(f"{path or 'the model'} is called as {_kind_of(module)} is not: coded without data")
            self.left_out |= names

    def _see(self, path: str, module: nn.Module, call: Args) -> None:
        device = next((one.device.type for one in module.parameters()), "cpu")
        with torch.no_grad(), torch.autocast(device, enabled=False):
            for weight, inputs, rows, scales in products(module, call):
                name = self.names.get(f"{path}.{weight}" if path else weight)
                if name is None or name in self.left_out:
                    continue
                if not next(one for one in (inputs, rows, scales) if one is not None).numel():
                    continue
                self.shapes[name] = tuple(module.get_parameter(weight).shape)
                if inputs is not None:
                    self._add(path, name, _as_read(inputs, self.shapes[name]))
                elif (given := rows if scales is None else scales.double().square()) is not None:
                    self.rows[name] = self.rows.get(name, 0.0) + _total(path, given, 0)
                    self.row_counts[name] = self.row_counts.get(name, 0) + len(given)
                if scales is not None:
                    self.scale_products[name] = self.scale_products.get(name, 0.0) + _products_in_runs(scales)

    def _add(self, path: str, name: str, inputs: Tensor) -> None:
        n_groups, n, n_columns = inputs.shape
        if n == 0:
            return
        wide = n_columns > self.widest
        if name not in self.sums:
            if wide:
                self.notes.append(
                    f"{name}: {n_columns} columns, more than {self.widest}: only the diagonal of its moments is kept"
                )
            self.sums[name] = np.zeros((n_groups, n_columns) if wide else (n_groups, n_columns, n_columns))
        for part in inputs.tensor_split(min(n, 2), 1):
            total, count = _total(path, part, 1), part.shape[1]
            products = second_moment(part, part, diagonal=wide)
            self.sums[name] += products
            self.totals[name] = self.totals.get(name, 0.0) + total
            self.counts[name] = self.counts.get(name, 0) + count
            if not wide:
                self.scatter.setdefault(name, Scatter()).add(products / count, total / count)

    def _has_matrix(self, name: str) -> bool:
        is_matrix = name in self.sums and self.sums[name].ndim == 3 and not _is_stack(self.shapes[name])
        return is_matrix and name not in self.rows and name not in self.left_out

    def follow_columns(self, name: str, gradient: NDArray[np.float64]) -> None:
        """Add the gradient of all samples of a batch together, for weights that `came_back` says nothing of: those of
        modules that keep to themselves what a weight gives, or are called more than once."""
        if not self._has_matrix(name) or name in self.by_sample or (name in self.shifts and name not in self.repeated):
            return
        n_groups, n_columns, _ = self.sums[name].shape
        if gradient.size % (n_groups * n_columns) == 0:
            rows = torch.from_numpy(gradient.reshape(n_groups, -1, n_columns))
            self.gauss_newton.setdefault(name, GaussNewton()).add_sum(rows)

    def follow(self, name: str, gradient: NDArray[np.float64], into: dict[str, NDArray[np.float64]]) -> None:
        """Add how alike the rows of a gradient are."""
        rows, n_groups = gradient.reshape(Layout.of(self.shapes[name]).n_rows, -1), len(self.sums[name])
        if len(rows) % n_groups == 0:
            into[name] = into.get(name, 0.0) + row_products(rows, n_groups)

    # ------------------------------------------------------------------------------------ means that come back

    def new_batch(self) -> None:
        self.called.clear()
        self.last = None  # it holds what is needed to follow the last batch back

    def gave(self, path: str, module: nn.Module, call: Args, output: Any) -> None:
        """A module has been called: its own bias may shift what it gives, or what comes next."""
        name = self._of(path, "weight")
        if isinstance(output, Tensor) and output.requires_grad and self._has_matrix(name):
            x = next(iter((*call[0], *call[1].values())))
            self.waiting.add(name)
            output.register_hook(partial(self.came_back, name, module, x))  # type: ignore[no-untyped-call]
        if name in self.called and name not in self.repeated:
            self.repeated.add(name)
            self.by_sample.discard(name)
            self.gauss_newton.pop(name, None)  # of batches in which it was called but once
        self.called.add(name)
        self.last = name, output
        if getattr(module, "bias", None) is not None:
            self.shifts[name] = Shift(self._of(path, "bias"), np.ones(1))

    def came_back(self, name: str, module: nn.Module, x: Tensor, gradient: Tensor) -> None:
        """The gradient at what a module gave for x: the first one of each batch is followed sample by sample."""
        if name not in self.waiting or name in self.repeated:
            return
        self.waiting.discard(name)
        self.by_sample.add(name)
        means = self.totals[name] / self.counts[name] if name in self.shifts else None
        try:
            self.gauss_newton.setdefault(name, GaussNewton()).add(module, x, gradient, means)
        except Exception as error:
            self.failed = error
            raise

    def normalises(self, path: str, module: Any, given: Any) -> None:
        """A normalisation is called: where it is with what the last module gave, it shifts that."""
        if self.last is not None and self.last[1] is given and module.running_var is not None and module.affine:
            deviation = (module.running_var.double() + module.eps).sqrt()
            slope = (module.weight.detach().double() / deviation).cpu().numpy()
            self.shifts[self.last[0]] = Shift(self._of(path, "bias"), slope)
        self.last = None

    def _of(self, path: str, word: str) -> str:
        name = f"{path}.{word}" if path else word
        return self.names.get(name, name)

    def about_means(self, gradients: Mapping[str, NDArray[np.float64]]) -> Iterator[tuple[str, NDArray[np.float64]]]:
        """(n_rows, n_columns) gradients at weights once the means of what they give are taken back.

        A weight that is used twice in a run, or with inputs of two kinds, has no one mean, and is left out.
        """
        for name, shift in self.shifts.items():
            is_known = {name, shift.name} <= gradients.keys() and name in self.totals and name not in self.left_out
            if not is_known or name in self.repeated or name in self.rows or _is_stack(self.shapes[name]):
                continue
            means = self.totals[name] / self.counts[name]
            layout = Layout.of(self.shapes[name])
            if means.shape[1] != layout.n_columns or layout.n_rows % len(means):
                continue
            at_shift = (gradients[shift.name] * shift.slope).reshape(len(means), -1, 1)
            grouped = gradients[name].reshape(*at_shift.shape[:2], layout.n_columns)
            yield name, (grouped - at_shift * means[:, None]).reshape(layout.n_rows, layout.n_columns)

    def moments(
        self, sensitivity: Mapping[str, NDArray[np.float64]], mean_free: Mapping[str, NDArray[np.float64]]
    ) -> tuple[dict[str, Moment], dict[str, tuple[int, ...]]]:
        """Moments of every weight that was reached, and their shapes."""
        layers = {}
        for name, shape in self.shapes.items():
            if name in self.left_out:
                continue
            layout = Layout.of(shape)
            if name in self.sums:
                columns = self.sums[name] / self.counts[name]
                if columns.shape[-1] != layout.n_columns or layout.n_rows % len(columns):
                    self.notes.append(_NOT_READ.format(name))
                    continue
            else:
                columns = np.ones((1, layout.n_columns))
            rows = np.ones(layout.n_rows)
            if name in self.rows and name not in self.sums:
                rows = self.rows[name] / self.row_counts[name]
                if len(rows) != layout.n_rows:
                    self.notes.append(_NOT_READ.format(name))
                    continue
            heeded = sensitivity.get(name)
            if name in self.rows and name in self.sums:  # an embedding tied to an output: inputs of all kinds count
                identity = np.ones(layout.n_columns)
                mean = (columns if columns.ndim == 2 else np.einsum("gjj->gj", columns)).mean()
                columns = columns + mean * (identity if columns.ndim == 2 else np.diag(identity))
            layers[name] = Moment(columns, rows, None if heeded is None else heeded.reshape(layout.n_rows, -1).sum(1))
            if name not in self.rows and heeded is not None and longest_run(layout.n_rows, len(columns)) > 1:
                layers[name].coupling = as_coupling(self.row_products[name])
            if name in self.scatter and name not in self.rows:
                means = self.totals[name] / self.counts[name]
                layers[name].noise, layers[name].mean_free_noise = self.scatter[name].noise(columns, means)
            if name in self.scale_products and name not in self.sums and longest_run(layout.n_rows) > 1:
                layers[name].coupling = as_coupling(self.scale_products[name])
            if name in mean_free and name not in self.repeated and name not in self.rows:
                layers[name].means, layers[name].mean_free = self.totals[name] / self.counts[name], mean_free[name]
                if layers[name].coupling is not None:
                    layers[name].mean_free_coupling = as_coupling(self.mean_free_products[name])
            if name in self.gauss_newton:
                layers[name].gauss_newton, layers[name].gauss_newton_noise = self.gauss_newton[name].found()
        return layers, {name: self.shapes[name] for name in layers}


def _is_stack(shape: tuple[int, ...]) -> bool:
    """Whether the weight of a long convolution is read with a row for each pair of channels."""
    return len(shape) == 3 and Layout.of(shape).n_rows == shape[0] * shape[1] > shape[0]


def _as_read(inputs: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Inputs as the rows of a weight are read to see them: channel by channel where a row has but one."""
    is_by_channel = _is_stack(shape) and inputs.shape[-1] == shape[1] * shape[2]
    return inputs.reshape(1, -1, shape[2]) if is_by_channel else inputs


def _kind_of(module: nn.Module) -> str:
    """torch's own class that a module is of."""
    return next(kind.__name__ for kind in type(module).__mro__ if kind.__module__.startswith("torch."))


def _total(path: str, given: Tensor, axis: int) -> NDArray[np.float64]:
    """Sum of what goes into a module; CalibrationError for NaN or Inf, which stay in it wherever they are."""
    total: NDArray[np.float64] = given.sum(axis, dtype=torch.float64).cpu().numpy()
    if not np.isfinite(total).all():
        raise CalibrationError(f"what goes into {path or 'the model'!r} {_NOT_NUMBERS}")
    return total


def _products_in_runs(scales: Tensor) -> NDArray[np.float64]:
    """(n_runs, run, run) sum of s_i s_j over what rows are scaled with, run by run."""
    run = longest_run(scales.shape[1])
    runs = scales.reshape(len(scales), -1, run).permute(1, 0, 2)
    return second_moment(runs, runs)


@contextlib.contextmanager
def _watched(model: nn.Module, gathered: _Gathered) -> Iterator[None]:
    """While it lasts, `gathered` hears of every call of a module that `products` knows, and of normalisations."""

    def see(path: str) -> Callable[..., None]:
        return lambda module, args, kwargs: gathered.see(path, module, (args, kwargs))

    def gave(path: str) -> Callable[..., None]:
        return lambda module, args, kwargs, output: gathered.gave(path, module, (args, kwargs), output)

    def normalises(path: str) -> Callable[..., None]:
        return lambda module, args: gathered.normalises(path, module, args[0] if args else None)

    handles = []
    for path, module in model.named_modules():
        if is_known(module):
            handles.append(module.register_forward_pre_hook(see(path), with_kwargs=True))
        if isinstance(module, SHIFTED):
            handles.append(module.register_forward_hook(gave(path), with_kwargs=True))
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            handles.append(module.register_forward_pre_hook(normalises(path)))
    try:
        with every_module_called():
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def every_module_called() -> Iterator[None]:
    """While it lasts, torch's own transformer layers call their modules; their fast path goes past them."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _of_statistics(model: nn.Module, sensitivity: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    """Sensitivity of running means and variances, from those of scale and shift behind them.

    y = scale (x - mean) / sqrt(variance + eps) + shift: mean acts like shift times -scale / sqrt(variance + eps), and
    variance like scale times -scale / (2 (variance + eps)).
    """
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None and module.affine:
            prefix = f"{path}." if path else ""
            scale = module.weight.detach().double().cpu().numpy()
            assert module.running_var is not None
            variance = module.running_var.double().cpu().numpy() + module.eps
            if f"{prefix}bias" in sensitivity:
                found[f"{prefix}running_mean"] = float((sensitivity[f"{prefix}bias"] * scale**2 / variance).mean())
            if f"{prefix}weight" in sensitivity:
                found[f"{prefix}running_var"] = float(
                    (sensitivity[f"{prefix}weight"] * scale**2 / (4 * variance**2)).mean()
                )
    return found
