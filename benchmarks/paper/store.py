"""Results as JSON: one record for each (experiment, setting, seed), added as it is finished, so that runs can be cut.

A file holds one experiment. It is replaced in one step, so a run that is killed leaves what was finished before, and
several runs may add to it at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parents[1] / "results" / "paper"
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom."""

Record = dict[str, Any]


class Mean(NamedTuple):
    """A mean and half its 95 % interval; the latter is None of one value."""

    value: float
    margin: float | None
    n: int

    def __str__(self) -> str:
        return f"{self.value:.2f}" if self.margin is None else f"{self.value:.2f} ± {self.margin:.2f}"


class Store:
    """The results of one experiment, read when made and written at each addition."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._content: Record = json.loads(path.read_text()) if path.exists() else {"results": []}

    @property
    def records(self) -> list[Record]:
        return list(self._content["results"])

    def has(self, setting: str, seed: int) -> bool:
        return any((one["setting"], one["seed"]) == (setting, seed) for one in self.records)

    def add(self, record: Record, about: Record) -> None:
        """Keep a finished record. It takes the place of one with its setting and seed.

        Args:
            record: has at least `setting` and `seed`.
            about: the command, commit, versions and machine; kept with the record, which may be one of several runs.
        """
        key = (record["setting"], record["seed"])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.path.parent):
            if self.path.exists():  # another run may have added something
                self._content = json.loads(self.path.read_text())
            others = [one for one in self.records if (one["setting"], one["seed"]) != key]
            self._content["results"] = [*others, record | {"about": about}]
            scratch = self.path.with_suffix(".tmp")
            scratch.write_text(json.dumps(self._content, indent=1) + "\n")
            scratch.replace(self.path)

    def mean(self, setting: str, field: str) -> Mean | None:
        """Over the seeds that are there; None if there are none."""
        values = [one[field] for one in self.records if one["setting"] == setting and one.get(field) is not None]
        return mean(values) if values else None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def mean(values: list[float]) -> Mean:
    """Mean and half the 95 % interval by Student's t, which takes the values for draws of one normal distribution.

    >>> str(mean([1.0, 2.0, 3.0]))
    '2.00 ± 2.48'
    """
    if len(values) == 1:
        return Mean(values[0], None, 1)
    quantile = T_975[min(len(values) - 1, len(T_975)) - 1]
    return Mean(statistics.fmean(values), quantile * statistics.stdev(values) / math.sqrt(len(values)), len(values))
