"""Squared gradients found in checkpoints of strangers: used, left aside, or refused in one line."""

from __future__ import annotations

import collections
import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from paramcompress.adam import moments_of_optimizer
from paramcompress.checkpoint import from_tensors
from paramcompress.errors import CalibrationError, ParamCompressError
from paramcompress.moments import SecondMoments

SHAPES = {"fc1.weight": (6, 5), "fc1.bias": (6,), "fc2.weight": (4, 6)}
MATRICES = {"fc1.weight", "fc2.weight"}


def honest() -> dict[str, Any]:
    """What torch.optim.Adam.state_dict() gives for the weights."""
    state = {
        i: {"step": torch.tensor(3.0), "exp_avg": torch.randn(shape), "exp_avg_sq": torch.rand(shape)}
        for i, shape in enumerate(SHAPES.values())
    }
    return {"state": state, "param_groups": [{"lr": 1e-3, "params": [0, 1, 2]}]}


def moments(optimizer: Any, **weights: torch.Tensor) -> SecondMoments:
    model = {name: torch.ones(shape) for name, shape in SHAPES.items()} | weights
    with from_tensors({"model": model, "optimizer": optimizer}) as checkpoint:
        return moments_of_optimizer(checkpoint)


def names(found: SecondMoments) -> set[str]:
    return {name for name in SHAPES if name in found}


def changed(at: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """An honest state with `value` at that place."""
    optimizer = honest()
    inside: Any = optimizer
    for key in at[:-1]:
        inside = inside[key]
    inside[at[-1]] = value
    return optimizer


def quantized() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to give these up; files that hold them stay
        return torch.quantize_per_tensor(torch.rand(6, 5), 0.1, 0, torch.quint8)


def test_the_control_an_honest_one() -> None:
    assert names(moments(honest())) == MATRICES


@pytest.mark.parametrize(
    "groups", [None, 3, "abc", {"params": [0, 1, 2]}, [1, 2], [{}], [{"params": None}], [{"params": 3}]]
)
def test_regression_groups_that_are_none(groups: Any) -> None:
    """Was TypeError or AttributeError. The order of the state itself serves, as it did where there was no group."""
    assert names(moments(changed(("param_groups",), groups))) == MATRICES


@pytest.mark.parametrize("numbers", [[[1], {}, 2], [0, 0, 2], "012", [None] * 3, [0.5, 1, 2], [0, 1], range(10**6)])
def test_regression_numbers_of_no_parameter(numbers: Any) -> None:
    """Was TypeError for what cannot be hashed."""
    with pytest.raises(CalibrationError, match=r"do not pair off|none of its"):
        moments({**honest(), "state": {5: honest()["state"][0]}, "param_groups": [{"params": list(numbers)}]})


@pytest.mark.parametrize(
    "square",
    [
        torch.rand(6, 5).to_sparse(),
        quantized(),
        torch.ones(6, 5, dtype=torch.complex64),
        torch.ones(6, 5, dtype=torch.int64),
        torch.full((6, 5), math.nan),
        torch.rand(6, 5).index_fill(0, torch.tensor([1]), math.inf),
        torch.rand(6, 5).index_fill(0, torch.tensor([1]), -1.0),
        torch.full((6, 5), 1e308, dtype=torch.float64),
        "abc",
        None,
    ],
    ids=["sparse", "quantized", "complex", "integers", "NaN", "infinite", "negative", "huge", "text", "none"],
)
def test_regression_squares_that_are_none(square: Any) -> None:
    """Was RuntimeError, or NaN and so a bug of torch's in the middle of squeezing. The layer does without."""
    assert names(moments(changed(("state", 0, "exp_avg_sq"), square))) == {"fc2.weight"}


@pytest.mark.parametrize("shape", [(5, 6), (), (0,), (30,), (6, 5, 1)])
def test_squares_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(CalibrationError, match="do not pair off with 3 weights by shape"):
        moments(changed(("state", 0, "exp_avg_sq"), torch.rand(shape)))


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-45, 1e38])
def test_squares_of_any_size_serve(value: float) -> None:
    assert names(moments(changed(("state", 0, "exp_avg_sq"), torch.full((6, 5), value)))) == MATRICES


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e200])
def test_weights_that_are_no_numbers_do_without(bad: float) -> None:
    weight = torch.full((6, 5), bad, dtype=torch.float64)
    assert names(moments(honest(), **{"fc1.weight": weight})) == {"fc2.weight"}
    assert names(moments(honest(), **{"fc1.weight": torch.ones(6, 5, dtype=torch.complex64)})) == {"fc2.weight"}


def test_nothing_of_use_is_said() -> None:
    """And not squeezed as if nobody had asked for importances."""
    optimizer = honest()
    optimizer["state"] = {str(number): one for number, one in optimizer["state"].items()}
    with pytest.raises(CalibrationError, match="none of its squared gradients belongs to a matrix") as caught:
        moments(optimizer)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["get", "values", "keys", "items", "__getitem__"])
def test_regression_attributes_hide_no_state(name: str) -> None:
    """Was TypeError: an OrderedDict takes any attribute from a pickle, also one that is called get."""

    def hiding(value: Any) -> Any:
        if not isinstance(value, dict):
            return [hiding(one) for one in value] if isinstance(value, list) else value
        hidden = collections.OrderedDict((key, hiding(one)) for key, one in value.items())
        vars(hidden)[name] = 5
        return hidden

    assert names(moments(hiding(honest()))) == MATRICES


PLANTED: tuple[Callable[[], Any], ...] = (
    *(lambda value=value: value for value in (None, True, 0, -1, 2**70, 1e999, math.nan, "", "state", b"x", 1j)),
    *(lambda kind=kind: kind() for kind in (dict, list, tuple, collections.OrderedDict, honest)),
    lambda: [0, 1, 2],
    lambda: {"exp_avg_sq": torch.rand(6, 5)},
    *(
        lambda dtype=dtype: torch.ones(6, 5).to(dtype)
        for dtype in (torch.float64, torch.float16, torch.float8_e4m3fn, torch.bool, torch.int8, torch.complex64)
    ),
    lambda: torch.rand(1, 1).expand(6, 5),
    lambda: torch.nn.Parameter(torch.full((4, 6), math.nan)),
    lambda: torch.empty(0, 5),
)


def planted(rng: random.Random) -> Any:
    """An honest state in which a few things are other things, are gone, or stand twice."""
    optimizer = honest()
    for _ in range(rng.randint(1, 4)):
        inside: Any = optimizer
        while True:
            keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(inside[key], dict | list) and rng.random() < 0.7:
                inside = inside[key]
                continue
            if rng.random() < 0.2:
                del inside[key]
            elif rng.random() < 0.1 and isinstance(inside, list):
                inside.insert(key, inside[key])
            else:
                inside[key] = rng.choice(PLANTED)()
            break
    return optimizer


def test_planted_states_find_own_errors_only() -> None:
    rng, used = random.Random(1), 0
    refused = []
    for _ in range(2000):
        try:
            found = moments(planted(rng))
        except ParamCompressError as error:
            refused.append(error)
            continue
        used += 1
        for name in names(found):
            one = found.layers[name]
            assert one.sensitivity is not None
            assert all(np.isfinite(part).all() for part in (one.columns, one.rows, one.sensitivity))
    assert min(used, len(refused)) > 200, "both happen"
    assert {error.exit_code for error in refused} <= {2, 3}
    assert not [error for error in refused if "\n" in str(error)]
