"""Sweeps: sizes that squeezing confirms, and their table, CSV, JSON and picture."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import files_in, gaussian, low_rank
from typer.testing import CliRunner, Result

import paramcompress
from paramcompress import plot, report, sweeps
from paramcompress.cli import app
from paramcompress.errors import CheckpointError, ConfigError
from paramcompress.records import SCHEMA_VERSION, LayerReport, Sweep, SweepPoint

MODEL = Path(__file__).parents[1] / "sample_models" / "conv_digits.pt"
LEVELS = (0.1, 0.0, 0.01, 0.03)


@pytest.fixture(scope="module")
def curve() -> Sweep:
    return paramcompress.sweep(MODEL, levels=LEVELS, effort="fast")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the command runs; no scratch file may be left there."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not [name for name in files_in(tmp_path) if name.startswith(".")]


def run(*args: str) -> Result:
    return CliRunner(env={"COLUMNS": "80"}).invoke(app, ["sweep", str(MODEL), "--effort", "fast", *args])


def drawn(source: str, levels: tuple[float, ...], names: tuple[str, ...]) -> Sweep:
    """A sweep that nobody measured."""
    points = []
    for level in levels:
        n_bytes = int(1000 / (0.001 + level))
        layers = tuple(
            LayerReport(name, (8, 8), "float32", "factored", "none", 0, 1.0, 3.0, 256, n_bytes // (at + 2), level, None)
            for at, name in enumerate(names)
        )
        points.append(SweepPoint(level, n_bytes, 8 * n_bytes / 10**6, level, layers))
    return Sweep(source, 10**6, 4 * 10**6, tuple(points))


# ---- the numbers


def test_a_larger_error_takes_fewer_bytes(curve: Sweep) -> None:
    assert [point.max_rel_error for point in curve.points] == sorted(LEVELS)
    sizes = [point.bytes_after for point in curve.points]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)
    assert curve.bytes_before > sizes[0]
    for point in curve.points:
        assert point.rel_error == max(layer.rel_error for layer in point.layers) <= point.max_rel_error
        assert point.bits_per_weight == pytest.approx(8 * point.bytes_after / curve.n_weights)
        assert sum(layer.bytes_after for layer in point.layers) <= point.bytes_after


@pytest.mark.parametrize("level", [0.0, 0.03])
def test_sizes_are_those_that_squeezing_gives(curve: Sweep, folder: Path, level: float) -> None:
    (point,) = (point for point in curve.points if point.max_rel_error == level)
    dry = paramcompress.squeeze(MODEL, "out", max_rel_error=level, effort="fast", dry_run=True)
    assert (point.bytes_after, point.layers) == (dry.bytes_after, dry.layers)
    assert (curve.n_weights, curve.bytes_before, curve.notes) == (dry.n_weights, dry.bytes_before, dry.notes)
    real = paramcompress.squeeze(MODEL, "out", max_rel_error=level, effort="fast")
    assert point.bytes_after == real.bytes_after == Path("out").stat().st_size


def test_patterns_and_workers_as_in_squeeze(rng: np.random.Generator, folder: Path) -> None:
    source = {"a": low_rank(rng, 48, 64, 4), "b": gaussian(rng, 64, 32), "c": gaussian(rng, 32, 32)}
    options: dict[str, Any] = {"exclude": ("b",), "layers": {"c": {"max_rel_error": 0.2}}, "effort": "fast"}
    found = paramcompress.sweep(source, levels=(0.01, 0.1), **options)
    errors = [{layer.name: layer.rel_error for layer in point.layers} for point in found.points]
    assert [one["b"] for one in errors] == [0, 0]
    assert errors[0]["a"] <= 0.01 < errors[1]["a"] <= 0.1 < errors[0]["c"] == errors[1]["c"] <= 0.2
    assert paramcompress.sweep(source, levels=(0.01, 0.1), workers=2, **options).points == found.points
    only = paramcompress.sweep(source, levels=[0.1], include=["a"], effort="fast")
    assert [layer.codec for layer in only.points[0].layers] == ["factored", "exact", "exact"]
    assert files_in(folder) == []


def test_progress_rises_to_the_end_once(rng: np.random.Generator) -> None:
    seen: list[tuple[int, int]] = []
    source = {"a": gaussian(rng, 16, 16), "b": gaussian(rng, 16, 16)}
    paramcompress.sweep(source, levels=(0.1, 0.2), progress=lambda _, done, total: seen.append((done, total)))
    assert seen == [(1024, 4096), (2048, 4096), (3072, 4096), (4096, 4096)]


@pytest.mark.parametrize(
    ("levels", "said"),
    [((), "no levels"), ((0.1, 2.0), "2.0: max_rel_error: found 2.0"), ((float("nan"),), "nan"), ((-0.1,), "-0.1")],
)
def test_levels_that_make_no_sense(levels: tuple[float, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        paramcompress.sweep(MODEL, levels=levels)


def test_errors_are_those_of_squeeze(folder: Path) -> None:
    with pytest.raises(ConfigError, match="matches no tensor"):
        paramcompress.sweep(MODEL, levels=[0.1], exclude=["absent"])
    with pytest.raises(CheckpointError):
        paramcompress.sweep(folder / "absent.pt")


# ---- how it is shown


def test_csv_holds_every_layer_at_every_level(curve: Sweep) -> None:
    rows = list(csv.DictReader(report.to_csv(curve).splitlines()))
    assert len(rows) == len(curve.points) * (1 + len(curve.points[0].layers))
    of = {(row["layer"], float(row["max_rel_error"])): (int(row["bytes"]), float(row["rel_error"])) for row in rows}
    assert len(of) == len(rows)
    for point in curve.points:
        assert of["", point.max_rel_error] == (point.bytes_after, point.rel_error)
        for layer in point.layers:
            assert of[layer.name, point.max_rel_error] == (layer.bytes_after, layer.rel_error)


def test_csv_of_awkward_names() -> None:
    names = ('a,"b"', "line\nbreak", "層")
    rows = list(csv.reader(report.to_csv(drawn("m.pt", (0.1,), names)).splitlines(keepends=True)))
    assert [row[0] for row in rows[1:]] == ["", *names]


def test_json_is_complete(curve: Sweep) -> None:
    found = json.loads(report.to_json(curve))
    assert list(found) == ["schema", *(field.name for field in fields(Sweep))]
    assert found["schema"] == SCHEMA_VERSION
    assert [point["bytes_after"] for point in found["points"]] == [point.bytes_after for point in curve.points]
    assert found["points"][0]["layers"][0]["name"] == curve.points[0].layers[0].name
    assert found["settings"] == {"effort": "fast", "seed": 0}


def test_json_fields_are_described() -> None:
    page = (Path(__file__).parents[1] / "docs" / "json.md").read_text(encoding="utf-8")
    for heading, record in (("Sweep", Sweep), ("Point", SweepPoint)):
        section = page.split(f"## {heading}\n")[1].split("\n## ")[0]
        described = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
        assert described == ["schema"] * (record is Sweep) + [field.name for field in fields(record)]


def test_the_table_fits_and_names_all_layers_if_asked(curve: Sweep) -> None:
    few = [line.plain for line in report.render_sweep(curve, width=80)]
    assert len(few) == 2 + len(curve.points) + 1 + len(curve.notes)
    for line, point in zip(few[2:], curve.points, strict=False):
        assert f"{point.bytes_after:,}" in line
    all_ = [line.plain for line in report.render_sweep(curve, width=80, verbose=True)]
    for layer in curve.points[0].layers:
        assert any(line.startswith(layer.name) for line in all_)
    many = drawn("m.pt", tuple(0.01 * n for n in range(1, 16)), ("encoder.layers.11.attention.weight",))
    lines = [line.plain for line in report.render_sweep(many, width=60, verbose=True, ascii_only=True)]
    table = lines[lines.index("") + 1 : -2]
    assert max(map(len, table)) <= 60
    assert table[0].split()[1] == "0.01"
    assert table[0].split()[-1] == "0.15"
    assert "a wider terminal has it all" in lines[-2]


@pytest.mark.parametrize("kind", plot.FORMATS)
def test_a_picture_is_drawn(curve: Sweep, kind: str) -> None:
    pytest.importorskip("matplotlib")
    picture = plot.draw(curve, kind)
    assert picture == plot.draw(curve, kind)
    if kind == ".png":
        assert picture.startswith(b"\x89PNG")
    else:
        text = picture.decode()
        assert "conv_digits.pt: bytes against error" in text
        largest = max(curve.points[1].layers, key=lambda layer: layer.bytes_after)
        assert largest.name in text
        assert "whole file" in text


@pytest.mark.parametrize("levels", [(0.0,), (0.1,), (0.01, 0.011), (0.0, 0.1)])
def test_pictures_of_awkward_sweeps(levels: tuple[float, ...]) -> None:
    """One level, none on the axis, levels side by side; names that matplotlib would read in its own way."""
    pytest.importorskip("matplotlib")
    names = ("_hidden", "$x$ $", "層.weight", "long." * 30)
    text = plot.draw(drawn("a$b_$.pt", levels, names), ".svg").decode()
    assert "a$b_$.pt" in text
    if levels[-1]:
        assert "_hidden" in text
        assert "$x$ $" in text
    empty = replace(drawn("m.pt", levels, ()), points=())
    assert plot.draw(empty, ".png")


# ---- the command


def test_the_command_writes_what_is_asked_for(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    done = run("--levels", "0.05,0.2", "--csv", "c.csv", "--plot", "p.svg", "--json")
    assert done.exit_code == 0, done.output
    assert files_in(folder) == ["c.csv", "p.svg"]
    total = json.loads(done.stdout)["points"][0]["bytes_after"]
    assert Path("c.csv").read_text().splitlines()[1].startswith(f",0.05,{total},")
    again = run("--levels", "0.05", "--csv", "c.csv")
    assert (again.exit_code, again.stdout) == (3, "")
    assert "exists already" in again.stderr
    quiet = run("--levels", "0.05", "--csv", "c.csv", "--force", "-q", "--exclude", "conv*")
    assert (quiet.exit_code, quiet.output) == (0, "")


def test_the_command_shows_a_table(folder: Path) -> None:
    done = run("--levels", "0.05,0.2")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["max", "error", "size", "bytes", "smaller", "bits/w", "error"]
    assert [line.split()[0] for line in lines[2:4]] == ["0.05", "0.2"]


@pytest.mark.parametrize(
    ("args", "said", "code"),
    [
        (["--levels", "0.1,x"], "--levels '0.1,x' is no list of numbers", 2),
        (["--levels", "0.1,3"], "found 3.0, expected a number from 0 to 1", 2),
        (["--plot", "p.jpg"], "hint: end it in .png or .svg", 2),
        (["--csv", "absent/c.csv"], "its folder does not exist", 3),
        (["--include", "absent"], "matches no tensor", 2),
    ],
)
def test_the_command_refuses(folder: Path, args: list[str], said: str, code: int) -> None:
    done = run(*args)
    assert (done.exit_code, done.stdout) == (code, "")
    assert said in done.stderr
    assert files_in(folder) == []


def test_without_matplotlib_it_says_how_to_get_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the work: the sweep is not even begun."""
    monkeypatch.setattr(plot, "_LIBRARY", "no_such_library")
    monkeypatch.setattr(sweeps, "sweep", lambda *args, **kwargs: pytest.fail("began to work"))
    done = run("--plot", "p.png")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "plots need matplotlib" in done.stderr
    assert "hint: pip install 'paramcompress[plot]'" in done.stderr
