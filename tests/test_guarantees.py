"""Every promise in docs/guarantees.md names tests that exist, and figures that were measured."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "guarantees.md"
RESULT = ROOT / "benchmarks" / "results" / "guarantees.json"


def named(page: str) -> list[tuple[str, str]]:
    """File and function of every test that a page names as `file.py::test_name`."""
    return re.findall(r"`(\w+\.py)::(\w+)`", page)


def missing(page: str) -> list[str]:
    """Tests that a page names and that are not there."""
    wrong = []
    for file, function in named(page):
        path = ROOT / "tests" / file
        tree = ast.parse(path.read_text(encoding="utf-8")) if path.exists() else ast.Module([], [])
        if function not in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}:
            wrong.append(f"{file}::{function}")
    return wrong


def test_every_test_that_is_named_exists() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert missing(page) == []
    assert len(named(page)) > 30


def test_every_promise_names_a_test() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if re.match(r"\| (?!promise|bug|---)", line)]
    promises = [line for line in rows if line.count("|") == 3]
    assert len(promises) > 20
    assert [line for line in promises if not named(line)] == []


def test_every_regression_test_is_named() -> None:
    """A bug that was found has a test with its name, and the page says so."""
    tests = {
        name
        for path in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"^def (test_regression_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert tests == {name for _, name in named(PAGE.read_text(encoding="utf-8")) if name.startswith("test_regression_")}


def parts() -> list[str]:
    """What the record holds; each run of a part adds it."""
    return sorted(json.loads(RESULT.read_text())["results"])


def test_the_page_shows_what_was_run() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## Figures")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^\| (\w+) \| [\d,]+ \|", table, re.MULTILINE)) == parts()
    assert {"flips", "mutations"} <= set(parts())


@pytest.mark.parametrize("part", parts())
def test_figures_are_those_of_the_record(part: str) -> None:
    """The table of figures against benchmarks/results/guarantees.json."""
    found = json.loads(RESULT.read_text())["results"][part]
    (row,) = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {part} |")]
    _, n, violations = (cell.strip() for cell in row.strip("|").split("|")[:3])
    count = found[{"flips": "bits", "mutations": "files", "stats": "files", "bits": "files"}.get(part, part)]
    assert (n.replace(",", ""), violations) == (str(count), str(found["violations"])) == (str(count), "0")


def test_the_control_a_test_that_is_not_there_is_found() -> None:
    names = [
        "test_guarantees.py::test_nothing",
        "test_none.py::test_x",
        "test_guarantees.py::test_every_promise_names_a_test",
    ]
    page = " ".join(f"`{name}`" for name in names)
    assert missing(page) == names[:2]
