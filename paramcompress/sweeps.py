"""Bytes against error: one checkpoint squeezed at several limits. Keeps no squeezed file, and prints nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from paramcompress import config, pipeline
from paramcompress.errors import ConfigError
from paramcompress.pipeline import Source
from paramcompress.records import Progress, Report, Sweep, SweepPoint
from paramcompress.scratch import temporary_folder

LEVELS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2)
"""Limits on the relative error where none are given: from nearly lossless to where networks fail."""


def sweep(
    source: Source,
    *,
    levels: Sequence[float] = LEVELS,
    layers: Mapping[str, Mapping[str, Any]] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    effort: str = "default",
    workers: int = 1,
    device: str = "cpu",
    seed: int = 0,
    progress: Progress | None = None,
) -> Sweep:
    """What a checkpoint would weigh at several limits on the relative error, in all and layer by layer.

    Every point is what `squeeze(…, max_rel_error=level, dry_run=True)` reports, so its size is that of the file that
    squeezing would write. Errors are as measured; a file states them rounded up to three digits.

    Args:
        source: path of a checkpoint file or folder, or a dict of tensors, nested or not.
        levels: limits, each 0 to 1, in any order; 0 is exact. Each costs one squeezing.
        layers, include, exclude, effort, workers, device, seed: as for `squeeze`. A layer with its own limit keeps it.
        progress: called as progress(layer, bytes done, bytes in all), over all limits.

    Raises:
        CheckpointError, ConfigError, BudgetError, EncodeError.
    """
    started = time.monotonic()
    for level in levels:
        config.check({"max_rel_error": level}, where=f"levels: {level}: ")
    ordered = sorted(set(levels))
    if not ordered:
        raise ConfigError("no levels to sweep over", hint="give at least one, such as 0.03")
    reports = []
    with temporary_folder() as folder:
        for number, level in enumerate(ordered):
            reports.append(
                pipeline.squeeze(
                    source,
                    folder / "dry",
                    max_rel_error=level,
                    layers=layers,
                    include=include,
                    exclude=exclude,
                    effort=effort,
                    workers=workers,
                    device=device,
                    seed=seed,
                    dry_run=True,
                    progress=_share(progress, number, len(ordered)),
                )
            )
    first = reports[0]
    return Sweep(
        source=first.source,
        n_weights=first.n_weights,
        bytes_before=first.bytes_before,
        points=tuple(_point(level, report) for level, report in zip(ordered, reports, strict=True)),
        notes=first.notes,
        settings={key: value for key, value in first.settings.items() if key not in ("max_rel_error", "level")},
        elapsed_s=time.monotonic() - started,
    )


def _point(level: float, report: Report) -> SweepPoint:
    return SweepPoint(
        max_rel_error=level,
        bytes_after=report.bytes_after,
        bits_per_weight=report.bits_per_weight,
        rel_error=max((layer.rel_error for layer in report.layers), default=0.0),
        layers=report.layers,
    )


def _share(progress: Progress | None, number: int, n_levels: int) -> Progress | None:
    """Progress of one squeezing as part of `n_levels` of them."""
    if progress is None:
        return None
    return lambda layer, done, total: progress(layer, number * total + done, n_levels * total)
