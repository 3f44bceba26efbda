"""The tree of a checkpoint with some of its tensors under other names, and others gone. Touches no tensor."""

from __future__ import annotations

from collections.abc import Mapping

from .records import KeyPath, Node, full_name
from .tree import key_name

_SEQUENCES = ("list", "tuple", "size", "set", "frozenset")
_MAPPINGS = ("dict", "odict", "counter")


def renamed(tree: Node, names: Mapping[str, str | None]) -> tuple[Node, set[str]]:
    """`tree` with tensors called as `names` says, by public name; None takes them out.

    Only tensors that are values of a dict can be renamed, and only in the last part of their dotted name.

    Returns:
        The new tree, and the names that were found.
    """
    found: set[str] = set()

    def tensor(node: Node, path: KeyPath) -> str | None:
        """Public name of the tensor that a node stands for."""
        match node:
            case ["parameter", inner, *_]:
                return tensor(inner, path)
            case ["t", int(cut), *_]:
                return full_name(path)[cut:]
            case ["t", str(name), *_]:
                return name
        return None

    def called(node: Node, name: str) -> Node:
        """The node of that tensor under its new name."""
        if node[0] == "parameter":
            return [node[0], called(node[1], name), *node[2:]]
        return node if isinstance(node[1], int) else ["t", name, *node[2:]]

    def visit(node: Node, path: KeyPath) -> Node:
        match node:
            case [tag, *items] if tag in _SEQUENCES:
                return [tag, *(visit(item, (*path, i)) for i, item in enumerate(items))]
            case [tag, *items] if tag in _MAPPINGS:
                out: list[Node] = [tag]
                for i, (key, value) in enumerate(zip(items[::2], items[1::2], strict=True)):
                    inner = (*path, key_name(key, i))
                    name = tensor(value, inner)
                    if name is None or name not in names or not isinstance(key, str):
                        out += [key, visit(value, inner)]
                        continue
                    found.add(name)
                    new = names[name]
                    if new is not None:
                        old_end, new_end = name.rpartition(".")[2], new.rpartition(".")[2]
                        out += [key.removesuffix(old_end) + new_end, called(value, new)]
                return out
            case ["attributes", inner, attributes]:
                return ["attributes", visit(inner, path), attributes]
        return node

    match tree:
        case ["torch", value]:
            return ["torch", visit(value, ())], found
        case ["safetensors", metadata, value]:
            return ["safetensors", metadata, visit(value, ())], found
        case ["sharded", index_name, extra, *files]:
            roots = [renamed(one, names) if i % 2 else (one, set[str]()) for i, one in enumerate(files)]
            return ["sharded", index_name, extra, *(root for root, _ in roots)], set().union(
                *(seen for _, seen in roots)
            )
    return tree, found
