"""The nouns of this package: one tensor's description, one tensor on its way in, the opened checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

Node = Any
"""One node of a checkpoint's tree: None, bool, int, float, str, or a list that begins with a tag (see `tree`)."""


KeyPath = tuple[str | int, ...]
"""Keys and indices that lead from the root of a checkpoint to one of its values."""


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor without its values.

    name: public name, unique in its checkpoint.
    dtype: torch's word for it, such as "float32" or "float8_e4m3fn".
    shape: as torch gives it; () for a scalar.
    alias_of: public name of the earlier tensor that shares its memory, element by element.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    alias_of: str | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of its values when stored densely."""
        return math.prod(self.shape) * torch_dtype(self.dtype).itemsize


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of that name; ValueError when this torch has none."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"torch has no dtype {name!r}")
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass
class Leaf:
    """One tensor met while a file is read, before it has a public name.

    path: keys and indices from the root.
    node: its node in the tree, completed when the name is known.
    read: gives a dense copy on the CPU.
    identity: equal for two leaves that share their memory; None for what shares nothing.
    """

    path: KeyPath
    node: list[Node]
    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    identity: Hashable = None

    @property
    def full_name(self) -> str:
        """Every key on the way, joined with dots."""
        return full_name(self.path)


def full_name(path: KeyPath) -> str:
    return ".".join(map(str, path))


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: what is in it, and its tensors one at a time. A context manager; `load` ends with it.

    path: file or folder it came from; None for a dict.
    kind: "torch", "safetensors", "sharded" or "dict".
    file_bytes: size on disk; None for a dict.
    tensors: in file order, tied ones included.
    tree: JSON-able structure of everything else; `write_checkpoint` rebuilds the checkpoint from it.
    notes: what the user must be told: parts left out, prefixes stripped, objects kept as data.
    left_out: optimizer states by dotted key, as torch.load returned them; not in `tensors`, not in `tree`.
    """

    path: Path | None
    kind: str
    file_bytes: int | None
    tensors: tuple[TensorInfo, ...]
    tree: Node = field(repr=False)
    notes: tuple[str, ...] = ()
    left_out: Mapping[str, Any] = field(default_factory=dict, repr=False)
    _readers: dict[str, Callable[[], Tensor]] = field(default_factory=dict, repr=False)

    def load(self, name: str) -> Tensor:
        """The tensor of that public name: dense, contiguous, on the CPU, detached, sharing memory with nothing.

        Takes the memory of that tensor, and any number of threads. (A torch file from before 1.6 has no index: it was
        read whole when it was opened.) KeyError for an unknown name or a closed checkpoint.
        """
        return self._readers[name]()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._readers.clear()
