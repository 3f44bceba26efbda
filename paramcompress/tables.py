"""Tables for terminals of any width, and the words of their cells; knows nothing of what is tabulated.

Names and paths are data: what would move a cursor or hide is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.text import Text

NAME_WIDTH = 10
"""Terminal cells that names have at least; in a narrower table, columns go instead."""


class Column(NamedTuple):
    """One column after the name: what is written in it, and the order in which it leaves a narrow table (0 stays)."""

    header: str
    cells: list[str]
    align: Literal["<", ">"] = ">"
    gives_way: int = 0

    @property
    def width(self) -> int:
        return max(map(len, (self.header, *self.cells)))

    def padded(self) -> list[str]:
        """Header and cells, all of one width."""
        width = self.width
        return [f"{cell:{self.align}{width}}" for cell in (self.header, *self.cells)]


def laid_out(
    names: Sequence[str], columns: Sequence[Column], width: int, *, ascii_only: bool, header: str = "layer"
) -> list[Text]:
    """Table of names and columns in at most `width` cells; what gives way to fit is said below it."""
    every, columns = [column.header for column in columns], list(columns)
    names = list(map(printable, names))
    longest = max(map(cell_len, (header, *names)))
    while _room(columns, width, gap=1) < min(longest, NAME_WIDTH) and any(column.gives_way for column in columns):
        columns.remove(min((column for column in columns if column.gives_way), key=lambda column: column.gives_way))
    gap = 2 if _room(columns, width, gap=2) >= longest else 1
    room = max(_room(columns, width, gap), 1)

    short = [shorten(name, room, ascii_only=ascii_only) for name in (header, *names)]
    name_width = max(map(cell_len, short))
    short = [set_cell_size(name, name_width) for name in short]
    rows = zip(short, *(column.padded() for column in columns), strict=True)
    head, *lines = [(" " * gap).join(row).rstrip() for row in rows]
    gone = [one for one in every if one not in [column.header for column in columns]]
    left_out = _left_out(gone, longest > room)
    return [
        Text(head, style="bold"),
        rule((head, *lines), ascii_only=ascii_only),
        *map(Text, lines),
        *([Text(left_out, style="dim")] if left_out else []),
    ]


def printable(text: str) -> str:
    """`text` with escapes in place of what would move a cursor, ring a bell or hide.

    >>> print(printable("fc\\x1b[2J.weight"))
    fc\\x1b[2J.weight
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def shorten(name: str, width: int, *, ascii_only: bool = False) -> str:
    """`name` in at most `width` cells: words become initials, from the middle out, then underscores go, then dots, but
    for those between digits; digits stay.

    So `layers.17` and `layers.18` remain two names. What is still too long loses its middle.

    >>> shorten("model.layers.17.self_attn.q_proj.weight", 27)
    'model.l.17.s_a.q_p.weight'
    >>> shorten("model.layers.17.self_attn.q_proj.weight", 10)
    'ml17saqpw'
    >>> shorten("model.layers.17.self_attn.q_proj.weight", 7)
    'ml1…qpw'
    """
    words = sorted(re.finditer(r"[^\W\d_]{2,}", name), key=lambda word: abs(word.start() + word.end() - len(name)))
    marks = list(name)
    for word in words:
        if cell_len("".join(marks)) <= width:
            break
        marks[word.start() + 1 : word.end()] = [""] * (word.end() - word.start() - 1)
    short = "".join(marks)
    for separator in ("_", r"(?<!\d)\.|\.(?!\d)"):
        if cell_len(short) <= width:
            return short
        short = re.sub(separator, "", short)
    if cell_len(short) <= width:
        return short
    head = width // 2
    tail = width - head - 1
    return set_cell_size(short, head) + ("~" if ascii_only else "…") + set_cell_size(short[::-1], tail)[::-1]


def _room(columns: Sequence[Column], width: int, gap: int) -> int:
    """Terminal cells left for names."""
    return width - sum(column.width + gap for column in columns)


def rule(lines: Sequence[str], *, ascii_only: bool) -> Text:
    """What stands between the head of a table and its lines."""
    return Text(("-" if ascii_only else "─") * max(map(cell_len, lines)), style="dim")


def _left_out(gone: Sequence[str], names_shortened: bool) -> str | None:
    """What a table had to do to fit, in words."""
    did = ["names shortened"] * names_shortened + [f"no {header}" for header in gone]
    return f"{', '.join(did)}: --json or a wider terminal has it all" if did else None


def format_error(rel_error: float) -> str:
    """A relative error for people: 0 where it is exact."""
    if rel_error == 0:
        return "0"
    return f"{rel_error:.4f}" if rel_error >= 0.001 else f"{rel_error:.0e}"


def format_shape(shape: tuple[int, ...]) -> str:
    """
    >>> format_shape((16, 3, 5, 5)), format_shape(())
    ('16x3x5x5', 'scalar')
    """
    return "x".join(map(str, shape)) or "scalar"


def code_span(name: str) -> str:
    """`name` as a code span that can stand in a table cell."""
    fence = "``" if "`" in name else "`"
    pad = " " if "`" in name else ""
    return f"{fence}{pad}{printable(name)}{pad}{fence}".replace("|", "\\|")
