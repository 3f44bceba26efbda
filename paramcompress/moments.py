"""What data say of a model's weights: second moments of what they are multiplied with, and what the output heeds.

Holds and keeps these; `calibrate` measures them. A file of moments is a plain safetensors file.

Shapes: of a weight read as a matrix (`codec.Layout`) of n_rows features and n_columns inputs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paramcompress.checkpoint import TensorInfo, open_checkpoint, write_checkpoint
from paramcompress.codec import Layout
from paramcompress.errors import CalibrationError, OutputError
from paramcompress.scratch import Scratch

VERSION = 1
"""Of the layout of the file."""
LEAST_VARIANCE = 0.02
"""Share of the inputs' energy that has to vary for moments about their means."""
LEAST_GRADIENT = 1e-4
"""Of the largest row's: of smaller gradients it is not said what rows they are like."""
_KEY = "paramcompress_moments"
"""Metadata key of the file: JSON with version, inputs and notes."""
WIDEST = 4608
"""Columns up to which a weight gets its whole matrices, two of 8 * columns**2 bytes; wider ones get the diagonal. So
many have kernels of 3 x 3 over 512 channels, which common nets end with."""
_LARGEST = float(np.finfo(np.float32).max)
_MOST_AXES = 64
LONGEST_RUN = 64
"""Rows whose coupling is kept: the search for points takes time with their number."""
_PARTS = (
    "columns", "rows", "sensitivity", "means", "mean_free", "coupling", "mean_free_coupling", "noise",
    "mean_free_noise", "gauss_newton", "gauss_newton_noise",
)  # fmt: skip
"""Of a moment in the file, by the names and in the order of its fields."""
_AT_A_TIME = 4096
"""Vectors multiplied in float32 before their sum is added in float64."""
_ROUNDING = 1e-3
"""Of the mean diagonal: least eigenvalue that may stand for 0. float32 takes 6e-8 of it for each column."""


@dataclass
class Moment:
    """What is known of one weight."""

    columns: NDArray[np.float64]
    """(n_groups, n_columns, n_columns) E[x x^T] of what each of n_groups equal runs of rows is multiplied with, or
    (n_groups, n_columns), its diagonal."""
    rows: NDArray[np.float64]
    """(n_rows,) how often or how strongly each row is used: 1 where all see all inputs, the frequency of each entry of
    an embedding, the mean square of each input of a transposed convolution."""
    sensitivity: NDArray[np.float64] | None = None
    """(n_rows,) squared change of the model's output, relative to it, for a unit of squared change that is spread
    evenly over the weights of a row, times n_columns; None where it cannot be differentiated."""
    means: NDArray[np.float64] | None = None
    """(n_groups, n_columns) E[x] where what the layer gives goes with a shift of each row, a bias or a normalisation
    right behind it, that can take a change of its mean back; None elsewhere."""
    mean_free: NDArray[np.float64] | None = None
    """(n_rows,) sensitivity to the change that is left once the mean is taken back."""
    coupling: NDArray[np.float64] | None = None
    """(n_runs, run, run) how alike the output heeds the rows of n_runs equal runs: E[g g^T] of its gradients g at the
    weights of each row, or E[s s^T] where each row is scaled by an input s of its own, scaled to ones on the diagonals.
    None where rows are chosen by the input, or not known."""
    mean_free_coupling: NDArray[np.float64] | None = None
    """The same for what is left once the mean is taken back."""
    noise: NDArray[np.float64] | None = None
    """(n_groups,) by how much `columns` would differ had there been other inputs (`Scatter.noise`); None where there
    was one input, and for diagonals."""
    mean_free_noise: NDArray[np.float64] | None = None
    """The same about the means."""
    gauss_newton: NDArray[np.float64] | None = None
    """(n_groups, n_columns, n_columns) E[J^T J] of the gradients J of single samples at the weight, but for a factor
    (`per_sample`): what errors cost that a sample meets at many places. About the means where there are any; None where
    it is not known, and for diagonals."""
    gauss_newton_noise: NDArray[np.float64] | None = None
    """(n_groups,) its noise, as that of `columns`."""

    @property
    def is_diagonal(self) -> bool:
        return self.columns.ndim == 2

    def about_means(self) -> Moment:
        """What errors do once the means of the output are taken back; itself where nothing does that, or where the
        inputs hardly differ from their means, so that what is left would be rounding."""
        if self.means is None or self.mean_free is None:
            return self
        squares = self.means**2 if self.is_diagonal else self.means[:, :, None] * self.means[:, None, :]
        columns = self.columns - squares
        energies, variances = (
            one.sum(1) if self.is_diagonal else np.einsum("gjj->g", one) for one in (self.columns, columns)
        )
        if not (variances > LEAST_VARIANCE * energies).all():
            return self
        return Moment(
            columns,
            self.rows,
            self.mean_free,
            coupling=self.mean_free_coupling,
            noise=self.mean_free_noise,
            gauss_newton=self.gauss_newton,
            gauss_newton_noise=self.gauss_newton_noise,
        )

    def output_energy(self, weight: NDArray[np.floating]) -> float:
        """Sum over rows of rows_i w_i^T E[x x^T] w_i: mean square of what the layer gives, all rows together."""
        grouped = weight.astype(np.float64).reshape(len(self.columns), -1, weight.shape[1])
        if self.is_diagonal:
            energies = np.einsum("gij,gj->gi", grouped**2, self.columns)
        else:
            energies = ((grouped @ self.columns) * grouped).sum(-1)
        return float((self.rows * energies.reshape(-1)).sum())


@dataclass
class SecondMoments:
    """Moments of a model, by the names of its weights."""

    layers: dict[str, Moment]
    shapes: dict[str, tuple[int, ...]]
    """Of the weights in `layers`."""
    vectors: dict[str, float] = field(default_factory=dict)
    """Mean over its entries of the sensitivity of every other tensor of numbers: bias, scale, running statistics."""
    n_batches: int = 0
    """Batches that were seen."""
    notes: tuple[str, ...] = ()
    """What could not be measured as it should."""

    def __contains__(self, name: str) -> bool:
        return name in self.layers

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file of float32 tensors.

        Raises:
            CalibrationError: there is nothing to write. OutputError: it cannot be written.
        """
        if not self.layers:
            raise CalibrationError("the batches reach no weight of a module that is known: there is nothing to keep")
        tensors = dict(self._tensors())
        about = {
            "version": VERSION,
            "n_batches": self.n_batches,
            "notes": self.notes,
            "shapes": self.shapes,
            "vectors": self.vectors,
        }
        infos = [TensorInfo(name, str(tensor.dtype)[6:], tuple(tensor.shape)) for name, tensor in tensors.items()]
        nodes = [item for name in tensors for item in (name, ["t", 0])]
        metadata = ["dict", _KEY, json.dumps(about, sort_keys=True)]
        target = Path(path)
        tree = ["safetensors", metadata, ["dict", *nodes]]
        try:
            with Scratch(target) as scratch:
                write_checkpoint(scratch.path, tree, infos, lambda name: tensors[name])
                scratch.publish()
        except OSError as error:
            raise OutputError(target, f"cannot be written: {error.strerror}") from error

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, moment in self.layers.items():
            yield f"{name}.columns", torch.from_numpy(moment.columns).float().contiguous()
            yield f"{name}.rows", torch.from_numpy(moment.rows).float().contiguous()
            if moment.sensitivity is not None:
                yield f"{name}.sensitivity", torch.from_numpy(moment.sensitivity).float().contiguous()
            if moment.means is not None and moment.mean_free is not None:
                yield f"{name}.means", torch.from_numpy(moment.means).float().contiguous()
                yield f"{name}.mean_free", torch.from_numpy(moment.mean_free).float().contiguous()
            for part in _PARTS[5:]:
                if (value := getattr(moment, part)) is not None:
                    yield f"{name}.{part}", torch.from_numpy(value).float().contiguous()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SecondMoments:
        """Read what `save` wrote.

        Raises:
            CalibrationError: another kind of file, a damaged one, or numbers that are no moments. CheckpointError: it
            cannot be opened.

        Cost: O(n_columns^3) for each matrix; memory is twice the file's.
        """
        with open_checkpoint(Path(path)) as file:
            try:
                about = json.loads(_metadata(file.tree)[_KEY])
                version, loaded = about["version"], _described(about)
                infos = {info.name: info for info in file.tensors}
                wrong = [name for name, shape in loaded.shapes.items() if not _fits(infos, name, Layout.of(shape))]
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
                raise CalibrationError(
                    f"{path}: found no second moments in it", hint="write them with paramcompress calibrate"
                ) from error
            if version != VERSION:
                raise CalibrationError(f"{path}: second moments of version {version}, expected {VERSION}")
            for name in wrong:
                raise CalibrationError(f"{path}: the moments of {name!r} do not fit its shape {loaded.shapes[name]}")
            for name in loaded.shapes:
                parts = [f"{name}.{part}" for part in _PARTS]
                found = [file.load(part).double().numpy() if part in infos else None for part in parts]
                moment = Moment(*found)  # type: ignore[arg-type]
                if not (_are_means_of_squares(moment) and _are_means_of_squares(moment.about_means())):
                    raise CalibrationError(f"{path}: the moments of {name!r} are no means of squares")
                loaded.layers[name] = moment
        return loaded

    def check(self, shapes: Mapping[str, tuple[int, ...]], source: str) -> None:
        """Whether these are moments of a checkpoint with tensors of those names and shapes.

        Raises:
            CalibrationError: they are another model's; the message lists the first weights that differ.
        """
        wrong = [
            f"{name!r} ({'missing' if name not in shapes else f'{shapes[name]} there'}, {shape} in the moments)"
            for name, shape in self.shapes.items()
            if shapes.get(name) != shape
        ]
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise CalibrationError(
                f"second moments of another model than {source}: {', '.join(wrong[:3])}{more}",
                hint="calibrate the model that this checkpoint belongs to",
            )


def _described(about: Any) -> SecondMoments:
    """What the metadata of a file says, no moment read yet. KeyError, TypeError, ValueError and the like for others."""
    version, n_batches, notes = about["version"], about["n_batches"], tuple(about["notes"])
    shapes = {name: tuple(shape) for name, shape in about["shapes"].items()}
    vectors = {name: float(value) for name, value in about["vectors"].items()}
    if not all(type(number) is int and number >= 0 for number in (version, n_batches)):
        raise ValueError("a count is none")
    if not all(len(shape) <= _MOST_AXES and all(_is_size(size) for size in shape) for shape in shapes.values()):
        raise ValueError("a shape is none")
    if not all(0 <= value <= _LARGEST for value in vectors.values()):  # NaN is not, either
        raise ValueError("a sensitivity is no mean of squares")
    if not all(isinstance(note, str) for note in notes):
        raise ValueError("a note is no text")
    return SecondMoments({}, shapes, vectors, n_batches, notes)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _fits(infos: Mapping[str, TensorInfo], name: str, layout: Layout) -> bool:
    """Whether the tensors of a file are moments of such a weight, their numbers aside. KeyError where one is missing.

    Diagonals of several groups are those of wide weights: as matrices they take n_columns times the memory.
    """
    columns, rows = infos[f"{name}.columns"], infos[f"{name}.rows"]
    sensitivity, means, mean_free = (infos.get(f"{name}.{part}") for part in _PARTS[2:5])
    couplings, noises, newtons = (
        [info for part in parts if (info := infos.get(f"{name}.{part}")) is not None]
        for parts in (_PARTS[5:7], (*_PARTS[7:9], _PARTS[10]), _PARTS[9:10])
    )
    n_groups, *sides = columns.shape or (0,)
    return (
        {
            one.dtype
            for one in (columns, rows, sensitivity, means, mean_free, *couplings, *noises, *newtons)
            if one is not None
        }
        == {"float32"}
        and len(sides) in (1, 2)
        and set(sides) == {layout.n_columns}
        and n_groups > 0
        and layout.n_rows % n_groups == 0
        and (n_groups == 1 or len(sides) == 2 or layout.n_columns > WIDEST)
        and all(info is None or info.shape == (layout.n_rows,) for info in (rows, sensitivity, mean_free))
        and (means is None or means.shape == (n_groups, layout.n_columns))
        and (not couplings or (run := longest_run(layout.n_rows, n_groups)) > 1)
        and all(info.shape == (layout.n_rows // run, run, run) for info in couplings)
        and all(info.shape == (n_groups,) and len(sides) == 2 for info in noises)
        and all(info.shape == columns.shape and len(sides) == 2 for info in newtons)
    )


def _are_means_of_squares(moment: Moment) -> bool:
    """Whether the numbers can be what they are said to be: finite, not negative, matrices as those of E[x x^T] are."""
    means = [moment.rows] + ([] if moment.sensitivity is None else [moment.sensitivity])
    noises = [one for one in (moment.noise, moment.gauss_newton_noise) if one is not None]
    return (
        all(bool(((one >= 0) & (one <= 1)).all()) for one in noises)
        and all(_are_couplings(one) for one in (moment.coupling, moment.mean_free_coupling) if one is not None)
        and all(bool(((one >= 0) & (one <= _LARGEST)).all()) for one in means)
        and all(_is_second_moment(one) for one in (moment.columns, moment.gauss_newton) if one is not None)
    )


def _is_second_moment(columns: NDArray[np.float64]) -> bool:
    """Whether matrices (n_groups, n, n), or their diagonals (n_groups, n), can be those of E[x x^T]."""
    is_diagonal = columns.ndim == 2
    diagonal = columns if is_diagonal else np.einsum("gjj->gj", columns)
    if not bool(((diagonal >= 0) & (diagonal <= _LARGEST)).all()):
        return False
    if is_diagonal or columns.size == 0:
        return True
    mean = float(diagonal.mean())
    if mean == 0:
        return not columns.any()
    if not np.isfinite(columns).all() or np.abs(columns - columns.transpose(0, 2, 1)).max() > _ROUNDING * mean:
        return False
    try:
        np.linalg.cholesky(columns / mean + _ROUNDING * np.eye(columns.shape[1]))
    except np.linalg.LinAlgError:
        return False
    return True


def _are_couplings(one: NDArray[np.float64]) -> bool:
    """Whether these are symmetric, positive semidefinite and have ones on their diagonals."""
    if not np.isfinite(one).all() or np.abs(one - one.transpose(0, 2, 1)).max(initial=0) > _ROUNDING:
        return False
    if np.abs(np.einsum("rii->ri", one) - 1).max(initial=0) > _ROUNDING:
        return False
    try:
        np.linalg.cholesky(one + _ROUNDING * np.eye(one.shape[1]))
    except np.linalg.LinAlgError:
        return False
    return True


@dataclass
class Scatter:
    """How moments of parts of the inputs scatter."""

    squares: Any = 0.0
    """(2, n_groups) sums over parts of the square of the moment, and of that about the means."""
    n_parts: int = 0

    def add(self, columns: NDArray[np.float64], means: NDArray[np.float64]) -> None:
        """Add a part: (n_groups, n_columns, n_columns) E[x x^T] and (n_groups, n_columns) E[x]."""
        self.squares = self.squares + np.stack([one for one, _ in _squares_and_traces(columns, means)])
        self.n_parts += 1

    def noise(
        self, columns: NDArray[np.float64], means: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]] | tuple[None, None]:
        """Noise of the moments of all parts, and of those about the means, as shares (n_groups,); None of one part.

        Noise is the expected ||M - E[x x^T]||^2 over ||M - m I||^2, m the mean diagonal of M: the share of m I that
        brings M nearest to the truth (Ledoit and Wolf 2004).
        """
        if self.n_parts < 2:
            return None, None
        first, second = (
            _noise(whole / self.n_parts, square, trace**2 / columns.shape[1], self.n_parts)
            for whole, (square, trace) in zip(self.squares, _squares_and_traces(columns, means), strict=True)
        )
        return first, second


def _squares_and_traces(
    columns: NDArray[np.float64], means: NDArray[np.float64]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """(n_groups,) ||M||^2 and trace of M = E[x x^T], and of M about the means, of which no matrix is made."""
    square, trace = np.einsum("gij,gij->g", columns, columns), np.einsum("gjj->g", columns)
    yield square, trace
    along, energy = ((columns @ means[:, :, None])[:, :, 0] * means).sum(1), (means**2).sum(1)
    yield square - 2 * along + energy**2, trace - energy


def _noise(
    mean_square: NDArray[np.float64], square: NDArray[np.float64], flat: NDArray[np.float64], n_parts: int
) -> NDArray[np.float64]:
    """mean_square: of ||M||^2 over parts; square, flat: ||M||^2 and ||m I||^2 of all of them."""
    scatter = np.maximum(mean_square - square, 0) / (n_parts - 1)
    found: NDArray[np.float64] = np.minimum(scatter / np.maximum(square - flat, 1e-300), 1.0)
    return found


def longest_run(n_rows: int, n_groups: int = 1) -> int:
    """Rows of a run: as many as equal runs within groups may have, LONGEST_RUN at most."""
    n_here = n_rows // n_groups
    return max(run for run in range(1, LONGEST_RUN + 1) if n_here % run == 0)


def second_moment(left: Tensor, right: Tensor, *, diagonal: bool = False) -> NDArray[np.float64]:
    """(n_groups, n_columns, n_columns) sum of left_i right_i^T, or its diagonal; float32 products, float64 sums."""
    total: Any = 0.0
    for a, b in zip(torch.split(left, _AT_A_TIME, 1), torch.split(right, _AT_A_TIME, 1), strict=True):
        a, b = a.float(), b.float()
        total = total + ((a * b).sum(1) if diagonal else a.transpose(1, 2) @ b).double()
    found: NDArray[np.float64] = total.cpu().numpy()
    return found


def of_trace_one(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Matrices or diagonals of groups, each over its trace."""
    trace = columns.sum(1) if columns.ndim == 2 else np.einsum("gjj->g", columns)
    found: NDArray[np.float64] = columns / np.maximum(trace, 1e-300).reshape(-1, *[1] * (columns.ndim - 1))
    return found


def row_products(gradient: NDArray[np.float64], n_groups: int) -> NDArray[np.float64]:
    """(n_runs, run, run) g_i g_j^T of the rows of a gradient (n_rows, n_columns), run by run."""
    run = longest_run(len(gradient), n_groups)
    runs = gradient.reshape(-1, run, gradient.shape[1])
    products: NDArray[np.float64] = runs @ runs.transpose(0, 2, 1)
    return products


def as_coupling(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """`row_products`, summed, scaled to ones on the diagonals; rows without any go alone."""
    root = np.sqrt(np.einsum("rii->ri", products))
    root[root <= LEAST_GRADIENT * root.max(initial=0)] = np.inf
    coupling: NDArray[np.float64] = products / root[:, :, None] / root[:, None, :]
    np.einsum("rii->ri", coupling)[:] = 1
    return coupling


def _metadata(tree: object) -> dict[str, str]:
    """Metadata of a safetensors file, from its tree."""
    if not isinstance(tree, list) or tree[0] != "safetensors":
        raise ValueError("no safetensors file")
    nodes = tree[1][1:]
    return dict(zip(nodes[::2], nodes[1::2], strict=True))
