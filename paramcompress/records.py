"""Nouns that travel between the rooms: frozen, plain, and knowing nothing of files or maths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
"""Number of the JSON layout that the `to_json` here write; raised when a field changes its meaning or goes."""

Progress = Callable[[str, int, int], None]
"""Called as progress(layer name, bytes of input done, bytes of input in all); may come from any thread."""


@dataclass(frozen=True)
class Override:
    """What a pattern sets for the layers it matches; None leaves the choice to the plan."""

    max_rel_error: float | None = None
    """Limit on ||W - W_hat||_F / ||W||_F; 0 means exact."""
    dictionary: str | None = None
    """A name of `dictionaries.NAMES`."""
    rank: int | None = None
    """Atoms of `lowrank`; 0 is legal and means none."""
    density: float | None = None
    """Share of stored weights that may be nonzero, 0 to 1."""
    exact: bool | None = None
    """Keep every bit."""


@dataclass(frozen=True)
class LayerReport:
    """One tensor of a squeezed file, as measured on the decoded file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    codec: str
    """`factored`, `exact`, or `tied` (stored once, under another name)."""
    dictionary: str
    """`none` where there is none."""
    rank: int
    """Atoms in the low-rank part."""
    density: float
    """Nonzero stored weights / weights; 1 for an exact tensor."""
    bits_per_weight: float
    """8 * bytes_after / weights."""
    bytes_before: int
    bytes_after: int
    rel_error: float
    """Frobenius norm of the residual / norm of the weights; 0 is exact."""
    max_abs_error: float | None
    """Largest absolute residual, in the units of the weights; None where nobody measured it."""
    tied_to: str | None = None
    output_error: float | None = None
    """Root mean square error of what the layer gives on the calibration data / root mean square of what it gave; None
    without data, or where nobody measured it."""
    note: str = ""


@dataclass(frozen=True)
class Report:
    """What one run did, or what one file holds."""

    source: str
    """Path of the checkpoint, or of the squeezed file where only that was read."""
    output: str | None
    """Path of the squeezed file; None for a dry run."""
    target: str
    """The one number the run was steered by, in words: `max_rel_error 0.03`."""
    n_weights: int
    """Weights of all tensors, tied ones counted once."""
    bytes_before: int
    """Bytes of all tensors as the checkpoint stores them, tied ones counted once."""
    bytes_after: int
    """Bytes of the squeezed file, everything included."""
    layers: tuple[LayerReport, ...]
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Options as the run used them; enough to run it again."""
    verified: bool = False
    """Whether the figures were measured on the file as it lies on disk."""
    elapsed_s: float = 0.0

    @property
    def bits_per_weight(self) -> float:
        """8 * file bytes / weights, header included."""
        return 8 * self.bytes_after / max(self.n_weights, 1)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values; layout described in docs/json.md."""
        return {"schema": SCHEMA_VERSION, **asdict(self), "bits_per_weight": self.bits_per_weight}


@dataclass(frozen=True)
class Calibration:
    """What one calibration wrote."""

    path: Path
    n_batches: int
    layers: tuple[str, ...]
    """Weights whose inputs were seen."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SweepPoint:
    """What a checkpoint weighs at one limit."""

    max_rel_error: float
    """Limit on the relative error of every matrix without a limit of its own."""
    bytes_after: int
    """Bytes of the squeezed file, everything included."""
    bits_per_weight: float
    """8 * bytes_after / weights."""
    rel_error: float
    """Largest relative error of a layer."""
    layers: tuple[LayerReport, ...]


@dataclass(frozen=True)
class Sweep:
    """Bytes against error: one checkpoint at several limits, from the smallest limit to the largest."""

    source: str
    """Path of the checkpoint."""
    n_weights: int
    """Weights of all tensors, tied ones counted once."""
    bytes_before: int
    """Bytes of all tensors as the checkpoint stores them, tied ones counted once."""
    points: tuple[SweepPoint, ...]
    notes: tuple[str, ...] = ()
    """What was left out of the checkpoint, or read in a special way."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Options as the run used them."""
    elapsed_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The sweep as plain JSON values; layout described in docs/json.md."""
        return {"schema": SCHEMA_VERSION, **asdict(self)}


@dataclass(frozen=True)
class LayerDifference:
    """One tensor in an old and a new file."""

    name: str
    change: str
    """`added`, `removed`, `renamed`, `reshaped`, `retyped`, `changed`, or `same` (bit for bit)."""
    old_name: str | None
    """Where it was renamed."""
    old_shape: tuple[int, ...] | None
    """None where it was added; so for the other old values."""
    new_shape: tuple[int, ...] | None
    """None where it was removed; so for the other new values."""
    old_dtype: str | None
    new_dtype: str | None
    old_bytes: int
    """In the old file; 0 where it is not there, or tied to another."""
    new_bytes: int
    rel_change: float | None
    """||new - old||_F / ||old||_F; None where shapes differ, where one holds NaN or Inf, or where old is all zero."""
    cosine: float | None
    """Of the angle between both, read as vectors; None as above, and where new is all zero."""
    max_abs_change: float | None
    """Largest |new - old|, in the units of the weights."""


@dataclass(frozen=True)
class Difference:
    """What a new file changed, layer by layer, what matters most first."""

    old: str
    new: str
    """Paths."""
    old_bytes: int
    """Of the whole file or folder."""
    new_bytes: int
    layers: tuple[LayerDifference, ...]
    elapsed_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The difference as plain JSON values; layout described in docs/json.md."""
        return {"schema": SCHEMA_VERSION, **asdict(self)}


@dataclass(frozen=True)
class Spectrum:
    """The largest singular values of one decoded matrix."""

    name: str
    values: tuple[float, ...]
    """In falling order, relative to the Frobenius norm: their squares are shares of the energy."""
    n_all: int
    """Singular values that the matrix has."""
    rank: int
    """Atoms in the low-rank part of its code."""


@dataclass(frozen=True)
class Anatomy:
    """What a squeezed file is made of."""

    sections: Mapping[str, int]
    """Bytes by what they hold, largest first; they add up to the file."""
    spectra: tuple[Spectrum, ...]
    """Of the largest matrices."""


@dataclass(frozen=True)
class PricedChoice:
    """What one layer would take with a dictionary, coded in earnest."""

    dictionary: str
    """A name of `dictionaries.NAMES`, or `exact`."""
    rank: int
    bytes: int
    rel_error: float


@dataclass(frozen=True)
class RelaxedLimit:
    """What one layer would take at a larger error."""

    max_rel_error: float
    bytes: int
    dictionary: str


@dataclass(frozen=True)
class Explanation:
    """Why one layer has its size."""

    source: str
    """Path of the squeezed file."""
    layer: LayerReport
    sections: Mapping[str, int]
    """Bytes of its stream by what they hold; none for an exact tensor."""
    priced_on: str
    """`original`, or `decoded` where that was not given; empty where there was nothing to price."""
    choices: tuple[PricedChoice, ...]
    """At the error that the layer has, fewest bytes first."""
    useless: tuple[str, ...]
    """Dictionaries that came to nothing: no direction of the layer pays for its two vectors."""
    relaxed: tuple[RelaxedLimit, ...]
    """At larger errors, each with the best dictionary there."""
    elapsed_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The explanation as plain JSON values; layout described in docs/json.md."""
        return {"schema": SCHEMA_VERSION, **asdict(self)}
