"""The squeezed file: a valid safetensors file of byte parts, and the index that says what they hold. Bytes in, bytes
out.

Knows nothing of weights. `Writer` collects streams one by one and puts the file in place whole or not at all;
`Reader` checks every size before anything is allocated and every checksum before anything is believed. Layout:
docs/format.md.

Streams of OWN_PART_BYTES and more are parts of their own, named after their tensor with SUFFIX. Smaller ones share
the part POOL, since a safetensors header entry costs 58 bytes and the name. Small exact tensors go, raw, into one
part for each item size, compressed together. Records of vectors are coded together, at the end of the pool.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import zstandard

from paramcompress import vectors
from paramcompress.checkpoint import runs
from paramcompress.codec import decode_exact, encode_exact
from paramcompress.errors import (
    CheckpointError,
    ConfigError,
    FormatError,
    OutputError,
    ParamCompressError,
    UnsupportedFormatError,
)
from paramcompress.scratch import Scratch, sweep
from paramcompress.units import parse_size
from paramcompress.vectors import MOST_NUMBERS, VECTOR, record_bytes

FORMAT = 1
METADATA_KEY = "paramcompress"
RESERVED = "paramcompress."
"""No tensor may have a name that begins so."""
SUFFIX = ".squeezed"
"""No tensor may have a name that ends so."""
INDEX, POOL, EXACT_POOL = RESERVED + "index", RESERVED + "pool", RESERVED + "exact"
OWN_PART_BYTES = 16384
SMALL_EXACT_BYTES = 65536
"""Exact tensors below this share a part."""
MOST_HEADER_BYTES = 100_000_000
"""The limit that safetensors itself sets."""
MOST_EXPANSION = 1 << 16
"""An exact stream or pool claims at most this many bytes for each of its own: nothing honest compresses better."""
MOST_INDEX_BYTES, MOST_INDEX_NODES = 1 << 26, 1 << 22
"""Text and values of an index, whatever its own size; a larger one may have a thousand bytes and 64 values for each of
its own. What a checkpoint keeps beside its tensors is less (`checkpoint.tree`), and a tensor adds 4 bytes that do not
compress, its hash."""
MAY_ALWAYS_CLAIM_BYTES, MOST_TIMES_THE_FILE = 1 << 28, 4096
"""All tensors of a file together, expanded: this much, or so many times its own bytes where that is more. Few bytes of
factors may stand for any number of zeros, so no check of a stream can replace this limit."""
LIMIT_VARIABLE = "PARAMCOMPRESS_MAX_BYTES"
"""Environment variable that sets another limit on the expanded bytes."""
OWN, POOLED, EXACT_POOLED, SAME, VECTORS = range(5)
"""Homes of a tensor's stream: a part of its own, the pool, an exact pool, that of another tensor, or the end
of the pool, where all vectors are."""
_POOL, _VECTORS = -1, -2
_KINDS = ("torch", "safetensors", "sharded", "dict")
_CRC_BYTES = 4
_INDEX_LEVEL = 15


@dataclass(frozen=True)
class Entry:
    """What the index says of one tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    codec: str
    dictionary: str
    rank: int
    density: float
    rel_error: float
    """Not less than the true one: rounded up to three digits."""
    crc: int
    """CRC-32 of the expanded bytes, little-endian; 0 of a vector: all of these have one together."""
    home: int
    n_bytes: int
    """Of the stream; of the tensor itself where the home is an exact pool, of its record where that is VECTORS."""
    same_as: str | None = None
    """Tensor with the same bytes, stored once."""
    tied: bool = False
    """Whether the two shared memory, and shall again."""


@dataclass(frozen=True)
class Index:
    """All that a squeezed file says besides streams."""

    entries: tuple[Entry, ...]
    kind: str
    """Of the checkpoint: torch, safetensors, sharded."""
    tree: Any
    """Its nesting and plain values, as `checkpoint` made it."""
    about: dict[str, Any]
    """How the file was made: source name, target, settings, notes, bytes before."""


# ------------------------------------------------------------------------------------------- writing


class Writer:
    """Context that makes one squeezed file. Nothing stands at `path` before `finish`; after an error nothing is left.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: list[Entry] = []
        self._parts: list[tuple[str, int]] = []
        self._pool = bytearray()
        self._exact: dict[int, bytearray] = {}
        self._records: list[bytes] = []
        self._vector_bytes = self._record_bytes = 0
        self._payload: IO[bytes]
        self._scratch = Scratch(path)
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with _writing(self.path):
            sweep(self.path)
            # its blocks are freed by the system whatever happens to this process
            self._payload = tempfile.TemporaryFile(dir=self.path.parent)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # what is still to be written does not matter, also where the disk is full
            self._payload.close()
        self._held.close()

    def add(self, entry: Entry, stream: bytes | memoryview, item_bytes: int) -> None:
        """Take a tensor's stream to where entry.home says: for EXACT_POOLED the tensor's raw bytes, for VECTORS its
        record."""
        self._entries.append(entry)
        if entry.home == OWN:
            self._write_part(entry.name + SUFFIX, stream)
        elif entry.home == POOLED:
            self._pool += stream
        elif entry.home == EXACT_POOLED:
            self._exact.setdefault(item_bytes, bytearray()).extend(stream)
        elif entry.home == VECTORS:
            self._records.append(bytes(stream))

    def finish(self, kind: str, tree: Any, about: dict[str, Any], *, keep: bool = True) -> int:
        """Write pools, index and header, to the file `scratch` unless the file is not to be kept; returns its bytes."""
        for item_bytes, raw in sorted(self._exact.items()):
            self._write_part(f"{EXACT_POOL}{item_bytes}", encode_exact(raw, item_bytes))
        if self._records:
            packed = vectors.pack(self._records)
            self._vector_bytes, self._record_bytes = len(packed), sum(map(len, self._records))
            self._pool += packed
        if self._pool:
            self._write_part(POOL, self._pool)
        packed = _pack_index(Index(tuple(self._entries), kind, tree, about))
        n_index = len(packed) + 2 * _CRC_BYTES
        header = _header([*self._parts, (INDEX, n_index)])
        tail = packed + zlib.crc32(header).to_bytes(_CRC_BYTES, "little")
        tail += zlib.crc32(tail).to_bytes(_CRC_BYTES, "little")
        with _writing(self.path):
            self._payload.write(tail)
            n_payload = self._payload.tell()
            if keep:
                self._held.enter_context(self._scratch)
                with self._scratch.path.open("wb") as out:
                    out.write(header)
                    self._payload.seek(0)
                    shutil.copyfileobj(self._payload, out, 1 << 20)
                self._scratch.start_flushing()
        return len(header) + n_payload

    def part_bytes(self, entry: Entry) -> int:
        """Bytes of the finished file that a tensor's stream takes; its share of what is packed together."""
        if entry.home == VECTORS:
            return round(self._vector_bytes * entry.n_bytes / self._record_bytes)
        if entry.home != EXACT_POOLED:
            return entry.n_bytes
        item_bytes = item_bytes_of(entry.dtype)
        return round(
            dict(self._parts)[f"{EXACT_POOL}{item_bytes}"] * entry.n_bytes / max(len(self._exact[item_bytes]), 1)
        )

    @property
    def scratch(self) -> Path:
        """The finished file, kept, before it is put in place; what is to be verified."""
        return self._scratch.path

    def publish(self) -> None:
        """Rename the finished file to its place, and make that last."""
        with _writing(self.path):
            self._scratch.publish()

    def _write_part(self, name: str, stream: bytes | bytearray | memoryview) -> None:
        with _writing(self.path):
            self._payload.write(stream)
            self._payload.write(zlib.crc32(stream).to_bytes(_CRC_BYTES, "little"))
        self._parts.append((name, len(stream) + _CRC_BYTES))


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(path, f"cannot be written: {error.strerror or error}") from error


def _header(parts: list[tuple[str, int]]) -> bytes:
    """Safetensors header: length, then JSON padded with spaces to a multiple of eight."""
    table: dict[str, Any] = {"__metadata__": {METADATA_KEY: f"{FORMAT} {_version()}"}}
    at = 0
    for name, n_bytes in parts:
        table[name] = {"dtype": "U8", "shape": [n_bytes], "data_offsets": [at, at + n_bytes]}
        at += n_bytes
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _version() -> str:
    from paramcompress import __version__

    return __version__


# ------------------------------------------------------------------------------------------- index


_DEFAULTS: dict[str, Any] = {
    "same_as": None,
    "tied": False,
    "dictionary": "none",
    "rank": 0,
    "home": POOLED,
    "dtype": "float32",
}
"""A column that holds nothing else is left out."""
_PHRASES = (
    b'"notes":[],"layer_notes":{},"effort":"max","effort":"fast","max_rel_error":"lowrank+patch","lowrank+cosine","cosine",'
    b'"exact","factored","torch",["dict",["t",11],["run",0,".running_mean",".running_var",".bias",".weight"'
    b'{"about":{"bytes_before":,"n_weights":,"settings":{"effort":"default","seed":0},"source":".pt",'
    b'"target":"max_rel_error 0.03 (default)"},"entries":{"codec":["factored","factored"],"crc":"","density":[1,1,0.9],'
    b'"dictionary":["none","none","lowrank"],"dtype":["float32","float32"],"home":[0,1,1],"n_bytes":[],"name":["",""],'
    b'"rank":[0,0],"rel_error":[0,0,0.03],"shape":[[],[]]},"kind":"safetensors","n":,"tree":["safetensors",["dict"],["dict",'
)
"""What every index repeats, given to zstd beforehand: part of the format, worth 200 bytes a file."""


def _phrase_book() -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(_PHRASES, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def _pack_index(index: Index) -> bytes:
    """One zstd frame of JSON, column by column, since like stands with like and compresses."""
    columns: dict[str, Any] = {}
    for field in fields(Entry):
        values = [getattr(entry, field.name) for entry in index.entries]
        if field.name not in _DEFAULTS or any(value != _DEFAULTS[field.name] for value in values):
            columns[field.name] = values
    columns["crc"] = "".join(f"{entry.crc:08x}" for entry in index.entries if entry.codec != VECTOR)
    tree = runs.fold(index.tree, [entry.name for entry in index.entries])
    about = {key: value for key, value in index.about.items() if value not in ([], {}, "")}
    whole = {"entries": columns, "n": len(index.entries), "kind": index.kind, "tree": tree, "about": about}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    params = zstandard.ZstdCompressionParameters.from_level(_INDEX_LEVEL, write_checksum=0, write_dict_id=0)
    return zstandard.ZstdCompressor(compression_params=params, dict_data=_phrase_book()).compress(
        text.encode("utf-8", "surrogatepass")
    )


def _unpack_index(packed: bytes) -> Index:
    """Inverse of `_pack_index`; ValueError for anything that it would not write."""
    n_bytes = zstandard.get_frame_parameters(packed).content_size
    if n_bytes > max(MOST_INDEX_BYTES, 1024 * len(packed)):
        raise ValueError(f"claims {n_bytes} bytes")
    text = zstandard.ZstdDecompressor(dict_data=_phrase_book()).decompress(packed, allow_extra_data=False)
    if sum(map(text.count, (b",", b"[", b"{"))) > max(MOST_INDEX_NODES, 64 * len(packed)):
        raise ValueError("more values than a checkpoint has")
    written = text.decode("utf-8", "surrogatepass")
    whole = json.loads(written, parse_constant=_finite, parse_float=_finite)
    n = whole["n"]
    columns = whole["entries"]
    if type(n) is not int or n != len(columns["name"] if n else []):
        raise ValueError(f"{n} tensors")
    columns["crc"] = _crcs(columns["crc"], columns["codec"])
    names = [field.name for field in fields(Entry)]
    table = [columns[name] if name in columns else [_DEFAULTS.get(name)] * n for name in names]
    for name, values in zip(names, table, strict=True):
        if type(values) is not list or len(values) != n:
            raise ValueError(f"no {n} values of {name}, one for each tensor")
    _check(dict(zip(names, table, strict=True)))
    table[names.index("shape")] = list(map(tuple, table[names.index("shape")]))
    entries = [Entry(*row) for row in zip(*table, strict=True)]
    if len({entry.name for entry in entries}) != n:
        raise ValueError("a name stands twice")
    if whole["kind"] not in _KINDS:
        raise ValueError(f"a checkpoint of kind {str(whole['kind'])[:80]!r}")
    tree = runs.unfold(whole["tree"], columns["name"]) if runs.MARK in written else whole["tree"]
    return Index(tuple(entries), whole["kind"], tree, _checked_about(whole["about"]))


def _crcs(digits: Any, codecs: list[Any]) -> list[int]:
    """Checksums from eight hexadecimal digits each: half a byte a digit, for which zstd needs little more. Vectors have
    none of their own."""
    n_bytes = 4 * sum(codec != VECTOR for codec in codecs)
    if not isinstance(digits, str) or len(digits) != 2 * n_bytes or not set(digits) <= set("0123456789abcdef"):
        raise ValueError("checksums that are none, or not one for each tensor")
    told = iter(range(0, len(digits), 8))
    return [0 if codec == VECTOR else int(digits[(at := next(told)) : at + 8], 16) for codec in codecs]


def _finite(text: str) -> float:
    """A number of the index: no infinity and no NaN, which no other JSON may hold."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} for a number")
    return number


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _checked_about(about: Any) -> dict[str, Any]:
    """`about` if what is read of it has its kinds; ValueError otherwise."""
    if not isinstance(about, dict):
        raise ValueError("nothing is said about the file")
    notes, layer_notes = about.get("notes", []), about.get("layer_notes", {})
    texts = [about.get("target"), about.get("source", "")]
    if not isinstance(notes, list) or not isinstance(layer_notes, dict) or not isinstance(about.get("settings"), dict):
        raise ValueError("nothing usable is said about settings or notes")
    if not all(isinstance(text, str) for text in (*texts, *notes, *layer_notes.values())):
        raise ValueError("nothing usable is said about source, target or notes")
    if not all(_is_count(about.get(key)) for key in ("n_weights", "bytes_before")):
        raise ValueError("nothing usable is said about n_weights or bytes_before")
    return about


def _check(columns: dict[str, list[Any]]) -> None:
    """Raises ValueError unless every field of every entry is of its kind. Column by column, which takes less time than
    entry by entry."""
    shapes, homes = columns["shape"], columns["home"]
    makes_sense = {
        **{name: _are(columns[name], str) for name in ("name", "dtype", "dictionary")},
        "codec": _are(columns["codec"], str)
        and all(
            (home == VECTORS) <= (codec == VECTOR) <= (home in (VECTORS, SAME))
            for codec, home in zip(columns["codec"], homes, strict=True)
        ),
        **{name: _are_counts(columns[name], int) for name in ("rank", "n_bytes")},
        **{name: _are_counts(columns[name], int, float, below=1e300) for name in ("density", "rel_error")},
        "home": _are_counts(homes, int, below=VECTORS + 1),
        "tied": _are(columns["tied"], bool)
        and all(tied <= (home == SAME) for tied, home in zip(columns["tied"], homes, strict=True)),
        "shape": _are(shapes, list)
        and _are_counts(list(chain(*shapes)), int)
        and max(map(len, shapes), default=0) <= 64,
        "same_as": all(
            isinstance(other, str) if home == SAME else other is None
            for other, home in zip(columns["same_as"], homes, strict=True)
        ),
    }
    if not all(makes_sense.values()):
        wrong = ", ".join(name for name, is_right in makes_sense.items() if not is_right)
        raise ValueError(f"entries whose {wrong} makes no sense")


def _are(values: list[Any], *kinds: type) -> bool:
    return set(map(type, values)) <= set(kinds)


def _are_counts(values: list[Any], *kinds: type, below: float = 1 << 62) -> bool:
    return _are(values, *kinds) and min(values, default=0) >= 0 and max(values, default=0) < below


# ------------------------------------------------------------------------------------------- reading


class Reader:
    """An open squeezed file. Reads from several threads at once.

    Args:
        max_bytes: what all tensors together may take, expanded; None for LIMIT_VARIABLE or else the limit that comes
            with the file's own size.

    Raises:
        FormatError: not a squeezed file, cut short, extended, or damaged; UnsupportedFormatError where it is only
            newer. CheckpointError: it cannot be opened at all.
    """

    def __init__(self, path: Path, max_bytes: int | None = None) -> None:
        self.path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
        try:
            self._open(max_bytes)
        except ParamCompressError:
            self._file.close()
            raise
        except (
            ValueError,
            KeyError,
            TypeError,
            RecursionError,
            OverflowError,
            MemoryError,
            zstandard.ZstdError,
        ) as error:
            self._file.close()
            raise FormatError(path, f"damaged: {error}") from error

    def _open(self, max_bytes: int | None) -> None:
        size = os.fstat(self._file.fileno()).st_size
        head = self._pread(8, 0)
        n_header = int.from_bytes(head, "little")
        if len(head) < 8 or not 2 <= n_header <= min(MOST_HEADER_BYTES, size - 8):
            raise FormatError(self.path, "not a safetensors file", hint="give this command what squeeze writes")
        text = self._pread(n_header, 8)
        table = json.loads(text, object_pairs_hook=_no_duplicates)
        about = table.pop("__metadata__", {}) if isinstance(table, dict) else {}
        if METADATA_KEY not in about:
            raise FormatError(self.path, "a safetensors file, but not a squeezed one", hint="squeeze it first")
        found = str(about[METADATA_KEY]).split(" ")[0]
        if found != str(FORMAT):
            raise UnsupportedFormatError(self.path, "format", found, [FORMAT])
        self._parts = _layout(table, size - 8 - n_header)
        self._start = 8 + n_header
        tail = self._part(INDEX)
        if zlib.crc32(head + text).to_bytes(_CRC_BYTES, "little") != tail[-_CRC_BYTES:]:
            raise FormatError(self.path, "damaged: the header does not match its checksum")
        self.index = _unpack_index(bytes(tail[:-_CRC_BYTES]))
        self.expanded_bytes = sum(map(self._expanded_bytes, self.index.entries))
        most = _most_bytes(size) if max_bytes is None else max_bytes
        if self.expanded_bytes > most:
            raise FormatError(
                self.path,
                f"claims {self.expanded_bytes:,} bytes of tensors, more than the {most:,} that are allowed",
                hint=f"if you trust the file, set {LIMIT_VARIABLE}, such as {LIMIT_VARIABLE}=64GB",
            )
        self.entries = {entry.name: entry for entry in self.index.entries}
        self._places = self._find_places()
        self._shared: dict[int, bytes | bytearray | str] = {}
        """What several tensors have a stretch of each, as far as it was read and unpacked; or what is wrong with it."""
        self._lock = threading.Lock()

    def _expanded_bytes(self, entry: Entry) -> int:
        """Of a tensor in full, tied or not, since a file without ties repeats it. Axes of length 0 count as 1: a
        decoder takes memory for the others."""
        try:
            item_bytes = item_bytes_of(entry.dtype)
        except ValueError as error:
            raise FormatError(self.path, str(error), tensor=entry.name, hint="a newer torch may have it") from error
        return math.prod(max(size, 1) for size in entry.shape) * item_bytes

    def _find_places(self) -> dict[str, tuple[int, int]]:
        """Where a tensor's stream is in what it shares with others: `_POOL`, `_VECTORS` or the item size of an exact
        pool, and the offset. Checks that index and parts tell the same story."""
        ends: dict[int, int] = {}
        places = {}
        expected = {INDEX}
        for entry in self.index.entries:
            if entry.home == SAME:
                other = self.entries.get(entry.same_as or "")
                if other is None or other.home == SAME or (other.shape, other.dtype) != (entry.shape, entry.dtype):
                    raise ValueError(f"{entry.name!r} is stored under a name that does not serve")
                continue
            if entry.home == OWN:
                expected.add(entry.name + SUFFIX)
                if self._parts.get(entry.name + SUFFIX, (0, 0))[1] != entry.n_bytes + _CRC_BYTES:
                    raise ValueError(f"{entry.name!r} has no part of its size")
                continue
            key = {POOLED: _POOL, VECTORS: _VECTORS}.get(entry.home) or item_bytes_of(entry.dtype)
            if key == _VECTORS:
                n = math.prod(entry.shape)
                if not 0 < n <= MOST_NUMBERS or entry.n_bytes != record_bytes(n):
                    raise ValueError(f"{entry.name!r} is no vector of its size")
            expected.add(POOL if key < 0 else f"{EXACT_POOL}{key}")
            places[entry.name] = (key, ends.get(key, 0))
            ends[key] = ends.get(key, 0) + entry.n_bytes
        self._vector_bytes = self._parts.get(POOL, (0, _CRC_BYTES))[1] - _CRC_BYTES - ends.get(_POOL, 0)
        if self._vector_bytes < 0 or (self._vector_bytes > 0) != (_VECTORS in ends):
            raise ValueError("the pool is not as large as its streams")
        if set(self._parts) != expected:
            raise ValueError(f"parts and index differ: {sorted(set(self._parts) ^ expected)[:3]}")
        self._shared_sizes = ends
        return places

    def stream(self, entry: Entry) -> bytes | memoryview:
        """A tensor's stream, checksum checked: for EXACT_POOLED its raw bytes, for VECTORS its record. The entry's home
        is not SAME.

        Raises:
            FormatError: the checksum does not match, or what several tensors share is damaged.
        """
        if entry.home == OWN:
            return self._part(entry.name + SUFFIX)
        key, at = self._places[entry.name]
        with self._lock:
            if key not in self._shared:
                part = POOL if key < 0 else f"{EXACT_POOL}{key}"
                try:
                    self._shared[key] = self._unpacked(key, self._part(part))
                except ValueError as error:
                    self._shared[key] = f"part {part!r} is damaged: {error}"
            shared = self._shared[key]
        if isinstance(shared, str):
            raise FormatError(self.path, shared)
        return memoryview(shared)[at : at + entry.n_bytes]

    def _unpacked(self, key: int, part: memoryview) -> bytes | bytearray:
        """What tensors have a stretch of each, from the part that it is in; ValueError if that is damaged."""
        if key == _POOL:
            return bytes(part[: len(part) - self._vector_bytes])
        if key == _VECTORS:
            lengths = [math.prod(entry.shape) for entry in self.index.entries if entry.home == VECTORS]
            return vectors.unpack(part[len(part) - self._vector_bytes :], lengths)
        n_bytes = self._shared_sizes[key]
        if n_bytes > MOST_EXPANSION * len(part):
            raise ValueError("claims more than it can hold")
        return decode_exact(part, n_bytes, key)

    def part_bytes(self, entry: Entry) -> int:
        """Bytes of the file that this tensor's stream takes; its share of what is packed together."""
        if entry.home == SAME:
            return 0
        if entry.home in (OWN, POOLED):
            return entry.n_bytes
        key, _ = self._places[entry.name]
        whole = self._vector_bytes if key == _VECTORS else self._parts[f"{EXACT_POOL}{key}"][1]
        return round(whole * entry.n_bytes / max(self._shared_sizes[key], 1))

    @property
    def file_bytes(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _part(self, name: str) -> memoryview:
        """Payload of a part without its checksum."""
        if name not in self._parts:
            raise FormatError(self.path, f"part {name!r} is missing")
        at, n_bytes = self._parts[name]
        data = self._pread(n_bytes, self._start + at)
        if len(data) != n_bytes or n_bytes < _CRC_BYTES:
            raise FormatError(self.path, f"part {name!r} is cut short")
        payload = memoryview(data)[:-_CRC_BYTES]
        if zlib.crc32(payload).to_bytes(_CRC_BYTES, "little") != data[-_CRC_BYTES:]:
            raise FormatError(self.path, f"part {name!r} does not match its checksum", hint="fetch the file again")
        return payload

    def _pread(self, n_bytes: int, at: int) -> bytes:
        chunks = []
        while n_bytes:
            chunk = os.pread(self._file.fileno(), min(n_bytes, 1 << 30), at)
            if not chunk:
                break
            chunks.append(chunk)
            at += len(chunk)
            n_bytes -= len(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def is_squeezed(path: Path) -> bool:
    """Whether a file says of itself that it was squeezed; nothing else is checked."""
    try:
        with path.open("rb") as file:
            n_header = int.from_bytes(file.read(8), "little")
            if not 2 <= n_header <= MOST_HEADER_BYTES:
                return False
            return METADATA_KEY in json.loads(file.read(n_header)).get("__metadata__", {})
    except (OSError, ValueError, AttributeError, TypeError, RecursionError, MemoryError):
        return False


def squeezed_at(path: Path) -> Path | None:
    """The squeezed file at a path, or in a folder without any other file of a checkpoint; None where there is none."""
    from paramcompress.checkpoint import is_part

    files = [path] if path.is_file() else [one for one in path.glob("*") if is_part(one)]
    return files[0] if len(files) == 1 and is_squeezed(files[0]) else None


@cache
def item_bytes_of(dtype: str) -> int:
    """Bytes of one item of a torch dtype; ValueError where there is no such dtype."""
    from paramcompress.checkpoint.records import torch_dtype

    return torch_dtype(dtype).itemsize


def _most_bytes(file_bytes: int) -> int:
    """What all tensors of a file of that size may take, expanded. ConfigError for a limit that makes no sense."""
    given = os.environ.get(LIMIT_VARIABLE)
    if not given:
        return max(MAY_ALWAYS_CLAIM_BYTES, MOST_TIMES_THE_FILE * file_bytes)
    try:
        return parse_size(given)
    except ValueError as error:
        raise ConfigError(f"{LIMIT_VARIABLE}: {error}") from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key stands twice in the header")
    return table


def _layout(table: dict[str, Any], n_payload: int) -> dict[str, tuple[int, int]]:
    """Offset and length of every part; ValueError unless they tile the payload without a gap."""
    parts = {}
    end = 0
    for name, part in table.items():
        first, last = part["data_offsets"]
        ours = type(first) is int and type(last) is int and part["dtype"] == "U8" and part["shape"] == [last - first]
        if not ours or first != end or last < first:
            raise ValueError(f"part {name!r} is not where it should be")
        parts[name] = (first, last - first)
        end = last
    if end != n_payload:
        raise ValueError(f"{n_payload} bytes of parts, expected {end}")
    return parts
