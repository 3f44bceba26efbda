"""Reports and sweeps as terminal tables, Markdown, CSV and JSON; knows no maths and opens no checkpoint."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.text import Text

from . import pages
from .errors import ConfigError, OutputError
from .pages import CurvePoint
from .records import Anatomy, LayerReport, Report, Sweep
from .scratch import Scratch, why_not
from .tables import Column, code_span, format_error, format_shape, laid_out, printable, rule
from .units import format_size, sizes

SCREENFUL = 24
"""Tensors up to which each has its own line; beyond, vectors and small exact tensors share one."""
SMALL_BYTES = 4096
"""An exact tensor up to this size is a small one."""
NOTES_SHOWN = 5
"""Notes of single layers shown unless all are asked for."""


def render(report: Report, *, width: int, verbose: bool = False, ascii_only: bool = False) -> list[Text]:
    """Everything a person is told about a run: table, totals, target, notes, file.

    Args:
        width: terminal cells; no line of the table is wider, other lines may be wrapped.
        verbose: give every tensor its line, and show every note.
        ascii_only: draw with nothing that an old terminal lacks.
    """
    shown, grouped = (report.layers, ()) if verbose else _split(report.layers)
    lines = table(shown, width=width, ascii_only=ascii_only) if shown else []
    if grouped:
        lines.append(Text(_grouped_line(grouped), style="dim"))
    lines += [Text(_totals(report), style="bold"), Text(_exactly(report)), Text(f"target: {printable(report.target)}")]
    lines += [Text(f"note: {printable(note)}", style="yellow") for note in _notes(report, verbose)]
    return [*lines, Text(f"file: {printable(report.output)}")] if report.output else lines


def table(layers: Sequence[LayerReport], *, width: int, ascii_only: bool = False) -> list[Text]:
    """One line per layer in at most `width` cells; names give way first, then shape, density and original size."""
    return laid_out([layer.name for layer in layers], _columns(layers), width, ascii_only=ascii_only)


def render_sweep(sweep: Sweep, *, width: int, verbose: bool = False, ascii_only: bool = False) -> list[Text]:
    """Bytes against error for the terminal: one line for each limit; with `verbose`, the bytes of every layer below.

    Args:
        width, ascii_only: as for `render`.
    """
    columns = [column.padded() for column in _sweep_columns(sweep)]
    head, *lines = ("  ".join(row).rstrip() for row in zip(*columns, strict=True))
    shown = [Text(head, style="bold"), rule((head, *lines), ascii_only=ascii_only), *map(Text, lines)]
    if verbose and sweep.points[0].layers:
        layers = [
            Column(
                f"{point.max_rel_error:g}", [format_size(layer.bytes_after) for layer in point.layers], gives_way=place
            )
            for place, point in zip(_from_the_middle(len(sweep.points)), sweep.points, strict=True)
        ]
        names = [layer.name for layer in sweep.points[0].layers]
        shown += [Text(), *laid_out(names, layers, width, ascii_only=ascii_only)]
    before = f"{format_size(sweep.bytes_before)} in {sweep.n_weights:,} weights; errors are of the worst layer"
    return [*shown, Text(before), *(Text(f"note: {printable(note)}", style="yellow") for note in sweep.notes)]


def to_json(report: Report | Sweep) -> str:
    """The report as JSON text, the same for `--json` and for files."""
    return json.dumps(report.to_json(), indent=2, allow_nan=False)


def to_markdown(report: Report) -> str:
    """The report as GitHub-flavoured Markdown, with every tensor."""
    columns = _columns(report.layers)
    names = [code_span(layer.name) for layer in report.layers]
    rows = [
        ("layer", *(column.header for column in columns)),
        (":--", *("--:" if column.align == ">" else ":--" for column in columns)),
        *zip(names, *(column.cells for column in columns), strict=True),
    ]
    return "\n".join(
        [
            f"## {code_span(report.output or report.source)}",
            "",
            f"**{_totals(report)}** ({_exactly(report)})",
            "",
            f"Target: {code_span(report.target)}",
            "",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
            *(f"- {printable(note)}" for note in _notes(report, verbose=True)),
        ]
    )


def to_csv(sweep: Sweep) -> str:
    """A sweep as CSV, a line for each layer and limit; lines without a layer are the whole file and its worst error."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("layer", "max_rel_error", "bytes", "rel_error"))
    for point in sweep.points:
        lines.writerow(("", point.max_rel_error, point.bytes_after, point.rel_error))
        lines.writerows((layer.name, point.max_rel_error, layer.bytes_after, layer.rel_error) for layer in point.layers)
    return text.getvalue()


SUFFIXES = (".json", ".md", ".html")
"""Of report files; each says what the file holds."""


def check_destination(path: Path, *, force: bool) -> None:
    """Refuse a report file that could not be written in the end, before the work begins.

    Raises:
        ConfigError: the suffix is of no known format.
        OutputError: the file exists and `force` is not given, or its folder does not.
    """
    if path.suffix not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise ConfigError(f"report {path}: no report format has suffix {path.suffix!r}", hint=f"end it in {known}")
    check_writable(path, force=force)


def check_writable(path: Path, *, force: bool, inputs: Iterable[Path | None] = ()) -> None:
    """Refuse a file that is there already, that is one of the inputs, or that has no folder.

    Raises:
        OutputError: the file exists and `force` is not given, or its folder does not; or it would replace an input.
    """
    if (reason := why_not(path)) is not None:
        raise OutputError(path, reason, hint="name a file")
    if path.exists() and not force:
        raise OutputError(path, "exists already", hint="give --force to overwrite it")
    given = [one for one in inputs if one is not None and one.exists()] if path.exists() else []
    within = [entry for one in given if one.is_dir() for entry in one.iterdir()]
    if any(path.samefile(one) for one in (*given, *within) if one.exists()):
        raise OutputError(path, "is what is being read", hint="choose another name")
    if not path.parent.is_dir():
        raise OutputError(path, "its folder does not exist")


def write(report: Report, path: Path, anatomy: Anatomy | None = None, sweep: Sequence[CurvePoint] = ()) -> None:
    """Write `report` to `path` in the format of its suffix, whole or not at all.

    Args:
        anatomy, sweep: what HTML draws beside the report.

    Raises:
        OutputError: the file system refuses.
    """
    if path.suffix == ".html":
        text = pages.render(report, anatomy, sweep)
    else:
        text = to_json(report) if path.suffix == ".json" else to_markdown(report)
    write_whole(path, (text + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all.

    Raises:
        OutputError: the file system refuses.
    """
    try:
        with Scratch(path) as scratch:
            scratch.path.write_bytes(content)
            scratch.publish()
    except OSError as error:
        raise OutputError(path, error.strerror or str(error)) from error


def _columns(layers: Sequence[LayerReport]) -> list[Column]:
    """What a table says of each layer, the name apart."""
    return [
        Column("shape", [format_shape(layer.shape) for layer in layers], "<", gives_way=1),
        Column("dictionary", [_dictionary(layer) for layer in layers], "<"),
        Column("rank", [str(layer.rank or "-") for layer in layers]),
        Column("density", [_density(layer) for layer in layers], gives_way=2),
        Column("bits/w", [f"{layer.bits_per_weight:.2f}" for layer in layers]),
        Column("before", [format_size(layer.bytes_before) for layer in layers], gives_way=3),
        Column("after", [format_size(layer.bytes_after) for layer in layers]),
        Column("error", [format_error(layer.rel_error) for layer in layers]),
        *([Column("output", [_output_error(layer) for layer in layers])] if _has_output_errors(layers) else []),
    ]


def _has_output_errors(layers: Sequence[LayerReport]) -> bool:
    return any(layer.output_error is not None for layer in layers)


def _output_error(layer: LayerReport) -> str:
    return "-" if layer.output_error is None else format_error(layer.output_error)


def _sweep_columns(sweep: Sweep) -> list[Column]:
    """What a table says of each limit."""
    points = sweep.points
    smaller = [sweep.bytes_before / max(point.bytes_after, 1) for point in points]
    return [
        Column("max error", [f"{point.max_rel_error:g}" for point in points]),
        Column("size", [format_size(point.bytes_after) for point in points]),
        Column("bytes", [f"{point.bytes_after:,}" for point in points]),
        Column("smaller", [f"{times:.2f}x" for times in smaller]),
        Column("bits/w", [f"{point.bits_per_weight:.2f}" for point in points]),
        Column("error", [format_error(point.rel_error) for point in points]),
    ]


def _from_the_middle(n: int) -> list[int]:
    """For each of `n` columns the order in which it leaves a narrow table: those in the middle first, the ends never.

    >>> _from_the_middle(5)
    [0, 2, 1, 3, 0]
    """
    inner = sorted(range(1, n - 1), key=lambda place: abs(2 * place - n + 1))
    return [inner.index(place) + 1 if place in inner else 0 for place in range(n)]


def _dictionary(layer: LayerReport) -> str:
    """The dictionary, or why there is none."""
    return printable(layer.dictionary if layer.codec == "factored" else layer.codec)


def _density(layer: LayerReport) -> str:
    if layer.codec != "factored":
        return "-"
    return "<0.001" if 0 < layer.density < 0.0005 else f"{layer.density:.3f}"


def _split(layers: Sequence[LayerReport]) -> tuple[Sequence[LayerReport], Sequence[LayerReport]]:
    """The layers that get a line each, and those that share one."""
    minor = [layer for layer in layers if _is_minor(layer)]
    if len(layers) <= SCREENFUL or len(minor) in (0, 1, len(layers)):
        return layers, ()
    return [layer for layer in layers if not _is_minor(layer)], minor


def _is_minor(layer: LayerReport) -> bool:
    return len(layer.shape) < 2 or (layer.codec == "exact" and layer.bytes_before <= SMALL_BYTES)


def _grouped_line(layers: Sequence[LayerReport]) -> str:
    before, after = sum(layer.bytes_before for layer in layers), sum(layer.bytes_after for layer in layers)
    worst = max(layer.rel_error for layer in layers)
    error = f"error at most {format_error(worst)}" if worst else "all exact"
    return (
        f"+ {len(layers)} vectors and small tensors: {format_size(before)} -> {format_size(after)}, "
        f"{error}; -v lists them"
    )


def _totals(report: Report) -> str:
    return f"{sizes(report.bytes_before, report.bytes_after)}, {report.bits_per_weight:.2f} bits per weight"


def _exactly(report: Report) -> str:
    measured = all(layer.max_abs_error is not None for layer in report.layers)
    source = "not measured on the file"
    if report.verified:
        source = "measured on the decoded file" if measured else "as the file states them, whose streams are whole"
    return f"{report.bytes_before:,} -> {report.bytes_after:,} bytes; errors {source}"


def _notes(report: Report, verbose: bool) -> list[str]:
    """Notes of the run, then those of single tensors; of the latter only the first few unless `verbose`."""
    of_layers = [f"{layer.name}: {note}" for layer in report.layers if (note := _layer_note(layer))]
    shown = of_layers if verbose else of_layers[:NOTES_SHOWN]
    left = len(of_layers) - len(shown)
    return [*report.notes, *shown, *([f"{left} more on single tensors; -v shows them"] if left else [])]


def _layer_note(layer: LayerReport) -> str:
    return layer.note or (f"stored once, as {layer.tied_to}" if layer.tied_to else "")
