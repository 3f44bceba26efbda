"""Expanded weights have the same bits whatever the threads, the instructions, the loops' processor and the workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import bits
import numpy as np
import pytest
import reference_decoder
import torch
from helpers import gaussian, low_rank, raw, smooth_kernels, squeeze

import paramcompress

TESTS = Path(__file__).parent
GOLDEN = sorted((TESTS / "golden").glob("*.safetensors"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The golden files, and one with tensors large enough for several threads, rows of tiles and blocks of symbols."""
    rng = np.random.default_rng(3)
    tensors = {
        "wide": gaussian(rng, 300, 700),
        "kernels": smooth_kernels(rng, 64, 32, 5, 5),
        "rank": low_rank(rng, 257, 400, 5, 0.2),
        "half": gaussian(rng, 200, 200, dtype="bfloat16"),
        "exact": torch.arange(40_000),
    }
    return [*map(str, GOLDEN), str(squeeze(tmp_path_factory.mktemp("bits") / "large", tensors))]


def hashes(files: list[str], workers: int = 1, **variables: str) -> list[str]:
    args = [sys.executable, str(TESTS / "bits.py"), str(workers), *files]
    done = subprocess.run(args, env={**os.environ, **variables}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def expected(files: list[str]) -> list[str]:
    """What the slow decoder says of each file."""
    return [bits.digest({name: found for name, found in reference_decoder.decode_file(file).items()}) for file in files]


@pytest.mark.parametrize("setting", ["4 threads", "ATEN_CPU_CAPABILITY=default", "loops for any processor"])
def test_settings_change_no_bit(setting: str, files: list[str], expected: list[str]) -> None:
    """Those of `bits.ENVIRONMENTS` that differ most; benchmarks/guarantees.py tries all of them."""
    assert hashes(files, **bits.ENVIRONMENTS[setting]) == expected


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_change_no_bit(workers: int, files: list[str], expected: list[str]) -> None:
    found = paramcompress.load_file(files[-1], workers=workers)
    plain = {name: (str(one.dtype)[6:], tuple(one.shape), raw(one)) for name, one in found.items()}
    assert bits.digest(plain) == expected[-1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_changes_no_bit(files: list[str], expected: list[str]) -> None:
    found = paramcompress.load_file(files[-1], device="cuda")
    plain = {name: (str(one.dtype)[6:], tuple(one.shape), raw(one.cpu())) for name, one in found.items()}
    assert bits.digest(plain) == expected[-1]


def test_the_control_another_bit_is_another_hash(files: list[str], expected: list[str]) -> None:
    found = dict(reference_decoder.decode_file(files[0]))
    name, (dtype, shape, data) = next(iter(found.items()))
    assert bits.digest(found | {name: (dtype, shape, bytes([data[0] ^ 1]) + data[1:])}) != expected[0]
