"""Per-sample gradients at a weight, and their second moments. Tensors in, numbers out; knows no model around a module.

A layer that is used at many places of an input (a convolution, a linear layer along a sequence) has errors at all of
them, which may average out behind it, or add up; what it is multiplied with, place by place, knows nothing of that. The
gradient J at the weight of what one input gives is summed over these places: an error E changes that by tr(J E^T), so
that E[J^T J] is the block of the Gauss-Newton matrix of one row, in the sum over rows. (KFAC-reduce, Eschenhagen et al.
2023, heeds the same with mean inputs and summed gradients for J, so that rows and columns come apart.)

Shapes: x (n, ...) what a module is called with, g (n, ...) the gradient at what it gives, n samples along the first
axis (where that is time, a sample is a moment); J (n_groups, n * rows, n_columns), the columns as `codec.Layout` reads
the weight.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import grad as gradients

from paramcompress.inputs import CHUNK, CONVOLUTIONS, padded
from paramcompress.moments import Scatter, of_trace_one, second_moment

MOST_ROWS = 16
"""Rows of each group that are looked at; of more, as many random combinations of all. With 64 the metric of a ResNet-20
would go 0 to 5 % further, for four times the products (docs/calibration.md)."""
_AT_WEIGHT: dict[int, Any] = {1: gradients.conv1d_weight, 2: gradients.conv2d_weight, 3: gradients.conv3d_weight}
"""By the axes of a convolution: gradient at its weight."""


class GaussNewton:
    """E[J^T J] of the gradients J at one weight, up to a factor."""

    def __init__(self) -> None:
        self._total: Any = 0.0
        self._count = 0
        self._scatter = Scatter()
        self._generator = torch.Generator().manual_seed(0)

    def add(self, module: Any, x: Tensor, g: Tensor, means: NDArray[np.float64] | None) -> None:
        """Add samples.

        Args:
            module: a linear layer or a convolution.
            means: (n_groups, n_columns) of what the weight is multiplied with, where something behind the layer takes
                back what happens to the mean of its output: J is then that less these times the gradient at a shift.
        """
        if x.numel() == 0 or not _is_plain(module, x, g):
            return
        x, g = _samples_first(module, x.detach().float(), g.detach().float())
        n_groups, n_columns = getattr(module, "groups", 1), math.prod(module.weight.shape[1:])
        g = self._with_fewer_rows(g, n_groups)
        at_a_time = max(1, CHUNK // max(x[0].numel() + g[0].numel() + g.shape[1] * n_columns, 1))
        for half in zip(*(one.tensor_split(min(len(x), 2)) for one in (x, g)), strict=True):
            parts = zip(*(one.split(at_a_time) for one in half), strict=True)
            self._add(sum(_moment(_about(module, a, b, means)) for a, b in parts), len(half[0]))

    def add_sum(self, gradient: Tensor) -> None:
        """Add (n_groups, rows, n_columns) the sum of the gradients of all samples of a batch: of outputs that are
        followed back in independent directions, so that in the mean its square is the sum of their squares."""
        self._add(_moment(gradient.float()), 1)

    def _add(self, squares: Any, count: int) -> None:
        self._total, self._count = self._total + squares, self._count + count
        self._scatter.add(squares / count, np.zeros(squares.shape[:2]))

    def _with_fewer_rows(self, g: Tensor, n_groups: int) -> Tensor:
        """g with at most MOST_ROWS rows in each group: sums of all with random signs, whose squares have the mean of
        the squares of all."""
        n, n_rows, *places = g.shape
        n_here = n_rows // n_groups
        if n_here <= MOST_ROWS:
            return g
        heads = torch.randint(2, (MOST_ROWS, n_here), generator=self._generator)
        signs = (2 * heads - 1).to(g) / math.sqrt(MOST_ROWS)
        return (signs @ g.reshape(n * n_groups, n_here, -1)).reshape(n, -1, *places)

    def found(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | tuple[None, None]:
        """(n_groups, n_columns, n_columns) with traces of 1, or 0, and (n_groups,) their noise as `Scatter.noise` has
        it; None where too little was added to know that, or what is not finite."""
        if not self._count or not np.isfinite(self._total).all():
            return None, None
        mean = self._total / self._count
        noise, _ = self._scatter.noise(mean, np.zeros(mean.shape[:2]))
        return (None, None) if noise is None else (of_trace_one(mean), noise)


def _is_plain(module: Any, x: Tensor, g: Tensor) -> bool:
    """Whether g can be what comes back to such a module, and not to one that does more than its kind, as padding by
    what it is given."""
    if isinstance(module, CONVOLUTIONS):
        shape = padded(module, x[:1]).shape[-len(module.kernel_size) :]
        axes = zip(shape, module.kernel_size, module.dilation, module.stride, strict=True)
        places = tuple((size - dilation * (kernel - 1) - 1) // stride + 1 for size, kernel, dilation, stride in axes)
        return tuple(g.shape) == (*x.shape[: -len(places) - 1], module.out_channels, *places)
    return tuple(g.shape) == (*x.shape[:-1], module.out_features)


def _samples_first(module: Any, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """x and g with an axis of samples, places behind the channels of g and, for a linear layer, before those of x."""
    if isinstance(module, CONVOLUTIONS):
        return (x, g) if x.dim() == len(module.kernel_size) + 2 else (x[None], g[None])
    n = len(x) if x.dim() > 1 else 1
    return x.reshape(n, -1, x.shape[-1]), g.reshape(n, -1, g.shape[-1]).transpose(1, 2)


def _about(module: Any, x: Tensor, g: Tensor, means: NDArray[np.float64] | None) -> Tensor:
    """`at_weight`, about means where there are any."""
    found = at_weight(module, x, g)
    if means is None:
        return found
    at_shift = g.flatten(2).sum(2).reshape(len(g), len(means), -1).transpose(0, 1).flatten(1)
    return found - at_shift[:, :, None] * torch.from_numpy(means).to(found)[:, None]


def _moment(found: Tensor) -> NDArray[np.float64]:
    """(n_groups, n_columns, n_columns) sum of J^T J."""
    scale = float(found.abs().max()) or 1.0  # squares of gradients of 1e-25 are none in float32
    scaled = found / scale
    return second_moment(scaled, scaled) * scale**2


def at_weight(module: Any, x: Tensor, g: Tensor) -> Tensor:
    """J of n samples, of all rows together (n_groups, n * rows, n_columns); g may have other rows than the module."""
    n = len(x)
    if not isinstance(module, CONVOLUTIONS):
        return torch.bmm(g, x).reshape(1, -1, x.shape[-1])
    x, n_groups = padded(module, x), n * module.groups  # every sample is a group, with filters of its own
    size = n * g.shape[1], x.shape[1] // module.groups, *module.kernel_size
    x, g = x.reshape(1, -1, *x.shape[2:]), g.reshape(1, -1, *g.shape[2:])
    of_axes = _AT_WEIGHT[len(module.kernel_size)]
    found: Tensor = of_axes(x, size, g, stride=module.stride, dilation=module.dilation, groups=n_groups)
    return found.reshape(n, module.groups, -1, math.prod(size[1:])).transpose(0, 1).flatten(1, 2)
