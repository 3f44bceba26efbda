"""Memory that was freed, given back to the system.

glibc keeps what arrays of up to 32 MB leave behind, in the hope of more of them: between two large layers that is half
a layer that nobody uses.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache

_LARGE_BYTES = 1 << 23
"""Tensors from this size on are worth the call, which takes about a millisecond."""


def make_room(n_bytes: int) -> None:
    """Return unused pages before a tensor of n_bytes is handled, if that is large; does nothing where the C library has
    no such call."""
    if n_bytes >= _LARGE_BYTES:
        _trim()(0)


@cache
def _trim() -> Callable[[int], object]:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return getattr(library, "malloc_trim", lambda _: None)
