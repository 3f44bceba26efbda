"""Nested Python values <-> a JSON skeleton that refers to tensors by name.

A node is a JSON scalar, which stands for itself, or a list that begins with its tag. There are no JSON objects, so
order and keys of every type survive, and sorting keys changes nothing.

    ["t", cut, requires_grad?]      tensor; its public name is its dotted path without the first `cut` characters,
                                    or `cut` itself where that is a string
    ["parameter", tensor, requires_grad]   ["sparse" | "quantized", options, parts]     see `tensors`
    ["list" | "tuple" | "size" | "set" | "frozenset", item, …]
    ["dict" | "odict" | "counter", key, value, key, value, …]
    ["attributes", odict, dict]     an OrderedDict with attributes, as state_dict() returns it
    ["call", name, args, state, items]     ["class", name]     see `stand_ins`
    ["int", hex]  ["float", "nan" | "inf" | "-inf"]  ["complex", re, im]  ["bytes" | "text", base64]
    ["dtype" | "device", name]
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from .records import KeyPath, Leaf, Node, dtype_name, full_name, torch_dtype
from .stand_ins import HARMLESS, Call, as_call, global_name, harmless, resolve
from .tensors import QUANTIZED, Composite, TensorRef, dense, identity, take_apart

_DEEPEST = 100
_MAX_TREE_BYTES = 32_000_000
"""More than any trainer leaves beside the tensors: two million numbers, or a vocabulary of half a million words."""
_REPEAT_BYTES = 128
"""What one more place of the same container counts: a small file can hold one list in 2**60 places."""
_MOST_TIMES = 64
"""How often the views in a file may show the same memory, all together."""
_SEQUENCES: dict[type, str] = {list: "list", tuple: "tuple", torch.Size: "size", set: "set", frozenset: "frozenset"}
_MAPPINGS: dict[type, str] = {dict: "dict", OrderedDict: "odict", Counter: "counter"}
_OPTIMIZER = re.compile(r"(.*_)?(optim|optimizer|lr_scheduler)s?(_(state|state_dict|states|state_dicts))?")
_OPTIMIZER_KEYS = ({"state", "param_groups"}, {"last_epoch", "base_lrs"})
"""What state dicts of optimizers and of learning rate schedulers hold, whatever the key they stand under."""


@dataclass
class Encoder:
    """Turns values into nodes, and collects the tensors and what there is to tell on the way.

    source: the file, for errors.
    bodies: calls by the id of the list or dict that torch filled for them.
    max_tensor_bytes: no honest tensor of that file is larger, and all of them not _MOST_TIMES as large.
    """

    source: object
    bodies: Mapping[int, Call] = field(default_factory=dict)
    max_tensor_bytes: float = math.inf
    in_optimizer: bool = False
    leaves: list[Leaf] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, Any] = field(default_factory=dict)
    calls: dict[str, list[str]] = field(default_factory=dict)
    depth: int = 0
    n_bytes: int = 0
    tensor_bytes: int = 0
    seen: set[int] = field(default_factory=set)

    def encode(self, value: Any, path: KeyPath = ()) -> Node:
        """The node of `value`, which stands at `path`. CheckpointError for what cannot be kept."""
        self.depth += 1
        if self.depth > _DEEPEST:
            raise self._error(f"{_place(path)} is nested deeper than {_DEEPEST} levels or holds itself")
        self.n_bytes += self._cost(value)
        if self.n_bytes > _MAX_TREE_BYTES:
            raise self._error(f"more than {_MAX_TREE_BYTES:,} bytes of plain values beside the tensors")
        node = self._node(self.bodies.get(id(value), value), path)
        self.depth -= 1
        return node

    def _error(self, reason: str, tensor: KeyPath | None = None, hint: str | None = None) -> CheckpointError:
        return CheckpointError(self.source, reason, tensor=None if tensor is None else full_name(tensor), hint=hint)

    def _cost(self, value: Any) -> int:
        if isinstance(value, str | bytes):
            return 16 + len(value)
        if not isinstance(value, dict | list | tuple) or not value:
            return 16
        cost = _REPEAT_BYTES if id(value) in self.seen else 16
        self.seen.add(id(value))
        return cost

    def _node(self, value: Any, path: KeyPath) -> Node:
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind in _SCALARS:
            return _SCALARS[kind](value)
        if kind in _SEQUENCES:
            items = [self.encode(item, (*path, i)) for i, item in enumerate(value)]
            return [_SEQUENCES[kind], *(sorted(items, key=json.dumps) if isinstance(value, set | frozenset) else items)]
        if kind in _MAPPINGS:
            return self._mapping(value, path)
        if isinstance(value, Tensor):
            return self._tensor(value, path)
        if isinstance(value, type):
            name = getattr(value, "called", "") or global_name(value)
            if name not in HARMLESS:
                raise self._foreign(f"the class {name}", path)
            return ["class", name]
        return self._call(value, path)

    def _mapping(self, value: dict[Any, Any], path: KeyPath) -> Node:
        node: list[Node] = [_MAPPINGS[type(value)]]
        for key, item in type(value).items(value):  # an attribute of that name would hide its own
            inner = (*path, key_name(key, len(node) // 2))
            if self._leave_out(item, inner):
                continue
            n_leaves = len(self.leaves)
            node.append(self.encode(key, inner))
            if len(self.leaves) > n_leaves:
                raise self._error(f"{_place(inner)} has a tensor as its key")
            node.append(self.encode(item, inner))
        attributes = getattr(value, "__dict__", None)
        return ["attributes", node, self.encode(attributes, path)] if attributes else node

    def _leave_out(self, value: Any, path: KeyPath) -> bool:
        """True, and noted, if `value` is an optimizer's state with tensors in it."""
        if self.in_optimizer or not isinstance(value, dict | list | tuple):
            return False
        is_state = isinstance(value, dict) and any(keys <= dict.keys(value) for keys in _OPTIMIZER_KEYS)
        if not is_state and not _OPTIMIZER.fullmatch(str(path[-1]).lower()):
            return False
        inside = Encoder(self.source, self.bodies, in_optimizer=True, depth=self.depth)
        inside.encode(value, path)
        if inside.leaves:
            n_bytes = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in inside.leaves)
            self.notes.append(
                f"{_place(path)}: optimizer state left out ({len(inside.leaves)} tensors, {n_bytes:,} bytes)"
            )
            self.left_out[full_name(path)] = value
        return bool(inside.leaves)

    def _tensor(self, tensor: Tensor, path: KeyPath) -> Node:
        if isinstance(tensor, torch.nn.Parameter):
            return ["parameter", self._tensor(tensor.detach(), path), tensor.requires_grad]
        if tensor.device.type == "meta":
            raise self._error("is on the meta device and has no values", path, "save the state_dict of a real model")
        if tensor.is_nested:
            raise self._error("is a nested tensor", path, "save it as a list of tensors")
        if type(tensor) is not Tensor:
            self.notes.append(f"{_place(path)}: {type(tensor).__name__} read as a plain tensor")
        attributes = sorted(set(getattr(tensor, "__dict__", ())) - {"persistent", "_is_buffer"})
        if attributes:
            self.notes.append(f"{_place(path)}: attributes of the tensor dropped: {attributes}")
        if tensor.layout == torch.strided and not tensor.is_quantized:
            return self._leaf(tensor, path)
        try:
            kind, options, parts = take_apart(tensor)
        except ValueError as error:
            raise self._error(str(error), path, "convert it to a dense tensor") from None
        node: list[Node] = ["dict"]
        for name, part in parts.items():
            node += [name, self._leaf(part, (*path, name))]
        return [kind, self.encode(options, path), node]

    def _leaf(self, tensor: Tensor, path: KeyPath) -> Node:
        dtype, shape = QUANTIZED.get(tensor.dtype, tensor.dtype), tuple(tensor.shape)
        if not _can_be_copied(dtype):
            raise self._error(f"torch cannot copy its dtype {dtype_name(dtype)}", path)
        n_bytes = math.prod(shape) * dtype.itemsize
        self.tensor_bytes += n_bytes
        if n_bytes > self.max_tensor_bytes or self.tensor_bytes > _MOST_TIMES * self.max_tensor_bytes:
            raise self._error(f"claims {n_bytes:,} bytes, with the others far more than the file holds", path)
        node: list[Node] = ["t"]
        self.leaves.append(Leaf(path, node, dtype, shape, partial(dense, tensor), identity(tensor)))
        if tensor.requires_grad:
            node.append(True)
        return node

    def _call(self, value: Any, path: KeyPath) -> Node:
        call = value if isinstance(value, Call) else as_call(value)
        if call is None:
            raise self._foreign(f"a {global_name(type(value))}", path)
        quiet, self.calls = self.calls, {}  # only the outermost call is worth a note
        args = [self.encode(item, (*path, i)) for i, item in enumerate(call.args)]
        node = ["call", call.name, ["tuple", *args], self.encode(call.state, path), self._node(call.body, path)]
        self.calls = quiet
        self.calls.setdefault(call.name, []).append(_place(path))
        return node

    def _foreign(self, what: str, path: KeyPath) -> CheckpointError:
        hint = "take it out, or save only the weights: torch.save(model.state_dict(), path)"
        return self._error(f"{_place(path)} is {what}, which cannot be kept", hint=hint)


def call_notes(calls: Mapping[str, list[str]]) -> list[str]:
    """One line per class: where its objects are."""
    lines = []
    for name, places in calls.items():
        more = f" and {len(places) - 3:,} more" if len(places) > 3 else ""
        lines.append(f"{', '.join(places[:3])}{more}: {name} kept as data and never run")
    return lines


def _place(path: KeyPath) -> str:
    name = full_name(path)
    return repr(name if len(name) <= 80 else f"{name[:80]}…") if path else "the checkpoint"


def key_name(key: Any, index: int) -> str:
    """A key's part of a dotted path; one that has no stable short text is called by its place in the mapping."""
    return str(key) if isinstance(key, str | int | float | None) else f"#{index}"


def _text(value: str) -> Node:
    try:
        value.encode()
    except UnicodeEncodeError:
        return ["text", base64.b64encode(value.encode("utf-8", "surrogatepass")).decode()]
    return value


_SCALARS: dict[type, Any] = {
    int: lambda value: value if abs(value) < 2**63 else ["int", hex(value)],
    float: lambda value: value if math.isfinite(value) else ["float", repr(value)],
    str: _text,
    bytes: lambda value: ["bytes", base64.b64encode(value).decode()],
    complex: lambda value: ["complex", _SCALARS[float](value.real), _SCALARS[float](value.imag)],
    torch.dtype: lambda value: ["dtype", dtype_name(value)],
    torch.device: lambda value: ["device", str(value)],
}


@cache
def _can_be_copied(dtype: torch.dtype) -> bool:
    try:
        torch.empty(1, dtype=dtype).clone()
    except (RuntimeError, NotImplementedError):
        return False
    return True


def decode(node: Node) -> Any:
    """The values that `Encoder.encode` was given, with TensorRef, Composite and Call in the places of those objects.

    ValueError for a node that no encoder wrote.
    """
    try:
        return _decode(node, ())
    except (TypeError, ArithmeticError, RecursionError, RuntimeError) as error:
        raise ValueError(f"not a tree of values ({error})") from error


def _decode(node: Node, path: KeyPath) -> Any:
    match node:
        case None | bool() | int() | float() | str():
            return node
        case ["t", int(cut), *grad]:
            return TensorRef(full_name(path)[cut:], bool(grad))
        case ["t", str(name), *grad]:
            return TensorRef(name, bool(grad))
        case ["parameter", tensor, requires_grad]:
            inner = _expect(_decode(tensor, path), TensorRef, Composite)
            return Composite("parameter", (bool(requires_grad),), {"": inner})
        case [("sparse" | "quantized") as kind, options, parts]:
            return Composite(kind, _expect(_decode(options, path), tuple), _expect(_decode(parts, path), dict))
        case [("list" | "tuple" | "size" | "set" | "frozenset") as tag, *items]:
            return _BUILDERS[tag]([_decode(item, (*path, i)) for i, item in enumerate(items)])
        case [("dict" | "odict" | "counter") as tag, *items] if len(items) % 2 == 0:
            return _decode_mapping(_BUILDERS[tag](), items, path)
        case ["attributes", inner, attributes]:
            value = _decode(inner, path)
            vars(value).update(_expect(_decode(attributes, path), dict))
            return value
        case ["call", name, args, state, body]:
            items = _expect(_decode(body, path), list, dict, type(None))
            return Call.of(harmless(name), _expect(_decode(args, path), tuple), _decode(state, path), items)
        case ["class", name]:
            return resolve(harmless(name))
        case ["int" | "float" | "bytes" | "text" | "dtype" | "device" as tag, str(text)]:
            return _FROM_TEXT[tag](text)
        case ["complex", real, imag]:
            return complex(_decode(real, path), _decode(imag, path))
    raise ValueError(f"not a node: {str(node)[:80]}")


def _expect(value: Any, *types: type) -> Any:
    if type(value) not in types:
        raise ValueError(f"found a {type(value).__name__} in a node that holds {types[0].__name__}")
    return value


def _decode_mapping(mapping: dict[Any, Any], items: list[Node], path: KeyPath) -> dict[Any, Any]:
    for key_node, node in zip(items[::2], items[1::2], strict=True):
        key = _decode(key_node, path)
        mapping[key] = _decode(node, (*path, key_name(key, len(mapping))))
    return mapping


_BUILDERS: dict[str, Any] = {tag: kind for kind, tag in (_SEQUENCES | _MAPPINGS).items()}
_FROM_TEXT: dict[str, Any] = {
    "int": lambda text: int(text, 16),
    "float": float,
    "bytes": lambda text: base64.b64decode(text, validate=True),
    "text": lambda text: base64.b64decode(text, validate=True).decode("utf-8", "surrogatepass"),
    "dtype": torch_dtype,
    "device": torch.device,
}
