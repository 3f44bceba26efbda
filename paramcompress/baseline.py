"""The baseline: sizes and errors of the squeezed files of a repository, in a small JSON file that is committed.

Sorted, one layer a line, so that its history reads well and merges well. No server, no token, no git is needed.
"""

from __future__ import annotations

import json
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
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        schema = content["schema"]
        if schema != SCHEMA:
            raise ConfigError(
                f"{path}: its layout is number {schema!r}, this version of paramcompress knows {SCHEMA}",
                hint=f"update paramcompress, or {_REWRITE}",
            )
        return {name: _file(one) for name, one in content["files"].items()}
    except OSError as error:
        raise ConfigError(f"{path}: the baseline cannot be read: {error.strerror}", hint=_REWRITE) from error
    except ConfigError:
        raise
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}", hint=f"mend it, or {_REWRITE}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path}: not a baseline: {type(error).__name__} {error}", hint=_REWRITE) from error


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


def _file(one: Any) -> FileSize:
    layers = {name: LayerSize(_count(size["bytes"]), float(size["rel_error"])) for name, size in one["layers"].items()}
    return FileSize(_count(one["bytes"]), layers)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no number of bytes")
    return value
