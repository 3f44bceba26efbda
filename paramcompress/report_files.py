"""Reports and sweeps read back from the files that `--json`, `--report` and `--csv` write. Measures nothing."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from .errors import CheckpointError, FormatError, UnsupportedFormatError
from .pages import CurvePoint
from .records import SCHEMA_VERSION, LayerReport, Report

T = TypeVar("T")


def read_report(path: Path) -> Report:
    """The report in a JSON file that `squeeze --json` or `--report FILE.json` wrote.

    Raises:
        CheckpointError: cannot be opened. FormatError: no report; UnsupportedFormatError where it is only newer.
    """

    def parse(text: str) -> Report:
        content = _document(path, text)
        layers = tuple(_layer(one) for one in content["layers"])
        own = {field.name: content[field.name] for field in fields(Report) if field.name in content}
        return Report(**{**own, "layers": layers, "notes": tuple(content.get("notes", ()))})

    return _read(path, parse, "a report", "squeeze --report FILE.json writes one")


def read_sweep(path: Path) -> tuple[CurvePoint, ...]:
    """Bytes at several limits, from what `sweep --json` printed or `sweep --csv` wrote.

    Raises:
        CheckpointError, FormatError: as above.
    """

    def parse(text: str) -> tuple[CurvePoint, ...]:
        if text.lstrip().startswith("{"):
            points = _document(path, text)["points"]
            return tuple(CurvePoint(float(one["max_rel_error"]), int(one["bytes_after"])) for one in points)
        rows = [row for row in csv.DictReader(text.splitlines()) if row["layer"] == ""]
        return tuple(CurvePoint(float(row["max_rel_error"]), int(row["bytes"])) for row in rows)

    found = _read(path, parse, "a sweep", "sweep --csv FILE writes one")
    if not found:
        raise FormatError(path, "not a sweep: it holds no point", hint="sweep --csv FILE writes one")
    return found


def _layer(content: dict[str, Any]) -> LayerReport:
    """One layer; keys that a later version may have added are left out."""
    values = {field.name: content[field.name] for field in fields(LayerReport) if field.name in content}
    return LayerReport(**{**values, "shape": tuple(values["shape"])})


def _read(path: Path, parse: Callable[[str], T], what: str, hint: str) -> T:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
    except FormatError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise FormatError(path, f"not {what}: {type(error).__name__} {error}", hint=hint) from error


def _document(path: Path, text: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(text)
    if content["schema"] != SCHEMA_VERSION:
        raise UnsupportedFormatError(path, "JSON layout", content["schema"], [SCHEMA_VERSION])
    return content
