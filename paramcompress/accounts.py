"""What index entries amount to: tensors as the checkpoint had them, lines of a report, progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paramcompress import metrics, plan
from paramcompress.checkpoint import TensorInfo
from paramcompress.checkpoint.records import torch_dtype
from paramcompress.codec import EXACT, FACTORED
from paramcompress.container import Entry
from paramcompress.layer import FLOATS
from paramcompress.records import LayerReport, Progress
from paramcompress.units import format_size
from paramcompress.vectors import VECTOR

FLAT_SHARE = 0.1
"""Of a file's bytes, from which on exact long vectors are noted."""


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


def notes_of(about: Mapping[str, Any], layers: Sequence[LayerReport], *, moved: bool = False) -> tuple[str, ...]:
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
    notes += _flat_weights(about, layers)
    return tuple(notes)


def _flat_weights(about: Mapping[str, Any], layers: Sequence[LayerReport]) -> list[str]:
    """A note of vectors that stay exact and are a good part of the file, where nobody asked for that."""
    settings = about.get("settings", {})
    if "include" in settings or "exclude" in settings or settings.get("max_rel_error") == 0:
        return []
    long = plan.long_vectors([TensorInfo(one.name, one.dtype, one.shape, one.tied_to) for one in layers])
    flat = sorted((one for one in layers if one.name in long and one.codec == EXACT), key=lambda one: -one.bytes_after)
    n_bytes = sum(one.bytes_after for one in flat)
    if n_bytes <= FLAT_SHARE * sum(one.bytes_after for one in layers):
        return []
    vectors = "1 long vector stays" if len(flat) == 1 else f"{len(flat)} long vectors stay"
    remedy = f"--set '{flat[0].name}:max_rel_error={plan.DEFAULT_MAX_REL_ERROR}'"
    return [f"{vectors} exact, with {format_size(n_bytes)} of the file; where these are weights, kept flat: {remedy}"]


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
