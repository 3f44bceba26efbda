"""Nouns of the gate: what a file was found to be, what breaks its budget, and how a whole check ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

SCHEMA_VERSION = 1
"""Number of the JSON layout of `Verdict.to_json`."""
SEVERITY = (4, 3, 2, 1)
"""Exit codes from the worst on: a file that breaks its promise, one that cannot be read, usage, a budget."""

Level = Literal["fail", "warn"]


@dataclass(frozen=True)
class Finding:
    """One thing that is not as the budget wants it."""

    level: Level
    exit_code: int
    """What this finding alone would end the check with; 0 for a warning."""
    key: str
    """Key of the configuration that was broken, such as `max_size` or `layers."fc*".max_rel_error`."""
    what: str
    """One line: what was found, and the limit."""
    hint: str
    """The remedy."""
    layers: tuple[str, ...] = ()
    """Layers that broke the limit, the worst first; for the size of a file, the layer that is to blame."""


@dataclass(frozen=True)
class LayerSize:
    """One layer as the baseline remembers it."""

    n_bytes: int
    rel_error: float


@dataclass(frozen=True)
class LayerChange:
    """One layer against the baseline."""

    name: str
    before: LayerSize | None
    """None for a layer that is new."""
    after: LayerSize | None
    """None for a layer that is gone."""

    @property
    def more_bytes(self) -> int:
        return (self.after.n_bytes if self.after else 0) - (self.before.n_bytes if self.before else 0)


@dataclass(frozen=True)
class Checked:
    """One file against one entry of the configuration."""

    name: str
    """Of the entry, or else the path of the file."""
    path: str
    """As the configuration would write it: relative to its folder. The pattern itself where it matches nothing."""
    line: int | None
    """Of the entry in the configuration; None where it cannot be told."""
    findings: tuple[Finding, ...] = ()
    message: str = ""
    """What the team wants to be told where the budget is broken."""
    n_bytes: int | None = None
    """Size of the file; None where it cannot be read, as for all that follows."""
    max_size: int | None = None
    """The limit that fails, in bytes."""
    rel_error: float | None = None
    """Largest relative error of a layer."""
    worst_layer: str | None = None
    max_rel_error: float | None = None
    """The limit that fails."""
    measured: bool = False
    """Whether errors were measured against the original, or are those that the file states."""
    baseline_bytes: int | None = None
    changes: tuple[LayerChange, ...] = ()
    """Layers that are not as in the baseline, the largest change in bytes first."""

    @property
    def status(self) -> Literal["pass", "warn", "fail"]:
        levels = {finding.level for finding in self.findings}
        return "fail" if "fail" in levels else "warn" if levels else "pass"


@dataclass(frozen=True)
class Verdict:
    """How a whole check ended."""

    config: str
    """Path of the configuration."""
    files: tuple[Checked, ...]
    baseline: str | None = None
    """Path of the baseline, where there is one."""
    baseline_written: bool = False
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0, or the worst of the findings' codes."""
        codes = {finding.exit_code for one in self.files for finding in one.findings if finding.level == "fail"}
        return next((code for code in SEVERITY if code in codes), max(codes, default=0))

    def count(self, status: str) -> int:
        """Number of files with that status."""
        return sum(one.status == status for one in self.files)

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain JSON values; layout described in docs/json.md."""
        files = [{**asdict(one), "status": one.status} for one in self.files]
        return {
            "schema": SCHEMA_VERSION,
            "config": self.config,
            "exit_code": self.exit_code,
            "passed": self.exit_code == 0,
            "files": files,
            "baseline": self.baseline,
            "baseline_written": self.baseline_written,
            "notes": list(self.notes),
        }


Sizes = Mapping[str, LayerSize]
"""Layers of one file by name."""
