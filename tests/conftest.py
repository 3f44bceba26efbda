"""Fixtures of all tests."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    """The one source of randomness: the same numbers in every run."""
    return np.random.default_rng(20130605)
