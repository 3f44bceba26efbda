"""Options that several commands share, each described once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from .. import config

Model = Annotated[Path, Argument(metavar="MODEL", help="Checkpoint file, or folder with an index.", show_default=False)]
File = Annotated[Path, Argument(metavar="FILE", help="A file that squeeze wrote.", show_default=False)]
Include = Annotated[
    list[str] | None, Option("--include", metavar="PATTERN", help="Squeeze only these; the rest stays exact.")
]
Exclude = Annotated[list[str] | None, Option("--exclude", metavar="PATTERN", help="Keep these exact.")]
Effort = Annotated[config.Effort | None, Option("--effort", help="Time spent on looking for fewer bytes.")]
Device = Annotated[str | None, Option("--device", help="Where torch computes, such as cpu or cuda.")]
Seed = Annotated[int | None, Option("--seed", min=0, max=2**63 - 1, help="Source of all randomness.")]
Workers = Annotated[int | None, Option("--workers", min=1, metavar="N", help="Layers worked on at the same time.")]
Builder = Annotated[
    str | None, Option("--model", metavar="PKG:FN", help="Function that builds the model (torch.nn.Module).")
]
Data = Annotated[
    str | None,
    Option("--data", metavar="PKG:FN", help="Function that gives an iterable of what the model is called with."),
]
Force = Annotated[bool, Option("--force", help="Overwrite what is there.")]
Json = Annotated[bool, Option("--json", help="Print JSON on stdout, and nothing else there.")]
Quiet = Annotated[bool, Option("--quiet", "-q", help="No progress bar and no table; errors only.")]
Verbose = Annotated[bool, Option("--verbose", "-v", help="Say more, such as a line for every tensor.")]


def given(**options: Any) -> dict[str, Any]:
    """The options that stand on the command line; the others keep the conductor's defaults."""
    return {key: value for key, value in options.items() if value is not None and value != []}
