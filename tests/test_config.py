"""Settings from files and `--set` strings: what they mean, and what is said of those that mean nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramcompress.config import check, check_override, merge, parse_set, read
from paramcompress.errors import ConfigError
from paramcompress.units import UNITS, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "pattern", "values"),
    [
        ("fc*:rank=16,density=0.02", "fc*", {"rank": 16, "density": 0.02}),
        ("fc1.weight : rank = 0", "fc1.weight ", {"rank": 0}),
        ("*:max_rel_error=1e-3,exact=false", "*", {"max_rel_error": 0.001, "exact": False}),
        ("*:dictionary=lowrank+patch", "*", {"dictionary": "lowrank+patch"}),
        ("text_encoder:0:down:exact=true", "text_encoder:0:down", {"exact": True}),
        (r"re:conv\d{1,2}:rank=4", r"re:conv\d{1,2}", {"rank": 4}),
        ("re:a=b,c:rank=4", "re:a=b,c", {"rank": 4}),
    ],
)
def test_set_splits_at_the_last_colon(text: str, pattern: str, values: dict[str, Any]) -> None:
    assert parse_set(text) == (pattern, values)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fc1", "no pattern before a ':'"),
        ("rank=16", "no pattern before a ':'"),
        (":rank=16", "no pattern before a ':'"),
        ("text_encoder:0:down", "after the last ':' stands 'down', which is not key=value"),
        ("fc1:rank", "'rank', which is not key=value"),
        ("fc1:rank=", "'rank=', which is not key=value"),
        ("fc1:rank=1,", "'', which is not key=value"),
        ("fc1:rank=1,rank=2", "rank is given twice"),
        ("fc1:rank=-1", "rank: found -1, expected a whole number from 0 on"),
        (f"fc1:rank={2**63}", "expected a whole number below 2**63"),
        ("fc1:rank=2.5", "rank: found 2.5"),
        ("fc1:rank=many", "rank: found 'many'"),
        ("fc1:density=2", "density: found 2, expected a share from 0 to 1"),
        ("fc1:max_rel_error=nan", "max_rel_error: found nan"),
        ("fc1:max_rel_error=3%", "max_rel_error: found '3%'"),
        ("fc1:exact=yes", "exact: found 'yes', expected true or false"),
        ("fc1:dictionary=3", "dictionary: found 3, expected one of none, lowrank"),
        ("re:(:rank=1", "'re:(' is not a regular expression"),
    ],
)
def test_set_says_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_set(text)
    assert said in str(caught.value)
    assert str(caught.value).startswith("--set ")


def test_unknown_keys_name_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match="unknown key 'max-rel-error'") as caught:
        check_override({"max-rel-error": 0.1})
    assert caught.value.hint == (
        "did you mean 'max_rel_error'? known keys: max_rel_error, dictionary, rank, density, exact"
    )


TOML = """
max_rel_error = 0.03
workers = 2
exclude = ["*.embed"]

[layers]
"fc*" = {rank = 16}
"re:conv[12]" = {dictionary = "patch", max_rel_error = 0}
"""


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "squeeze.toml"
    path.write_text(TOML)
    assert read(path) == {
        "max_rel_error": 0.03,
        "workers": 2,
        "exclude": ("*.embed",),
        "layers": {"fc*": {"rank": 16}, "re:conv[12]": {"dictionary": "patch", "max_rel_error": 0}},
    }


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("max_rel_eror = 0.03", "unknown key 'max_rel_eror'"),
        ("max_rel_error = ", "not valid TOML: Invalid value (at end of document)"),
        ('max_rel_error = "3%"', "max_rel_error: found '3%', expected a number from 0 to 1"),
        ("max_rel_error = 3", "max_rel_error: found 3"),
        ("max_rel_error = true", "max_rel_error: found True"),
        ("bits_per_weight = 0", "bits_per_weight: found 0, expected a number above 0"),
        ("bits_per_weight = inf", "bits_per_weight: found inf"),
        ('target_size = "3 apples"', "target_size: '3 apples' is not a size"),
        ("target_size = 0", "target_size: found 0, expected a size above zero"),
        ("target_size = 2.5", "target_size: found 2.5"),
        ('target_size = "3MB"\nmax_rel_error = 0.1', "target_size and max_rel_error are both targets"),
        ('effort = "maximum"', "effort: found 'maximum', expected one of fast, default, max"),
        ("workers = 0", "workers: found 0"),
        ("seed = true", "seed: found True"),
        ('include = "fc*"', "include: found 'fc*', expected a list of patterns"),
        ('exclude = ["re:["]', "exclude: 're:[' is not a regular expression"),
        ("layers = 1", "layers: found 1, expected a table"),
        ("layers.fc1 = 16", "layers: 'fc1': found 16"),
        ('layers."fc*".rnk = 16', "layers: 'fc*': unknown key 'rnk'"),
    ],
)
def test_file_errors_name_file_and_key(tmp_path: Path, toml: str, said: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(toml)
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: {said}")


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read(tmp_path / "absent.toml")
    (tmp_path / "latin.toml").write_bytes(b"# \xe9")
    with pytest.raises(ConfigError, match="not valid TOML"):
        read(tmp_path / "latin.toml")


def test_command_line_wins_over_file() -> None:
    file = {"max_rel_error": 0.03, "workers": 2, "exclude": ("a",)}
    assert merge(file, {"target_size": "3MB", "exclude": ["b"]}) == {
        "target_size": 3_000_000,
        "workers": 2,
        "exclude": ("b",),
    }
    assert merge(file, {}) == file


def test_sets_come_after_the_layers_of_the_file() -> None:
    file = {"layers": {"fc*": {"rank": 16}, "conv*": {"rank": 2}}}
    merged = merge(file, {}, ["fc*:density=0.5", "fc*:density=0.1"])
    assert list(merged["layers"].items()) == [("conv*", {"rank": 2}), ("fc*", {"rank": 16, "density": 0.1})]
    assert file["layers"] == {"fc*": {"rank": 16}, "conv*": {"rank": 2}}


def test_two_targets_are_refused() -> None:
    with pytest.raises(ConfigError, match="bits_per_weight and max_rel_error are both targets"):
        check({"max_rel_error": 0.1, "bits_per_weight": 3})


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("3MB", 3_000_000), ("400KiB", 409_600), (" 1.5 GiB ", 3 << 29), ("12", 12), ("7B", 7), ("0.1kb", 100), (5, 5)],
)
def test_sizes(text: str | int, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize("text", ["", "MB", "-3MB", "3 M", "3e6", "1,5MB", "nan", -1, True])
def test_sizes_that_are_none(text: str | int) -> None:
    with pytest.raises(ConfigError, match="is not a size"):
        parse_size(text)


@given(st.integers(0, 10**13))
def test_formatted_sizes_are_short_and_right_to_three_digits(n_bytes: int) -> None:
    text = format_size(n_bytes)
    number, unit = text.split()
    assert abs(parse_size(text) - n_bytes) <= max(n_bytes * 0.005, 0.5)
    assert len(number) <= 4 or unit == "GB"
    assert unit in UNITS
