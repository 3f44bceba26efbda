"""A look at a pickle before torch reads it: opcodes only, nothing is built and nothing runs.

torch's weights-only loader decides what may be built. This room stops what would hurt that loader itself.
"""

from __future__ import annotations

import pickletools
from typing import IO, Any

from ..errors import CheckpointError

_DEEPEST_TUPLE = 1000
"""Hashing a tuple recurses in C without a limit: a much deeper one, used as a dict key, kills the process."""
_DENIED = {"builtins bytearray", "__builtin__ bytearray"}
"""torch allows the call bytearray(n), which fills n bytes of memory for any n."""


def check_pickles(file: IO[bytes], source: object, *, n_pickles: int = 1) -> int:
    """Pass over the next `n_pickles` pickles of `file`; returns the highest protocol among them.

    Raises CheckpointError for one that is damaged, nests tuples too deep or asks for unlimited memory.
    """
    protocol = 0
    try:
        for _ in range(n_pickles):
            protocol = max(protocol, _check_pickle(file, source))
    except CheckpointError:
        raise
    except Exception as error:  # pickletools raises whatever the bytes provoke
        raise CheckpointError(
            source, f"its pickle is damaged or cut short ({first_line(error)})", hint="copy or download the file again"
        ) from error
    return protocol


def first_line(error: Exception) -> str:
    """What an error of another library says, fit for one line of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _check_pickle(file: IO[bytes], source: object) -> int:
    """Run the opcodes on a stack that holds, in place of each value, how deep its tuples nest (None for a mark)."""
    stack: list[int | None] = []
    memo: dict[int, int | None] = {}
    protocol = 0
    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name == "PROTO":
            protocol = argument
        elif name == "MARK":
            stack.append(None)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        else:
            if name == "GLOBAL" and argument in _DENIED:
                raise CheckpointError(
                    source, "holds a bytearray, which can ask for any amount of memory", hint="save it as bytes"
                )
            depth = max(_pop(stack, opcode.stack_before), default=0) + name.startswith("TUPLE")
            if depth > _DEEPEST_TUPLE:
                raise CheckpointError(source, f"nests tuples deeper than {_DEEPEST_TUPLE} levels")
            stack += [depth] * len(opcode.stack_after)
    return protocol


def _pop(stack: list[int | None], wanted: list[pickletools.StackObject]) -> list[int]:
    """Take from the stack what an opcode takes: single values, or all down to the last mark and those below it."""
    n_single, taken = len(wanted), list[int]()
    if pickletools.markobject in wanted:
        n_single = wanted.index(pickletools.markobject)
        while (value := stack.pop()) is not None:
            taken.append(value)
    return taken + [stack.pop() or 0 for _ in range(n_single)]
