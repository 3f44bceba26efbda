"""Bytes against error as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..units import format_size
from . import svg

_LEFT, _RIGHT, _TOP, _BOTTOM, _HEIGHT = 64.0, 16.0, 14.0, 46.0, 300.0


@dataclass(frozen=True)
class CurvePoint:
    """What a checkpoint weighs at one limit."""

    max_rel_error: float
    n_bytes: int


def draw(points: Sequence[CurvePoint], bytes_before: int, here: CurvePoint | None) -> str:
    """A chart with both axes logarithmic; a limit of 0 has no place on it, and is a line across.

    Args:
        bytes_before: of the checkpoint, a line across too.
        here: the file that the report is about.
    """
    shown = sorted((one for one in points if one.max_rel_error > 0), key=lambda one: one.max_rel_error)
    across = [("checkpoint", bytes_before), *(("exact", one.n_bytes) for one in points if one.max_rel_error == 0)]
    marked = [here] if here is not None and here.max_rel_error > 0 else []
    errors = [one.max_rel_error for one in (*shown, *marked)] or [0.03]
    sizes = [max(n, 1) for n in (*(one.n_bytes for one in (*shown, *marked)), *(n for _, n in across))]
    x = _Log(min(errors) / 1.2, max(errors) * 1.2, _LEFT, svg.WIDTH - _RIGHT)
    y = _Log(min(sizes) / 1.3, max(sizes) * 1.3, _HEIGHT - _BOTTOM, _TOP)
    parts = [svg.line(_LEFT, _HEIGHT - _BOTTOM, svg.WIDTH - _RIGHT, _HEIGHT - _BOTTOM, "axis")]
    for size in _ticks(min(sizes), max(sizes)):
        parts.append(svg.line(_LEFT, y(size), svg.WIDTH - _RIGHT, y(size), "grid"))
        parts.append(svg.label(_LEFT - 8, y(size) + 4, format_size(size), "small", "end"))
    for name, size in across:
        parts.append(svg.line(_LEFT, y(size), svg.WIDTH - _RIGHT, y(size), "limit"))
        parts.append(svg.label(svg.WIDTH - _RIGHT, y(size) + 14, f"{name}, {format_size(size)}", "small", "end"))
    last = -math.inf
    for one in shown:
        at = x(one.max_rel_error)
        if at - last > 34:
            parts.append(svg.label(at, _HEIGHT - _BOTTOM + 16, f"{one.max_rel_error:g}", "small", "middle"))
            last = at
    parts.append(svg.label((_LEFT + svg.WIDTH) / 2, _HEIGHT - 10, "limit on the relative error", "small", "middle"))
    parts.append(svg.polyline([(x(one.max_rel_error), y(one.n_bytes)) for one in shown], "curve"))
    parts += [
        svg.dot(x(one.max_rel_error), y(one.n_bytes), "after", f"{one.max_rel_error:g}: {format_size(one.n_bytes)}")
        for one in shown
    ]
    for one in marked:
        column, row = x(one.max_rel_error), y(one.n_bytes)
        parts.append(svg.dot(column, row, "here", f"this file: {format_size(one.n_bytes)}", 7))
        parts.append(svg.label(column + 11, row - 7, "this file", "small"))
    return svg.chart(_HEIGHT, parts, "Bytes against error")


class _Log:
    """A logarithmic axis."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low, self._span = math.log(low), max(math.log(high) - math.log(low), 1e-9)
        self._start, self._length = start, end - start

    def __call__(self, value: float) -> float:
        return self._start + self._length * (math.log(max(value, 1e-300)) - self._low) / self._span


def _ticks(low: float, high: float) -> list[int]:
    """Round sizes, few enough to be read.

    >>> _ticks(15_000, 250_000)
    [20000, 50000, 100000, 200000]
    """
    found = [digit * 10**power for power in range(13) for digit in (1, 2, 5) if low <= digit * 10**power <= high]
    return found if len(found) <= 6 else [tick for tick in found if str(tick)[0] == "1"]
