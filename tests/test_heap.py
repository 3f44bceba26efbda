"""Pages of memory: kept from one small tensor to the next, given back before a large one. Each in a fresh process,
since what the C library keeps depends on all that happened before."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"),
    reason="only glibc has such pages",
)
COUNT = """
import resource
import numpy as np
from paramcompress import heap

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(600_000, np.uint8) for _ in range(8)]
    del arrays
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
"""


def told(script: str) -> list[int]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", COUNT + script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def test_small_tensors_find_the_pages_of_those_before() -> None:
    as_it_comes, kept = told("for _ in range(4): last = faults()\nheap.make_room(1)\nfaults()\nprint(last, faults())")
    assert as_it_comes > 200
    assert kept < 20


def test_a_large_tensor_gets_them_back() -> None:
    first, kept, returned = told(
        "heap.make_room(1)\nfirst = faults()\nkept = faults()\nheap.make_room(1 << 23)\nprint(first, kept, faults())"
    )
    assert kept < 20
    assert min(first, returned) > 200
