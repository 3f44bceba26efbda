"""Run the experiments of the paper, in pieces that are kept, and write them up.

    python -m benchmarks.paper mnist --data FOLDER                      # the whole table; goes on where it was cut
    python -m benchmarks.paper mnist --data FOLDER --minutes 20         # starts no further net after 20 minutes
    python -m benchmarks.paper mnist --data FOLDER --only 'SE-Emp *'    # these settings only
    python -m benchmarks.paper mnist --digits                           # ten seconds a net, on scikit-learn's digits
    python -m benchmarks.paper report                                   # tables and curves of docs/paper.md

Every finished (setting, seed) is added to benchmarks/results/paper/EXPERIMENT.json.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.origin import origin

from . import cifar, mnist, report, rica, speech
from .experiment import Experiment, Setting
from .store import FOLDER, Store

EXPERIMENTS = {one.name: one for one in (mnist.EXPERIMENT, cifar.EXPERIMENT, rica.EXPERIMENT, speech.EXPERIMENT)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", choices=[*EXPERIMENTS, "report"])
    parser.add_argument("--data", type=Path, help="folder of the data; without it, where they are to be had is said")
    parser.add_argument("--digits", action="store_true", help="scikit-learn's digits instead")
    parser.add_argument("--only", action="append", metavar="PATTERN", help="settings of these names; repeatable")
    parser.add_argument("--seeds", type=int, help="this many for every setting, in place of the table's own number")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no further net after as many")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--out", type=Path, help="results; benchmarks/results/paper/EXPERIMENT.json")
    parser.add_argument("--list", action="store_true", help="say what is done and what is not, and stop")
    options = parser.parse_args(arguments)
    if options.experiment == "report":
        report.write(EXPERIMENTS.values())
        return 0
    experiment = EXPERIMENTS[options.experiment]
    out = options.out or (Path(tempfile.gettempdir()) / "paper-digits" if options.digits else FOLDER)
    store = Store(out if out.suffix == ".json" else out / f"{experiment.name}.json")
    work = list(pieces(experiment, options.only or ["*"], options.seeds))
    if options.list:
        for setting, seed in work:
            print("done" if store.has(setting.name, seed) else "open", setting.name, seed)
        return 0
    if not (options.data or options.digits):
        parser.error(f"--data FOLDER or --digits. {experiment.title}: {experiment.source}")
    torch.set_num_threads(options.threads)
    data = experiment.digits() if options.digits else experiment.load(options.data)
    made_by = about(experiment.name, options.threads)
    start = time.monotonic()
    for setting, seed in work:
        if store.has(setting.name, seed):
            continue
        if time.monotonic() - start > 60 * options.minutes:
            print("time is up; the same command goes on from here")
            return 0
        record = {"setting": setting.name, "seed": seed, **experiment.run(setting, data, seed)}
        store.add(record, made_by)
        print(record, flush=True)
    return 0


def pieces(experiment: Experiment, patterns: list[str], n_seeds: int | None) -> Iterator[tuple[Setting, int]]:
    """What is to be run, seed by seed, so that a run that is cut has a whole table of the first ones."""
    wanted = [one for one in experiment.settings if any(fnmatch.fnmatchcase(one.name, p) for p in patterns)]
    for seed in range(max((n_seeds or one.n_seeds for one in wanted), default=0)):
        yield from ((one, seed) for one in wanted if seed < (n_seeds or one.n_seeds))


def about(name: str, threads: int) -> dict[str, Any]:
    """How a result came about."""
    return {"command": f"python -m benchmarks.paper {name}", **origin(), "threads": threads}


if __name__ == "__main__":
    sys.exit(main())
