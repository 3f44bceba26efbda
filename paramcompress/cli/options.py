"""Options that several commands share, each described once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

File = Annotated[Path, Argument(metavar="FILE", help="A file that squeeze wrote.", show_default=False)]
Workers = Annotated[int | None, Option("--workers", min=1, metavar="N", help="Layers worked on at the same time.")]
Force = Annotated[bool, Option("--force", help="Overwrite what is there.")]
Json = Annotated[bool, Option("--json", help="Print JSON on stdout, and nothing else there.")]
Quiet = Annotated[bool, Option("--quiet", "-q", help="No progress bar and no table; errors only.")]
Verbose = Annotated[bool, Option("--verbose", "-v", help="Say more, such as a line for every tensor.")]
