"""The baseline file: small, sorted, the same for the same sizes, and refused in words where it is not one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramcompress import baseline
from paramcompress.baseline import FileSize
from paramcompress.errors import ConfigError
from paramcompress.verdicts import LayerChange, LayerSize

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
sizes = st.builds(LayerSize, st.integers(0, 10**12), st.floats(0, 1).map(baseline.rounded))
files = st.dictionaries(names, st.builds(FileSize, st.integers(0, 10**12), st.dictionaries(names, sizes, max_size=4)))


LAYER = '{"schema": 1, "files": {"a": {"bytes": 1, "layers": {"x": {"bytes": 1, "rel_error": %s}}}}}'


@given(files)
def test_what_is_written_is_read_back_whatever_the_order(known: dict[str, FileSize]) -> None:
    text = baseline.text(known)
    assert text == baseline.text(dict(reversed(known.items())))
    assert {name: baseline._file(one, name) for name, one in json.loads(text)["files"].items()} == known


def test_one_layer_a_line(tmp_path: Path) -> None:
    known = {"b": FileSize(5, {"z": LayerSize(1, 0.0), "a": LayerSize(2, 0.012345678)}), "a": FileSize(7, {})}
    text = baseline.text(known)
    assert [line.strip() for line in text.splitlines()][7:11] == [
        '"b": {',
        '"bytes": 5,',
        '"layers": {',
        '"a": {"bytes": 2, "rel_error": 0.01235},',
    ]
    path = tmp_path / "b.json"
    path.write_text(text)
    assert baseline.read(path)["b"].layers["a"] == LayerSize(2, 0.01235)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"schema": 2, "files": {}}', "its layout is number 2, this version of paramcompress knows 1"),
        ('{"files": {}}', "not a baseline: no 'schema'"),
        ('{"schema": 1}', "not a baseline: no 'files'"),
        ('{"schema": 1, "files": []}', "not a baseline: files: found [], expected an object"),
        ('{"schema": 1, "files": {"a": {"layers": {}}}}', "not a baseline: a: no 'bytes'"),
        ('{"schema": 1, "files": {"a": {"bytes": -1, "layers": {}}}}', "not a baseline: a: -1 is no number of bytes"),
        ('{"schema": 1, "files": {"a": {"bytes": 1, "layers": {"x": 3}}}}', "a: x: found 3, expected an object"),
        (LAYER.replace('1, "rel', f'{10**400}, "rel') % 0, "is no number of bytes"),
        (LAYER % "NaN", "a: x: nan is no error"),
        (LAYER % "1e999", "a: x: inf is no error"),
        (LAYER % "-0.1", "a: x: -0.1 is no error"),
        (LAYER % '"0.1"', "a: x: '0.1' is no error"),
        ("[]", "not a baseline: found [], expected an object"),
        ("{\n<<<<<<< HEAD\n", "not valid JSON: Expecting property name enclosed in double quotes: line 2"),
        ("[" * 100_000, "not valid JSON: nested too deeply"),
        ("\udcff", "not valid JSON: 'utf-8' codec can't decode"),
    ],
)
def test_what_is_no_baseline_is_refused_with_the_remedy(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "b.json"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(ConfigError) as caught:
        baseline.read(path)
    assert "Error" not in str(caught.value), "a user is not told of exceptions"
    assert len(str(caught.value)) < len(str(path)) + 150
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "--update-baseline" in (caught.value.hint or "")


def test_changes_are_sorted_by_bytes_and_rounding_is_none() -> None:
    before = {"a": LayerSize(10, 0.1), "b": LayerSize(10, 0.1), "c": LayerSize(10, 0.1), "gone": LayerSize(99, 0)}
    after = {"a": LayerSize(10, 0.10000001), "b": LayerSize(30, 0.1), "c": LayerSize(10, 0.2), "new": LayerSize(50, 0)}
    assert baseline.changes(before, after) == (
        LayerChange("gone", LayerSize(99, 0), None),
        LayerChange("new", None, LayerSize(50, 0)),
        LayerChange("b", LayerSize(10, 0.1), LayerSize(30, 0.1)),
        LayerChange("c", LayerSize(10, 0.1), LayerSize(10, 0.2)),
    )
