"""Torch files: one object read without running anything of it, one object written with its tensors streamed.

Reads the zip format of torch 1.6 and later and the older one; writes the zip format. Always `weights_only=True`.
"""

from __future__ import annotations

import codecs
import os
import pickle
import re
import struct
import sys
import threading
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from .archives import check_zip
from .pickles import check_pickles, first_line
from .records import TensorInfo, torch_dtype
from .stand_ins import Call, resolve, stand_ins
from .tensors import QUANTIZED, Composite, TensorRef, put_together, strides

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LEGACY_PICKLES = 5
"""Magic number, protocol, system, the object, the keys of its storages."""
_ALIGNMENT_BYTES = 64
_ZIP64_BYTES = 20
_SAVE_WEIGHTS = (
    "where the file is trusted, save its weights alone: torch.save(torch.load(path, weights_only=False){}, new)"
)
_LOADING = threading.Lock()
"""torch's list of safe globals and Python's warning filters are process-wide."""


def read_object(path: Path) -> tuple[Any, dict[int, Call]]:
    """What torch.load returns for `path`, with Calls for harmless objects, and those calls by their items' id.

    Tensors of a zip file stay on disk until they are used. CheckpointError for everything that is not such a file.
    """
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        if is_zip:
            protocol = check_zip(file, path, _ITEM_BYTES)
        else:
            protocol = check_pickles(file, path, n_pickles=_LEGACY_PICKLES).protocol
    safe, bodies = stand_ins()
    try:
        with quiet(), _only_safe_globals(safe):
            value = torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # a damaged or hostile pickle provokes anything; the file is at fault
        raise _explained(path, error, protocol) from error
    return value, bodies


@contextmanager
def quiet() -> Iterator[None]:
    """No warning of torch's leaves this block; one thread at a time."""
    with _LOADING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _only_safe_globals(classes: list[Any]) -> Iterator[None]:
    """Exactly `classes` beside torch's own; what this process allowed before is back afterwards."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    # these bytes and complex numbers are calls of in a pickle; torch 2.4 does not allow them by itself
    torch.serialization.add_safe_globals([*classes, codecs.encode, complex])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _explained(path: Path, error: Exception, protocol: int) -> CheckpointError:
    text = str(error)
    if foreign := re.search(r"GLOBAL ([\w.]+)", text):
        name = foreign[1]
        is_module = name.startswith("torch.nn.")
        what = "a whole pickled module, not its weights" if is_module else "more than weights"
        hint = _SAVE_WEIGHTS.format(".state_dict()" if is_module else "['state_dict']")
        if not is_module:
            hint += ", or whatever key they are under"
        return CheckpointError(path, f"holds {what}: it needs the class {name}, which is not run here", hint=hint)
    if "Unsupported operand" in text and protocol > 2:
        return CheckpointError(
            path,
            f"pickle protocol {protocol} found, protocol 2 expected",
            hint="save it again with torch.save and its default pickle_protocol",
        )
    reason = first_line(Exception(text.split("WeightsUnpickler error: ")[-1]) if text else error)
    return CheckpointError(path, f"damaged, or not written by torch.save ({reason})", hint="copy or download it again")


_TYPED = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
    "complex128": "ComplexDoubleStorage",
    "complex64": "ComplexFloatStorage",
    "qint8": "QInt8Storage",
    "quint8": "QUInt8Storage",
    "qint32": "QInt32Storage",
}
"""Dtypes older than torch 2.1 have a class of storages each; all others are bytes with a dtype beside them."""
_ITEM_BYTES = {name: torch_dtype(dtype).itemsize for dtype, name in _TYPED.items()}


@dataclass(frozen=True)
class _Storage:
    """Tensor data by reference: `key` names its member of the zip file."""

    key: str
    class_name: str
    n_items: int


class _Pickler(pickle.Pickler):
    """Writes the pickle that torch.save would write, for tensors that are not in memory."""

    def __init__(self, file: IO[bytes], infos: Mapping[str, TensorInfo]) -> None:
        super().__init__(file, protocol=2)
        self.infos = infos
        self.keys: dict[str, str] = {}

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, _Storage):
            return "storage", getattr(torch, value.class_name), value.key, "cpu", value.n_items
        return None

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, TensorRef):
            value = self._tensor(value)
        elif isinstance(value, Composite):
            value = put_together(value, self._quantized)
        if not isinstance(value, Call):
            return NotImplemented
        items = iter(value.body) if isinstance(value.body, list) else None
        pairs = iter(value.body.items()) if isinstance(value.body, dict) else None
        return resolve(value.name), value.args, value.state, items, pairs

    def _storage(self, info: TensorInfo, dtype: str) -> _Storage:
        key = self.keys.setdefault(info.alias_of or info.name, str(len(self.keys)))
        class_name = _TYPED.get(dtype, "UntypedStorage")
        itemsize = torch_dtype(dtype).itemsize if class_name != "UntypedStorage" else 1
        return _Storage(key, class_name, info.n_bytes // itemsize)

    def _tensor(self, ref: TensorRef) -> Call:
        info = self.infos[ref.name]
        storage = self._storage(info, info.dtype)
        no_hooks: OrderedDict[str, Any] = OrderedDict()
        args = (storage, 0, info.shape, strides(info.shape), ref.requires_grad, no_hooks)
        if info.dtype in _TYPED:
            return Call.of("torch._utils._rebuild_tensor_v2", args)
        return Call.of("torch._utils._rebuild_tensor_v3", (*args, torch_dtype(info.dtype)))

    def _quantized(self, ref: TensorRef) -> tuple[_Storage, tuple[int, ...]]:
        info = self.infos[ref.name]
        quantized = {str(plain)[6:]: str(dtype)[6:] for dtype, plain in QUANTIZED.items()}
        return self._storage(info, quantized[info.dtype]), info.shape


def write_object(path: Path, value: Any, infos: Mapping[str, TensorInfo], load: Callable[[str], Tensor]) -> None:
    """Write `value`, decoded from a tree, as a torch zip file. The same input gives the same bytes.

    `load` is called once per distinct tensor, in file order, so that memory is that of the largest.
    OSError as the file system raises it; ValueError for values and tensors that do not belong together.
    """
    buffer = BytesIO()
    pickler = _Pickler(buffer, infos)
    try:
        pickler.dump(value)
    except (TypeError, AttributeError, KeyError, RecursionError, pickle.PicklingError) as error:
        raise ValueError(f"values that no torch file holds ({error})") from error
    with path.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        # no view: where the disk is full the error keeps it, and Python 3.13 complains of a buffer that dies in use
        _add(archive, "data.pkl", buffer.getvalue())
        _add(archive, "byteorder", sys.byteorder.encode())
        for name, key in pickler.keys.items():
            _add(archive, f"data/{key}", tensor_bytes(load(name), infos[name]))
        _add(archive, "version", b"3\n")


def tensor_bytes(tensor: Tensor, info: TensorInfo) -> memoryview:
    """The values of `tensor` as they stand in a file. ValueError if it is not what `info` says."""
    if tensor.dtype != torch_dtype(info.dtype) or tuple(tensor.shape) != info.shape:
        raise ValueError(f"tensor {info.name!r}: found {tensor.dtype} {tuple(tensor.shape)}, expected {info}")
    if tensor.numel() == 0:  # those that come from numpy have strides of 0, of which there is no such view
        return memoryview(b"")
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _add(archive: zipfile.ZipFile, name: str, content: bytes | memoryview) -> None:
    """Add a member whose content begins at a multiple of 64 bytes, as torch lays it out for memory maps."""
    member = zipfile.ZipInfo(f"archive/{name}")
    member.file_size = len(content)
    is_large = member.file_size > zipfile.ZIP64_LIMIT * 0.9  # the caller decides, so that the header's size is known
    start = archive.fp.tell() + 30 + len(member.filename) + is_large * _ZIP64_BYTES + 4  # type: ignore[union-attr]
    n_padding = -start % _ALIGNMENT_BYTES
    member.extra = struct.pack("<2sH", b"FB", n_padding) + bytes(n_padding)
    with archive.open(member, "w", force_zip64=is_large) as out:
        out.write(content)
    member.extra = b""  # the archive's directory does not need it
