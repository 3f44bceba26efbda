"""Runs of tensors in a tree: what is folded comes back, and what stands in a run is what no longer stands in full."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramcompress.checkpoint import runs

KEYS = st.sampled_from(["a", "b", "x.a", "x.b", "", "n"])
LEAVES = st.sampled_from([["t", 0], ["t", 2], ["t", 0, True], None, 5, "a", ["tuple", 1, ["t", 0]], ["list"]])
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.builds(
            lambda tag, pairs: [tag, *(one for pair in pairs for one in pair)],
            st.sampled_from(["dict", "odict", "counter"]),
            st.lists(st.tuples(KEYS | st.just(["tuple", "a", 1]), inner), max_size=5),
        )
        | st.lists(inner, max_size=3).map(lambda items: ["list", *items])
    ),
    max_leaves=20,
)
NAMES = ["a", "b", "c"]
FLAT = ["odict", "p.a", ["t", 2], "p.b", ["t", 2], "p.c", ["t", 2]]
RUN = ["odict", ["run", 0, 3, "p."], ["t", 2]]


@given(TREES, st.lists(KEYS, max_size=6))
def test_what_is_folded_comes_back(tree: Any, names: list[str]) -> None:
    folded = runs.fold(tree, names)
    assert runs.unfold(folded, names) == tree
    assert (runs.MARK in json.dumps(folded, separators=(",", ":"))) == (folded != tree)


STEP = ["dict", "a", ["t", 0], "step", 1, "b", ["t", 0], "c", ["t", 0]]


@pytest.mark.parametrize(
    ("tree", "folded"),
    [
        (FLAT, RUN),
        (["torch", ["dict", "epoch", 5, "state", FLAT]], ["torch", ["dict", "epoch", 5, "state", RUN]]),
        (STEP, [*STEP[:5], ["run", 1, 2, ""], ["t", 0]]),
        (["dict", "a", ["t", 0], "b", ["t", 0, True], "c", ["t", 0]], None),
        (["dict", "l", ["list", ["t", 5]], *STEP[5:]], ["dict", "l", ["list", ["t", 5]], ["run", 1, 2, ""], ["t", 0]]),
        (["dict", "p.a", ["t", 2], "q", ["t", 0], "c", ["t", 0]], None),
        (["counter", *FLAT[1:]], None),
        (["dict", "b", ["t", 0], "a", ["t", 0]], None),
        (["dict", "p.a", ["t", 2], "q.b", ["t", 2]], None),
    ],
)
def test_what_makes_a_run(tree: Any, folded: Any) -> None:
    assert runs.fold(tree, NAMES) == (tree if folded is None else folded)


def test_two_state_dicts_have_a_run_each() -> None:
    assert runs.fold(["dict", "g", ["odict", "g", ["t", 0], "h", ["t", 0]], "d", FLAT], ["g", "h", *NAMES]) == [
        "dict", "g", ["odict", ["run", 0, 2, ""], ["t", 0]], "d", ["odict", ["run", 2, 3, "p."], ["t", 2]],
    ]  # fmt: skip
