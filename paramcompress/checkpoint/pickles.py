"""A look at a pickle before torch reads it: opcodes only, nothing is built and nothing runs.

torch's weights-only loader decides what may be built. This room stops what would hurt that loader itself.
"""

from __future__ import annotations

import pickletools
import re
from dataclasses import dataclass, field
from typing import IO, Any

from ..errors import CheckpointError

_DEEPEST_TUPLE = 1000
"""Hashing a tuple recurses in C without a limit: a much deeper one, used as a dict key, kills the process."""
_DENIED = {"builtins bytearray", "__builtin__ bytearray"}
"""torch allows the call bytearray(n), which fills n bytes of memory for any n."""
_MEMORY = re.compile(r"torch(\.\w+)* \w*(Tensor|Storage)")
"""Classes that are named in every torch file and called in none: torch allows the call Tensor(n), which hands out n
numbers of whatever this process had in memory before."""
_CALLS = ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST")


@dataclass
class _Value:
    """What stands in the place of a value: how deep its tuples nest, and of names, texts, numbers and tuples what they
    say."""

    depth: int = 0
    name: str = ""
    text: str = ""
    number: int | None = None
    items: tuple[_Value, ...] = ()


@dataclass
class Look:
    """What is known of pickles that were passed over."""

    protocol: int = 0
    storages: set[tuple[str, str, int]] = field(default_factory=set)
    """Key, class such as "torch FloatStorage", and number of items of every storage, as often as it is named."""
    texts: set[str] = field(default_factory=set)

    @property
    def keys(self) -> set[str]:
        return {key for key, _, _ in self.storages}


def check_pickles(file: IO[bytes], source: object, *, n_pickles: int = 1) -> Look:
    """Pass over the next `n_pickles` pickles of `file`; returns what is known of them all.

    The last of several lists the storages of those before it (torch before 1.6): torch would hand out what was in
    memory before for one that is missing there.

    Raises CheckpointError for one that is damaged, nests tuples too deep, asks for unlimited memory or for memory that
    nothing in the file fills.
    """
    looks: list[Look] = []
    try:
        for _ in range(n_pickles):
            looks.append(_look(file, source))
    except CheckpointError:
        raise
    except Exception as error:  # pickletools raises whatever the bytes provoke
        raise CheckpointError(
            source, f"its pickle is damaged or cut short ({first_line(error)})", hint="copy or download the file again"
        ) from error
    *others, last = looks
    if missing := set().union(*(look.keys for look in others)) - last.texts:
        raise CheckpointError(source, f"damaged: its storage {min(missing)!r} is not in the file")
    return merged(looks)


def merged(looks: list[Look]) -> Look:
    """Several as one, with the highest protocol."""
    return Look(
        max((look.protocol for look in looks), default=0),
        set().union(*(look.storages for look in looks)),
        set().union(*(look.texts for look in looks)),
    )


def first_line(error: Exception) -> str:
    """What an error of another library says, fit for one line of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _look(file: IO[bytes], source: object) -> Look:
    """Run the operations of a pickle on a stack of `_Value`, with None for a mark."""
    stack: list[_Value | None] = []
    memo: dict[int, _Value | None] = {}
    look = Look()
    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name == "PROTO":
            look.protocol = argument
        elif name == "MARK":
            stack.append(None)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            if argument in _DENIED:
                raise CheckpointError(
                    source, "holds a bytearray, which can ask for any amount of memory", hint="save it as bytes"
                )
            stack.append(_Value(name=argument))
        elif isinstance(argument, str) and not opcode.stack_before:
            look.texts.add(argument)
            stack.append(_Value(text=argument))
        else:
            taken = _pop(stack, opcode.stack_before)
            is_tuple = name.startswith("TUPLE")
            depth = max((one.depth for one in taken), default=0) + is_tuple
            if depth > _DEEPEST_TUPLE:
                raise CheckpointError(source, f"nests tuples deeper than {_DEEPEST_TUPLE} levels")
            # a tuple may be arguments, and torch has a builder that calls the first of its own
            if taken and (is_tuple or name in _CALLS) and _MEMORY.fullmatch(taken[0].name):
                raise CheckpointError(source, f"calls {taken[0].name.replace(' ', '.')}, as no file of torch.save does")
            if name == "BINPERSID":
                items = taken[0].items
                n_items = items[4].number if len(items) > 4 else None
                if n_items is None or n_items < 0:
                    raise CheckpointError(source, "names a storage without its length, as no file of torch.save does")
                look.storages.update((key.text, items[1].name, n_items) for key in items[2:3])
            number = argument if isinstance(argument, int) else None
            stack += [_Value(depth, number=number, items=tuple(taken) if is_tuple else ())] * len(opcode.stack_after)
    return look


def _pop(stack: list[_Value | None], wanted: list[pickletools.StackObject]) -> list[_Value]:
    """Take from the stack what an operation takes, lowest first: single values, or all down to the last mark and those
    below it."""
    n_single, taken = len(wanted), list[_Value]()
    if pickletools.markobject in wanted:
        n_single = wanted.index(pickletools.markobject)
        while (value := stack.pop()) is not None:
            taken.append(value)
    taken += [stack.pop() or _Value() for _ in range(n_single)]
    return taken[::-1]
