"""The commands that make, open and check squeezed files. Each parses, makes one call, and renders."""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

from typer import Argument, Option

from .. import config as settings
from ..errors import ConfigError
from ..records import SCHEMA_VERSION, Anatomy, Report
from .options import (
    Builder,
    Data,
    Device,
    Effort,
    Exclude,
    File,
    Force,
    Include,
    Json,
    Model,
    Quiet,
    Seed,
    Verbose,
    Workers,
    given,
)


def squeeze(
    model: Model,
    out: Annotated[
        Path | None,
        Option("--out", "-o", help="File to write; beside MODEL as NAME.squeezed.safetensors if not given."),
    ] = None,
    target_size: Annotated[
        str | None,
        Option(metavar="SIZE", help="Least error in at most SIZE, such as 3MB or 400KiB."),
    ] = None,
    bits_per_weight: Annotated[float | None, Option(metavar="B", help="The same, relative to the weights.")] = None,
    max_rel_error: Annotated[
        float | None,
        Option(metavar="E", help="Fewest bytes with a relative error of at most E per matrix."),
    ] = None,
    max_output_error: Annotated[
        float | None,
        Option(metavar="E", help="The same for what each matrix gives on the data; needs data."),
    ] = None,
    builder: Builder = None,
    data: Data = None,
    stats: Annotated[
        Path | None,
        Option(metavar="FILE", help="What paramcompress calibrate measured, in place of --model and --data."),
    ] = None,
    importance: Annotated[
        settings.Importance | None,
        Option(help="Take Adam's squared gradients in a training checkpoint for importances, without data."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        Option(
            "--set",
            metavar="PATTERN:KEY=VALUE,...",
            help="Settings of the layers that match a name, a glob or re:REGEX. "
            "Keys: max_rel_error, dictionary, rank, density, exact. Repeatable; later wins.",
        ),
    ] = None,
    include: Include = None,
    exclude: Exclude = None,
    config: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="Settings from a TOML file, overruled by the command line. Keys are the options with _ for -, "
            "but for files and switches; a table layers maps patterns to --set keys.",
        ),
    ] = None,
    effort: Effort = None,
    workers: Workers = None,
    device: Device = None,
    seed: Seed = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Show the plan and the predicted size; write nothing.")] = False,
    no_verify: Annotated[bool, Option("--no-verify", help="Do not read back and measure what was written.")] = False,
    force: Force = False,
    report: Annotated[
        Path | None, Option(metavar="FILE", help="Write the report to a .html, .md or .json file as well.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Squeeze a checkpoint; report the error of every layer.

    The target is one of --target-size, --bits-per-weight, --max-rel-error and, with data, --max-output-error. With data
    (--model and --data, or --stats) a file of the same accuracy is about half as large.

    \b
    Example:
      paramcompress squeeze model.pt --max-rel-error 0.02 --set 'fc*:rank=16'
      paramcompress squeeze model.pt --model net:build --data net:batches
    """
    from .. import report as reports

    on_command_line = given(
        target_size=target_size,
        bits_per_weight=bits_per_weight,
        max_rel_error=max_rel_error,
        max_output_error=max_output_error,
        importance=importance,
        include=include,
        exclude=exclude,
        effort=effort,
        workers=workers,
        device=device,
        seed=seed,
    )
    options = settings.merge(settings.read(config) if config else {}, on_command_line, set_ or ())
    if report:
        reports.check_destination(report, force=force)

    from .. import pipeline
    from . import imported, terminal

    guidance: dict[str, Any] = given(stats=stats)
    if builder is not None:
        guidance["model"] = imported.call_for_model(builder)
    if data is not None:
        guidance["batches"] = imported.call_for_batches(data)
    with terminal.progress("squeezing", quiet=quiet) as progress:
        result = pipeline.squeeze(
            model,
            out or pipeline.default_output(model),
            dry_run=dry_run,
            verify=not no_verify,
            force=force,
            progress=progress,
            **guidance,
            **options,
        )
    if report:
        reports.write(result, report, _anatomy(result) if report.suffix == ".html" else None)
    terminal.show(result, as_json=as_json, quiet=quiet, verbose=verbose)
    if dry_run and not (as_json or quiet):
        terminal.say("dry run: nothing was written, sizes and errors are predictions")


def _anatomy(result: Report) -> Anatomy | None:
    """What the file that was written is made of; None after a dry run."""
    from .. import anatomy

    return anatomy.examine(result.output) if result.output is not None else None


def expand(
    file: File,
    out: Annotated[
        Path | None, Option("--out", "-o", help="File or folder to write; the kind that was squeezed if not given.")
    ] = None,
    dtype: Annotated[
        str | None, Option(help="Type of floating-point tensors, such as float16; their own if not given.")
    ] = None,
    workers: Workers = None,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Reconstruct the full checkpoint from a squeezed file.

    Names, nesting, order, shapes, types and ties are those that were squeezed.

    \b
    Example:
      paramcompress expand model.squeezed.safetensors -o restored.pt
    """
    from .. import pipeline
    from . import terminal

    start_s = perf_counter()
    with terminal.progress("expanding", quiet=quiet) as progress:
        written = pipeline.expand(file, out, force=force, progress=progress, **given(dtype=dtype, workers=workers))
    if as_json:
        print(json.dumps({"schema": SCHEMA_VERSION, "source": str(file), "output": str(written)}, indent=2))
    elif not quiet:
        terminal.say(f"wrote {written}" + (f" in {perf_counter() - start_s:.1f} s" if verbose else ""))


def inspect(
    file: File,
    layer: Annotated[
        str | None, Option(metavar="NAME", help="Say why this layer has its size, and what else it could have.")
    ] = None,
    original: Annotated[
        Path | None,
        Option(metavar="MODEL", help="With --layer: the checkpoint it came from, for exact prices."),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show what a squeezed file holds.

    Only the index is read, so this is instant on files of any size. With --layer, that layer is decoded and coded again
    with every dictionary and at larger errors: what was weighed against what, and what to relax.

    \b
    Example:
      paramcompress inspect model.squeezed.safetensors --json
      paramcompress inspect model.squeezed.safetensors --layer fc1.weight
    """
    from . import terminal

    if layer is None:
        from .. import pipeline

        if original is not None:
            raise ConfigError("--original needs --layer", hint="name the layer to explain, or use verify FILE MODEL")
        terminal.show(pipeline.inspect(file), as_json=as_json, quiet=quiet, verbose=verbose)
        return
    from .. import explanations

    with terminal.progress("pricing", quiet=quiet, unit="layers") as progress:
        result = explanations.explain(file, layer, original, progress=progress)
    terminal.show_explanation(result, as_json=as_json, quiet=quiet, verbose=verbose)


def verify(
    file: File,
    original: Annotated[
        Path | None,
        Argument(metavar="MODEL", help="The checkpoint it came from.", show_default=False),
    ] = None,
    workers: Workers = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Decode a squeezed file and check all it promises.

    Every checksum and hash is checked; with MODEL, the error of every layer is measured again.

    \b
    Example:
      paramcompress verify model.squeezed.safetensors model.pt
    """
    from .. import pipeline
    from . import terminal

    with terminal.progress("verifying", quiet=quiet) as progress:
        result = pipeline.verify(file, original, progress=progress, **given(workers=workers))
    terminal.show(result, as_json=as_json, quiet=quiet, verbose=verbose)
