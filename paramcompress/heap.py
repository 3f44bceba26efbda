"""Pages of memory that are kept for the next tensor, and those that are given back to the system.

glibc maps an array above a threshold anew, page after page, and gives back what is free at the end of its heap; both
thresholds follow the largest mapped array that was freed, up to 32 MB. Among tensors of a megabyte a tenth of the time
would go into pages; after one of 30 MB, half a layer that nobody uses is held. So neither is left to chance.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache

import numpy as np

_LARGE_BYTES = 1 << 23
"""Tensors from this size on are worth the call that gives back, which takes about a millisecond."""
_KEPT_BYTES = 1 << 22
"""Arrays below come from the heap, and twice as much may lie free at its end."""


def make_room(n_bytes: int) -> None:
    """Before a tensor of n_bytes is handled: pages that nobody uses are returned if it is large, and kept for it
    otherwise. Does nothing where the C library knows no such things."""
    if n_bytes >= _LARGE_BYTES:
        _trim()(0)
    else:
        _keep()


@cache
def _keep() -> None:
    """Free a mapped array of that size, of which no page was touched; thresholds that somebody has set stay."""
    np.empty(_KEPT_BYTES, np.uint8)


@cache
def _trim() -> Callable[[int], object]:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return getattr(library, "malloc_trim", lambda _: None)
