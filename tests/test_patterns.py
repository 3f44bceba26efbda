"""Patterns of names: exact, glob, regular expression."""

from __future__ import annotations

import pytest

from paramcompress.errors import ConfigError
from paramcompress.patterns import matching

NAMES = ["conv1.weight", "conv1.bias", "conv2.weight", "fc.weight", "fc.bias", "steps", "odd[0].weight"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("fc.weight", ["fc.weight"]),
        ("*.bias", ["conv1.bias", "fc.bias"]),
        ("conv?.weight", ["conv1.weight", "conv2.weight"]),
        ("conv[2-9].*", ["conv2.weight"]),
        ("CONV*", []),
        ("*", NAMES),
        (r"re:conv\d\.weight", ["conv1.weight", "conv2.weight"]),
        ("re:conv", []),
        (r"re:.*(bias|steps)", ["conv1.bias", "fc.bias", "steps"]),
        ("odd[0].weight", ["odd[0].weight"]),
        ("", []),
    ],
)
def test_patterns(pattern: str, found: list[str]) -> None:
    assert matching(pattern, NAMES) == found


def test_an_exact_name_is_no_glob() -> None:
    assert matching("a[0]", ["a0", "a[0]"]) == ["a[0]"]
    assert matching("a[0]", ["a0"]) == ["a0"]


def test_a_regular_expression_that_does_not_parse() -> None:
    with pytest.raises(ConfigError, match="not a regular expression"):
        matching("re:(", NAMES)
