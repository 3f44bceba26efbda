"""The one way this package compiles a loop: numba, without the interpreter lock, cached on disk where that can be.

Does not hold any loop itself. In those that it compiles arrays are copied number by number: for `a[i] = b` numba would
compile the words, too, in which it complains of shapes, and bring them along with every function that has it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numba
from numba.core import codegen


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled at its first call; later processes load the machine code from numba's cache.

    Where nothing can be cached (a read-only installation without a home, a full disk) or the cache is damaged, each
    process compiles anew.
    """
    return _compile(function, fastmath=False)


def compiled_sums(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same for sums that may be taken in any order, and are then taken several numbers at a time: their last digits
    can differ from machine to machine. For what an encoder measures, never for what a decoder computes."""
    return _compile(function, fastmath={"reassoc", "contract"})


def _compile(function: Callable[..., Any], fastmath: bool | set[str]) -> Callable[..., Any]:
    compile_cached: Callable[[Callable[..., Any]], Any] = numba.njit(cache=True, nogil=True, fastmath=fastmath)
    try:
        dispatcher = compile_cached(function)
    except RuntimeError:  # "cannot cache function: no locator available"
        compile_alone: Callable[[Callable[..., Any]], Callable[..., Any]] = numba.njit(nogil=True, fastmath=fastmath)
        return compile_alone(function)
    if dispatcher is function:  # NUMBA_DISABLE_JIT=1, for debuggers and coverage
        return dispatcher
    cache = dispatcher._cache
    load, save = cache.load_overload, cache.save_overload

    def load_or_none(*args: Any) -> Any:
        try:
            return load(*args)
        except Exception:  # whatever reading a damaged pickle can raise
            with contextlib.suppress(Exception):
                cache.flush()
            return None

    def save_or_not(*args: Any) -> None:
        with contextlib.suppress(Exception):
            save(*args)

    cache.load_overload, cache.save_overload = load_or_none, save_or_not
    rebuild = cache._impl.rebuild

    def rebuild_alone(context: Any, payload: Any) -> Any:
        found = rebuild(context, payload)
        with contextlib.suppress(Exception):  # another version of numba keeps it elsewhere
            _parse_when_linked(found.library, payload[0])
        return found

    cache._impl.rebuild = rebuild_alone
    return dispatcher  # type: ignore[no-any-return]


def _parse_when_linked(library: Any, serialised: Any) -> None:
    """Forget the parsed form of a loaded function, several times its machine code, which numba keeps for functions
    that are compiled against it: these get it anew."""
    _, kind, (_, bitcode) = serialised
    if kind == "object":
        library._get_module_for_linking = lambda: codegen.ll.parse_bitcode(bitcode)  # type: ignore[attr-defined]
        library._shared_module = None
