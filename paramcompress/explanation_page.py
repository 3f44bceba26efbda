"""An explanation for the terminal; opens no file and prices nothing."""

from __future__ import annotations

import json

from rich.text import Text

from .records import Explanation
from .tables import Column, format_error, format_shape, laid_out, printable
from .units import format_size

_WORDS = {"dictionary": "dictionary", "coefficients": "coefficients", "stored": "stored weights", "head": "head"}


def render(explanation: Explanation, *, width: int, verbose: bool = False, ascii_only: bool = False) -> list[Text]:
    """What the layer is and where its bytes go, what each choice would have cost, and what more error would save.

    Args:
        width: terminal cells; no line of a table is wider, other lines may be wrapped.
        verbose: say more of how it was priced.
        ascii_only: draw with nothing that an old terminal lacks.
    """
    layer = explanation.layer
    lines = [
        Text(printable(layer.name), style="bold"),
        Text(
            f"{format_shape(layer.shape)} {layer.dtype}: {format_size(layer.bytes_before)} -> "
            f"{format_size(layer.bytes_after)}, {layer.bits_per_weight:.2f} bits per weight, "
            f"error {format_error(layer.rel_error)}"
        ),
    ]
    if layer.tied_to is not None:
        lines.append(Text(f"it is stored once, as {printable(layer.tied_to)}; that is what follows"))
    if layer.note:
        lines.append(Text(f"note: {printable(layer.note)}", style="yellow"))
    parts = [f"{_WORDS[key]} {n:,} B" for key, n in explanation.sections.items() if n and key != "head"]
    if parts:
        lines.append(Text(f"of which {', '.join(parts)}"))
    if not explanation.choices:
        return [*lines, Text("nothing to choose: such a tensor is kept exactly")]
    used = _used(explanation)
    least = explanation.choices[0].bytes
    columns = [
        Column("rank", [str(one.rank) if one.rank else "-" for one in explanation.choices]),
        Column("bytes", [f"{one.bytes:,}" for one in explanation.choices]),
        Column("more", [f"{one.bytes / max(least, 1) - 1:+.1%}" for one in explanation.choices]),
        Column("error", [format_error(one.rel_error) for one in explanation.choices], gives_way=1),
        Column("", ["used" if one.dictionary == used else "" for one in explanation.choices], "<"),
    ]
    names = [one.dictionary for one in explanation.choices]
    lines += [Text(), *laid_out(names, columns, width, ascii_only=ascii_only, header="dictionary")]
    if explanation.useless:
        lines.append(
            Text(f"no direction pays for its two vectors: {', '.join(explanation.useless)}", style="dim"),
        )
    lines += [Text(), *(Text(line) for line in _relaxed(explanation))]
    if explanation.priced_on == "decoded":
        lines.append(Text("estimated from the decoded weights; --original MODEL gives exact prices", style="dim"))
    if verbose:
        lines.append(Text(f"each choice was coded in earnest, in {explanation.elapsed_s:.1f} s", style="dim"))
    return lines


def to_json(explanation: Explanation) -> str:
    """The explanation as JSON text; layout described in docs/json.md."""
    return json.dumps(explanation.to_json(), indent=2, allow_nan=False)


def _used(explanation: Explanation) -> str:
    """The choice that the file holds."""
    return explanation.layer.dictionary if explanation.sections else "exact"


def _relaxed(explanation: Explanation) -> list[str]:
    """What more error would save, against what the same weights take now."""
    now = next((one.bytes for one in explanation.choices if one.dictionary == _used(explanation)), None)
    if now is None:
        return []
    return [
        f"relax the limit to {one.max_rel_error:.3g} and save {format_size(now - one.bytes)}, {1 - one.bytes / now:.0%}"
        for one in explanation.relaxed
        if one.bytes < now
    ] or ["more error would save nothing"]
