"""What an experiment is: data, settings to be tried, and one run of one setting with one seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DENSE, SMALLER = "dense", "smaller"
"""The net whose weights are all learned, and the one that is dense and has as many numbers as a predicted one."""
SEEDS = 5
"""Of the headline points; the others have one."""


@dataclass(frozen=True)
class Setting:
    """One point of a table.

    Attributes:
        method: `dense`, `smaller`, or the kinds of dictionaries of the predicted layers, from the input on, joined by
            dashes; names of `nets.KINDS`. A single name stands for all layers.
        fraction: learned numbers / weights of the predicted layers; 1 for the dense net.
        n_seeds: seeds that the full table has.
        width: features, as a multiple of the net's own.
    """

    method: str
    fraction: float = 1.0
    n_seeds: int = 1
    width: int = 1

    @property
    def name(self) -> str:
        """Its name in results.

        >>> Setting("dense").name, Setting("SE-Emp", 0.025).name, Setting("SE", 0.5, width=2).name
        ('dense', 'SE-Emp 2.5%', 'SE 50% x2')
        """
        share = "" if self.method == DENSE else f" {100 * self.fraction:g}%"
        return f"{self.method}{share}" + (f" x{self.width}" if self.width > 1 else "")


@dataclass(frozen=True)
class Experiment:
    """A table of the paper.

    Attributes:
        title: for the page.
        source: where the data are to be had.
        settings: of the full table, headline points first.
        load: data of a path; `digits`: the small stand-in, which comes with scikit-learn.
        run: (setting, data, seed) to what was measured, as JSON; data may be either.
    """

    name: str
    title: str
    source: str
    settings: tuple[Setting, ...]
    load: Callable[[Path], Any]
    digits: Callable[[], Any]
    run: Callable[[Setting, Any, int], dict[str, Any]]

    def setting(self, name: str) -> Setting:
        """By its name.

        Raises:
            KeyError: there is none of that name.
        """
        return {one.name: one for one in self.settings}[name]


def table(*groups: tuple[tuple[str, ...], tuple[float, ...], int]) -> tuple[Setting, ...]:
    """Settings of (methods, fractions, seeds), those with most seeds first; of equals the first counts."""
    made: dict[str, Setting] = {}
    for methods, fractions, n_seeds in sorted(groups, key=lambda group: -group[2]):
        for fraction in fractions:
            for method in methods:
                one = Setting(method, fraction, n_seeds)
                made.setdefault(one.name, one)
    return tuple(made.values())
