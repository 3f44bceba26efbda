"""The time budget of docs/speed.md can be measured: stop-watches stand where Python calls, not where numba looks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.usefixtures("empty_folder")
def test_every_stage_of_a_squeeze_is_timed() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "stages.py"), str(ROOT / "sample_models" / "conv_digits.pt")]
    subprocess.run([*command, "--out", "record.json"], check=True, capture_output=True, timeout=300)
    fast, default = json.loads(Path("record.json").read_text())["results"]
    assert default["effort"] == "default"
    assert all(took > 0 for stage, took in default["stages"].items() if stage != "choose rank")
    assert 0 < fast["stages"]["quantise"] < fast["sum"] <= fast["best_run"]
