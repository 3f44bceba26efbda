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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paramcompress.checkpoint import TensorInfo, open_checkpoint, write_checkpoint
from paramcompress.codec import Layout
from paramcompress.errors import CalibrationError, OutputError

VERSION = 1
"""Of the layout of the file."""
_KEY = "paramcompress_moments"
"""Metadata key of the file: JSON with version, inputs and notes."""


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

    @property
    def is_diagonal(self) -> bool:
        return self.columns.ndim == 2

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

        Raises OutputError where it cannot be written.
        """
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
        scratch = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            write_checkpoint(scratch, ["safetensors", metadata, ["dict", *nodes]], infos, lambda name: tensors[name])
            scratch.replace(target)
        except OSError as error:
            raise OutputError(target, f"cannot be written: {error.strerror}") from error
        finally:
            scratch.unlink(missing_ok=True)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, moment in self.layers.items():
            yield f"{name}.columns", torch.from_numpy(moment.columns).float().contiguous()
            yield f"{name}.rows", torch.from_numpy(moment.rows).float().contiguous()
            if moment.sensitivity is not None:
                yield f"{name}.sensitivity", torch.from_numpy(moment.sensitivity).float().contiguous()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SecondMoments:
        """Read what `save` wrote.

        Raises:
            CalibrationError: another kind of file, or a damaged one. CheckpointError: it cannot be opened.
        """
        with open_checkpoint(Path(path)) as file:
            try:
                about = json.loads(_metadata(file.tree)[_KEY])
                shapes = {name: tuple(map(int, shape)) for name, shape in about["shapes"].items()}
                found = {info.name: file.load(info.name).double().numpy() for info in file.tensors}
                layers = {
                    name: Moment(found[f"{name}.columns"], found[f"{name}.rows"], found.get(f"{name}.sensitivity"))
                    for name in shapes
                }
                vectors = {name: float(value) for name, value in about["vectors"].items()}
                version, n_batches, notes = about["version"], int(about["n_batches"]), tuple(about["notes"])
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise CalibrationError(
                    f"{path}: found no second moments in it", hint="write them with paramcompress calibrate"
                ) from error
        if version != VERSION:
            raise CalibrationError(f"{path}: second moments of version {version}, expected {VERSION}")
        loaded = cls(layers, shapes, vectors, n_batches, notes)
        for name, moment in layers.items():
            layout = Layout.of(shapes[name])
            if not _fits(moment, layout):
                raise CalibrationError(f"{path}: the moments of {name!r} do not fit its shape {shapes[name]}")
        return loaded

    def check(self, shapes: Mapping[str, tuple[int, ...]], source: str) -> None:
        """Whether these are moments of a checkpoint with tensors of those names and shapes.

        Raises:
            CalibrationError: they are another model's; the message lists the first weights that differ.
        """
        wrong = [
            f"{name} ({'missing' if name not in shapes else f'{shapes[name]} there'}, {shape} in the moments)"
            for name, shape in self.shapes.items()
            if shapes.get(name) != shape
        ]
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise CalibrationError(
                f"second moments of another model than {source}: {', '.join(wrong[:3])}{more}",
                hint="calibrate the model that this checkpoint belongs to",
            )


def _fits(moment: Moment, layout: Layout) -> bool:
    columns = moment.columns
    return (
        columns.ndim in (2, 3)
        and set(columns.shape[1:]) == {layout.n_columns}
        and len(columns) > 0
        and layout.n_rows % len(columns) == 0
        and moment.rows.shape == (layout.n_rows,)
        and (moment.sensitivity is None or moment.sensitivity.shape == (layout.n_rows,))
        and bool(np.isfinite(columns).all())
        and bool((moment.rows >= 0).all())
    )


def _metadata(tree: object) -> dict[str, str]:
    """Metadata of a safetensors file, from its tree."""
    if not isinstance(tree, list) or tree[0] != "safetensors":
        raise ValueError("no safetensors file")
    nodes = tree[1][1:]
    return dict(zip(nodes[::2], nodes[1::2], strict=True))
