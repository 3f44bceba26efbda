"""The bounds hold for tensors of every shape, dtype and kind of value; benchmarks/guarantees.py tries 20,000 of
them."""

from __future__ import annotations

from pathlib import Path

import generated
import pytest
import torch

import paramcompress

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf")


@pytest.mark.parametrize("first", range(1_000_000, 1_000_300, 20))
def test_error_bits_and_size_of_generated_tensors(first: int, tmp_path: Path) -> None:
    assert generated.violations(range(first, first + 20), tmp_path) == []


def test_the_tensors_are_of_every_kind() -> None:
    """The control: 0 to 5 axes, every dtype, lengths 0, 1 and primes, NaN, infinity, denormal numbers, one outlier."""
    tensors = [generated.generated(number) for number in range(1500)]
    assert {tensor.dim() for tensor in tensors} == set(range(6))
    names = {*generated.FLOATS, *generated.OTHERS}
    assert {str(tensor.dtype).removeprefix("torch.") for tensor in tensors} == names
    assert {0, 1, 2, 13, 61} <= {size for tensor in tensors for size in tensor.shape}
    floats = [
        tensor.double() for tensor in tensors if tensor.dtype in (torch.float32, torch.float64) and tensor.numel()
    ]
    assert any(tensor.isnan().any() for tensor in floats)
    assert any(tensor.isinf().any() for tensor in floats)
    assert any(0 < tensor.abs().max() < 1e-38 for tensor in floats)
    assert any(tensor.abs().max() == 1e30 and tensor.numel() > 1 for tensor in floats)


def test_the_control_a_broken_promise_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = paramcompress.load_file
    monkeypatch.setattr(
        paramcompress,
        "load_file",
        lambda path: {key: one * 3 if one.dtype == torch.float32 else one for key, one in load(path).items()},
    )
    assert generated.violations(range(0, 20), tmp_path)
