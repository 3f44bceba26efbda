"""The budget that a team commits beside its model: paramcompress.toml, or [tool.paramcompress] in pyproject.toml.

Reads and checks; measures nothing. Every mistake is one error with the file, the entry, the key and the remedy.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import checkers
from .errors import ConfigError

FILE_NAME = "paramcompress.toml"
PYPROJECT = "pyproject.toml"
BASELINE_NAME = "paramcompress-baseline.json"
_EXAMPLE = 'an entry [[check]] of the lines path = "model.squeezed.safetensors" and max_size = "400kB"'
_INCREASE = 'a table such as {percent = 5, bytes = "20kB"}'


@dataclass(frozen=True)
class Increase:
    """How much larger than the baseline something may be. Both limits have to be exceeded where both are given."""

    percent: float = 0.0
    n_bytes: int = 0

    def allows(self, before: int, after: int) -> bool:
        """
        >>> Increase(5, 1000).allows(100, 900), Increase(5, 1000).allows(10_000, 12_000), Increase(5).allows(100, 106)
        (True, False, False)
        """
        return after - before <= self.n_bytes or after - before <= self.percent / 100 * before

    def __str__(self) -> str:
        parts = [f"{self.percent:g} %"] * bool(self.percent) + [f"{self.n_bytes:,} B"] * bool(self.n_bytes)
        return " and ".join(parts) or "0 B"


@dataclass(frozen=True)
class LayerLimits:
    """What one layer has to keep; None is no limit."""

    max_size: int | None = None
    max_rel_error: float | None = None
    max_increase: Increase | None = None


@dataclass(frozen=True)
class Limits(LayerLimits):
    """What a file has to keep: sizes are of the file, `max_rel_error` is of each layer without a limit of its own."""

    layers: Mapping[str, LayerLimits] = field(default_factory=dict)
    """By pattern: exact name, glob or `re:`. An exact name beats patterns, of these the later wins, key by key."""


@dataclass(frozen=True)
class Check:
    """One entry of the configuration."""

    path: str
    """File or glob, relative to the configuration."""
    original: str | None = None
    """Checkpoint that the errors are measured against; `{name}` in it is the file's name without its suffix."""
    name: str = ""
    message: str = ""
    fail: Limits = field(default_factory=Limits)
    warn: Limits = field(default_factory=Limits)
    line: int | None = None
    """Where it stands in the file."""

    @property
    def compares(self) -> bool:
        """Whether some limit is relative to the baseline."""
        limits = (self.fail, self.warn, *self.fail.layers.values(), *self.warn.layers.values())
        return any(one.max_increase for one in limits)


@dataclass(frozen=True)
class Budget:
    """A whole configuration."""

    file: Path
    baseline: Path
    checks: tuple[Check, ...]

    @property
    def folder(self) -> Path:
        """What paths are relative to."""
        return self.file.parent

    @property
    def compares(self) -> bool:
        """Whether some limit is relative to the baseline."""
        return any(check.compares for check in self.checks)


def find(path: Path | None) -> Path:
    """The configuration to read: `path`, or what the current folder holds; in a folder given, the same.

    Raises:
        ConfigError: there is none.
    """
    if path is not None and not path.is_dir():
        return path
    folder = path or Path()
    if (folder / FILE_NAME).exists():
        return folder / FILE_NAME
    if (folder / PYPROJECT).exists():
        return folder / PYPROJECT
    raise ConfigError(
        f"no {FILE_NAME} and no {PYPROJECT} in {folder.resolve()}", hint=f"write a {FILE_NAME} with {_EXAMPLE}"
    )


def read(path: Path) -> Budget:
    """The budget in the TOML file `path`.

    Raises:
        ConfigError: unreadable, not TOML (with the line), or with a key or value that makes no sense.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content: Any = tomllib.loads(text)
    except OSError as error:
        hint = f"write it with {_EXAMPLE}" if not path.exists() else None
        raise ConfigError(f"{path}: cannot be read: {error.strerror}", hint=hint) from error
    except RecursionError as error:
        raise ConfigError(f"{path}: not valid TOML: nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: not UTF-8", hint="save it as UTF-8") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}", hint="mend that line") from error
    if path.name == PYPROJECT:
        tool = content.get("tool", {})
        content = tool.get("paramcompress") if isinstance(tool, dict) else None
        if not isinstance(content, dict):
            raise ConfigError(
                f"{path}: holds no table [tool.paramcompress]",
                hint=f"write one with [[tool.paramcompress.check]] in it, or a {FILE_NAME}",
            )
    return parse(content, path, _lines(text))


def parse(content: Mapping[str, Any], path: Path, lines: Sequence[int] = ()) -> Budget:
    """The budget of a parsed configuration.

    Args:
        path: what errors name, and paths are relative to.
        lines: of the entries; as many as there are entries, or they are not believed.
    """
    found = checkers.table(content, {"check": _entries, "baseline": _json_name}, f"{path}: ")
    entries = found.get("check", [])
    if not entries:
        raise ConfigError(f"{path}: holds no check", hint=f"write {_EXAMPLE}")
    known_lines: Sequence[int | None] = lines if len(lines) == len(entries) else [None] * len(entries)
    checks = []
    for number, (entry, line) in enumerate(zip(entries, known_lines, strict=True), 1):
        where = f"{path}, check {number}: " if line is None else f"{path}, line {line}, check {number}: "
        checks.append(_check(entry, line, where))
    return Budget(path, path.parent / found.get("baseline", BASELINE_NAME), tuple(checks))


def _check(entry: Mapping[str, Any], line: int | None, where: str) -> Check:
    values = checkers.table(entry, _CHECK, where)
    if "path" not in values:
        raise ConfigError(f"{where}no path", hint='say which file or glob it is about, such as path = "models/*"')
    own = {key: values.pop(key) for key in _LIMITS if key in values}
    fail, warn = values.pop("fail", {}), values.pop("warn", {})
    if twice := sorted(own.keys() & fail.keys()):
        raise ConfigError(f"{where}{twice[0]} stands in the entry and in its table fail", hint="the two mean the same")
    return Check(**values, fail=Limits(**{**own, **fail}), warn=Limits(**warn), line=line)


def _lines(text: str) -> list[int]:
    """Lines on which entries begin, as far as they have a header of their own."""
    header = re.compile(r"\s*\[\[\s*(tool\s*\.\s*paramcompress\s*\.\s*)?check\s*\]\]")
    return [number for number, line in enumerate(text.splitlines(), 1) if header.match(line)]


# ------------------------------------------------------------------------------------------- values


def _entries(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        found = "one table" if isinstance(value, dict) else repr(value)
        raise ConfigError(f"found {found}, expected a list of tables", hint="write [[check]] with double brackets")
    return value


def _json_name(value: Any) -> str:
    """A name that no model and no source has: --update-baseline overwrites what is there."""
    if not isinstance(value, str) or not value.endswith(".json") or "\0" in value:
        raise checkers.refused(value, "a name that ends in .json")
    return value


def _increase(value: Any) -> Increase:
    if not isinstance(value, dict) or not value:
        raise checkers.refused(value, _INCREASE)
    known = {
        "percent": checkers.number(0, sys.float_info.max, "a number without quotes or %, such as 5"),
        "bytes": _size_or_none,
    }
    found = checkers.table(value, known)
    return Increase(found.get("percent", 0.0), found.get("bytes", 0))


def _size_or_none(value: Any) -> int:
    """A size that may be zero."""
    return 0 if value == 0 and not isinstance(value, bool) else int(checkers.size(value))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise checkers.refused(value, "a text in quotes")
    return value


def _layers(value: Any) -> dict[str, LayerLimits]:
    expected = 'a table of pattern = {key = value}, such as "fc*" = {max_rel_error = 0.01}'
    if not isinstance(value, dict):
        raise checkers.refused(value, expected)
    found = {}
    for pattern, limits in value.items():
        if not isinstance(limits, dict):
            raise ConfigError(f"{pattern!r}: found {limits!r}, expected {{key = value}}", hint=f"layers is {expected}")
        if any(isinstance(one, dict) for key, one in limits.items() if key not in _LAYER_LIMITS):
            raise ConfigError(f"{pattern!r}: a table within a table", hint="quote names that hold dots")
        found[checkers.pattern(pattern)] = LayerLimits(**checkers.table(limits, _LAYER_LIMITS, f"{pattern!r}: "))
    return found


def _limits(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise checkers.refused(value, 'a table of limits, such as {max_size = "380kB"}')
    return checkers.table(value, _LIMITS)


_LAYER_LIMITS: dict[str, checkers.Checker] = {
    "max_size": checkers.size,
    "max_rel_error": checkers.number(0, 1.01, "a number from 0 to 1, such as 0.05"),
    "max_increase": _increase,
}
_LIMITS: dict[str, checkers.Checker] = {**_LAYER_LIMITS, "layers": _layers}
_CHECK: dict[str, checkers.Checker] = {
    "path": checkers.word,
    "original": checkers.word,
    "name": _text,
    "message": _text,
    **_LIMITS,
    "fail": _limits,
    "warn": _limits,
}
