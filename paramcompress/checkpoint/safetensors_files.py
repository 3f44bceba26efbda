"""Safetensors files: the header read and checked, one tensor read, a file written with its tensors streamed.

The format is a length, a JSON header and the values end to end; everything the header says is checked before use.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError, OutputError
from .records import TensorInfo
from .torch_files import tensor_bytes

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}
_DTYPES: dict[str, torch.dtype] = {
    short: getattr(torch, name) for short, name in _NAMES.items() if hasattr(torch, name)
}
_SHORT = {name: short for short, name in _NAMES.items()}


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: `start` counts bytes from the beginning of the file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int


def read_header(path: Path) -> tuple[dict[str, str], list[Entry]]:
    """The metadata and the tensors in file order. CheckpointError for a file that breaks the format anywhere."""
    n_file = path.stat().st_size
    with path.open("rb") as file:
        n_header = int.from_bytes(file.read(8), "little")
        if n_header > min(n_file - 8, _MAX_HEADER_BYTES):
            raise CheckpointError(
                path,
                f"not a safetensors file, or cut short: {n_header:,} bytes of header expected, {n_file:,} bytes found",
                hint="copy or download it again",
            )
        content = file.read(n_header)
    try:
        header = json.loads(content, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            path, f"not a safetensors file, or damaged: its header does not parse ({error})"
        ) from error
    if not isinstance(header, dict):
        raise CheckpointError(path, "not a safetensors file: its header is not a JSON object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(path, "damaged: its metadata is not a map of texts")
    placed = sorted((_place(path, name, entry) for name, entry in header.items()), key=lambda item: item[0])
    position = 0
    for (start, end), name, _, _ in placed:
        if start != position:
            raise CheckpointError(
                path, f"overlaps others or leaves a gap: starts at {start}, not {position}", tensor=name
            )
        position = end
    if 8 + n_header + position != n_file:
        raise CheckpointError(
            path,
            f"damaged or cut short: {8 + n_header + position:,} bytes expected, {n_file:,} found",
            hint="copy or download it again",
        )
    return metadata, [Entry(name, dtype, shape, 8 + n_header + start) for (start, _), name, dtype, shape in placed]


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs of JSON; ValueError where a name stands twice: readers differ in which counts."""
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError("a name stands twice")
    return names


def _place(path: Path, name: str, entry: Any) -> tuple[tuple[int, int], str, torch.dtype, tuple[int, ...]]:
    """Offsets, name, dtype and shape of one header entry, checked against one another."""
    match entry:
        case {"dtype": str(short), "shape": [*shape], "data_offsets": [start, end]} if _are_sizes([*shape, start, end]):
            pass
        case _:
            raise CheckpointError(path, f"its header entry makes no sense: {str(entry)[:80]}", tensor=name)
    if short not in _DTYPES:
        raise CheckpointError(
            path, f"dtype {short!r} is not known here", tensor=name, hint=f"known are {' '.join(_DTYPES)}"
        )
    n_bytes = math.prod(shape) * _DTYPES[short].itemsize
    if end - start != n_bytes or math.prod(max(size, 1) for size in shape) >= 2**62:
        raise CheckpointError(
            path, f"{n_bytes:,} bytes expected for {short} {shape}, {end - start:,} found", tensor=name
        )
    return (start, end), name, _DTYPES[short], tuple(shape)


def _are_sizes(values: list[Any]) -> bool:
    return all(type(value) is int and 0 <= value < 2**63 for value in values)


def read_tensor(path: Path, entry: Entry) -> Tensor:
    """The values of one tensor, in memory of their own."""
    if 0 in entry.shape:
        return torch.empty(entry.shape, dtype=entry.dtype)
    values = np.empty(math.prod(entry.shape) * entry.dtype.itemsize, np.uint8)
    content, position = memoryview(values), entry.start  # type: ignore[arg-type]
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            while content and (n_read := os.preadv(file, [content], position)):  # the system reads 2 GiB at a time
                content, position = content[n_read:], position + n_read
        finally:
            os.close(file)
    except OSError as error:
        raise CheckpointError(path, error.strerror or str(error), tensor=entry.name) from error
    if content:
        raise CheckpointError(path, "the file has become shorter since it was opened", tensor=entry.name)
    if entry.dtype == torch.float32:  # numpy's views take a fraction of the time of torch's
        return torch.from_numpy(values.view(np.float32).reshape(entry.shape))
    return torch.from_numpy(values).view(entry.dtype).reshape(entry.shape)


def write_file(
    path: Path, metadata: dict[str, str], items: Sequence[tuple[str, TensorInfo]], load: Callable[[str], Tensor]
) -> None:
    """Write `items`, (name in the file, tensor), in their order; `load` is called once per distinct tensor.

    A tied tensor is written out under each of its names: the format cannot share. Memory is that of the largest
    tensor. The same input gives the same bytes. OSError as the file system raises it.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    starts: dict[str, list[int]] = {}
    position = 0
    for name, info in items:
        if info.dtype not in _SHORT:
            raise OutputError(
                path, f"tensor {name!r}: safetensors has no dtype {info.dtype}", hint="write a torch file: -o NAME.pt"
            )
        end = position + info.n_bytes
        header[name] = {"dtype": _SHORT[info.dtype], "shape": list(info.shape), "data_offsets": [position, end]}
        starts.setdefault(info.alias_of or info.name, []).append(position)
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "backslashreplace")
    text += b" " * (-len(text) % 8)
    infos = {info.name: info for _, info in items}
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, positions in starts.items():
            content = tensor_bytes(load(name), infos[name])
            for start in positions:
                file.seek(8 + len(text) + start)
                file.write(content)
            del content  # before the next is loaded
        file.truncate(8 + len(text) + position)
