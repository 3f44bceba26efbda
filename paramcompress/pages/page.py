"""The page itself: head, cards, figures, table of layers, notes. Nothing in it is loaded from anywhere."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from ..records import Anatomy, LayerReport, Report
from ..tables import format_error, format_shape
from ..units import format_size, sizes
from . import charts, curve
from .curve import CurvePoint
from .svg import element, text_of


class _Column(NamedTuple):
    """One column of the table: what is written, and what it is sorted by where that is a number."""

    head: str
    cell: Callable[[LayerReport], str]
    key: Callable[[LayerReport], float] | None = None


_COLUMNS = (
    _Column("layer", lambda layer: layer.name),
    _Column("shape", lambda layer: format_shape(layer.shape)),
    _Column("dtype", lambda layer: layer.dtype),
    _Column("dictionary", lambda layer: layer.dictionary if layer.codec == "factored" else layer.codec),
    _Column("rank", lambda layer: str(layer.rank or "-"), lambda layer: layer.rank),
    _Column(
        "density",
        lambda layer: f"{layer.density:.3f}" if layer.codec == "factored" else "-",
        lambda layer: layer.density,
    ),
    _Column("bits/w", lambda layer: f"{layer.bits_per_weight:.2f}", lambda layer: layer.bits_per_weight),
    _Column("before", lambda layer: format_size(layer.bytes_before), lambda layer: layer.bytes_before),
    _Column("after", lambda layer: format_size(layer.bytes_after), lambda layer: layer.bytes_after),
    _Column("error", lambda layer: format_error(layer.rel_error), lambda layer: layer.rel_error),
)


def render(report: Report, anatomy: Anatomy | None = None, sweep: Sequence[CurvePoint] = ()) -> str:
    """The page of a report.

    Args:
        anatomy: what the file is made of; without it the page lacks two figures.
        sweep: bytes at several limits; without it the page lacks the curve.
    """
    title = Path(report.output or report.source).name
    script = _asset("sort.js")
    # no script but ours may run, whatever a layer is called
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            '<head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            element("title", text_of(f"{title}: {format_size(report.bytes_after)}")),
            f"<style>\n{_asset('style.css')}</style></head>",
            "<body>",
            _header(report, title),
            element("div", "\n".join(_figures(report, anatomy, sweep)), class_="figures"),
            _table(report.layers),
            _remarks(report),
            "<footer>Written by paramcompress. kB is 1000 bytes; errors are relative, in the Frobenius norm.</footer>",
            f"<script>{script}</script>",
            "</body></html>",
        ]
    )


def _header(report: Report, title: str) -> str:
    source = "errors measured on the decoded file" if report.verified else "errors as the file states them"
    worst = max((layer.rel_error for layer in report.layers), default=0.0)
    cards = [
        ("before", format_size(report.bytes_before)),
        ("after", format_size(report.bytes_after)),
        ("bits per weight", f"{report.bits_per_weight:.2f}"),
        ("largest error", format_error(worst)),
    ]
    return "\n".join(
        [
            "<header>",
            element("h1", text_of(title)),
            element("p", text_of(sizes(report.bytes_before, report.bytes_after))),
            element("p", text_of(f"Target: {report.target}; {source}"), class_="muted"),
            element(
                "div",
                "".join(element("div", f"<b>{value}</b><span>{name}</span>", class_="card") for name, value in cards),
                class_="cards",
            ),
            "</header>",
        ]
    )


def _figures(report: Report, anatomy: Anatomy | None, sweep: Sequence[CurvePoint]) -> list[str]:
    layers = report.layers
    lossy = sum(layer.rel_error > 0 for layer in layers)
    limit = _limit(report)
    found = [_figure("Size", "", charts.sizes(report.bytes_before, report.bytes_after))]
    if anatomy is not None:
        found.append(_figure("Where the bytes go", "of the squeezed file", charts.sections(anatomy.sections)))
    if layers:
        found.append(
            _figure("Largest layers", _of(charts.ROWS, len(layers), "bytes before and after"), charts.by_bytes(layers))
        )
    if lossy:
        words = "relative error" + (f", dashed: the limit {limit:g}" if limit else "")
        found.append(_figure("Error", _of(charts.ROWS, lossy, words), charts.by_error(layers, limit)))
    pictures = [charts.spectrum(one) for one in anatomy.spectra if one.values] if anatomy is not None else []
    if pictures:
        words = (
            "largest singular values of the largest decoded matrices, logarithmic; dashed: where the low-rank part ends"
        )
        found.append(_figure("Spectrum", words, element("div", "".join(pictures), class_="spectra")))
    if sweep:
        worst = max((layer.rel_error for layer in layers), default=0.0)
        picture = curve.draw(sweep, report.bytes_before, CurvePoint(worst, report.bytes_after))
        found.append(_figure("Bytes against error", "what other limits would give", picture))
    return found


def _limit(report: Report) -> float | None:
    """The limit on the relative error of a matrix, where that was the target."""
    words = report.target.split()
    try:
        return float(words[1]) if words[0] == "max_rel_error" else None
    except (IndexError, ValueError):
        return None


def _of(n_shown: int, n_all: int, words: str) -> str:
    return f"{words}; the first {n_shown} of {n_all}" if n_all > n_shown else words


def _figure(title: str, words: str, picture: str) -> str:
    small = element("small", text_of(words)) if words else ""
    return element("figure", element("figcaption", text_of(title) + small) + picture)


def _table(layers: Sequence[LayerReport]) -> str:
    head = "".join(
        element(
            "th",
            column.head,
            scope="col",
            data_first="descending" if column.key else "ascending",
            class_=None if column.key else "word",
        )
        for column in _COLUMNS
    )
    rows = "\n".join(element("tr", "".join(_cell(column, layer) for column in _COLUMNS)) for layer in layers)
    table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table>"
    return element("section", f"<h2>All {len(layers)} layers</h2>" + element("div", table, class_="scroll"))


def _cell(column: _Column, layer: LayerReport) -> str:
    text = text_of(column.cell(layer))
    if column.key is None:
        return element("td", text, class_="word", title=column.cell(layer) if column.head == "layer" else None)
    return element("td", text, data_key=repr(column.key(layer)))


def _remarks(report: Report) -> str:
    of_layers = [
        f"{layer.name}: {note}"
        for layer in report.layers
        if (note := layer.note or (f"stored once, as {layer.tied_to}" if layer.tied_to else ""))
    ]
    items = "".join(element("li", text_of(note)) for note in (*report.notes, *of_layers))
    settings = "\n".join(map(text_of, json.dumps(report.settings, indent=2, default=str).splitlines()))
    return element(
        "section",
        (f"<h2>Notes</h2><ul>{items}</ul>" if items else "")
        + f"<details><summary>Settings</summary><pre>{settings}</pre></details>",
    )


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
