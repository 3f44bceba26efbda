"""A report file of what is already there: a squeezed file, or the JSON of a run. Prints nothing."""

from __future__ import annotations

from pathlib import Path

from paramcompress import anatomy, pipeline, report_files
from paramcompress import report as reports
from paramcompress.errors import OutputError

_SUFFIX = ".squeezed.safetensors"


def default_output(file: Path) -> Path:
    """model.squeezed.safetensors -> model.report.html, beside it."""
    name = file.name.removesuffix(_SUFFIX) if file.name.endswith(_SUFFIX) else file.stem
    return file.parent / f"{name}.report.html"


def make(file: Path, out: Path, *, sweep: Path | None = None, force: bool = False) -> None:
    """Write a report of `file` to `out`, in the format of its suffix.

    Args:
        file: squeezed, or a report in JSON; of the latter no bytes can be taken apart.
        sweep: JSON or CSV of a sweep, for the curve.

    Raises:
        ConfigError, OutputError: nothing could be written there. FormatError, CheckpointError: input that is not such.
    """
    reports.check_destination(out, force=force)
    if any(one is not None and out.exists() and out.samefile(one) for one in (file, sweep)):
        raise OutputError(out, "is what is being read", hint="choose another name")
    curve = report_files.read_sweep(sweep) if sweep is not None else ()
    if file.suffix == ".json":
        reports.write(report_files.read_report(file), out, sweep=curve)
    else:
        found = anatomy.examine(file) if out.suffix == ".html" else None
        reports.write(pipeline.inspect(file), out, found, curve)
