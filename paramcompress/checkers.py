"""Checks of single values as configuration files hold them, and of whole tables; each names what it found and expected.

A checker takes a value and returns it in the form that is worked with, or raises ConfigError. What the key was, and
where it stood, is added by `table`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

from .errors import ConfigError
from .units import parse_size

Checker = Callable[[Any], Any]


def table(values: Mapping[str, Any], known: Mapping[str, Checker], where: str = "") -> dict[str, Any]:
    """`values` with every key in `known` and every value as its checker returns it.

    Raises:
        ConfigError: an unknown key, with the nearest known one; or what a checker raised, with `where` and the key.
    """
    checked = {}
    for key, value in values.items():
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1)
            meant = f"did you mean {nearest[0]!r}? " if nearest else ""
            raise ConfigError(f"{where}unknown key {key!r}", hint=f"{meant}known keys: {', '.join(known)}")
        try:
            checked[key] = known[key](value)
        except ConfigError as error:
            raise ConfigError(f"{where}{key}: {error}", hint=error.hint) from error
    return checked


def refused(value: object, expected: str) -> ConfigError:
    """The error of a checker."""
    return ConfigError(f"found {value!r}, expected {expected}")


def number(low: float, high: float, expected: str) -> Checker:
    """Checker of numbers from `low` to `high`; `expected` says it in words."""

    def checker(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise refused(value, expected)
        return value

    return checker


def integer(low: int) -> Checker:
    """Checker of whole numbers; torch has no room for one of 2**63 and more."""

    def checker(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise refused(value, f"a whole number from {low} on")
        if value >= 2**63:
            raise refused(value, "a whole number below 2**63")
        return value

    return checker


def size(value: Any) -> int:
    """Bytes, from a number of them or a size such as "3MB"; above zero."""
    if not isinstance(value, int | str) or (n_bytes := parse_size(value)) == 0:
        raise refused(value, 'a size above zero, such as "3MB"')
    return n_bytes


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise refused(value, "true or false")
    return value


def word(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise refused(value, "a name")
    return value


def pattern(text: str, where: str = "") -> str:
    """A name, glob or `re:` pattern of layer names; only the last can be wrong."""
    if text.startswith("re:"):
        try:
            re.compile(text.removeprefix("re:"))
        except re.error as error:
            hint = "mend it, or write a glob such as 'conv*' without re:"
            raise ConfigError(f"{where}{text!r} is not a regular expression: {error}", hint=hint) from error
    return text


def patterns(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        raise refused(value, 'a list of patterns, such as ["conv*"]')
    return tuple(map(pattern, value))
