"""What every dictionary of the paper is to those who predict with it: a pool of atoms to choose a support from.

Two families. A *kernel* has an atom for every input, and k(i, j) says how alike the weights at two inputs are. Any
other dictionary is a list of atoms. Inputs are numbered as torch flattens them: channel, row, column.

Shapes: n inputs of one channel, so that n_in = channels * n; atoms (n, a) in float64, one atom a column.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from paramcompress.errors import PredictionError

Self = TypeVar("Self", bound="Dictionary")
Grid = tuple[int, ...]
UNBOUNDED = 2**62
"""Atoms of a dictionary that never runs out of them."""


class Dictionary(ABC):
    """Atoms that predict the weights of a layer. Knows no layer; `bound` gives the one that fits a layer's inputs."""

    kind: ClassVar[str]
    """Its name in recipes and reports."""
    supports: ClassVar[str] = "uniform"
    """How a support is drawn where nobody says."""
    is_regenerated: ClassVar[bool] = False
    """Whether kind, parameters and seed bring the atoms back, bit for bit, so that they cost no bytes."""
    is_kernel: ClassVar[bool] = False
    """Whether `kernel` has a matrix, and atom i is its column i."""
    is_learned: ClassVar[bool] = False
    """Whether the atoms are trained, too."""
    ridge: float = 0.0
    """The paper's lambda, in units of the kernel's mean diagonal."""

    @abstractmethod
    def bound(self: Self, n_in: int, kernel: Sequence[int] = ()) -> Self:
        """This dictionary for a layer of n_in inputs, those of a convolution being (channels, rows, columns).

        Raises:
            PredictionError: it is one for another number of inputs, or needs what it does not have.
        """

    @property
    def channels(self) -> int:
        """Equal blocks of inputs, between which nothing is predicted."""
        return 1

    @abstractmethod
    def n_atoms(self, n: int) -> int:
        """Atoms there are to choose from, for one channel of n inputs."""

    @abstractmethod
    def atoms(self, n: int, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n, len(chosen)) atoms of those numbers, as they are: neither solved for nor orthonormal."""

    def kernel(self, n: int) -> NDArray[np.float64]:
        """(n, n) kernel matrix of one channel, its mean diagonal 1."""
        raise NotImplementedError(self.kind)

    def sized(self: Self, n_support: int) -> tuple[Self, int]:
        """This dictionary for that many atoms a channel, and how many it will be: some cannot have any number."""
        return self, n_support

    def leading(self, n: int, size: int) -> NDArray[np.int64]:
        """The `size` atoms to take first, in rising order of number."""
        return np.arange(size)

    def parameters(self) -> dict[str, Any]:
        """What a recipe has to say beside the kind, as JSON."""
        return {}

    @property
    def seed_words(self) -> tuple[int, ...]:
        """The dictionary's own part of the seed."""
        return ()


G = TypeVar("G", bound="OnGrid")


class OnGrid(Dictionary):
    """A dictionary over positions: `grid` is (rows, columns) or (rows, columns, channels), or the length of a line."""

    grid: Grid | None
    is_regenerated: ClassVar[bool] = True

    def check_grid(self) -> None:
        grid = self.grid
        if grid is not None and not is_grid(grid):
            raise PredictionError(
                f"{self.kind} dictionary on the grid {grid}",
                hint="a grid is (rows, columns) or (rows, columns, channels)",
            )

    def bound(self: G, n_in: int, kernel: Sequence[int] = ()) -> G:
        if self.grid is None:
            if not kernel:
                raise PredictionError(
                    f"the {self.kind} dictionary needs to know how the {n_in} inputs lie",
                    hint="give it a grid, such as (28, 28), or (8, 8, 64) for 64 channels",
                )
            return replace(self, grid=(*kernel[1:], kernel[0]))  # type: ignore[type-var]
        if math.prod(self.grid) != n_in:
            raise PredictionError(f"a {self.kind} dictionary on the grid {self.grid} for a layer of {n_in} inputs")
        return self

    @property
    def shape(self) -> Grid:
        """Axes of one channel."""
        assert self.grid is not None
        return self.grid[:2]

    @property
    def channels(self) -> int:
        return self.grid[2] if self.grid is not None and len(self.grid) == 3 else 1

    def n_atoms(self, n: int) -> int:
        return n

    def parameters(self) -> dict[str, Any]:
        assert self.grid is not None
        return {"grid": list(self.grid)}


def is_grid(grid: object) -> bool:
    """Whether that is one to three lengths."""
    return isinstance(grid, tuple | list) and 1 <= len(grid) <= 3 and all(is_whole(n, 1) for n in grid)


def is_whole(value: object, least: int, below: int = 2**62) -> bool:
    """Whether that is a whole number from `least` to before `below`, as recipes can hold."""
    return type(value) is int and least <= value < below


def check_seed(kind: str, seed: object) -> None:
    """Raise PredictionError for what is no seed of a dictionary of that kind."""
    if not is_whole(seed, 0):
        raise PredictionError(
            f"{kind} dictionary with seed {seed}", hint="a seed is a whole number from 0 to 2**62 - 1"
        )
