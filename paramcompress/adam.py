"""Adam's running mean of squared gradients, found in a training checkpoint, as moments. Measures nothing.

At the end of a training the mean squared gradient of a weight is about the curvature of the loss there (the diagonal of
the empirical Fisher matrix), and it lies in the checkpoint already. It is a poor stand-in: where a net fits its data,
gradients are small and come from a few inputs. So only what it says of the rows and columns of one layer is used,
tempered; layers share as without data. docs/calibration.md has what that is worth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
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
_ENERGIES = (1e-200, 1e200)
"""Ends of the weighted sum of squares of a weight that can be divided by."""
_HINT = "calibrate with --model and --data instead"
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
    matrices = {name: value for name, value in squares.items() if is_matrix(tuple(value.shape)) and _is_usable(value)}
    whole = sum(math.sqrt(value.numel()) for value in matrices.values())
    for name, value in matrices.items():
        weight = checkpoint.load(name)
        if not weight.is_floating_point():
            continue
        layout = Layout.of(tuple(value.shape))
        shape = layout.n_rows, layout.n_columns
        rows, columns = (_tempered(value.double().reshape(shape).numpy().mean(axis)) for axis in (1, 0))
        energy = float((torch.from_numpy(rows[:, None] * columns) * weight.double().reshape(shape).square()).sum())
        if not _ENERGIES[0] < energy < _ENERGIES[1]:  # zeros, NaN: such a weight is coded without
            continue
        share = math.sqrt(weight.numel()) / whole / energy
        layers[name] = Moment(columns[None], np.ones(layout.n_rows), rows * float(columns.sum()) * share)
        shapes[name] = tuple(value.shape)
    if not layers:
        raise CalibrationError(
            f"{checkpoint.path or 'the dict'}: its optimizer has numbers, but none of its squared gradients belongs to "
            "a matrix of the model",
            hint=_HINT,
        )
    return SecondMoments(layers, shapes)


def _is_usable(squares: Tensor) -> bool:
    """Whether these can be means of squares: real, finite, none below zero."""
    if squares.numel() == 0 or not squares.is_floating_point():
        return False
    low, high = torch.aminmax(squares.double())
    return float(low) >= 0 and float(high) <= torch.finfo(torch.float32).max


def _tempered(squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Importances of rows or columns: a power of their mean squared gradients, bounded from below."""
    mean = max(float(squares.mean()), 1e-300)
    tempered: NDArray[np.float64] = np.maximum(squares / mean, LEAST) ** POWER
    return tempered


def _states(value: Any) -> Iterator[dict[Any, Any]]:
    """State dicts of optimizers that keep squared gradients, however they are nested.

    All of it comes from a file of a stranger, and an OrderedDict may have an attribute called get: so dict.get.
    """
    if isinstance(value, dict):
        state = dict.get(value, "state")
        if isinstance(state, dict) and any(_square(one) is not None for one in dict.values(state)):
            yield value
        else:
            for item in dict.values(value):
                yield from _states(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _states(item)


def _square(state: Any) -> Tensor | None:
    found = [dict.get(state, key) for key in _SQUARES if key in dict.keys(state)] if isinstance(state, dict) else []
    square = found[0] if found else None
    is_plain = isinstance(square, Tensor) and square.layout == torch.strided and not square.is_quantized
    return square if is_plain else None


def _order(optimizer: dict[Any, Any]) -> list[Any]:
    """Numbers of the parameters in the order of the model; that of the state where no group has any."""
    groups = dict.get(optimizer, "param_groups")
    inside = [dict.get(group, "params") for group in _run(groups) if isinstance(group, dict)]
    return [number for params in inside for number in _run(params)] or list(optimizer["state"])


def _run(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _by_name(checkpoint: Checkpoint, optimizer: dict[Any, Any]) -> dict[str, Tensor]:
    """Squared gradients by the names of the weights: an optimizer numbers its parameters in the order of the model."""
    state = optimizer["state"]
    squares = [_square(dict.get(state, one)) if isinstance(one, int | str) else None for one in _order(optimizer)]
    trained = [one for one in checkpoint.tensors if one.alias_of is None and not one.name.endswith(_BUFFERS)]
    if len(trained) != len(squares) or any(
        square is not None and tuple(square.shape) != info.shape for info, square in zip(trained, squares, strict=True)
    ):
        raise CalibrationError(
            f"{checkpoint.path or 'the dict'}: its optimizer has {len(squares)} parameters, which do not pair off with "
            f"{len(trained)} weights by shape",
            hint=_HINT,
        )
    return {
        info.name: square.detach().cpu() for info, square in zip(trained, squares, strict=True) if square is not None
    }
