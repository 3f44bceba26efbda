"""Harmless objects that trainers leave beside their tensors, kept as the calls that would build them.

A call is data: name of the class, arguments, state. It is never made here; a written torch file carries it again, for
whoever opens that file to allow or not.
"""

from __future__ import annotations

import copyreg
import pkgutil
from typing import Any

from .records import Node

_NUMPY = ("multiarray.scalar", "multiarray._reconstruct")
_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
HARMLESS = frozenset(
    {
        "argparse.Namespace",
        "types.SimpleNamespace",
        "collections.defaultdict",
        "collections.deque",
        *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
        "decimal.Decimal",
        "fractions.Fraction",
        "uuid.UUID",
        *(f"builtins.{name}" for name in ("frozenset", "range", "slice")),
        *(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "set", "str", "tuple")),
        *(f"pathlib.{name}" for name in _PATHS),
        *(f"pathlib._local.{name}" for name in _PATHS),
        "numpy.ndarray",
        "numpy.dtype",
        *(f"numpy.core.{name}" for name in _NUMPY),
        *(f"numpy._core.{name}" for name in _NUMPY),
        "torch.torch_version.TorchVersion",
    }
)
"""Builders of pure data, by the names that pickles give them. Never add one that reads, runs or imports anything."""


class Call:
    """The call of a harmless builder: `name(*args)`, then its state set, then list and dict items added.

    Subclasses that carry a name in `called` stand in for that builder while torch reads a file.
    """

    called = ""
    body_type: type[list[Any]] | type[dict[Any, Any]] | None = None
    bodies: dict[int, Call]

    def __new__(cls, *args: Any) -> Any:
        call = object.__new__(cls)
        call.name, call.args, call.state, call.body = cls.called, args, None, None
        if cls.body_type is None:
            return call
        call.body = cls.body_type()  # torch adds items to plain lists and dicts only, so it gets one ...
        cls.bodies[id(call.body)] = call  # ... and this is how its call is found again
        return call.body

    name: str
    args: tuple[Any, ...]
    state: Any
    body: list[Any] | dict[Any, Any] | None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    @classmethod
    def of(
        cls, name: str, args: tuple[Any, ...], state: Any = None, body: list[Any] | dict[Any, Any] | None = None
    ) -> Call:
        call: Call = object.__new__(Call)
        call.name, call.args, call.state, call.body = name, args, state, body
        return call


def stand_ins() -> tuple[list[type[Call]], dict[int, Call]]:
    """Classes for torch's list of safe globals, and where calls with items will be found, by the id of the items."""
    bodies: dict[int, Call] = {}
    body_types: dict[str, Any] = {"collections.deque": list, "collections.defaultdict": dict}
    classes = []
    for full_name in sorted(HARMLESS):
        module, _, name = full_name.rpartition(".")
        traits = {"__module__": module, "called": full_name, "bodies": bodies, "body_type": body_types.get(full_name)}
        classes.append(type(name, (Call,), traits))
    return classes, bodies


def as_call(value: Any) -> Call | None:
    """The call that builds a real object of a harmless class; None for every other object."""
    try:
        builder, args, *rest = value.__reduce_ex__(2)
    except Exception:  # whatever an object's own code raises: it cannot be taken apart
        return None
    state, items, pairs = (*rest, None, None, None)[:3]
    if builder is copyreg.__newobj__:  # type: ignore[attr-defined]
        builder, args = args[0], args[1:]
    name = global_name(builder)
    if name not in HARMLESS:
        return None
    return Call.of(name, args, state, list(items) if items is not None else dict(pairs) if pairs is not None else None)


def global_name(builder: Any) -> str:
    """The name a pickle gives a class or function; "" for what has none."""
    name = f"{getattr(builder, '__module__', '')}.{getattr(builder, '__qualname__', '')}"
    return "builtins.set" if builder is set else name


def harmless(name: Node) -> str:
    """`name` if a call of it may be written; ValueError otherwise."""
    if not isinstance(name, str) or name not in HARMLESS:
        raise ValueError(f"{name!r} is not one of the harmless classes")
    return name


def resolve(name: str) -> Any:
    """The object of that dotted name, under the module name it has in the versions installed here."""
    for old, new in (("numpy.core.", "numpy._core."), ("pathlib._local.", "pathlib.")):
        name = name.replace(old, new)
    try:
        return pkgutil.resolve_name(name)
    except ImportError:  # numpy before 2.0
        return pkgutil.resolve_name(name.replace("numpy._core.", "numpy.core."))
