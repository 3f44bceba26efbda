"""Errors are measured right, also where squares would leave float64."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers import gaussian
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paramcompress import metrics
from paramcompress.metrics import Deviation, deviation, survey

SUMMED = 16 * torch.finfo(torch.float64).eps
"""Relative rounding of a few dozen additions in float64 and a square root."""


def oracle(original: Tensor, decoded: Tensor) -> tuple[float, float]:
    """Squared relative error and largest error, in rational numbers."""
    pairs = list(zip(original.double().reshape(-1).tolist(), decoded.double().reshape(-1).tolist(), strict=True))
    residuals = [Fraction(a) - Fraction(b) for a, b in pairs]
    energy = sum((Fraction(a) ** 2 for a, _ in pairs), Fraction(0))
    squared = sum((r * r for r in residuals), Fraction(0))
    return (float(squared / energy) if energy else math.inf if squared else 0.0), float(max(map(abs, residuals)))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("shape", [(), (1,), (30,), (5, 6), (2, 3, 4)])
def test_against_rational_numbers(dtype: str, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    original = gaussian(rng, *shape, dtype=dtype)
    decoded = (original.double() + 0.3 * gaussian(rng, *shape)).to(original.dtype)
    squared, largest = oracle(original, decoded)
    found = deviation(original, decoded)
    assert found.rel_error**2 == pytest.approx(squared, rel=4 * SUMMED)
    assert found.max_abs_error == pytest.approx(largest, rel=4 * SUMMED)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-1e300, 1e300).filter(lambda v: v == 0 or abs(v) > 1e-280), min_size=1, max_size=20),
    st.sampled_from([0.0, 0.5, 1 - 2**-40, 2.0]),
)
def test_any_size(values: list[float], factor: float) -> None:
    original = torch.tensor(values, dtype=torch.float64)
    found = deviation(original, original * factor)
    expected = abs(1 - factor) if original.any() else 0.0
    assert found.rel_error == pytest.approx(expected, rel=1e-3 if factor not in (0.0, 0.5, 2.0) else SUMMED)


@pytest.mark.parametrize("size", [1e-305, 1e-310, 5e-324])
def test_denormal_float64(size: float) -> None:
    original = torch.tensor([size, -size], dtype=torch.float64)
    assert deviation(original, torch.zeros(2, dtype=torch.float64)).rel_error == pytest.approx(1, rel=SUMMED)


@pytest.mark.parametrize("size", [1e-45, 1e-38, 3e38])
def test_ends_of_float32(size: float) -> None:
    original = torch.full((3, 3), size)
    assert deviation(original, torch.zeros(3, 3)) == Deviation(1.0, float(original[0, 0]))


def test_equal_tensors_and_zeros() -> None:
    zeros = torch.zeros(4)
    assert deviation(zeros, zeros) == Deviation(0.0, 0.0)
    assert deviation(zeros, -zeros) == Deviation(0.0, 0.0)
    assert deviation(torch.ones(4), torch.ones(4)) == Deviation(0.0, 0.0)
    assert deviation(zeros, torch.ones(4)) == Deviation(math.inf, 1.0)
    assert deviation(torch.empty(0, 3), torch.empty(0, 3)) == Deviation(0.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_regression_nan_is_over_every_limit(bad: float, dtype: torch.dtype) -> None:
    """NaN is neither over a limit nor under it; a verification must not pass for that."""
    numbers = torch.tensor([1.0, bad], dtype=dtype)
    assert deviation(numbers, torch.ones(2, dtype=dtype)) == Deviation(math.inf, math.inf)
    assert deviation(torch.ones(2, dtype=dtype), numbers) == Deviation(math.inf, math.inf)


def test_every_part_of_a_long_tensor_counts(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    original, decoded = gaussian(rng, 1000), gaussian(rng, 1000)
    whole = deviation(original, decoded), survey(original).norm
    monkeypatch.setattr(metrics, "_CHUNK", 7)
    found, length = deviation(original, decoded), survey(original).norm
    assert found.rel_error == pytest.approx(whole[0].rel_error, rel=1000 * SUMMED)
    assert found.max_abs_error == whole[0].max_abs_error
    assert length == pytest.approx(whole[1], rel=1000 * SUMMED)
    for at in range(0, 1000, 50):
        spoiled = original.clone()
        spoiled[at] = torch.nan
        assert not survey(spoiled).is_finite


def test_norm(rng: np.random.Generator) -> None:
    weight = gaussian(rng, 30, 40)
    assert survey(weight).norm == pytest.approx(float(np.linalg.norm(weight.double().numpy())), rel=1200 * SUMMED)
    assert survey(torch.empty(0)).norm == 0
    assert survey(torch.full((2,), 1e200, dtype=torch.float64)).norm == math.inf


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_is_finite(dtype: str, value: float) -> None:
    if dtype == "float8_e4m3fn" and not math.isnan(value):
        pytest.skip("has no infinity")
    kind = getattr(torch, dtype)
    weight = torch.ones(5, 5).to(kind)
    assert survey(weight).is_finite
    assert survey(torch.empty(0).to(kind)).is_finite
    weight[2, 3] = torch.tensor(value).to(kind)
    assert not survey(weight).is_finite
