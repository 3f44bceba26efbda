"""The one way this package compiles a loop: numba, without the interpreter lock, cached on disk where that can be.

Does not hold any loop itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled at its first call; later processes load the machine code from numba's cache.

    Where neither the package's folder nor the user's cache folder can be written (a read-only
    installation without a home), numba refuses to cache: then each process compiles anew, in a few seconds.
    """
    try:
        compiler: Callable[[Callable[..., Any]], Callable[..., Any]] = numba.njit(cache=True, nogil=True)
        return compiler(function)
    except RuntimeError:  # "cannot cache function: no locator available"
        compiler = numba.njit(nogil=True)
        return compiler(function)
