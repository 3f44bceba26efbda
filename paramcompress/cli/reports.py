"""The command that writes a report of what is already there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ..records import SCHEMA_VERSION
from .options import Force, Json, Quiet


def report(
    file: Annotated[
        Path,
        Argument(metavar="FILE", help="A squeezed file, or the JSON that squeeze --report wrote.", show_default=False),
    ],
    out: Annotated[
        Path | None,
        Option("--out", "-o", help="File to write: .html, .md or .json; NAME.report.html beside FILE if not given."),
    ] = None,
    sweep: Annotated[
        Path | None, Option(metavar="FILE", help="Draw bytes against error, from sweep --csv or sweep --json.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a report that people look at: one HTML file, which needs no network.

    Sizes, errors layer by layer, where the bytes go, spectra, and a table to sort; for phones, paper and the dark, too.

    \b
    Example:
      paramcompress report model.squeezed.safetensors
      paramcompress report model.json -o model.html --sweep curve.csv
    """
    from .. import reporting
    from . import terminal

    out = out or reporting.default_output(file)
    reporting.make(file, out, sweep=sweep, force=force)
    if as_json:
        print(json.dumps({"schema": SCHEMA_VERSION, "source": str(file), "output": str(out)}, indent=2))
    elif not quiet:
        terminal.say(f"wrote {out}")
