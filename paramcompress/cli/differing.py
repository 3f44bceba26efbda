"""The command that compares two files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument

from .options import Json, Quiet, Verbose


def diff(
    old: Annotated[Path, Argument(metavar="OLD", help="Checkpoint or squeezed file.", show_default=False)],
    new: Annotated[Path, Argument(metavar="NEW", help="The same, either kind.", show_default=False)],
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show what a new file changed, layer by layer.

    Layers that came, went, or changed shape or type stand first, then the others by relative change. The exit code is 0
    whatever was found; check is the command that judges.

    \b
    Example:
      paramcompress diff old.squeezed.safetensors new.pt
    """
    from .. import differences
    from . import terminal

    with terminal.progress("comparing", quiet=quiet, unit="layers") as progress:
        result = differences.diff(old, new, progress=progress)
    terminal.show_difference(result, as_json=as_json, quiet=quiet, verbose=verbose)
