"""Adam's running mean of squared gradients, found in a training checkpoint, as moments. Measures nothing.

At the end of a training the mean squared gradient of a weight is about the curvature of the loss there (the diagonal of
the empirical Fisher matrix), and it lies in the checkpoint already. It is a poor stand-in: where a net fits its data,
gradients are small and come from a few inputs. So only what it says of the rows and columns of one layer is used,
tempered; layers share as without data. docs/calibration.md has what that is worth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from paramcompress.checkpoint import Checkpoint
from paramcompress.codec import Layout
from paramcompress.errors import CalibrationError
from paramcompress.moments import Moment, SecondMoments
from paramcompress.plan import is_matrix

POWER = 0.5
"""Of the squared gradients, taken for importance."""
LEAST = 1e-3
"""Smallest squared gradient that is told apart, in means."""
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_SQUARES = ("exp_avg_sq", "max_exp_avg_sq")


def moments_of_optimizer(checkpoint: Checkpoint) -> SecondMoments:
    """Moments of every matrix that an Adam in the checkpoint has trained: a diagonal, and sensitivities of the rows.

    Raises:
        CalibrationError: there is no such optimizer, or it is not clear which of its numbers belong to which weight.
    """
    states = [found for value in checkpoint.left_out.values() for found in _states(value)]
    if not states:
        held = "its optimizer keeps no squared gradients" if checkpoint.left_out else "holds no optimizer state"
        raise CalibrationError(
            f"{checkpoint.path or 'the dict'}: {held}",
            hint="importances come from Adam's exp_avg_sq in a training checkpoint",
        )
    squares = _by_name(checkpoint, states[0])
    layers, shapes = {}, {}
    matrices = {name: value for name, value in squares.items() if is_matrix(tuple(value.shape)) and value.numel()}
    whole = sum(math.sqrt(value.numel()) for value in matrices.values())
    for name, value in matrices.items():
        layout = Layout.of(tuple(value.shape))
        square = value.double().reshape(layout.n_rows, layout.n_columns).numpy()
        weight = checkpoint.load(name).double().reshape(square.shape).numpy()
        rows, columns = (_tempered(square.mean(axis)) for axis in (1, 0))
        energy = float((rows[:, None] * columns * weight**2).sum())
        share = math.sqrt(weight.size) / whole / max(energy, 1e-300)
        layers[name] = Moment(columns[None], np.ones(layout.n_rows), rows * float(columns.sum()) * share)
        shapes[name] = tuple(value.shape)
    return SecondMoments(layers, shapes)


def _tempered(squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Importances of rows or columns: a power of their mean squared gradients, bounded from below."""
    mean = max(float(squares.mean()), 1e-300)
    tempered: NDArray[np.float64] = np.maximum(squares / mean, LEAST) ** POWER
    return tempered


def _states(value: Any) -> Iterator[Mapping[str, Any]]:
    """State dicts of optimizers that keep squared gradients, however they are nested."""
    if isinstance(value, Mapping):
        state = value.get("state")
        if isinstance(state, Mapping) and any(_square(one) is not None for one in state.values()):
            yield value
        else:
            for item in value.values():
                yield from _states(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _states(item)


def _square(state: Any) -> Tensor | None:
    found = [state[key] for key in _SQUARES if key in state] if isinstance(state, Mapping) else []
    return found[0] if found and isinstance(found[0], Tensor) else None


def _by_name(checkpoint: Checkpoint, optimizer: Mapping[str, Any]) -> dict[str, Tensor]:
    """Squared gradients by the names of the weights: an optimizer numbers its parameters in the order of the model."""
    groups = optimizer.get("param_groups", [])
    order = [number for group in groups for number in group.get("params", [])] or list(optimizer["state"])
    squares = [_square(optimizer["state"].get(number)) for number in order]
    trained = [one for one in checkpoint.tensors if one.alias_of is None and not one.name.endswith(_BUFFERS)]
    if len(trained) != len(squares) or any(
        square is not None and tuple(square.shape) != info.shape for info, square in zip(trained, squares, strict=True)
    ):
        raise CalibrationError(
            f"{checkpoint.path or 'the dict'}: its optimizer has {len(squares)} parameters, which do not pair off with "
            f"{len(trained)} weights by shape",
            hint="calibrate with --model and --data instead",
        )
    return {
        info.name: square.detach().cpu() for info, square in zip(trained, squares, strict=True) if square is not None
    }
