"""The command that shows what each error costs. Keeps no squeezed file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from .. import config as settings
from .options import Device, Effort, Exclude, Force, Include, Json, Model, Quiet, Seed, Verbose, Workers, given


def sweep(
    model: Model,
    levels: Annotated[
        str | None,
        Option(metavar="E,E,...", help="Limits on the relative error; 0.005 to 0.2 in seven steps if not given."),
    ] = None,
    csv: Annotated[
        Path | None, Option(metavar="FILE", help="Write bytes and error of every layer at every limit as CSV.")
    ] = None,
    plot: Annotated[
        Path | None, Option(metavar="FILE", help="Draw a chart to a .png or .svg file; needs matplotlib.")
    ] = None,
    include: Include = None,
    exclude: Exclude = None,
    effort: Effort = None,
    workers: Workers = None,
    device: Device = None,
    seed: Seed = None,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show bytes against error; squeeze at several limits and keep nothing.

    Sizes are those of the files that squeeze --max-rel-error would write.

    \b
    Example:
      paramcompress sweep model.pt --levels 0.01,0.03,0.1
      paramcompress sweep model.pt --csv curve.csv --plot curve.png
    """
    from .. import plot as plots
    from .. import report as reports

    options = given(include=include, exclude=exclude, effort=effort, workers=workers, device=device, seed=seed)
    if levels is not None:
        options["levels"] = settings.parse_levels(levels)
    if plot is not None:
        plots.check(plot)
    for path in (csv, plot):
        if path is not None:
            reports.check_writable(path, force=force, inputs=[model])

    from .. import sweeps
    from . import terminal

    with terminal.progress("sweeping", quiet=quiet) as progress:
        result = sweeps.sweep(model, progress=progress, **options)
    if csv is not None:
        reports.write_whole(csv, reports.to_csv(result).encode())
    if plot is not None:
        reports.write_whole(plot, plots.draw(result, plot.suffix))
    terminal.show_sweep(result, as_json=as_json, quiet=quiet, verbose=verbose)
