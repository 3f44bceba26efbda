"""Settings from TOML files and `--set` strings, checked; knows no checkpoint and no terminal.

What comes out are keyword arguments of `pipeline.squeeze`: only those that were given, so that defaults live there.
"""

from __future__ import annotations

import math
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from . import checkers, dictionaries
from .errors import ConfigError

TARGETS = ("target_size", "bits_per_weight", "max_rel_error", "max_output_error")
Effort = Literal["fast", "default", "max"]
Importance = Literal["optimizer"]
_HINT_SET = "write PATTERN:key=value, such as 'fc*:rank=16,density=0.02'"


def read(path: Path) -> dict[str, Any]:
    """Settings in the TOML file `path`: top-level keys as `check` knows them and a table `layers`.

    Raises:
        ConfigError: unreadable, not TOML, or with a key or value that makes no sense; names file and key.
    """
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    return check(settings, where=f"{path}: ")


def check(settings: Mapping[str, Any], *, where: str = "") -> dict[str, Any]:
    """`settings` with every key known and every value of the right kind and range, sizes in bytes.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a value that does not fit, more than one target.
    """
    checked = checkers.table(settings, _SETTINGS, where)
    _one_target(checked, where)
    return checked


def check_override(values: Mapping[str, Any], *, where: str = "") -> dict[str, Any]:
    """The same for what one pattern sets: the fields of `records.Override`.

    >>> check_override({"rank": 16, "density": 0.02})
    {'rank': 16, 'density': 0.02}
    """
    checked = checkers.table(values, _OVERRIDE, where)
    if checked.get("rank") and "lowrank" not in checked.get("dictionary", "lowrank"):
        raise ConfigError(f"{where}rank {checked['rank']} for dictionary {checked['dictionary']!r}, which has none")
    return checked


def parse_set(text: str) -> tuple[str, dict[str, Any]]:
    """Pattern and overrides of one `--set PATTERN:key=value,…`; the last colon ends the pattern.

    >>> parse_set("text_encoder:0:down*:max_rel_error=.02,exact=false")
    ('text_encoder:0:down*', {'max_rel_error': 0.02, 'exact': False})
    """
    where = f"--set {text!r}: "
    pattern, _, assignments = text.rpartition(":")
    if not pattern:
        raise ConfigError(f"{where}no pattern before a ':'", hint=_HINT_SET)
    values: dict[str, Any] = {}
    for assignment in assignments.split(","):
        key, equals, value = (word.strip() for word in assignment.partition("="))
        if not (key and equals and value):
            found = f"after the last ':' stands {assignment!r}, which is not key=value"
            raise ConfigError(where + found, hint=_HINT_SET)
        if key in values:
            raise ConfigError(f"{where}{key} is given twice")
        values[key] = _value(value)
    return checkers.pattern(pattern, where), check_override(values, where=where)


def parse_levels(text: str) -> tuple[float, ...]:
    """Limits on the relative error in a list such as that of `--levels`.

    >>> parse_levels("0.01, 0.03")
    (0.01, 0.03)
    """
    words = [word.strip() for word in text.split(",")]
    try:
        return tuple(map(float, words))
    except ValueError as error:
        raise ConfigError(
            f"--levels {text!r} is no list of numbers", hint="write numbers with commas between, such as 0.01,0.03"
        ) from error


def merge(settings: Mapping[str, Any], given: Mapping[str, Any], sets: Iterable[str] = ()) -> dict[str, Any]:
    """`settings` of a file overruled by those `given` on the command line, with the `--set` strings last.

    A target given replaces the file's target, whichever it is. A pattern repeated keeps the keys set before it and
    moves to the end, since later patterns win.
    """
    given = check(given)
    if any(target in given for target in TARGETS):
        settings = {key: value for key, value in settings.items() if key not in TARGETS}
    merged = {**settings, **given}
    layers = dict(merged.get("layers", {}))
    for pattern, values in map(parse_set, sets):
        layers[pattern] = {**layers.pop(pattern, {}), **values}
    return {**merged, "layers": layers} if layers else merged


def _one_target(settings: Mapping[str, Any], where: str) -> None:
    found = [target for target in TARGETS if target in settings]
    if len(found) > 1:
        raise ConfigError(f"{where}{' and '.join(found)} are both targets", hint="give one target; the rest follows")


def _value(text: str) -> bool | int | float | str:
    """What a word of a `--set` string means, by its look alone."""
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text


def _effort(value: Any) -> str:
    if value not in get_args(Effort):
        raise checkers.refused(value, f"one of {', '.join(get_args(Effort))}")
    return str(value)


def _importance(value: Any) -> str:
    if value not in get_args(Importance):
        raise checkers.refused(value, f"one of {', '.join(get_args(Importance))}")
    return str(value)


def _dictionary(value: Any) -> str:
    if value not in dictionaries.NAMES:
        raise checkers.refused(value, f"one of {', '.join(dictionaries.NAMES)}")
    return str(value)


def _layers(value: Any) -> dict[str, dict[str, Any]]:
    expected = 'a table of pattern = {key = value}, such as "fc*" = {rank = 16}'
    if not isinstance(value, Mapping):
        raise checkers.refused(value, expected)
    for pattern, values in value.items():
        if not isinstance(values, Mapping):
            raise ConfigError(f"{pattern!r}: found {values!r}, expected {{key = value}}", hint=f"layers is {expected}")
    return {
        checkers.pattern(pattern): check_override(values, where=f"{pattern!r}: ") for pattern, values in value.items()
    }


# 1 is what an all-zero tensor has; a little above is let through for limits that were computed
_ERROR = checkers.number(0, 1.01, "a number from 0 to 1, such as 0.03")
_SETTINGS: dict[str, Callable[[Any], Any]] = {
    "target_size": checkers.size,
    "bits_per_weight": checkers.number(math.ulp(0), sys.float_info.max, "a number above 0, such as 3.5"),
    "max_rel_error": _ERROR,
    "max_output_error": _ERROR,
    "importance": _importance,
    "effort": _effort,
    "workers": checkers.integer(1),
    "device": checkers.word,
    "seed": checkers.integer(0),
    "include": checkers.patterns,
    "exclude": checkers.patterns,
    "layers": _layers,
}
_OVERRIDE: dict[str, Callable[[Any], Any]] = {
    "max_rel_error": _ERROR,
    "dictionary": _dictionary,
    "rank": checkers.integer(0),
    "density": checkers.number(0, 1, "a share from 0 to 1, such as 0.02"),
    "exact": checkers.flag,
}
