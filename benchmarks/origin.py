"""What the record of a benchmark says of where it comes from: commit, versions, machine."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any


def origin() -> dict[str, Any]:
    """The head of a record, but for its name, command and settings."""
    return {
        "commit": commit(),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in ("paramcompress", "torch", "numpy", "numba")},
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "system": platform.system()},
    }


def cpu_model() -> str:
    """Name of the processor, as Linux gives it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def commit() -> str:
    """Commit of this checkout, with a + where files differ from it, other than records."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        others = "status", "--porcelain", "-uno", "--", ":/", ":(top,exclude)benchmarks/results"
        changed = subprocess.run([*git, *others], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + "+" * bool(changed.stdout)
