"""Second moments and sensitivities of a model from a few batches of what it is called with. Trains nothing.

Two things are measured in one pass. Hooks see what every weight is multiplied with and sum up its second moments. And
the output is followed back: the gradient of <v, output>, v white noise, has for its mean square at each weight the
squared change of the output for a unit change of that weight, summed over all inputs. So it is known how much the
output heeds each row, with no loss and no label (a stochastic estimate of the diagonal of J^T J; Hutchinson 1989).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from paramcompress.codec import Layout
from paramcompress.errors import CalibrationError
from paramcompress.inputs import Args, is_known, products
from paramcompress.moments import WIDEST, Moment, SecondMoments

N_PROBES = 4
"""Random directions of the output, for each batch."""
_AT_A_TIME = 4096
"""Vectors multiplied in float32 before their sum is added in float64."""
_NOT_NUMBERS = "holds NaN or Inf"


def calibrate(
    model: nn.Module, batches: Iterable[Any], *, widest: int = WIDEST, n_probes: int = N_PROBES, seed: int = 0
) -> SecondMoments:
    """Second moments of the inputs of every weight, and how much the output heeds it.

    Args:
        model: is copied; neither its weights nor its mode or gradients change. Runs in eval mode, where it lies.
        batches: each is what the model is called with: a tensor, a tuple or list of arguments, or a dict of keywords.
        widest: columns of a weight's matrix above which only the diagonal of its second moment is kept.
        n_probes: random directions in which each batch's output is followed back; 0 leaves sensitivities out.

    Raises:
        CalibrationError: no batches, a batch that the model cannot be called with, or numbers that are not finite.

    Cost: one forward and n_probes backward passes; O(n_columns^2) memory for each weight, and that of one batch.
    """
    model = copy.deepcopy(model).eval()
    gathered = _Gathered(model, widest)
    generator = torch.Generator().manual_seed(seed)
    heeded: dict[str, NDArray[np.float64]] = {}
    energy, n_batches, notes = 0.0, 0, []
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    parameters = {name: one for name, one in model.named_parameters() if one.requires_grad}
    with _watched(model, gathered.see):
        for n_batches, batch in enumerate(batches, 1):
            found = run(model, batch, n_batches)
            outputs = list(tensors_of(found))
            if not all(bool(torch.isfinite(one).all()) for one in outputs):
                raise CalibrationError(f"batch {n_batches}: the model's output {_NOT_NUMBERS}")
            outputs = [one for one in outputs if one.requires_grad]
            if not outputs and n_probes:
                n_probes, heeded = 0, {}
                notes.append(
                    "the model's output cannot be differentiated: layers share alike what the output may change"
                )
            energy += sum(float(one.detach().double().square().sum()) for one in outputs)
            for _ in range(n_probes):
                directions = [torch.randn(one.shape, generator=generator).to(one) for one in outputs]
                gradients = torch.autograd.grad(
                    outputs, list(parameters.values()), directions, retain_graph=True, allow_unused=True
                )
                for name, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        squares = gradient.detach().double().square().cpu().numpy()
                        heeded[name] = heeded.get(name, 0.0) + squares
            del found, outputs
    if n_batches == 0:
        raise CalibrationError("there are no batches to calibrate with", hint="an iterator is empty once it was used")
    per_energy = 1 / (n_probes * energy) if n_probes and energy > 0 else 0.0
    sensitivity = {name: squares * per_energy for name, squares in heeded.items()} if per_energy else {}
    if lost := [name for name, squares in sensitivity.items() if not np.isfinite(squares).all()]:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        notes.append(
            f"gradients at {', '.join(lost[:3])}{more} are not finite: what the output heeds is not known there"
        )
        sensitivity = {name: squares for name, squares in sensitivity.items() if name not in lost}
    layers, shapes = gathered.moments(sensitivity)
    vectors = {name: float(squares.mean()) for name, squares in sensitivity.items() if name not in layers}
    vectors.update(_of_statistics(model, sensitivity))
    return SecondMoments(layers, shapes, vectors, n_batches, (*notes, *gathered.notes))


def run(model: nn.Module, batch: Any, number: int) -> Any:
    """What the model gives for a batch.

    Raises:
        CalibrationError: it cannot be called with it; the message names the batch and what the model said.
    """
    args, kwargs = arguments(batch)
    try:
        return model(*args, **kwargs)
    except CalibrationError:
        raise
    except Exception as error:  # whatever a model can raise
        said = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise CalibrationError(
            f"batch {number} ({_describe(batch)}) does not fit the model: {said}",
            hint="each batch is what the model is called with: a tensor, a tuple of arguments or a dict; no labels",
        ) from error


def arguments(batch: Any) -> Args:
    """How a model is called with a batch."""
    if isinstance(batch, Mapping):
        return (), {str(key): value for key, value in batch.items()}
    if isinstance(batch, tuple | list) and not hasattr(batch, "_fields"):
        return tuple(batch), {}
    return (batch,), {}


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


def _describe(batch: Any) -> str:
    """Shape of a batch, in a few words."""
    if isinstance(batch, Tensor):
        return f"tensor {tuple(batch.shape)}"
    if isinstance(batch, tuple | list):
        return f"{type(batch).__name__} of {', '.join(_describe(item) for item in batch[:3])}"
    if isinstance(batch, Mapping):
        return f"dict of {', '.join(map(str, list(batch)[:3]))}"
    return type(batch).__name__


class _Gathered:
    """Sums over all calls of all modules."""

    def __init__(self, model: nn.Module, widest: int) -> None:
        self.widest = widest
        self.names = canonical_names(model)
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.counts: dict[str, int] = {}
        self.rows: dict[str, NDArray[np.float64]] = {}
        self.row_counts: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.notes: list[str] = []

    def see(self, path: str, module: nn.Module, call: Args) -> None:
        with torch.no_grad():
            for weight, inputs, rows in products(module, call):
                name = self.names.get(f"{path}.{weight}" if path else weight)
                if name is None:
                    continue
                shape = tuple(module.get_parameter(weight).shape)
                self.shapes[name] = shape
                given = inputs if inputs is not None else rows
                if given is not None and not bool(torch.isfinite(given).all()):
                    raise CalibrationError(f"what goes into {path or 'the model'!r} {_NOT_NUMBERS}")
                if inputs is not None:
                    self._add(name, inputs)
                elif rows is not None:
                    summed = rows.double().sum(0).cpu().numpy()
                    self.rows[name] = self.rows.get(name, 0.0) + summed
                    self.row_counts[name] = self.row_counts.get(name, 0) + len(rows)

    def _add(self, name: str, inputs: Tensor) -> None:
        n_groups, n, n_columns = inputs.shape
        wide = n_columns > self.widest
        if name not in self.sums:
            if wide:
                self.notes.append(
                    f"{name}: {n_columns} columns, more than {self.widest}: only the diagonal of its moments is kept"
                )
            self.sums[name] = np.zeros((n_groups, n_columns) if wide else (n_groups, n_columns, n_columns))
        self.sums[name] += second_moment(inputs, inputs, diagonal=wide)
        self.counts[name] = self.counts.get(name, 0) + n

    def moments(
        self, sensitivity: Mapping[str, NDArray[np.float64]]
    ) -> tuple[dict[str, Moment], dict[str, tuple[int, ...]]]:
        """Moments of every weight that was reached, and their shapes."""
        layers = {}
        for name, shape in self.shapes.items():
            layout = Layout.of(shape)
            if name in self.sums:
                columns = self.sums[name] / self.counts[name]
                if columns.shape[-1] != layout.n_columns or layout.n_rows % len(columns):
                    self.notes.append(f"{name}: its shape is not read as its module uses it; coded without data")
                    continue
            else:
                columns = np.ones((1, layout.n_columns))
            rows = np.ones(layout.n_rows)
            if name in self.rows and name not in self.sums:
                rows = self.rows[name] / self.row_counts[name]
            heeded = sensitivity.get(name)
            if name in self.rows and name in self.sums:  # an embedding tied to an output: inputs of all kinds count
                identity = np.ones(layout.n_columns)
                mean = (columns if columns.ndim == 2 else np.einsum("gjj->gj", columns)).mean()
                columns = columns + mean * (identity if columns.ndim == 2 else np.diag(identity))
            layers[name] = Moment(columns, rows, None if heeded is None else heeded.reshape(layout.n_rows, -1).sum(1))
        return layers, {name: self.shapes[name] for name in layers}


def second_moment(left: Tensor, right: Tensor, *, diagonal: bool = False) -> NDArray[np.float64]:
    """(n_groups, n_columns, n_columns) sum of left_i right_i^T, or its diagonal; float32 products, float64 sums."""
    total: Any = 0.0
    for a, b in zip(torch.split(left, _AT_A_TIME, 1), torch.split(right, _AT_A_TIME, 1), strict=True):
        a, b = a.float(), b.float()
        total = total + ((a * b).sum(1) if diagonal else a.transpose(1, 2) @ b).double()
    found: NDArray[np.float64] = total.cpu().numpy()
    return found


@contextlib.contextmanager
def _watched(model: nn.Module, see: Callable[[str, nn.Module, Args], None]) -> Iterator[None]:
    """While it lasts, `see(path, module, call)` hears of every call of a module that `products` knows."""

    def hook(path: str) -> Callable[..., None]:
        return lambda module, args, kwargs: see(path, module, (args, kwargs))

    known = [(path, module) for path, module in model.named_modules() if is_known(module)]
    handles = [module.register_forward_pre_hook(hook(path), with_kwargs=True) for path, module in known]
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


def canonical_names(model: nn.Module) -> dict[str, str]:
    """The first name of each parameter by every name that it has."""
    first: dict[int, str] = {}
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found[name] = first.setdefault(id(parameter), name)
    return found


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
