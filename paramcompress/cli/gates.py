"""The command that decides whether a build passes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Exit, Option

from .options import Force, Json, Quiet, Verbose, Workers, given

Format = Literal["text", "json", "markdown", "github", "junit"]


def check(
    config: Annotated[
        Path | None,
        Argument(
            metavar="CONFIG",
            help="TOML file with the budget, or its folder; paramcompress.toml or pyproject.toml here if not given.",
            show_default=False,
        ),
    ] = None,
    format_: Annotated[
        Format | None,
        Option(
            "--format",
            metavar="FORMAT",
            help="text, json, markdown, github or junit; text, and github under GitHub Actions, if not given.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Write that format to FILE, and show the text all the same, or with --json the JSON.",
        ),
    ] = None,
    update_baseline: Annotated[
        bool, Option("--update-baseline", help="Write today's sizes and errors to the baseline; commit it.")
    ] = False,
    workers: Workers = None,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Check squeezed files against the size and error budget of a repository.

    Exit code 1 is a broken budget or a missing file, 2 a budget that makes no sense, 3 a file that cannot be read, 4 a
    file that does not hold what it promises; of several the worst, 4 before 3 before 2 before 1. Under GitHub Actions
    it annotates the pull request and writes the step summary; that takes no token.

    \b
    Example:
      paramcompress check paramcompress.toml
      paramcompress check --update-baseline
      paramcompress check --format junit -o budget.xml
    """
    from . import continuous

    forms = continuous.Forms(format_, out, as_json=as_json, quiet=quiet, verbose=verbose)
    forms.check_destination(config, force=force)

    with forms.annotated_errors(config):
        from .. import gate
        from . import terminal

        with terminal.progress("checking", quiet=quiet) as progress:
            verdict = gate.check(config, update_baseline=update_baseline, progress=progress, **given(workers=workers))
    forms.show(verdict)
    raise Exit(verdict.exit_code)
