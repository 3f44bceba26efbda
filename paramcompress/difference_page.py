"""A difference for the terminal; opens no file and measures nothing."""

from __future__ import annotations

import json

from rich.text import Text

from .records import Difference, LayerDifference
from .tables import Column, format_shape, laid_out, printable
from .units import format_size

_CHANGES = ("removed", "added", "reshaped", "retyped", "renamed", "changed")


def render(difference: Difference, *, width: int, verbose: bool = False, ascii_only: bool = False) -> list[Text]:
    """A line for every layer that is not the same, what matters most first, then both sizes.

    Args:
        width: terminal cells; no line of the table is wider, other lines may be wrapped.
        verbose: a line for those that are the same, too.
        ascii_only: draw with nothing that an old terminal lacks.
    """
    shown = [layer for layer in difference.layers if verbose or layer.change != "same"]
    left = len(difference.layers) - len(shown)
    lines = laid_out([layer.name for layer in shown], _columns(shown), width, ascii_only=ascii_only) if shown else []
    if left:
        lines.append(
            Text(
                f"{'+ ' if shown else ''}{left} {'layer is' if left == 1 else 'layers are'} the same bit for bit",
                style="dim",
            )
        )
    lines += [
        Text(f"{printable(layer.old_name)} is now {printable(layer.name)}", style="yellow")
        for layer in shown
        if layer.old_name is not None
    ]
    return [*lines, Text(_sum(difference), style="bold")]


def to_json(difference: Difference) -> str:
    """The difference as JSON text; layout described in docs/json.md."""
    return json.dumps(difference.to_json(), indent=2, allow_nan=False)


def _columns(layers: list[LayerDifference]) -> list[Column]:
    return [
        Column("what", [layer.change for layer in layers], "<"),
        Column("shape", [_shapes(layer) for layer in layers], "<", gives_way=2),
        Column("old", [_bytes(layer.old_bytes, layer.old_shape) for layer in layers]),
        Column("new", [_bytes(layer.new_bytes, layer.new_shape) for layer in layers]),
        Column("change", [_number(layer.rel_change) for layer in layers]),
        Column("cosine", ["-" if layer.cosine is None else f"{layer.cosine:.4f}" for layer in layers], gives_way=3),
        Column("max abs", [_number(layer.max_abs_change) for layer in layers], gives_way=1),
    ]


def _shapes(layer: LayerDifference) -> str:
    """Shape, or both where they differ; types where these do."""
    old, new = layer.old_shape, layer.new_shape
    if layer.change == "retyped":
        return f"{layer.old_dtype} -> {layer.new_dtype}"
    if old is not None and new is not None and old != new:
        return f"{format_shape(old)} -> {format_shape(new)}"
    return format_shape(new if new is not None else old or ())


def _bytes(n_bytes: int, shape: tuple[int, ...] | None) -> str:
    return "-" if shape is None else format_size(n_bytes)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if value == 0 or 0.001 <= value < 1000 else f"{value:.1e}"


def _sum(difference: Difference) -> str:
    old, new = difference.old_bytes, difference.new_bytes
    percent = f" ({100 * (new - old) / old:+.1f} %)" if old else ""
    counts = {what: sum(layer.change == what for layer in difference.layers) for what in _CHANGES}
    words = ", ".join(f"{n} {what}" for what, n in counts.items() if n) or "nothing changed"
    return f"{format_size(old)} -> {format_size(new)}{percent}; {words}"
