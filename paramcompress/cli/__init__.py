"""The command line: parses, calls the conductor, renders. Loads no torch before a command needs it.

One file per group of commands; a new command is a function in one of them and a name in `COMMANDS`.
"""

from __future__ import annotations

import gc
import sys
from io import TextIOWrapper
from typing import Annotated

import typer

from .calibration import calibrate
from .curves import sweep
from .differing import diff
from .files import expand, inspect, squeeze, verify
from .gates import check
from .interruption import interruptible
from .reports import report
from .translator import Translator

_ROUND = 50_000
"""Objects after which Python searches for garbage; of the many that torch and numba make at first nearly all stay."""
COMMANDS = (squeeze, expand, inspect, verify, diff, sweep, calibrate, check, report)

app = typer.Typer(
    name="paramcompress",
    cls=Translator,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,  # plain help and usage errors: half the waiting time, nothing to wrap
    pretty_exceptions_enable=False,  # the translator shows them, plain enough to paste into an issue
)
for command in COMMANDS:
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from paramcompress import __version__

        print(f"paramcompress {__version__}")
        raise typer.Exit


@app.callback(
    epilog="Exit codes: 0 done, 1 budget, 2 usage, 3 input or output, 4 verification, 70 bug, 130 interrupted. "
    "With PARAMCOMPRESS_DEBUG=1 every error shows its traceback."
)
def paramcompress(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Squeeze trained checkpoints into compact safetensors files, with a measured error for every layer.

    \b
    Example:
      paramcompress squeeze model.pt
    """


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names and paths may hold what the terminal cannot show
    gc.set_threshold(_ROUND)
    try:
        with interruptible():
            app()
    finally:
        gc.freeze()  # or the interpreter's end would search all that torch and numba have made for garbage
