"""The baseline: sizes and errors of the squeezed files of a repository, in a small JSON file that is committed.

Sorted, one layer a line, so that its history reads well and merges well. No server, no token, no git is needed.
"""

from __future__ import annotations

import json
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .verdicts import LayerChange, LayerSize, Sizes

SCHEMA = 1
"""Number of the layout that is written; only this one is read."""
_REWRITE = "write it again with: paramcompress check --update-baseline"


@dataclass(frozen=True)
class FileSize:
    """One file as the baseline remembers it."""

    n_bytes: int
    layers: Sizes


Baseline = Mapping[str, FileSize]
"""By the path of the file relative to the configuration, with forward slashes."""


def read(path: Path) -> Baseline:
    """The baseline in `path`.

    Raises:
        ConfigError: unreadable, damaged, or of a newer version.
    """
    content = _content(path)
    try:
        schema = _member(content, "schema")
        if schema != SCHEMA:
            raise ConfigError(
                f"{path}: its layout is number {schema!r}, this version of paramcompress knows {SCHEMA}",
                hint=f"update paramcompress, or {_REWRITE}",
            )
        return {name: _file(one, name) for name, one in _object(_member(content, "files"), "files: ").items()}
    except _NoBaselineError as error:
        raise ConfigError(f"{path}: not a baseline: {error}", hint=_REWRITE) from error


def check_replaceable(path: Path) -> None:
    """Whether a baseline may be written to `path`: nothing is there, an older one, or what is no JSON after a merge.

    Raises:
        ConfigError: it is something else, which would be lost.
    """
    try:
        content = _content(path) if path.exists() else {"schema": SCHEMA}
    except ConfigError:
        return
    if not isinstance(content, dict) or "schema" not in content:
        raise ConfigError(f"{path}: is there and is no baseline", hint="name another file in the key baseline")


def text(baseline: Baseline) -> str:
    """The file's content; read back it is the same baseline, errors rounded to four digits.

    >>> print(text({"net.squeezed.safetensors": FileSize(100, {"fc": LayerSize(60, 0.0299999)})}))
    {
      "schema": 1,
      "files": {
        "net.squeezed.safetensors": {
          "bytes": 100,
          "layers": {
            "fc": {"bytes": 60, "rel_error": 0.03}
          }
        }
      }
    }
    """
    files = []
    for name, one in sorted(baseline.items()):
        layers = ",\n".join(f"        {_quoted(layer)}: {_line(size)}" for layer, size in sorted(one.layers.items()))
        layers = f"{{\n{layers}\n      }}" if layers else "{}"
        files.append(f'    {_quoted(name)}: {{\n      "bytes": {one.n_bytes},\n      "layers": {layers}\n    }}')
    inside = ",\n".join(files)
    return f'{{\n  "schema": {SCHEMA},\n  "files": ' + (f"{{\n{inside}\n  }}" if files else "{}") + "\n}"


def changes(before: Sizes, after: Sizes) -> tuple[LayerChange, ...]:
    """Layers that are not the same in both, the largest change in bytes first."""
    names = list(dict.fromkeys([*after, *before]))
    both = [LayerChange(name, before.get(name), after.get(name)) for name in names]
    differing = [one for one in both if one.before is None or one.after is None or not _alike(one.before, one.after)]
    return tuple(sorted(differing, key=lambda one: -abs(one.more_bytes)))


def rounded(rel_error: float) -> float:
    """As the baseline holds it.

    >>> rounded(0.02994937)
    0.02995
    """
    return float(f"{rel_error:.4g}")


def _alike(a: LayerSize, b: LayerSize) -> bool:
    return a.n_bytes == b.n_bytes and rounded(a.rel_error) == rounded(b.rel_error)


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def _line(size: LayerSize) -> str:
    return json.dumps({"bytes": size.n_bytes, "rel_error": rounded(size.rel_error)})


class _NoBaselineError(Exception):
    """What is there is not what was written, in words."""


def _content(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: the baseline cannot be read: {error.strerror}", hint=_REWRITE) from error
    except RecursionError as error:
        raise ConfigError(f"{path}: not valid JSON: nested too deeply", hint=_REWRITE) from error
    except ValueError as error:  # not UTF-8, not JSON, or a number of thousands of digits
        raise ConfigError(f"{path}: not valid JSON: {error}", hint=f"mend it, or {_REWRITE}") from error


def _file(one: Any, name: str) -> FileSize:
    where = f"{name}: "
    layers = {
        layer: _layer(size, f"{where}{layer}: ")
        for layer, size in _object(_member(one, "layers", where), f"{where}layers: ").items()
    }
    return FileSize(_count(_member(one, "bytes", where), where), layers)


def _layer(size: Any, where: str) -> LayerSize:
    error = _member(size, "rel_error", where)
    if isinstance(error, bool) or not isinstance(error, int | float) or not 0 <= error <= sys.float_info.max:
        raise _NoBaselineError(f"{where}{reprlib.repr(error)} is no error")
    return LayerSize(_count(_member(size, "bytes", where), where), float(error))


def _count(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise _NoBaselineError(f"{where}{reprlib.repr(value)} is no number of bytes")
    return value


def _member(value: Any, key: str, where: str = "") -> Any:
    if key not in _object(value, where):
        raise _NoBaselineError(f"{where}no {key!r}")
    return value[key]


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _NoBaselineError(f"{where}found {reprlib.repr(value)}, expected an object")
    return value
