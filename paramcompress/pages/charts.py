"""The pictures of a report: sizes, where the bytes go, layers by bytes and by error, spectra."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..records import LayerReport, Spectrum
from ..tables import format_error, shorten
from ..units import format_size
from . import svg

ROWS = 12
"""Layers that a chart shows; the table has all."""
_NAME_CELLS = 34
_ROW, _BAR = 36.0, 10.0
_SMALL = 132.0
"""Width of the picture of one spectrum, three of which stand side by side."""


def sizes(before: int, after: int) -> str:
    """Two bars, the checkpoint and the squeezed file."""
    rows = [("checkpoint", before, "before"), ("squeezed", after, "after")]
    most = max(before, after, 1)
    parts = []
    for place, (name, n_bytes, class_) in enumerate(rows):
        top = place * 44.0
        parts.append(svg.label(0, top + 13, name))
        parts.append(svg.label(svg.WIDTH, top + 13, format_size(n_bytes), "value", "end"))
        parts.append(svg.bar(0, top + 20, svg.WIDTH * n_bytes / most, 14, class_, f"{n_bytes:,} B"))
    return svg.chart(2 * 44.0 - 8, parts, f"Sizes: {format_size(before)} before, {format_size(after)} after")


def sections(found: Mapping[str, int]) -> str:
    """One bar in as many pieces as there are kinds of bytes, and its legend."""
    total = max(sum(found.values()), 1)
    parts = []
    at = 0.0
    shown = [(name, n_bytes) for name, n_bytes in found.items() if n_bytes > 0]
    for place, (name, n_bytes) in enumerate(shown):
        share = svg.WIDTH * n_bytes / total
        parts.append(
            svg.element(
                "rect",
                svg.element("title", svg.text_of(f"{name}: {n_bytes:,} B")),
                x=at,
                y=0,
                width=max(share - 1.5, 0.5),
                height=26,
                class_=f"part{place}",
            )
        )
        at += share
        top = 52.0 + 24 * place
        parts.append(svg.element("rect", x=0, y=top - 11, width=13, height=13, rx=3, class_=f"part{place}"))
        parts.append(svg.label(22, top, name))
        parts.append(
            svg.label(svg.WIDTH, top, f"{format_size(n_bytes)}, {100 * n_bytes / total:.1f} %", "value", "end")
        )
    return svg.chart(42 + 24 * len(shown), parts, "Where the bytes go")


def by_bytes(layers: Sequence[LayerReport]) -> str:
    """The layers that are largest in the squeezed file: before and after in one bar."""
    shown = sorted(layers, key=lambda layer: -layer.bytes_after)[:ROWS]
    most = max((max(layer.bytes_before, layer.bytes_after) for layer in shown), default=1) or 1
    rows = []
    for layer in shown:
        words = f"{format_size(layer.bytes_before)} → {format_size(layer.bytes_after)}"
        bars = [(layer.bytes_before / most, "before"), (layer.bytes_after / most, "after")]
        rows.append((layer.name, words, bars))
    return _rows(rows, "Bytes of the largest layers")


def by_error(layers: Sequence[LayerReport], limit: float | None) -> str:
    """The layers with the largest errors, and the limit that held for most."""
    shown = sorted((layer for layer in layers if layer.rel_error > 0), key=lambda layer: -layer.rel_error)[:ROWS]
    most = max([layer.rel_error for layer in shown] + [limit or 0.0]) or 1.0
    rows = [(layer.name, format_error(layer.rel_error), [(layer.rel_error / most, "after")]) for layer in shown]
    marks = []
    if limit:
        x = min(svg.WIDTH * limit / most, svg.WIDTH - 1.0)
        tops = [place * _ROW + 16 for place in range(len(rows))]
        marks = [svg.line(x, top, x, top + _BAR + 6, "limit") for top in tops]
    return _rows(rows, "Relative errors of the worst layers", marks)


def spectrum(one: Spectrum) -> str:
    """Largest singular values on a logarithmic axis, and where the code's low-rank part ends."""
    top, bottom = 24.0, 104.0
    if not one.values:
        return ""
    floor = math.log10(max(one.values[-1], one.values[0] * 1e-6))
    span = max(math.log10(one.values[0]) - floor, 0.3)

    def x(place: float) -> float:
        return 4 + (_SMALL - 8) * place / max(len(one.values) - 1, 1)

    points = [
        (x(place), bottom - (bottom - top) * max(math.log10(max(value, 1e-30)) - floor, 0) / span)
        for place, value in enumerate(one.values)
    ]
    parts = [
        svg.element("title", svg.text_of(one.name)),
        svg.label(4, 13, shorten(one.name, 16), "tiny"),
        svg.line(4, bottom, _SMALL - 4, bottom, "axis"),
    ]
    if 0 < one.rank <= len(one.values):
        parts.append(svg.line(x(one.rank - 0.5), top - 6, x(one.rank - 0.5), bottom, "limit"))
    parts.append(svg.polyline(points, "curve"))
    words = f"rank {one.rank}" if one.rank else "no low rank"
    parts.append(svg.label(4, 120, f"{words} of {one.n_all}" if one.rank else words, "tiny muted"))
    return svg.chart(126, parts, f"Spectrum of {one.name}", _SMALL)


def _rows(rows: Sequence[tuple[str, str, Sequence[tuple[float, str]]]], title: str, marks: Sequence[str] = ()) -> str:
    """Name and value of each row, its bars below; a bar is a share of the width and a class."""
    parts = []
    for place, (name, words, bars) in enumerate(rows):
        top = place * _ROW
        room = _NAME_CELLS if len(words) < 12 else _NAME_CELLS - 6
        parts.append(
            svg.element("g", svg.element("title", svg.text_of(name)) + svg.label(0, top + 13, shorten(name, room)))
        )
        parts.append(svg.label(svg.WIDTH, top + 13, words, "value", "end"))
        parts += [svg.bar(0, top + 19, svg.WIDTH * share, _BAR, class_) for share, class_ in bars]
    return svg.chart(_ROW * len(rows), [*parts, *marks], title)
