"""The file: its bytes, and what is said of files that are not as they should be."""

from __future__ import annotations

import contextlib
import errno
import gc
import math
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import zstandard
from forging import Forged
from helpers import bit_flips, files_in, gaussian, mutations, overwrite, squeeze

import paramcompress
from paramcompress import container
from paramcompress.container import (
    EXACT_POOLED,
    MOST_HEADER_BYTES,
    OWN,
    OWN_PART_BYTES,
    POOLED,
    SAME,
    Entry,
    Reader,
    Writer,
    is_squeezed,
)
from paramcompress.errors import CheckpointError, FormatError, OutputError, ParamCompressError, UnsupportedFormatError
from paramcompress.scratch import Scratch

ABOUT = {"target": "t", "n_weights": 4, "bytes_before": 4, "settings": {"seed": 0}}
ENTRY = Entry("w", "uint8", (2, 2), "exact", "none", 0, 1, 0, zlib.crc32(b"abcd"), EXACT_POOLED, 4)
TREE = ["torch", ["dict", "w", ["t", 0]]]


def write(path: Path, *pieces: tuple[Entry, bytes, int]) -> Path:
    with Writer(path) as writer:
        for piece in pieces:
            writer.add(*piece)
        writer.finish("dict", TREE, ABOUT)
        writer.publish()
    return path


# ------------------------------------------------------------------------------------------- the bytes

SMALLEST = (
    b'\xc0\x00\x00\x00\x00\x00\x00\x00{"__metadata__":{"paramcompress":"1 0"},'
    b'"paramcompress.exact1":{"dtype":"U8","shape":[17],"data_offsets":[0,17]},'
    b'"paramcompress.index":{"dtype":"U8","shape":[108],"data_offsets":[17,125]}}    '
    # the one part of weights: a zstd frame of four bytes as they are, and its checksum
    b"(\xb5/\xfd \x04!\x00\x00abcd"
    b"\xaa %Y"
    # the index: a zstd frame, the header's checksum, the part's checksum
    b'(\xb5/\xfd`\x1c\x00\xd5\x02\x004\x0244ted82cd11uint824w"2,2"n":1"w0]]]}\x14\xa0\x00s\x0b\xad\x010\xc2\xa3\x0f\r\xc9$\xdc'
    b"\x05\xe2\xben\x87\xcem\xc2A\x0b\x82\x87\xc1\xce\x81\x9f\x86%\xae\xf0d8h\x7f\x86\xfd\x00\x99\x1a\xea\xf6n\x19\xddc\xeeBo"
    b"\xb3\xbf\xc0\xc4"
    b"\xda\x91\x03\xcd"
)
INDEX_TEXT = (
    '{"about":{"bytes_before":4,"n_weights":4,"settings":{"seed":0},"target":"t"},'
    '"entries":{"codec":["exact"],"crc":"ed82cd11","density":[1],"dtype":["uint8"],"home":[2],"n_bytes":[4],"name":["w"],'
    '"rel_error":[0],"shape":[[2,2]]},"kind":"dict","n":1,"tree":["torch",["dict","w",["t",0]]]}'
)


@pytest.fixture
def smallest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(container, "_version", lambda: "0")
    return write(tmp_path / "a", (ENTRY, b"abcd", 1))


def test_bytes_of_the_smallest_file(tmp_path: Path) -> None:
    """Read from the bytes that stand above: whatever later versions write, these stay readable."""
    path = tmp_path / "a"
    path.write_bytes(SMALLEST)
    with Reader(path) as reader:
        assert reader.index.entries == (ENTRY,)
        assert (reader.index.kind, reader.index.tree, reader.index.about) == ("dict", TREE, ABOUT)
        assert bytes(reader.stream(ENTRY)) == b"abcd"
        assert reader.file_bytes == len(SMALLEST)
    assert paramcompress.load_file(path)["w"].tolist() == [[97, 98], [99, 100]]


def test_the_smallest_file_is_written_so(smallest: Path) -> None:
    """All but the compressed text, which another version of zstd may write otherwise."""
    data = smallest.read_bytes()
    assert data[:160] == SMALLEST[:160]
    with Reader(smallest) as reader:
        frame = bytes(reader._part(container.INDEX)[:-4])
    book = container._phrase_book()
    assert zstandard.ZstdDecompressor(dict_data=book).decompress(frame).decode() == INDEX_TEXT


def test_any_inspector_opens_it(smallest: Path) -> None:
    data = smallest.read_bytes()
    assert safetensors.torch.load(data)["paramcompress.exact1"].dtype == torch.uint8
    with safetensors.safe_open(smallest, "np") as file:
        assert file.metadata() == {"paramcompress": "1 0"}
        assert sorted(file.keys()) == ["paramcompress.exact1", "paramcompress.index"]


# ------------------------------------------------------------------------------------------- round trip


def entry(name: str, home: int, n_bytes: int, **more: Any) -> Entry:
    return replace(ENTRY, name=name, home=home, n_bytes=n_bytes, shape=(n_bytes,), **more)


def test_every_home(tmp_path: Path, rng: np.random.Generator) -> None:
    streams = {
        name: rng.bytes(n)
        for name, n in {"own": 20000, "p1": 5, "p2": 0, "p3": 900, "e1": 7, "e2": 16, "e3": 8}.items()
    }
    wide = {"e2": "int64", "e3": "int64"}
    pieces = []
    for name, stream in streams.items():
        home = {"o": OWN, "p": POOLED, "e": EXACT_POOLED}[name[0]]
        item = 8 if name in wide else 1
        one = entry(name, home, len(stream), dtype=wide.get(name, "uint8"))
        pieces.append((replace(one, shape=(len(stream) // item,)), stream, item))
    same = replace(pieces[0][0], name="same", home=SAME, n_bytes=0, same_as="own", tied=True)
    path = tmp_path / "a"
    with Writer(path) as writer:
        for piece in [*pieces, (same, b"", 1)]:
            writer.add(*piece)
        sizes = {one.name: writer.part_bytes(one) for one, *_ in pieces if one.home != EXACT_POOLED}
        predicted = writer.finish("dict", TREE, ABOUT)
        writer.publish()
    assert predicted == path.stat().st_size
    with Reader(path) as reader:
        assert list(reader.entries) == [*streams, "same"]
        assert reader.index.entries == (*(one for one, *_ in pieces), same)
        for name in reversed(streams):
            assert bytes(reader.stream(reader.entries[name])) == streams[name]
        assert {name: reader.part_bytes(reader.entries[name]) for name in sizes} == sizes
        assert reader.part_bytes(reader.entries["same"]) == 0
    assert files_in(tmp_path) == ["a"]


def test_a_file_without_tensors(tmp_path: Path) -> None:
    with Reader(write(tmp_path / "a")) as reader:
        assert (reader.index.entries, reader.entries) == ((), {})


def test_names_of_any_kind(tmp_path: Path) -> None:
    names = ["", " ", "a.b", "größe", "名前", '"', "\\", "\x00", "__metadata__x", "a" * 5000, "\ud800"]
    small = [(entry(name, POOLED, 1), b"x", 1) for name in names]
    large = [(entry(f"own {name}", OWN, 1), b"y", 1) for name in names[:-1]]
    with Reader(write(tmp_path / "a", *small, *large)) as reader:
        assert list(reader.entries) == names + [f"own {name}" for name in names[:-1]]
        assert {bytes(reader.stream(one)) for one in reader.entries.values()} == {b"x", b"y"}


def test_many_threads_read_at_once(tmp_path: Path, rng: np.random.Generator) -> None:
    streams = {f"t{i}": rng.bytes(int(rng.integers(1, 4000))) for i in range(200)}
    homes = [OWN, POOLED, EXACT_POOLED]
    pieces = [(entry(name, homes[i % 3], len(stream)), stream, 1) for i, (name, stream) in enumerate(streams.items())]
    with Reader(write(tmp_path / "a", *pieces)) as reader, ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda name: bytes(reader.stream(reader.entries[name])), list(streams) * 3)
        assert list(found) == list(streams.values()) * 3


def test_header_stays_small(tmp_path: Path) -> None:
    """58 bytes and a name for a part: small streams have none, and 400 matrices cost a few kilobytes of index."""
    pieces = [(entry(f"layers.{i}.attention.weight", POOLED, 40), bytes(40), 1) for i in range(400)]
    assert write(tmp_path / "a", *pieces).stat().st_size < 400 * 40 + 400 * 12
    assert OWN_PART_BYTES > 100 * 58


# ------------------------------------------------------------------------------------------- writing that fails


@pytest.mark.parametrize("place", ["fsync", "replace", "caller"])
def test_nothing_is_left_after_an_error(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a"
    path.write_bytes(b"before")
    if place != "caller":
        monkeypatch.setattr(os, place, full)

    def attempt() -> None:
        with Writer(path) as writer:
            writer.add(entry("w", OWN, 4), b"abcd", 1)
            writer.finish("dict", TREE, ABOUT)
            if place == "caller":
                raise KeyboardInterrupt
            writer.publish()

    with pytest.raises((OutputError, KeyboardInterrupt)) as caught:
        attempt()
    assert place == "caller" or "cannot be written: No space left on device" in str(caught.value)
    assert files_in(tmp_path) == ["a"]
    assert path.read_bytes() == b"before"


def test_without_publish_nothing_is_there(tmp_path: Path) -> None:
    with Writer(tmp_path / "a") as writer:
        writer.finish("dict", TREE, ABOUT)
        assert writer.scratch.exists()
    assert files_in(tmp_path) == []


def test_a_size_without_a_file_is_the_size_with_one(tmp_path: Path) -> None:
    sizes = []
    for keep in (False, True):
        with Writer(tmp_path / "a") as writer:
            writer.add(ENTRY, b"abcd", 1)
            sizes.append(writer.finish("dict", TREE, ABOUT, keep=keep))
            assert bool(files_in(tmp_path)) == keep
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("folder", ["missing", "file"])
def test_a_folder_that_is_none(folder: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot be written"), Writer(tmp_path / folder / "a"):
        pass


def test_leftovers_of_killed_runs_go_and_all_else_stays(tmp_path: Path) -> None:
    gone = [".a[1].77-7.partial", f".a[1].{os.getpid()}-8.partial"]  # numbers of processes are given out again
    kept = [
        ".b.77-7.partial",  # of another output
        ".a1.77-7.partial",  # what the brackets would mean in a pattern
        ".a[1].x-7.partial",
        ".a[1].notes.partial",
        "a[1].partial",
    ]
    for name in gone + kept:
        (tmp_path / name).write_bytes(b"")
    with Scratch(tmp_path / "a[1]") as living:
        write(tmp_path / "a[1]", (ENTRY, b"abcd", 1))
        assert files_in(tmp_path) == sorted([*kept, "a[1]", living.path.name])
    assert files_in(tmp_path) == sorted([*kept, "a[1]"])


# ------------------------------------------------------------------------------------------- damage


def outcome(path: Path) -> str:
    """What `verify` says of a file: the name of the error, or nothing."""
    try:
        paramcompress.verify(path)
    except ParamCompressError as error:
        return type(error).__name__
    return ""


def test_every_single_bit_flip_is_found(tmp_path: Path, rng: np.random.Generator) -> None:
    """All of them, in a file with both codecs, all homes but a part of its own, which the next test has."""
    weight = gaussian(rng, 6, 5)
    path = squeeze(tmp_path / "a", {"w": weight, "b": gaussian(rng, 3), "t": weight}, max_rel_error=0.1)
    data = path.read_bytes()
    assert outcome(path) == ""
    missed = []
    for bit, damaged in bit_flips(data):
        overwrite(path, damaged)
        if not outcome(path):
            missed.append(bit)
    assert not missed, f"{len(missed)} of {8 * len(data)} flips are not noticed"


def test_flips_in_a_part_of_its_own(tmp_path: Path, rng: np.random.Generator) -> None:
    path = squeeze(tmp_path / "a", {"w": gaussian(rng, 200, 150)})
    data = path.read_bytes()
    with Reader(path) as reader:
        assert reader.entries["w"].home == OWN
    for bit in rng.choice(8 * len(data), 100, replace=False).tolist():
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        overwrite(path, damaged)
        assert outcome(path) in ("FormatError", "VerificationError", "UnsupportedFormatError")


def test_cut_short_anywhere_and_longer(smallest: Path) -> None:
    data = smallest.read_bytes()
    for n in range(len(data)):
        overwrite(smallest, data[:n])
        with pytest.raises(FormatError):
            Reader(smallest)
    for more in (b"\0", data, bytes(1000)):
        overwrite(smallest, data + more)
        with pytest.raises(FormatError):
            Reader(smallest)


def test_mutations_give_no_foreign_error(tmp_path: Path, rng: np.random.Generator) -> None:
    path = squeeze(tmp_path / "a", {"w": gaussian(rng, 6, 5), "b": gaussian(rng, 3)}, max_rel_error=0.1)
    data = path.read_bytes()
    for damaged in mutations(rng, data, 1500):
        if damaged != data:
            overwrite(path, damaged)
            assert outcome(path), "not noticed"


# ------------------------------------------------------------------------------------------- forged files


@pytest.fixture
def forged(tmp_path: Path, rng: np.random.Generator) -> Forged:
    """Of five tensors: two factored, one exact, one stored under another name, one of its own."""
    weight = gaussian(rng, 6, 5)
    tensors = {"w": weight, "v": gaussian(rng, 5, 5), "b": gaussian(rng, 3), "t": weight, "o": torch.arange(30000)}
    return Forged.of(squeeze(tmp_path / "honest", tensors, max_rel_error=0.1))


def read_all(path: Path) -> None:
    """Everything that can be asked of a file."""
    report = paramcompress.inspect(path)
    report.to_json()
    paramcompress.load_file(path)
    paramcompress.verify(path)


def refused(forged: Forged, path: Path, kind: type[ParamCompressError] = FormatError) -> str:
    """The message for a forged file; any other error than one of `kind` fails the test."""
    path.write_bytes(forged.build())
    with pytest.raises(kind) as caught:
        read_all(path)
    return str(caught.value)


def test_forging_itself_changes_nothing(forged: Forged, tmp_path: Path) -> None:
    """Negative control: what is put together again without a change is a good file."""
    (tmp_path / "a").write_bytes(forged.build())
    read_all(tmp_path / "a")


@pytest.mark.parametrize("part", ["paramcompress.index", "paramcompress.pool", "paramcompress.exact4", "o.squeezed"])
def test_a_wrong_checksum_names_its_part(part: str, forged: Forged, tmp_path: Path) -> None:
    forged.spoil_checksum = part
    assert f"part '{part}' does not match its checksum" in refused(forged, tmp_path / "a")


@pytest.mark.parametrize("found", ["2 9.9", "0 0.0", "", "one", "1.0 1", "10 1"])
def test_a_newer_format_is_told_apart_from_damage(found: str, forged: Forged, tmp_path: Path) -> None:
    forged.metadata = {"paramcompress": found}
    assert "known: 1" in refused(forged, tmp_path / "a", UnsupportedFormatError)


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}, None, [], "paramcompress", 5])
def test_a_plain_safetensors_file(metadata: Any, forged: Forged, tmp_path: Path) -> None:
    forged.metadata = metadata
    refused(forged, tmp_path / "a")


def test_files_of_other_kinds(tmp_path: Path) -> None:
    path = tmp_path / "a"
    safetensors.numpy.save_file({"w": np.zeros(3)}, path)
    with pytest.raises(FormatError, match="not a squeezed one"):
        Reader(path)
    for data in (b"", b"PK\x03\x04", b"\x80\x02}q\x00.", bytes(100), b"\xff" * 100, b"{}" * 50):
        path.write_bytes(data)
        with pytest.raises(FormatError, match="not a safetensors file"):
            Reader(path)
        assert not is_squeezed(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        Reader(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Reader(tmp_path)


def move(name: str, first: Any, end: Any, shape: Any = None) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda table: table | {name: {"dtype": "U8", "shape": shape or [end - first], "data_offsets": [first, end]}}


POOL, EXACT = "paramcompress.pool", "paramcompress.exact4"
TABLES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "overlapping parts": lambda table: move(POOL, 0, table[POOL]["data_offsets"][1])(table),
    "a gap": lambda table: move(POOL, table[POOL]["data_offsets"][0] + 1, table[POOL]["data_offsets"][1])(table),
    "parts in another order": lambda table: dict(sorted(table.items(), reverse=True)),
    "a petabyte": move(POOL, 0, 1 << 50),
    "more than 64 bits": move(POOL, 0, 1 << 70),
    "a negative length": move(POOL, 5, 0, [-5]),
    "an offset before the file": move(POOL, -8, 0),
    "a shape that is another": lambda table: table | {POOL: table[POOL] | {"shape": [1]}},
    "two axes": lambda table: table | {POOL: table[POOL] | {"shape": [1, *table[POOL]["shape"]]}},
    "another dtype": lambda table: table | {POOL: table[POOL] | {"dtype": "F32"}},
    "offsets that are text": lambda table: table | {POOL: table[POOL] | {"data_offsets": "05"}},
    "one offset": lambda table: table | {POOL: table[POOL] | {"data_offsets": [0]}},
    "three offsets": lambda table: table | {POOL: table[POOL] | {"data_offsets": [0, 1, 2]}},
    "no offsets": lambda table: table | {POOL: {"dtype": "U8", "shape": [4]}},
    "a part that is a number": lambda table: table | {POOL: 5},
    "a missing part": lambda table: {name: part for name, part in table.items() if name != EXACT},
    "a missing index": lambda table: {name: part for name, part in table.items() if name != container.INDEX},
    "a part too many": lambda table: table | {"x.squeezed": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}},
    "a renamed part": lambda table: {name.replace("o.squeezed", "x.squeezed"): part for name, part in table.items()},
    "a list": lambda table: [table],
    "a number": lambda table: 5,
    "null": lambda table: None,
}


@pytest.mark.parametrize("kind", TABLES)
def test_headers_that_do_not_fit(kind: str, forged: Forged, tmp_path: Path) -> None:
    forged.edit_table = TABLES[kind]
    refused(forged, tmp_path / "a")


def test_an_offset_that_is_a_float(forged: Forged, tmp_path: Path) -> None:
    def edit(table: dict[str, Any]) -> dict[str, Any]:
        name = next(name for name, part in table.items() if part.get("data_offsets", [1])[0] == 0)
        end = table[name]["data_offsets"][1]
        return move(name, 0.0, end, [float(end)])(table)

    forged.edit_table = edit
    refused(forged, tmp_path / "a")


HEADERS: dict[str, Callable[[bytes], bytes]] = {
    "a key twice": lambda text: text[:-1] + b', "paramcompress.pool": 5}',
    "metadata twice": lambda text: text[:-1] + b', "__metadata__": {}}',
    "a key twice inside": lambda text: text.replace(b'"dtype": "U8"', b'"dtype": "F32", "dtype": "U8"', 1),
    "deep JSON": lambda text: b"[" * 200_000 + b"]" * 200_000,
    "no JSON": lambda text: text[:-1],
    "two values": lambda text: text + b"{}",
    "no UTF-8": lambda text: text.replace(b"U8", b"\xff\xfe", 1),
    "nothing": lambda text: b"",
    "a huge number": lambda text: text.replace(b"[0, ", b"[1" + b"0" * 5000 + b", ", 1),
    "NaN": lambda text: text.replace(b"[0, ", b"[NaN, ", 1),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_that_are_no_header(kind: str, forged: Forged, tmp_path: Path) -> None:
    forged.edit_header = HEADERS[kind]
    refused(forged, tmp_path / "a")


@pytest.mark.parametrize("claim", [0, 1, MOST_HEADER_BYTES, MOST_HEADER_BYTES + 1, 1 << 50, (1 << 64) - 1])
def test_a_header_longer_than_the_file(claim: int, smallest: Path) -> None:
    overwrite(smallest, claim.to_bytes(8, "little") + smallest.read_bytes()[8:])
    with pytest.raises(FormatError, match="not a safetensors file"):
        Reader(smallest)
    assert not is_squeezed(smallest)


def set_field(name: str, value: Any, at: int = 0) -> Callable[[dict[str, Any]], None]:
    def edit(index: dict[str, Any]) -> None:
        column = index["entries"].setdefault(name, [{"home": 1, "dtype": "float32"}.get(name)] * index["n"])
        column[at] = value

    return edit


def set_hashes(edit: Callable[[str], Any]) -> Callable[[dict[str, Any]], None]:
    return lambda index: index["entries"].update(crc=edit(index["entries"]["crc"]))


def set_top(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda index: index.update({name: value})


INDICES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a name twice": set_field("name", "v"),
    "a name that is none": set_field("name", 5),
    "a name of another tensor": set_field("name", "x", 4),
    "a dtype that is none": set_field("dtype", 5),
    "an unknown codec": set_field("codec", "zip"),
    "no codec": lambda index: index["entries"].pop("codec"),
    "a column too short": lambda index: index["entries"]["density"].pop(),
    "a column that is a number": set_top("entries", {"name": 5}),
    "entries that are a list": set_top("entries", [1, 2]),
    "no entries": lambda index: index.pop("entries"),
    "a negative axis": set_field("shape", [-6, -5]),
    "an axis that is text": set_field("shape", ["6", 5]),
    "an axis that is a float": set_field("shape", [6.0, 5]),
    "an axis that is true": set_field("shape", [True, 30]),
    "a shape that is a number": set_field("shape", 30),
    "65 axes": set_field("shape", [1] * 65),
    "a petabyte of weights": set_field("shape", [1 << 25, 1 << 25]),
    "a petabyte of rows": set_field("shape", [1 << 50, 1]),
    "a petabyte of columns": set_field("shape", [1, 1 << 50]),
    "more weights than 64 bits": set_field("shape", [1 << 61, 1 << 61]),
    "an axis above 64 bits": set_field("shape", [1 << 70, 1]),
    "no weights": set_field("shape", [0, 5]),
    "a kernel without weights": set_field("shape", [6, 5, 0]),
    "a kernel of 2**40": set_field("shape", [6, 5, 1 << 20, 1 << 20]),
    "another shape": set_field("shape", [5, 6], 1),
    "a wrong hash": set_hashes(lambda digits: "00000005" + digits[8:]),
    "a hash too few": set_hashes(lambda digits: digits[8:]),
    "a digit too few": set_hashes(lambda digits: digits[1:]),
    "a digit that is none": set_hashes(lambda digits: "+" + digits[1:]),
    "hashes that are numbers": set_hashes(lambda digits: [5] * (len(digits) // 8)),
    "no hashes": lambda index: index["entries"].pop("crc"),
    "a run of more tensors than there are": set_top("tree", ["torch", ["dict", ["run", 0, 6, ""], ["t", 0]]]),
    "a run that begins below 0": set_top("tree", ["torch", ["dict", ["run", -1, 2, ""], ["t", 0]]]),
    "a run of -1": set_top("tree", ["torch", ["dict", ["run", 3, -1, ""], ["t", 0]]]),
    "a run of 2**60": set_top("tree", ["torch", ["dict", ["run", 0, 1 << 60, ""], ["t", 0]]]),
    "runs of more together": set_top("tree", ["torch", ["dict", *[["run", 0, 3, ""], ["t", 0]] * 2]]),
    "a run without a value": set_top("tree", ["torch", ["dict", ["run", 0, 1, ""]]]),
    "a home that is none": set_field("home", 4),
    "a home that is text": set_field("home", "1"),
    "a home that is another": set_field("home", 0),
    "exact pool for factors": set_field("home", 2),
    "an exact stream in the pool": set_field("home", 1, 2),
    "a stream too long": set_field("n_bytes", 1 << 40),
    "a stream too short": set_field("n_bytes", 1),
    "negative bytes": set_field("n_bytes", -1),
    "exact bytes of 2**40": set_field("n_bytes", 1 << 40, 2),
    "same as nothing": set_field("same_as", "x", 3),
    "same as itself": set_field("same_as", "t", 3),
    "same as another shape": set_field("same_as", "b", 3),
    "same as a number": set_field("same_as", 5, 3),
    "a density that is text": set_field("density", "1"),
    "a rank that is negative": set_field("rank", -1),
    "a petabyte of exact weights": set_field("shape", [1 << 47], 4),
    "n below 0": set_top("n", -1),
    "n of 2**60": set_top("n", 1 << 60),
    "n that is a float": set_top("n", 5.0),
    "no n": lambda index: index.pop("n"),
    "about that is empty": set_top("about", {}),
    "no kind": lambda index: index.pop("kind"),
    "no tree": lambda index: index.pop("tree"),
}


@pytest.mark.parametrize("kind", INDICES)
def test_indices_that_make_no_sense(kind: str, forged: Forged, tmp_path: Path) -> None:
    INDICES[kind](forged.index)
    refused(forged, tmp_path / "a", ParamCompressError)


@pytest.mark.parametrize("about", [None, [], 5, "about"])
def test_about_that_is_no_object(about: Any, forged: Forged, tmp_path: Path) -> None:
    forged.index["about"] = about
    (tmp_path / "a").write_bytes(forged.build())
    found = None
    try:
        read_all(tmp_path / "a")
    except Exception as error:
        found = type(error)
    gc.collect()
    assert found is FormatError


@pytest.mark.parametrize("kind", ["int3", "float32x", "Tensor", "__name__", "strided", "float7_e1m5"])
def test_dtypes_that_torch_has_not(kind: str, forged: Forged, tmp_path: Path) -> None:
    set_field("dtype", kind)(forged.index)
    refused(forged, tmp_path / "a", ParamCompressError)


@pytest.mark.parametrize("value", [math.inf, math.nan, 1e400, -1.0])
@pytest.mark.parametrize("name", ["density", "rel_error"])
def test_figures_that_are_no_numbers_harm_nothing(name: str, value: float, forged: Forged, tmp_path: Path) -> None:
    set_field(name, value)(forged.index)
    (tmp_path / "a").write_bytes(forged.build())
    with contextlib.suppress(ParamCompressError):
        read_all(tmp_path / "a")


TEXTS: dict[str, bytes] = {
    "no JSON": b"{",
    "a list": b"[]",
    "a number": b"5",
    "null": b"null",
    "deep JSON": b"[" * 100_000,
    "deep tree": b'{"n":0,"tree":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "no UTF-8": b"\xff\xff",
    "a huge number": b'{"n":1' + b"0" * 10_000 + b"}",
}


@pytest.mark.parametrize("kind", TEXTS)
def test_index_texts(kind: str, forged: Forged, tmp_path: Path) -> None:
    forged.index_text = TEXTS[kind]
    refused(forged, tmp_path / "a")


FRAMES: dict[str, bytes] = {
    "no frame": b"abcdefgh",
    "an empty one": b"",
    "one without its size": zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000)),
    "one that claims petabytes": bytes.fromhex("28b52ffd e0") + (1 << 50).to_bytes(8, "little") + b"\x01\x00\x00",
    "one that claims more than it has": bytes.fromhex("28b52ffd e0") + (9).to_bytes(8, "little") + b"\x01\x00\x00",
    "one that is cut": zstandard.ZstdCompressor().compress(bytes(range(256)))[:-9],
}


@pytest.mark.parametrize("kind", FRAMES)
def test_index_frames(kind: str, forged: Forged, tmp_path: Path) -> None:
    forged.index_frame = FRAMES[kind] or b"\0"
    refused(forged, tmp_path / "a")


@pytest.mark.parametrize("kind", FRAMES)
@pytest.mark.parametrize("part", ["paramcompress.exact4", "o.squeezed"])
def test_exact_frames(part: str, kind: str, forged: Forged, tmp_path: Path) -> None:
    forged.parts[part] = FRAMES[kind]
    if part == "o.squeezed":
        set_field("n_bytes", len(FRAMES[kind]), 4)(forged.index)
    refused(forged, tmp_path / "a", ParamCompressError)


def test_an_unknown_codec_is_a_newer_file(forged: Forged, tmp_path: Path) -> None:
    set_field("codec", "wavelet")(forged.index)
    assert "wavelet" in refused(forged, tmp_path / "a", UnsupportedFormatError)


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a/../b", "CON", ".", "a\0b"])
def test_names_are_no_paths(name: str, forged: Forged, tmp_path: Path) -> None:
    """Names are keys and nothing else: a tensor may have any, and no file comes of it."""
    set_field("name", name)(forged.index)
    forged.index["entries"]["same_as"] = [
        name if other == "w" else other for other in forged.index["entries"]["same_as"]
    ]
    (tmp_path / "a").write_bytes(forged.build())
    before = files_in(tmp_path)
    assert name in paramcompress.load_file(tmp_path / "a")
    assert files_in(tmp_path) == before


def test_a_squeezed_file_is_known_by_its_header(smallest: Path, tmp_path: Path) -> None:
    assert is_squeezed(smallest)
    overwrite(smallest, smallest.read_bytes()[:210])
    assert is_squeezed(smallest), "also where the rest is damaged"
    assert not is_squeezed(tmp_path / "missing")
    assert not is_squeezed(tmp_path)
