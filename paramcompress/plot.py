"""A sweep as a picture; the only room that knows matplotlib, which is loaded when something is drawn."""

from __future__ import annotations

import io
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ConfigError
from .records import Sweep, SweepPoint
from .units import format_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg")
LARGEST_LAYERS = 6
"""Layers that get a line of their own."""
_LIBRARY = "matplotlib"
_GREYED = "#555555"
_LONGEST_NAME = 44


def check(path: Path) -> None:
    """Refuse a plot that could not be drawn in the end, before the work begins.

    Raises:
        ConfigError: the suffix is of no known format, or matplotlib is not installed.
    """
    if path.suffix not in FORMATS:
        raise ConfigError(
            f"--plot {path}: no plot format has suffix {path.suffix!r}", hint=f"end it in {' or '.join(FORMATS)}"
        )
    if find_spec(_LIBRARY) is None:
        raise ConfigError("plots need matplotlib, which is not installed", hint="pip install 'paramcompress[plot]'")


def draw(sweep: Sweep, kind: str) -> bytes:
    """A chart of bytes against error, both axes logarithmic: the whole file and its largest layers.

    Args:
        kind: a suffix of `FORMATS`.

    Returns:
        The picture file, the same for the same sweep. A limit of 0 has no place on the axis: it is a line across.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "paramcompress", "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)  # a name in letters the font lacks
        figure = Figure(figsize=(9, 5.2), layout="constrained")
        axes = figure.add_subplot()
        _lines(axes, sweep)
        _scales(axes, [point for point in sweep.points if point.max_rel_error > 0])
        name = Path(sweep.source).name
        axes.set_title(f"{name}: bytes against error", loc="left", fontweight="bold", parse_math=False)
        axes.set_xlabel("limit on the relative error of every matrix")
        axes.set_ylabel("bytes")
        picture = io.BytesIO()
        metadata: dict[str, Any] = {"Date": None} if kind == ".svg" else {"Software": None}
        figure.savefig(picture, format=kind.removeprefix("."), dpi=150, metadata=metadata)
    return picture.getvalue()


def _lines(axes: Axes, sweep: Sweep) -> None:
    """The file, its largest layers, and across the chart what has no error; the legend in the order of the lines."""
    points = [point for point in sweep.points if point.max_rel_error > 0]
    errors = [point.max_rel_error for point in points]
    drawn: list[tuple[Any, str]] = []

    def across(n_bytes: int, label: str, style: str) -> None:
        drawn.append((axes.axhline(n_bytes, color=_GREYED, linestyle=style, linewidth=1), label))

    across(sweep.bytes_before, f"checkpoint, {format_size(sweep.bytes_before)}", ":")
    for point in sweep.points:
        if point.max_rel_error == 0:
            across(point.bytes_after, f"exact, {format_size(point.bytes_after)}", "--")
    if points:
        totals = [point.bytes_after for point in points]
        (line,) = axes.plot(errors, totals, color="black", marker="o", linewidth=2.2, markersize=5)
        drawn.append((line, "whole file"))
        for error, total in zip(errors, totals, strict=True):
            axes.annotate(
                format_size(total), (error, total), (0, 7), textcoords="offset points", ha="center", fontsize=8
            )
        layers = sorted(
            range(len(points[0].layers)), key=lambda at: -max(point.layers[at].bytes_after for point in points)
        )
        for at in layers[:LARGEST_LAYERS]:
            sizes = [max(point.layers[at].bytes_after, 1) for point in points]
            (line,) = axes.plot(errors, sizes, marker=".", linewidth=1.2)
            drawn.append((line, _short(points[0].layers[at].name)))
    lines, names = zip(*drawn, strict=True)
    legend = axes.legend(
        lines, ["-"] * len(lines), loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8
    )
    for text, name in zip(legend.get_texts(), names, strict=True):  # set late: names may begin with _ or hold $
        text.set_parse_math(False)
        text.set_text(name)


def _scales(axes: Axes, points: list[SweepPoint]) -> None:
    """Logarithmic axes that say their numbers as the command line does."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    if points:
        ticks = [point.max_rel_error for point in points]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.25)
    else:
        axes.set_xticks([])
    axes.yaxis.set_major_formatter(lambda value, _: format_size(round(value)))
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.1, high * 1.3)
    if high < 12 * low:
        axes.yaxis.set_minor_formatter(lambda value, _: format_size(round(value)))
    else:
        axes.yaxis.set_minor_formatter(lambda _value, _: "")
    axes.grid(axis="y", which="major", linewidth=0.5, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _short(name: str) -> str:
    """Name for the legend: what is too long loses its middle."""
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME // 3]}…{name[-(2 * _LONGEST_NAME // 3) :]}"
