"""What index entries amount to: tensors as the checkpoint had them, lines of a report, progress."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from paramcompress import metrics, plan
from paramcompress.checkpoint import TensorInfo
from paramcompress.checkpoint.records import torch_dtype
from paramcompress.codec import FACTORED
from paramcompress.container import Entry
from paramcompress.layer import FLOATS
from paramcompress.records import LayerReport, Progress
from paramcompress.vectors import VECTOR


def info_of(entry: Entry, dtype: str | None) -> TensorInfo:
    """The tensor of an entry as a checkpoint has it, in another dtype if one is given and it is one of floats."""
    cast = dtype if dtype is not None and entry.dtype in FLOATS else entry.dtype
    return TensorInfo(entry.name, cast, entry.shape, entry.same_as if entry.tied else None)


def n_weights_of(info: TensorInfo) -> int:
    """How many numbers a tensor has."""
    return info.n_bytes // torch_dtype(info.dtype).itemsize


def layer_report(
    entry: Entry,
    n_bytes: int,
    note: str,
    found: metrics.Deviation | None = None,
    output_error: float | None = None,
) -> LayerReport:
    """A line of a report. found, output_error: as measured; without them the errors that the entry states."""
    info = info_of(entry, None)
    return LayerReport(
        name=entry.name,
        shape=entry.shape,
        dtype=entry.dtype,
        codec="tied" if entry.same_as is not None else entry.codec,
        dictionary=entry.dictionary,
        rank=entry.rank,
        density=entry.density,
        bits_per_weight=8 * n_bytes / max(n_weights_of(info), 1),
        bytes_before=0 if entry.tied else info.n_bytes,
        bytes_after=n_bytes,
        rel_error=entry.rel_error if found is None else found.rel_error,
        max_abs_error=found.max_abs_error if found is not None else 0.0 if entry.rel_error == 0 else None,
        output_error=output_error,
        tied_to=entry.same_as,
        note=note,
    )


def notes_of(about: Mapping[str, Any], layers: Iterable[LayerReport], *, moved: bool = False) -> tuple[str, ...]:
    """Notes of the checkpoint, and what a report shall say of vectors; `moved` where they were, to make good."""
    coarse = [
        one for one in layers if one.codec in (FACTORED, VECTOR) and not plan.is_matrix(one.shape) and one.rel_error > 0
    ]
    notes = list(about.get("notes", []))
    if coarse:
        worst = max(one.rel_error for one in coarse)
        how = "with relative errors" if not moved else "and moved to make good for what layers lost, by relative errors"
        vectors = "1 vector is" if len(coarse) == 1 else f"{len(coarse)} vectors are"
        notes.append(f"{vectors} coded too, {how} up to {worst:.3g}")
    return tuple(notes)


def counter(infos: Sequence[TensorInfo], progress: Progress | None) -> Callable[[TensorInfo], None]:
    """Tells progress of one finished tensor after another."""
    total = sum(info.n_bytes for info in infos)
    done = 0

    def tell(info: TensorInfo) -> None:
        nonlocal done
        done += info.n_bytes
        if progress is not None:
            progress(info.name, done, total)

    return tell
