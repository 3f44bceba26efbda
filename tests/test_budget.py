"""The budget file: what it may say, and one clear line for each mistake in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paramcompress import budget
from paramcompress.budget import Check, Increase, LayerLimits, Limits
from paramcompress.errors import ConfigError

FULL = """
baseline = "sizes.json"

[[check]]
path = "models/*.safetensors"
original = "models/{name}.pt"
name = "net"
message = "ask first"
max_size = "400kB"
max_rel_error = 0.05
max_increase = {percent = 5, bytes = "20KiB"}
warn = {max_size = 300_000, layers = {"re:fc\\\\d" = {max_increase = {bytes = 0}}}}
layers = {"conv*" = {max_rel_error = 0.01, max_size = "1MB"}}

[[check]] # only that it is there
path = "other"
fail = {max_size = "1MiB"}
"""


def write(folder: Path, text: str, name: str = "paramcompress.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_all_that_may_be_said(tmp_path: Path) -> None:
    path = write(tmp_path, FULL)
    found = budget.read(path)
    first = Check(
        "models/*.safetensors",
        "models/{name}.pt",
        "net",
        "ask first",
        fail=Limits(400_000, 0.05, Increase(5, 20_480), {"conv*": LayerLimits(1_000_000, 0.01)}),
        warn=Limits(300_000, layers={"re:fc\\d": LayerLimits(max_increase=Increase(0, 0))}),
        line=4,
    )
    assert found.checks == (first, Check("other", fail=Limits(1_048_576), line=15))
    assert (found.file, found.baseline, found.folder) == (path, tmp_path / "sizes.json", tmp_path)
    assert found.compares


def test_pyproject_says_the_same(tmp_path: Path) -> None:
    inside = FULL.replace("[[check]]", "[[tool.paramcompress.check]]")
    inside = inside.replace("baseline =", "[tool.paramcompress]\nbaseline =")
    path = write(tmp_path, '[project]\nname = "x"\n' + inside, "pyproject.toml")
    lines = [replaced.line for replaced in budget.read(path).checks]
    assert lines == [7, 18]
    assert [one.path for one in budget.read(path).checks] == ["models/*.safetensors", "other"]


def test_where_it_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"no paramcompress\.toml and no pyproject\.toml"):
        budget.find(None)
    write(tmp_path, "", "pyproject.toml")
    assert budget.find(None) == Path("pyproject.toml")
    write(tmp_path, "")
    assert budget.find(None) == Path("paramcompress.toml")
    assert budget.find(tmp_path) == tmp_path / "paramcompress.toml"
    assert budget.find(Path("other.toml")) == Path("other.toml")


MISTAKES = [
    ('max_sise = "4kB"', "unknown key 'max_sise'", "did you mean 'max_size'?"),
    ('max_size = "4 lots"', "max_size: '4 lots' is not a size", "such as 3MB"),
    ("max_size = 4.5", "max_size: found 4.5, expected a size above zero", None),
    ("max_size = 0", "max_size: found 0, expected a size above zero", None),
    ("max_size = -1", "max_size: -1 is not a size", None),
    ("max_rel_error = 5", "max_rel_error: found 5, expected a number from 0 to 1", None),
    ('max_rel_error = "5%"', "max_rel_error: found '5%'", None),
    ("max_rel_error = nan", "max_rel_error: found nan", None),
    ('max_increase = {percent = "5"}', "max_increase: percent: found '5', expected a number without quotes", None),
    ("max_increase = {percent = inf}", "max_increase: percent: found inf", None),
    ('max_increase = "5%"', "max_increase: found '5%', expected a table such as {percent = 5", None),
    ("max_increase = {}", "max_increase: found {}", None),
    ("max_increase = {percentage = 5}", "max_increase: unknown key 'percentage'", "did you mean 'percent'?"),
    ("max_increase = {bytes = true}", "max_increase: bytes: True is not a size", None),
    ("layers = 3", "layers: found 3, expected a table of pattern", None),
    ("layers = {fc = 3}", "layers: 'fc': found 3, expected {key = value}", None),
    ("layers = {fc.weight = {max_size = 3}}", "layers: 'fc': a table within a table", "quote names that hold dots"),
    ('layers = {"re:(" = {max_size = 3}}', "layers: 're:(' is not a regular expression", "such as 'conv*'"),
    ("layers = {fc = {rank = 3}}", "layers: 'fc': unknown key 'rank'", "known keys: max_size"),
    ('warn = "yes"', "warn: found 'yes', expected a table of limits", None),
    ("warn = {path = 3}", "warn: unknown key 'path'", None),
    ("max_size = 3\nfail = {max_size = 4}", "max_size stands in the entry and in its table fail", "mean the same"),
    ("message = 3", "message: found 3, expected a text", None),
    ('original = ""', "original: found '', expected a name", None),
]


@pytest.mark.parametrize(("line", "said", "hint"), MISTAKES, ids=[line for line, _, _ in MISTAKES])
def test_a_mistake_is_named_with_file_line_and_key(tmp_path: Path, line: str, said: str, hint: str | None) -> None:
    path = write(tmp_path, f'[[check]]\npath = "x"\n\n[[check]]\npath = "y"\n{line}\n')
    with pytest.raises(ConfigError) as caught:
        budget.read(path)
    assert str(caught.value).startswith(f"{path}, line 4, check 2: {said}")
    assert "\n" not in str(caught.value)
    assert hint is None or hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[check]]\npath = "x\n', "not valid TOML: Illegal character '\\n' (at line 2"),
        ("[check]\npath = 'x'", "check: found one table, expected a list of tables"),
        ("check = 3", "check: found 3"),
        ("baseline = 'net.safetensors'", "baseline: found 'net.safetensors', expected a name that ends in .json"),
        ('baseline = "a\\u0000.json"', "baseline: found 'a\\x00.json', expected"),
        ("[[checks]]\npath = 'x'", "unknown key 'checks'"),
        ("", "holds no check"),
        ("[[check]]\nname = 'x'", "line 1, check 1: no path"),
        ("a = " + "[" * 5000, "not valid TOML"),
    ],
)
def test_a_file_that_is_no_budget(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        budget.read(write(tmp_path, text))
    assert said in str(caught.value)
    assert caught.value.hint or "nested" in str(caught.value) or "expected" in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        budget.read(tmp_path / "absent.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8") as caught:
        budget.read(tmp_path / "bytes.toml")
    assert caught.value.hint == "save it as UTF-8"
    with pytest.raises(ConfigError, match=r"holds no table \[tool.paramcompress\]"):
        budget.read(write(tmp_path, "[tool]\n", "pyproject.toml"))


def test_lines_that_cannot_be_told_are_not_told(tmp_path: Path) -> None:
    path = write(tmp_path, 'check = [{path = "x"}]\n')
    assert budget.read(path).checks[0].line is None
    path = write(tmp_path, '[[check]]\npath = """\n[[check]]\n"""\n')
    assert budget.read(path).checks[0].line is None


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.floats(0, 100), st.integers(0, 10**6))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_both_limits_have_to_be_exceeded(before: int, after: int, percent: float, n_bytes: int) -> None:
    over_percent = after > before + percent / 100 * before
    over_bytes = after > before + n_bytes
    assert Increase(percent, n_bytes).allows(before, after) is not (over_percent and over_bytes)
