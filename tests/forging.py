"""Files made wrong on purpose, so that what is wrong gets past the checksums: taken apart, changed in one place, and
put together again with every checksum right. For squeezed files, torch files, safetensors files and sharded folders.

Every function takes its random numbers from a generator, so that a number names a file.
"""

from __future__ import annotations

import copy
import io
import itertools
import json
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from paramcompress import container
from paramcompress.container import Reader


@dataclass
class Forged:
    """A squeezed file taken apart, to be put together again with every checksum right and something else wrong."""

    parts: dict[str, bytes]
    """Payloads without checksums, the index left out."""
    index: dict[str, Any]
    metadata: dict[str, str] = field(default_factory=lambda: {"paramcompress": "1 x"})
    index_text: bytes | None = None
    index_frame: bytes | None = None
    edit_table: Callable[[dict[str, Any]], Any] = lambda table: table
    edit_header: Callable[[bytes], bytes] = lambda text: text
    spoil_checksum: str = ""

    @classmethod
    def of(cls, path: Path) -> Forged:
        with Reader(path) as reader:
            parts = {name: bytes(reader._part(name)) for name in reader._parts}
        frame = parts.pop(container.INDEX)[:-4]
        return cls(parts, json.loads(zstandard.ZstdDecompressor(dict_data=container._phrase_book()).decompress(frame)))

    def copy(self) -> Forged:
        """The same, its index and parts free to be changed."""
        return Forged(dict(self.parts), json.loads(json.dumps(self.index)))

    def frame(self) -> bytes:
        text = self.index_text or json.dumps(self.index).encode("utf-8", "surrogatepass")
        return self.index_frame or zstandard.ZstdCompressor(dict_data=container._phrase_book()).compress(text)

    def build(self) -> bytes:
        frame = self.frame()
        sizes = {name: len(payload) + 4 for name, payload in self.parts.items()} | {container.INDEX: len(frame) + 8}
        table: dict[str, Any] = {"__metadata__": self.metadata}
        at = 0
        for name, n_bytes in sizes.items():
            table[name] = {"dtype": "U8", "shape": [n_bytes], "data_offsets": [at, at + n_bytes]}
            at += n_bytes
        text = self.edit_header(json.dumps(self.edit_table(table)).encode())
        header = len(text).to_bytes(8, "little") + text
        payloads = self.parts | {container.INDEX: frame + zlib.crc32(header).to_bytes(4, "little")}
        body = b""
        for name, payload in payloads.items():
            body += payload + (zlib.crc32(payload) ^ (name == self.spoil_checksum)).to_bytes(4, "little")
        return header + body


# ------------------------------------------------------------------------------------------- values

NUMBERS = (
    0, 1, -1, 2, 3, 7, 8, 16, 17, 127, 128, 255, 256, 257, 1000, 4096, 65535, 65536, 1 << 20, 1 << 24, 1 << 30,
    (1 << 31) - 1,
    1 << 31, 1 << 32, 1 << 40, 1 << 50, (1 << 62) - 1, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 70, 10**400,
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    *NUMBERS, None, True, False, 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), "", "w", "exact", "factored",
    "torch",
    "sharded", "safetensors", "dict", "../x", "/etc/passwd", "a\0b", "\ud800", "x" * 300, "..", "float32", "float64",
    "int64",
    "bool", "complex128", "float8_e4m3fn", "strided", "same_as", "items", "__class__", [], {}, [[]], [0], [None],
    ["t", 0],
    ["dict"], ["list"], ["t", "w"], ["set", ["list"]], {"a": 1}, ["call", "pathlib.Path", ["tuple", "x"], None, None],
    ["class", "builtins.list"], ["attributes", ["odict"], ["dict", "items", 5]], ["float", "nan"], ["int", "0xff"],
    ["size", -1], ["size", 1 << 70], ["counter", "a", "b"], ["dtype", "float7"], ["device", "nowhere"], ["bytes", "?"],
    ["sparse", ["tuple", "sparse_coo", ["size", 2, 2], True], ["dict", "indices", ["t", 0], "values", ["t", 0]]],
    ["quantized", ["tuple", 0.5, 1], ["dict", "int_repr", ["t", 0]]], ["parameter", ["t", 0], True], ["complex", 1, 2],
)  # fmt: skip
"""What a hostile JSON may hold in place of an honest value: edges of every kind of number, wrong kinds, nodes of
trees."""


def mutate_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    """Some bytes overwritten, a bit turned, a piece cut out, doubled or moved, the end exchanged for noise."""
    if not data:
        return rng.bytes(3)
    out = bytearray(data)
    at, until = sorted(rng.integers(0, len(data) + 1, 2).tolist())
    kind = int(rng.integers(0, 8))
    if kind == 0:
        out[int(rng.integers(0, len(out)))] ^= 1 << int(rng.integers(0, 8))
    elif kind == 1:
        for place in rng.integers(0, len(out), int(rng.integers(1, 5))).tolist():
            out[place] = int(rng.choice((0, 1, 127, 128, 255, int(rng.integers(0, 256)))))
    elif kind == 2:
        place = int(rng.integers(0, min(len(out), 24)))  # the head, which says what the rest means
        out[place] = int(rng.integers(0, 256))
    elif kind == 3:
        del out[at:until]
    elif kind == 4:
        out[at:at] = out[at:until][:4096]
    elif kind == 5:
        out[at:] = rng.bytes(len(out) - at)
    elif kind == 6:
        n = int(rng.choice((1, 2, 4, 8)))
        number = int(rng.choice(np.array([0, 1, 255, 65535, 1 << 31, (1 << 63) - 1]))) & ((1 << 8 * n) - 1)
        out[at : at + n] = number.to_bytes(n, "little")
    else:
        out += rng.bytes(int(rng.integers(1, 20)))
    return bytes(out)


def mutate_json(rng: np.random.Generator, value: Any, n_most: int = 3) -> Any:
    """`value`, changed in place in up to `n_most` random nodes: replaced, taken away, doubled, exchanged, wrapped."""
    for _ in range(int(rng.integers(1, n_most + 1))):
        places = list(_places(value))
        if not places:
            return copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])
        holder, key = places[int(rng.integers(len(places)))]
        other, another = places[int(rng.integers(len(places)))]
        kind = int(rng.integers(0, 8))
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, list):
            holder.insert(key, holder[key])
        elif kind == 2:
            holder[key] = copy.deepcopy(other[another])
        elif kind == 3:
            holder[key] = [holder[key]]
        elif kind == 4 and type(holder[key]) in (int, float):
            holder[key] = holder[key] + int(rng.integers(-3, 4)) if rng.random() < 0.7 else -holder[key]
        else:
            holder[key] = copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container below `value` with each of its keys."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        for key in list(one) if isinstance(one, dict) else range(len(one)):
            yield one, key
            if isinstance(one[key], dict | list):
                waiting.append(one[key])


# ------------------------------------------------------------------------------------------- squeezed files


def mutate_squeezed(rng: np.random.Generator, honest: Forged) -> bytes:
    """A squeezed file that is wrong in one respect, under right checksums: header, index, streams or frames."""
    forged = honest.copy()
    kind = int(rng.integers(0, 12))
    names = sorted(forged.parts)
    name = names[int(rng.integers(len(names)))]
    if kind == 0:
        forged.edit_table = lambda table: mutate_json(rng, table)
    elif kind == 1:
        forged.edit_header = lambda text: mutate_bytes(rng, text)
    elif kind == 2:
        forged.index_text = mutate_bytes(rng, json.dumps(forged.index).encode()) or b" "
    elif kind == 3:
        forged.index_frame = mutate_bytes(rng, forged.frame()) or b"\0"
    elif kind == 4:
        forged.index = mutate_json(rng, forged.index)
    elif kind == 5:
        key = ("tree", "about", "entries")[int(rng.integers(0, 3))]
        forged.index[key] = mutate_json(rng, forged.index[key], 1)
    elif kind == 7:
        forged.index["tree"] = mutate_json(rng, forged.index["tree"], 2)
    elif kind == 6 and name.startswith(container.EXACT_POOL):
        raw = zstandard.ZstdDecompressor().decompress(forged.parts[name])
        forged.parts[name] = zstandard.ZstdCompressor().compress(mutate_bytes(rng, raw))
    elif kind == 6:
        entries = forged.index["entries"]
        entries["shape"] = mutate_json(rng, entries["shape"], 2)
    else:
        _mutate_stream(rng, forged)
    return forged.build()


def _mutate_stream(rng: np.random.Generator, forged: Forged) -> None:
    """Change one tensor's stream, wherever it lies, and let sizes follow."""
    entries = forged.index["entries"]
    n = forged.index["n"]
    homes = entries.get("home", [container.POOLED] * n)
    ours = [i for i in range(n) if homes[i] in (container.OWN, container.POOLED)]
    which = ours[int(rng.integers(len(ours)))]
    if homes[which] == container.OWN:
        name = entries["name"][which] + container.SUFFIX
        forged.parts[name] = mutate_bytes(rng, forged.parts[name])
        entries["n_bytes"][which] = len(forged.parts[name])
        return
    at = sum(entries["n_bytes"][i] for i in range(which) if homes[i] == container.POOLED)
    pool = forged.parts[container.POOL]
    stream = mutate_bytes(rng, pool[at : at + entries["n_bytes"][which]])
    forged.parts[container.POOL] = pool[:at] + stream + pool[at + entries["n_bytes"][which] :]
    entries["n_bytes"][which] = len(stream)


# ------------------------------------------------------------------------------------------- torch files


def torch_zip(pickled: bytes, members: dict[str, bytes]) -> bytes:
    """A zip file as torch writes it, around any pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def unzip(data: bytes) -> tuple[bytes, dict[str, bytes]]:
    """Pickle and other members of a torch file."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    return members.pop("data.pkl"), members


def mutate_pickle(rng: np.random.Generator, data: bytes) -> bytes:
    """A pickle with operations doubled, taken away, exchanged, or with another argument; still one after another."""
    steps = [at for _, _, at in pickletools.genops(data)] + [len(data)]
    pieces = [data[first:end] for first, end in itertools.pairwise(steps)]
    for _ in range(int(rng.integers(1, 4))):
        i, j = rng.integers(1, max(len(pieces) - 1, 2), 2).tolist()
        kind = int(rng.integers(0, 7))
        if kind == 0:
            del pieces[i]
        elif kind == 1:
            pieces.insert(i, pieces[j])
        elif kind == 2:
            pieces[i], pieces[j] = pieces[j], pieces[i]
        elif kind == 3:
            pieces[i] = pickle_number(NUMBERS[int(rng.integers(len(NUMBERS) - 1))])
        elif kind == 4:
            pieces[i] = GLOBALS[int(rng.integers(len(GLOBALS)))]
        elif kind == 5:
            pieces.insert(i, OPERATIONS[int(rng.integers(len(OPERATIONS)))])
        else:
            pieces[i] = pieces[i][:1] + mutate_bytes(rng, pieces[i][1:]) if len(pieces[i]) > 1 else pieces[j]
    return b"".join(pieces)


def pickle_number(value: int) -> bytes:
    """The operation that pushes a whole number."""
    return pickle.dumps(value, 2)[2:-1]


OPERATIONS = (b"R", b"b", b"\x81", b"Q", b"0", b"1", b"2", b"(", b"t", b"l", b"d", b"e", b"s", b"u", b"a", b"]",
b"}", b")", b"N",
              b"\x88", b"\x85", b"\x86", b"\x87", b"h\x00", b"h\x01", b"q\x00", b"\x8f", b"\x90", b"\x91", b"\x92",
              b"\x93",
              b"\x94", b"\x95", b"o", b"X\x05\x00\x00\x00items", b"\x8e", b"\x96")  # fmt: skip
"""Most operations of a pickle, protocol 4's and 5's among them."""
GLOBALS = tuple(
    f"c{name.replace(' ', chr(10))}\n".encode()
    for name in (
        "torch Tensor", "torch FloatTensor", "torch FloatStorage", "torch LongStorage", "torch UntypedStorage",
        "torch Size",
        "torch device", "torch float64", "torch.nn.parameter Parameter", "torch._utils _rebuild_tensor",
        "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3", "torch._utils _rebuild_parameter",
        "torch._utils _rebuild_sparse_tensor", "torch._utils _rebuild_qtensor", "torch._utils _rebuild_nested_tensor",
        "torch._utils _rebuild_meta_tensor_no_storage", "torch._utils _rebuild_parameter_with_state",
        "torch._utils _rebuild_wrapper_subclass", "torch._utils _rebuild_device_tensor_from_numpy",
        "torch._tensor _rebuild_from_type_v2", "torch.serialization _get_layout", "torch.storage TypedStorage",
        "collections OrderedDict", "collections Counter", "collections defaultdict", "collections deque",
        "builtins set", "__builtin__ set", "builtins bytearray", "builtins getattr", "builtins eval", "os system",
        "_codecs encode", "numpy ndarray", "numpy dtype", "numpy.core.multiarray scalar",
        "numpy._core.multiarray _reconstruct",
        "pathlib Path", "argparse Namespace", "datetime datetime", "torch.jit load", "torch load",
    )
)  # fmt: skip
"""Names that pickles of tensors hold, those that torch allows beside them, and some that nobody may."""


def mutate_torch(rng: np.random.Generator, honest: bytes) -> bytes:
    """A torch file of either kind, wrong in its bytes, its pickle, its members or their sizes."""
    if not honest.startswith(b"PK"):
        at = honest.index(b".", 30) + 1 if rng.random() < 0.5 else 0
        return honest[:at] + mutate_bytes(rng, honest[at:])
    kind = int(rng.integers(0, 6))
    if kind == 0:
        return mutate_bytes(rng, honest)
    pickled, members = unzip(honest)
    if kind == 1:
        name = sorted(members)[int(rng.integers(len(members)))]
        members[name] = mutate_bytes(rng, members[name])
    elif kind == 2:
        members.pop(sorted(members)[int(rng.integers(len(members)))])
    elif kind == 3:
        pickled = mutate_bytes(rng, pickled)
    else:
        pickled = mutate_pickle(rng, pickled)
    return torch_zip(pickled, members)


# ------------------------------------------------------------------------------------------- safetensors, shards


def safetensors_bytes(header: Any, data: bytes) -> bytes:
    """A safetensors file of any header: JSON values, or the bytes that stand in its place."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def mutate_safetensors(rng: np.random.Generator, honest: bytes) -> bytes:
    """A safetensors file with another header, JSON or bytes, and the same or other values behind it."""
    n_header = int.from_bytes(honest[:8], "little")
    text, data = honest[8 : 8 + n_header], honest[8 + n_header :]
    kind = int(rng.integers(0, 6))
    if kind == 0:
        return mutate_bytes(rng, honest)
    if kind == 1:
        return safetensors_bytes(mutate_bytes(rng, text), data)
    header = mutate_json(rng, json.loads(text))
    return safetensors_bytes(header, mutate_bytes(rng, data) if kind == 2 else data)


# ------------------------------------------------------------------------------------------- second moments

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1, "F8_E8M0": 1, "C64": 8}
"""Bytes of a number, by the names that safetensors has for its dtypes."""
MOMENTS = (
    0.0, -0.0, -1.0, 1.0, 0.5, 1e-45, 1e-38, 1e-30, 1e-12, 1e12, 1e30, 3e38, -3e38, np.nan, np.inf, -np.inf,
)  # fmt: skip
"""What may stand in place of a mean square."""


def mutate_moments(rng: np.random.Generator, honest: bytes) -> bytes:
    """A file of second moments that is wrong in what it says of them, in their names, dtypes, shapes or numbers."""
    kind = int(rng.integers(0, 12))
    if kind == 0:
        return mutate_safetensors(rng, honest)
    n_header = int.from_bytes(honest[:8], "little")
    header, data = json.loads(honest[8 : 8 + n_header]), honest[8 + n_header :]
    metadata = header.pop("__metadata__")
    (key,) = metadata
    tensors = {name: (one["dtype"], one["shape"], data[slice(*one["data_offsets"])]) for name, one in header.items()}
    name, other = (sorted(tensors)[i] for i in rng.integers(0, len(tensors), 2).tolist())
    if kind == 1:
        metadata[key] = mutate_bytes(rng, metadata[key].encode()).decode("utf-8", "replace")
    elif kind in (2, 3):
        metadata[key] = json.dumps(mutate_json(rng, json.loads(metadata[key]), 2))
    elif kind == 4:
        tensors[other] = tensors.pop(name)
    elif kind == 5:
        tensors[f"{name}{VALUES[int(rng.integers(len(VALUES)))]}"] = tensors[name]
    elif kind == 6:
        tensors[name] = _as_another_dtype(rng, tensors[name])
    elif kind == 7:
        dtype, shape, content = tensors[name]
        n = len(content) // SIZES[dtype]
        shapes = [
            [n],
            [1, n],
            [n, 1],
            [1, 1, n],
            shape[::-1],
            [1, *shape],
            [*shape, 1],
            shape[1:] if shape[:1] == [1] else shape,
        ]
        tensors[name] = (dtype, shapes[int(rng.integers(len(shapes)))], content)
    else:
        for one in sorted({name, other}):
            dtype, shape, content = tensors[one]
            tensors[one] = (dtype, shape, _other_numbers(rng, np.frombuffer(content, "<f4").reshape(shape)))
    at = 0
    header = {"__metadata__": metadata}
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at := at + len(content)]}
    return safetensors_bytes(header, b"".join(content for _, _, content in tensors.values()))


def _as_another_dtype(rng: np.random.Generator, tensor: tuple[str, list[int], bytes]) -> tuple[str, list[int], bytes]:
    """As many numbers of another dtype, whatever they then are."""
    dtype, shape, content = tensor
    other = sorted(SIZES)[int(rng.integers(len(SIZES)))]
    n = len(content) // SIZES[dtype] * SIZES[other]
    return other, shape, (content * 8)[:n]


def _other_numbers(rng: np.random.Generator, values: np.ndarray) -> bytes:
    """float32 moments, one of them or all changed: set, scaled, negated, no longer symmetric, no longer definite."""
    out = values.copy()
    value = np.float32(MOMENTS[int(rng.integers(len(MOMENTS)))])
    kind = int(rng.integers(0, 6))
    with np.errstate(all="ignore"):
        if kind == 0:
            out.reshape(-1)[int(rng.integers(out.size))] = value
        elif kind == 1:
            out[:] = value
        elif kind == 2:
            out *= value
        elif kind == 3:
            out[:] = np.flip(out, -1)
        elif kind == 4:
            out[..., int(rng.integers(out.shape[-1]))] = value
        elif out.ndim == 3:  # a matrix whose row and column agree, as in an honest one
            i = int(rng.integers(out.shape[-1]))
            out[:, i, :] = out[:, :, i] = value
        else:
            out[:] = rng.standard_normal(out.shape) * value
    return out.tobytes()
