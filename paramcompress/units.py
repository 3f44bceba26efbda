"""Sizes in bytes, as people write and read them; knows nothing of what they measure."""

from __future__ import annotations

import re
from decimal import Decimal

from .errors import ConfigError

UNITS = {"B": 1, "kB": 1000, "KiB": 1024, "MB": 1000**2, "MiB": 1024**2, "GB": 1000**3, "GiB": 1024**3}
_BY_LOWER_CASE = {unit.lower(): factor for unit, factor in UNITS.items()}


def parse_size(size: int | str) -> int:
    """Bytes meant by `size`, rounded down; a number without unit is bytes, capitals do not matter.

    Raises:
        ConfigError: not a number with a unit of `UNITS`, or negative.

    >>> parse_size("3MB"), parse_size("1.5 KiB"), parse_size("1.001kB"), parse_size(400)
    (3000000, 1536, 1001, 400)
    """
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([A-Za-z]*)\s*", str(size))
    if isinstance(size, bool) or match is None or (match[2] or "b").lower() not in _BY_LOWER_CASE:
        raise ConfigError(
            f"{size!r} is not a size", hint=f"write a number and one of {', '.join(UNITS)}, such as 3MB or 400KiB"
        )
    return int(Decimal(match[1]) * _BY_LOWER_CASE[(match[2] or "b").lower()])


def format_size(n_bytes: int) -> str:
    """`n_bytes` with three significant digits, in decimal units.

    >>> format_size(3_431_220), format_size(999_999), format_size(12)
    ('3.43 MB', '1.00 MB', '12 B')
    """
    for unit in ("GB", "MB", "kB"):
        value = n_bytes / UNITS[unit]
        if value >= 0.9995:  # rounds to 1.00
            return f"{value:.0f} {unit}" if value >= 99.95 else f"{value:#.3g} {unit}"
    return f"{n_bytes} B"


def sizes(before: int, after: int) -> str:
    """Two sizes in one unit and what they mean for each other.

    >>> sizes(3_431_220, 368_422), sizes(100, 100)
    ('3.43 MB -> 0.37 MB, 9.3x smaller', '100 B -> 100 B, not smaller')
    """
    large, small = format_size(before), format_size(after)
    unit = large.split()[1]
    if not small.endswith(f" {unit}") and UNITS[unit] / 10 <= after < UNITS[unit]:
        small = f"{after / UNITS[unit]:.2f} {unit}"
    gain = f"{before / after:.1f}x smaller" if 0 < after < before else "not smaller"
    return f"{large} -> {small}, {gain}"
