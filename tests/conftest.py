"""Fixtures of all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture
def rng() -> np.random.Generator:
    """The one source of randomness: the same numbers in every run."""
    return np.random.default_rng(20130605)


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The test works in a folder of its own, on the same random numbers of torch, and leaves no scratch file there."""
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith((".partial", ".tmp"))]
