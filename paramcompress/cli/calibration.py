"""The command that runs a model to see what its weights are multiplied with. Squeezes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from typer import Option

from ..records import SCHEMA_VERSION
from .options import Builder, Data, Force, Json, Model, Quiet, Seed, Verbose, given


def calibrate(
    model: Model,
    builder: Builder = None,
    data: Data = None,
    out: Annotated[
        Path | None,
        Option("--out", "-o", help="File to write; beside MODEL as NAME.stats.safetensors if not given."),
    ] = None,
    seed: Seed = None,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure what squeeze --stats will need: second moments of layer inputs.

    The model built by --model gets the weights of MODEL and is called with each batch.

    \b
    Example:
      paramcompress calibrate model.pt --model net:build --data net:batches
    """
    from ..errors import ConfigError

    if builder is None or data is None:
        raise ConfigError("calibrate needs --model PKG:FN and --data PKG:FN")

    from .. import pipeline
    from . import imported, terminal

    found = pipeline.save_moments(
        model,
        out or pipeline.default_stats(model),
        model=imported.call_for_model(builder),
        batches=imported.call_for_batches(data),
        force=force,
        **given(seed=seed),
    )
    if as_json:
        values = {
            "schema": SCHEMA_VERSION,
            "source": str(model),
            "output": str(found.path),
            "n_batches": found.n_batches,
            "layers": list(found.layers),
            "notes": list(found.notes),
        }
        print(json.dumps(values, indent=2))
    elif not quiet:
        for note in found.notes:
            terminal.say(f"note: {note}")
        if verbose:
            for name in found.layers:
                terminal.say(name)
        terminal.say(f"wrote {found.path}: moments of {len(found.layers)} weights from {found.n_batches} batches")
