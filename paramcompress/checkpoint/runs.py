"""Runs of tensors in a tree, written by their number: a state dict would say all names a second time.

Where the keys of a dict node are the public names of tensors that follow one another, each after the same prefix, and
the nodes of all are alike, one pair stands for all:

    ["run", first, n, prefix], node       n pairs: the key of number i is prefix + name of tensor first + i

Part of the format; docs/format.md, section 7.
"""

from __future__ import annotations

from collections.abc import Sequence

from .records import Node

_TAG = "run"
MARK = f'["{_TAG}",'
"""What the JSON of a tree with runs holds somewhere."""
_MAPPINGS = ("dict", "odict")


def fold(tree: Node, names: Sequence[str]) -> Node:
    """The tree with a run wherever two and more tensors in the order of `names` would make one."""
    return _Folding(names).node(tree)


def unfold(tree: Node, names: Sequence[str]) -> Node:
    """Inverse of `fold`.

    Raises:
        ValueError: runs of tensors that are not there, or of more than there are together.
    """
    return _Unfolding(names).node(tree)


class _Folding:
    """A way through a tree; `at` is the number of the next tensor."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.at = names, 0

    def node(self, node: Node) -> Node:
        if not isinstance(node, list):
            return node
        if _is_tensor(node):
            self.at += 1
            return node
        if not node or node[0] not in _MAPPINGS:
            return [self.node(inner) for inner in node]
        found, i = [node[0]], 1
        while i < len(node):
            n, prefix = self._run(node, i)
            if n > 1:
                found += [[_TAG, self.at, n, prefix], node[i + 1]]
                self.at += n
            else:
                found += [node[i], self.node(node[i + 1])]
            i += 2 * max(n, 1)
        return found

    def _run(self, node: list[Node], i: int) -> tuple[int, str]:
        """How many pairs of a mapping from item i on are the next tensors, and what comes before their names."""
        key, value = node[i], node[i + 1]
        if not isinstance(key, str) or not _is_tensor(value) or self.at >= len(self.names):
            return 0, ""
        prefix = key.removesuffix(self.names[self.at])
        most = min((len(node) - i) // 2, len(self.names) - self.at)
        n = 0
        while n < most and node[i + 2 * n] == prefix + self.names[self.at + n] and node[i + 2 * n + 1] == value:
            n += 1
        return n, prefix


class _Unfolding:
    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.left = names, len(names)

    def node(self, node: Node) -> Node:
        if not isinstance(node, list):
            return node
        if not node or node[0] not in _MAPPINGS:
            return [self.node(inner) for inner in node]
        found = [node[0]]
        for key, value in zip(node[1::2], node[2::2], strict=True):
            match key:
                case [tag, int(first), int(n), str(prefix)] if tag == _TAG:
                    self.left -= n
                    if not 0 <= first <= first + n <= len(self.names) or self.left < 0:
                        raise ValueError(f"a run of {n} tensors from number {first} on")
                    for name in self.names[first : first + n]:
                        found += [prefix + name, value]
                case _:
                    found += [self.node(key), self.node(value)]
        return found


def _is_tensor(node: Node) -> bool:
    return isinstance(node, list) and node[:1] == ["t"]
