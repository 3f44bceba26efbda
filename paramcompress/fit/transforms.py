"""What is done to the kernels of a layer before they are quantised: nothing, or a change of basis.

A transform Q (K, K) is made of integers, as `codec` writes them, so it is not quite orthonormal; its inverse, not its
transpose, leads to the coordinates.

Shapes: W (n_out, n_in * K), x (n_in * K, n_out) its transpose in the coordinates of Q.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from paramcompress.codec import BASIS_SCALE, COSINE_SCALE, Layout, combine
from paramcompress.dictionaries import mirror
from paramcompress.dictionaries.cosine import cosine_basis
from paramcompress.dictionaries.patch import principal_basis
from paramcompress.jit import compiled_sums

FITTED = ("patch", "mirror")
"""Bases that are fitted to the kernels of a layer; the last is the likeliest to be chosen."""
_KERNELS_EACH = 64
"""Kernels for each of their positions, from which a basis is fitted; more make no better one."""
_TILE_ROWS, _TILE_COLUMNS = 64, 16
"""Rows and columns turned at a time; whole kernels, so that the columns may be more."""


@dataclass(frozen=True)
class Transform:
    """A basis of the kernels."""

    name: str
    basis: NDArray[np.int8] | None = None
    """What has to be written of it, as in `codec.Factors`."""
    matrix: NDArray[np.float64] | None = None
    """Q (K, K) as its integers make it; None for no transform."""

    @classmethod
    def fitted(cls, name: str, weight: NDArray[np.float32], layout: Layout) -> Transform:
        """The transform of that name for the kernels of a layer."""
        if name not in FITTED:
            return _cosine(layout.kernel) if name == "cosine" else NONE
        kernels = weight.reshape(-1, layout.kernel_size)
        some = np.ascontiguousarray(kernels[:: max(1, len(kernels) // (_KERNELS_EACH * layout.kernel_size))])
        numbers = principal_basis(some) if name == "patch" else mirror.mirror_basis(some, layout.kernel)
        basis = np.clip(np.rint(numbers * BASIS_SCALE), -128, 127).astype(np.int8)
        whole = basis if name == "patch" else mirror.expanded(basis, layout.kernel)
        return cls(name, basis, whole / BASIS_SCALE)

    @property
    def n_bytes(self) -> int:
        return 0 if self.basis is None else self.basis.size

    @cached_property
    def gram(self) -> NDArray[np.float64] | None:
        """Q^T Q; None for no transform."""
        return None if self.matrix is None else self.matrix.T @ self.matrix

    @cached_property
    def stretch(self) -> float:
        """Squared error of the weight / squared error of its coordinates, where that is spread evenly."""
        return 1.0 if self.gram is None else float(np.trace(self.gram)) / len(self.gram)

    @cached_property
    def inverse(self) -> NDArray[np.float32]:
        """Of Q; (0, 0) for no transform."""
        return np.zeros((0, 0), np.float32) if self.matrix is None else np.linalg.inv(self.matrix).astype(np.float32)

    def coordinates(self, rest: NDArray[np.float32]) -> NDArray[np.float32]:
        """x (n_columns, n_rows) of `rest` (n_rows, n_columns), whole kernels."""
        x = np.empty(rest.shape[::-1], np.float32)
        turn(rest, self.inverse, x)
        return x


NONE = Transform("none")


@cache
def _cosine(kernel: tuple[int, ...]) -> Transform:
    """Generated, so the same for all layers with such kernels."""
    matrix = cosine_basis(kernel, COSINE_SCALE).double() / COSINE_SCALE ** len(kernel)
    return Transform("cosine", None, matrix.numpy())


@compiled_sums
def turn(rest, inverse, x):
    """x = rest^T, each kernel times the inverse where there is one; by tiles, lest each number be fetched alone."""
    n_rows, n_columns = rest.shape
    period = max(len(inverse), 1)
    width = period * max(1, _TILE_COLUMNS // period)
    tile = np.empty((width, _TILE_ROWS + 16), np.float32)  # 16 more: the columns shall not share cache lines' places
    sums = np.empty(_TILE_ROWS, np.float32)
    for first_row in range(np.uintp(0), np.uintp(n_rows), np.uintp(_TILE_ROWS)):
        n_here = min(np.uintp(_TILE_ROWS), np.uintp(n_rows) - first_row)
        for first in range(np.uintp(0), np.uintp(n_columns), np.uintp(width)):
            n_wide = min(np.uintp(width), np.uintp(n_columns) - first)
            for i in range(n_here):
                for at in range(n_wide):
                    tile[at, i] = rest[first_row + i, first + at]
            for at in range(n_wide):
                if len(inverse) == 0:
                    for i in range(n_here):
                        x[first + at, first_row + i] = tile[at, i]
                    continue
                place = at % np.uintp(period)
                start = at - place
                combine(sums, inverse[place], tile[start : start + np.uintp(period)], n_here)
                for i in range(n_here):
                    x[first + at, first_row + i] = sums[i]
