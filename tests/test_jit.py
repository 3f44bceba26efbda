"""Compiled functions in processes of their own: what the cache gives is light, and can be compiled against."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import paramcompress

pytestmark = pytest.mark.usefixtures("empty_folder")

LOOPS = """
from paramcompress.jit import compiled

@compiled
def inner(x):
    total = 0
    for one in range(x):
        total += one * one
    return total

@compiled
def outer(x):
    return inner(x) + 1
"""


def run(script: str) -> str:
    Path("loops.py").write_text(LOOPS)
    package = str(Path(paramcompress.__file__).parents[1])
    env = {
        **os.environ,
        "PYTHONPATH": f"{package}{os.pathsep}{Path.cwd()}",
        "NUMBA_CACHE_DIR": str(Path.cwd() / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=100, check=True
    )
    return done.stdout


LIBRARY = "next(iter(loops.inner.overloads.values())).library"


def test_a_loaded_function_keeps_no_parsed_form_of_itself() -> None:
    """numba would keep one, several times the machine code: 20 MB for all that a squeeze loads."""
    look = f"import loops; print(loops.inner(9), {LIBRARY}._shared_module is None)"
    run(look)
    assert run(look) == "204 True\n"


def test_what_is_new_compiles_against_what_was_loaded() -> None:
    run("import loops; loops.inner(9)")
    look = "import loops; print(loops.inner(9), loops.outer(9), bool(loops.outer.stats.cache_hits))"
    assert run(look) == "204 205 False\n"
    assert run(look) == "204 205 True\n"
